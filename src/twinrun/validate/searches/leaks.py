"""Copies of one picture: in two splits a leak, under two labels a conflict. Pure: no files, no policy."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from twinrun.dataset.manifest import SPLITS

if TYPE_CHECKING:
    from twinrun.dataset.pairs import NearPair

# What file managers add to the name of a copy: "Copy of x", "x - Copy (2)", "x copy 2", "x (another copy)", "x (1)".
_COPY = "(?:copy|kopie|copie|copia|cópia)"
_COPY_MARK = re.compile(
    rf"^{_COPY} (?:\(\d+\) )?(?:of|von|de|di) |[ _-]+\(?(?:another |\d+\w\w )?{_COPY}(?: ?\(?\d+\)?)?\)?$| ?\(\d+\)$",
    re.IGNORECASE,
)


def distinct_per_key(keys: Sequence[str | None], values: Sequence[str | None]) -> list[int]:
    """For each image, how many different `values` the images with its key have; nulls count for nothing.

    A key is what images have in common: the hash of their pixels, or the name of their group.
    """
    firsts: dict[str, str] = {}
    several: dict[str, set[str]] = {}  # a set for each image would take longer than all the rest
    for key, value in zip(keys, values, strict=True):
        if key is not None and value is not None and (first := firsts.setdefault(key, value)) != value:
            several.setdefault(key, {first}).add(value)
    return [0 if key is None else len(several[key]) if key in several else int(key in firsts) for key in keys]


def leaked(keys: Sequence[str | None], splits: Sequence[str | None]) -> dict[int, int]:
    """Each image of which one with its key is in a later split (train, then val, then test), and the first of the last.

    Without those, no key is in two splits, and what a model is scored on stays whole.
    """
    rank = _rank()
    last: dict[str, tuple[int, int]] = {}  # of each key the place of the split, and the row
    places = [rank.get(split) for split in splits]
    for row, (key, place) in enumerate(zip(keys, places, strict=True)):
        if key is not None and place is not None and (key not in last or place > last[key][0]):
            last[key] = place, row
    return {
        row: last[key][1]
        for row, (key, place) in enumerate(zip(keys, places, strict=True))
        if key is not None and place is not None and place < last[key][0]
    }


def contradicting(keys: Sequence[str | None], labels: Sequence[str | None]) -> dict[int, int]:
    """Each image of which one with its key has another label, and the first of those."""
    first: dict[str, int] = {}
    other: dict[str, int] = {}
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key is not None and label is not None and labels[first.setdefault(key, row)] != label:
            other.setdefault(key, row)
    return {
        row: other[key] if label == labels[first[key]] else first[key]
        for row, (key, label) in enumerate(zip(keys, labels, strict=True))
        if key in other and key is not None and label is not None
    }


def undecided(keys: Sequence[str | None], approved: Sequence[bool]) -> list[str | None]:
    """The keys; null where a person approved of all images that have it."""
    still_open = {key for key, seen in zip(keys, approved, strict=True) if not seen}
    return [key if key in still_open else None for key in keys]


def near_leaked(pairs: "Iterable[NearPair]", splits: Sequence[str | None]) -> "dict[int, NearPair]":
    """The rows of which a near duplicate is in a later split, each with the first of `pairs` that says so."""
    rank = _rank()
    leaks: dict[int, NearPair] = {}
    for pair in pairs:
        first, second = rank.get(splits[pair.first]), rank.get(splits[pair.second])
        if first is not None and second is not None and first != second:
            leaks.setdefault(pair.first if first < second else pair.second, pair)
    return leaks


def first_copies(
    facts: Mapping[str, Sequence[Any]], splits: Sequence[str | None], pairs: "Iterable[NearPair]"
) -> dict[int, int]:
    """For each row that repeats another one of its split, changed or not, the row that stays: the first of them.

    Among identical images with one label, the one that stays is not named as a copy if another is not.
    """
    first: dict[tuple[str, str | None], int] = {}
    copies: dict[int, int] = {}
    for row, (pixels, split) in enumerate(zip(facts["pixels_sha256"], splits, strict=True)):
        if pixels is not None and (earlier := first.setdefault((pixels, split), row)) != row:
            copies[row] = earlier
    swapped = _swapped(facts, splits, {*copies, *copies.values()})
    for pair in pairs:
        if splits[pair.first] == splits[pair.second]:
            copies[pair.second] = min(pair.first, copies.get(pair.second, pair.first))
    return {swapped.get(row, row): swapped.get(stays, stays) for row, stays in copies.items()}


def _swapped(facts: Mapping[str, Sequence[Any]], splits: Sequence[str | None], rows: Iterable[int]) -> dict[int, int]:
    """The first row of each set with equal pixels, split and label, and the one to swap it for, in both directions."""
    sets: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in sorted(rows):
        sets[facts["pixels_sha256"][row], splits[row], facts["label"][row]].append(row)
    swapped: dict[int, int] = {}
    for same in sets.values():
        best = min(same, key=lambda row: (_copy_marks(facts["path"][row]), row))
        swapped |= {same[0]: best, best: same[0]}
    return swapped


def _copy_marks(path: str) -> int:
    """How often a file is named as a copy: 2 for "Copy of x (1).jpg"."""
    name, marks = PurePosixPath(path).stem, 0
    while (shorter := _COPY_MARK.sub("", name, count=1)) != name:
        name, marks = shorter, marks + 1
    return marks


def near_by_pixels(
    pairs: "Iterable[NearPair]", pixels_sha256: Sequence[str | None]
) -> "dict[frozenset[str | None], NearPair]":
    """The near pairs by the pixels of both sides: a pair speaks for all images that have them."""
    return {frozenset((pixels_sha256[pair.first], pixels_sha256[pair.second])): pair for pair in pairs}


def kept_pairs(
    pairs: "Iterable[NearPair]",
    pixels_sha256: Sequence[str | None],
    splits: Sequence[str | None],
    labels: Sequence[str | None],
    dropped: Sequence[object],
    approved: frozenset[int] = frozenset(),
) -> "list[NearPair]":
    """`pairs` among the rows whose entry in `dropped` is None, sorted by distance.

    A pair speaks for all images with the pixels of either side; of those one for each split and label is kept, so that
    a picture that is there a hundred times does not become ten thousand pairs. A pair of which a person approved of
    all of these images, on both sides, is none any more.
    """
    twins: dict[str, dict[tuple[str | None, str | None], int]] = defaultdict(dict)
    for row in sorted(range(len(pixels_sha256)), key=approved.__contains__):
        if (pixels := pixels_sha256[row]) is not None and dropped[row] is None:
            twins[pixels].setdefault((splits[row], labels[row]), row)
    kept: dict[tuple[int, int], NearPair] = {}
    for pair in pairs:
        for first in twins[str(pixels_sha256[pair.first])].values():
            for second in twins[str(pixels_sha256[pair.second])].values():
                low, high = sorted((first, second))
                if low != high and not {low, high} <= approved:
                    kept[low, high] = replace(pair, first=low, second=high)
    return sorted(kept.values(), key=lambda pair: (pair.distance, pair.first, pair.second))


def _rank() -> dict[str | None, int]:
    return {name: index for index, name in enumerate(SPLITS)}
