"""The table of near duplicates, near.parquet: a row for each pair of images that show the same picture."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from twinrun.base.errors import DataError
from twinrun.base.files import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

Change = Literal["re-encoded", "cropped", "mirrored"]


@dataclass(frozen=True)
class NearPair:
    """Two rows, `first` < `second`; `distance` in [0, 1], 0 for the same picture; `change` is what sets them apart."""

    first: int
    second: int
    distance: float
    change: Change


def pairs_table(pairs: Iterable[NearPair]) -> "pa.Table":
    """The table of `pairs`, as ingest writes it."""
    import pyarrow as pa

    return pa.Table.from_pylist([asdict(pair) for pair in pairs], _schema())


def read_pairs(path: Path, images: int | None = None) -> list[NearPair]:
    """Read what `pairs_table` made.

    Raises DataError where it is missing or something else, or names rows that a pack of `images` does not have.
    """
    description, again = "a table of near duplicates", "Create it again: dvc repro -f ingest"
    try:
        pairs = [NearPair(**row) for row in read_parquet(path, _schema(), description, again, nulls=()).to_pylist()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Create it: dvc repro ingest") from None
    for pair in pairs:
        if not 0 <= pair.first < pair.second or (images is not None and pair.second >= images):
            raise DataError(f"{path} is not {description} (it pairs rows {pair.first} and {pair.second}). {again}")
        if not 0 <= pair.distance <= 1 or pair.change not in get_args(Change):
            raise DataError(f"{path} is not {description} (distance {pair.distance}, change {pair.change!r}). {again}")
    return pairs


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema(
        {
            "first": pa.int64(),  # rows of the pack, first < second
            "second": pa.int64(),
            "distance": pa.float64(),  # in [0, 1]; 0: the same picture once aligned
            "change": pa.string(),  # what aligned them: re-encoded, cropped, mirrored
        }
    )
