"""Near duplicates are read as they were written, and only if they can be pairs of this pack."""

from pathlib import Path

import pytest

from twinrun.base.errors import DataError
from twinrun.base.files import write_table
from twinrun.dataset.pairs import NearPair, pairs_table, read_pairs

PAIR = NearPair(0, 3, 0.25, "mirrored")


def test_pairs_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_table(pairs_table([PAIR]), tmp_path / "near.parquet")

    assert read_pairs(tmp_path / "near.parquet", 4) == [PAIR]


@pytest.mark.parametrize(
    "pair", [NearPair(3, 0, 0.1, "cropped"), NearPair(0, 4, 0.1, "cropped"), NearPair(0, 1, 1.5, "cropped")]
)
def test_a_pair_that_cannot_be_one_is_refused(tmp_path: Path, pair: NearPair) -> None:
    write_table(pairs_table([pair]), tmp_path / "near.parquet")

    with pytest.raises(DataError, match="dvc repro -f ingest"):
        read_pairs(tmp_path / "near.parquet", 4)
