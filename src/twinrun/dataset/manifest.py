"""The manifest: which rows of the pack may be used, each with its split and its class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from twinrun.base.errors import DataError
from twinrun.base.files import read_parquet, write_table
from twinrun.core.arrays import IntArray

if TYPE_CHECKING:
    import pyarrow as pa

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_DECISION = "decision"
_UNIT = "unit"


@dataclass(frozen=True)
class Split:
    """The usable images of one split, in the order of the pack.

    Images of one unit show the same thing: near duplicates of one picture, or members of a group. They stay together
    wherever images are divided. Without units each image is a unit.
    """

    rows: IntArray
    ids: list[str]
    targets: IntArray
    units: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Manifest:
    """The classes, sorted by name, and the usable images of each split."""

    classes: tuple[str, ...]
    splits: dict[SplitName, Split]

    def split(self, name: SplitName) -> Split:
        """The images of one split: rows of the pack (n,), ids and targets (n,), which index `classes`.

        Raises DataError for another name.
        """
        if name not in self.splits:
            raise DataError(f"There is no split {name!r}; the splits are {', '.join(self.splits)}.")
        return self.splits[name]

    def rows_of(self, ids: Sequence[str]) -> IntArray:
        """The rows of the pack, shape (n,), of usable images of any split."""
        rows = {
            name: row
            for split in self.splits.values()
            for name, row in zip(split.ids, split.rows.tolist(), strict=True)
        }
        return np.array([rows[name] for name in ids], np.int64)


def read_manifest(path: Path, images: int | None = None) -> Manifest:
    """Read what `write_manifest` wrote.

    Raises DataError where it is missing or not a manifest, or names rows that a pack of `images` does not have.
    """
    import pyarrow.compute as pc

    table = read_manifest_table(path)
    used = table.filter(pc.is_null(table["dropped"]))
    if fault := _fault(used, images):
        raise DataError(f"{path} is not a manifest of this pack ({fault}). Create it again: dvc repro -f validate")
    rows, ids = np.array(used["row"].to_pylist(), np.int64), used["id"].to_pylist()
    targets, names = np.array(used["target"].to_pylist(), np.int64), np.array(used["split"].to_pylist(), dtype=object)
    units = [unit or image_id for unit, image_id in zip(used[_UNIT].to_pylist(), ids, strict=True)]
    by_target = dict(zip(targets.tolist(), used["label"].to_pylist(), strict=True))
    if sorted(by_target) != list(range(len(by_target))):
        raise DataError(f"{path} has images for only some of its classes. Create it again: dvc repro -f validate")
    return Manifest(
        classes=tuple(by_target[target] for target in sorted(by_target)),
        splits={
            name: Split(
                rows=rows[names == name],
                ids=[ids[i] for i in np.flatnonzero(names == name)],
                targets=targets[names == name],
                units=[units[i] for i in np.flatnonzero(names == name)],
            )
            for name in SPLITS
        },
    )


def read_manifest_table(path: Path) -> "pa.Table":
    """A manifest as it is written, with a row for every image of the pack; raises DataError as `read_manifest` does.

    One of an earlier version lacks the columns for decisions and units, which are then null.
    """
    nulls = ("label", "split", "dropped", "given", _DECISION, _UNIT)
    again = "Create it again: dvc repro -f validate"
    try:
        return read_parquet(path, _schema(), "a manifest", again, optional=(_DECISION, _UNIT), nulls=nulls)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Create it: dvc repro validate") from None


def write_manifest(
    path: Path,
    *,
    ids: Sequence[str],
    labels: Sequence[str | None],
    splits: Sequence[str | None],
    dropped: Sequence[str | None],
    given: Sequence[str | None] | None = None,
    decisions: Sequence[str | None] | None = None,
    units: Sequence[str | None] | None = None,
) -> None:
    """Publish a manifest with a row for every image of the pack, those with a reason in `dropped` as not usable.

    Classes are those of the usable images. `given` are the labels that the source gave, where a person decided on
    others; they are recorded beside those. `decisions` are those of a person, in words. `units` name what an image
    shows with others, see Split.
    """
    import pyarrow as pa

    used = [label if reason is None else None for label, reason in zip(labels, dropped, strict=True)]
    targets = {label: index for index, label in enumerate(sorted({label for label in used if label is not None}))}
    columns = {
        "row": range(len(ids)),
        "id": ids,
        "label": labels,
        "target": [-1 if label is None else targets[label] for label in used],
        "split": splits,
        "dropped": dropped,
        "given": labels if given is None else given,
        _DECISION: [None] * len(ids) if decisions is None else decisions,
        _UNIT: [None] * len(ids) if units is None else units,
    }
    write_table(pa.table(columns, schema=_schema()), path)


def _fault(used: "pa.Table", images: int | None) -> str | None:
    """What is wrong with the rows that may be used, or None."""
    rows, splits, labels = (used[name].to_pylist() for name in ("row", "split", "label"))
    if rows and (min(rows) < 0 or (images is not None and max(rows) >= images)):
        return f"it names the rows {min(rows)} to {max(rows)} of {'some' if images is None else f'{images:,}'} images"
    for name, values in (("row", rows), ("id", used["id"].to_pylist())):
        if len(set(values)) != len(values):
            return f"two usable images have the same {name}"
    if unknown := {split for split in splits if split not in SPLITS}:
        return f"it has the split {sorted(map(str, unknown))[0]!r}"
    if None in labels:
        return "a usable image has no label"
    targets = used["target"].to_pylist()
    if not len(set(labels)) == len(set(targets)) == len(set(zip(targets, labels, strict=True))):
        return "its labels and their numbers differ"
    return None


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "row": pa.int64(),
            "id": pa.string(),
            "label": pa.string(),
            "target": pa.int64(),  # the label's place among those used, or -1 where the image may not be
            "split": pa.string(),
            "dropped": pa.string(),  # why the image may not be used, or null
            "given": pa.string(),  # the label that the source gave
            _DECISION: pa.string(),  # what a person decided and why, such as "relabel: it barks", or null
            _UNIT: pa.string(),  # the same for near duplicates and for members of a group, or null
        }
    )
