"""The table of near duplicates, near.parquet: a row for each pair of images that show the same picture."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twinrun.core.errors import DataError

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


def read_pairs(path: Path) -> list[NearPair]:
    """Read what `pairs_table` made; raises DataError where it is missing or something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return [NearPair(**row) for row in pq.read_table(path, columns=_schema().names).to_pylist()]
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Make it: dvc repro ingest") from None
    except (pa.ArrowInvalid, OSError, TypeError) as error:
        raise DataError(
            f"{path} is not a table of near duplicates ({error}). Create it again: dvc repro -f ingest"
        ) from None


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
