"""What a source offers before anything is decoded: names, labels, published splits, and where the content lies."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinrun.base.paths import expanded
from twinrun.base.printing import escaped as escaped
from twinrun.core.params import IngestParams
from twinrun.dataset.manifest import SplitName

RAW = Path("data/raw")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be: its path inside the source, and what the source says of it.

    `problem` says why it may not be used, whatever it holds: a picture beside the class folders has no label. Images of
    one `group`, such as a burst or a patient, stay in one split.
    """

    path: str
    label: str | None
    split: SplitName | None
    problem: str | None = None
    group: str | None = None

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the sha256 of the path."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Files:
    """Content in files, one for each item, in the same order."""

    paths: list[Path]


@dataclass(frozen=True)
class Arrays:
    """Content in memory: uint8 (N, H, W, C), C = 1 or 3, and the name of the format that it came in."""

    pixels: npt.NDArray[np.uint8]
    format: str


@dataclass(frozen=True)
class Listing:
    """All items of a source, sorted by path, their content in the same order, and notes for the terminal."""

    items: list[Item]
    content: Files | Arrays
    notes: list[str] = field(default_factory=list)


def some_names(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def words_of(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


def source_folder(params: IngestParams) -> Path:
    """Where a source's files are, as params.yaml says."""
    return expanded(params.path)


def sorted_listing(items: list[Item], content: Files | Arrays, notes: list[str] | None = None) -> Listing:
    """A listing in the order that every later file has: by path."""
    order = sorted(range(len(items)), key=lambda i: items[i].path)
    content = Files([content.paths[i] for i in order]) if isinstance(content, Files) else _reordered(content, order)
    return Listing([items[i] for i in order], content, notes or [])


def _reordered(arrays: Arrays, order: list[int]) -> Arrays:
    return arrays if order == list(range(len(order))) else Arrays(arrays.pixels[order], arrays.format)
