"""A pack is what ingest wrote, or a sentence that says what it is instead."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from twinrun.base.errors import DataError
from twinrun.dataset.pack import PackWriter, creating_pack, open_pack


def test_rows_that_several_writers_put_into_a_pack_are_read_where_they_were_put(tmp_path: Path) -> None:
    images = np.arange(4 * 2 * 3 * 1, dtype=np.uint8).reshape(4, 2, 3, 1)

    with creating_pack(tmp_path / "images.npy", images.shape) as pack:
        for first_row in (2, 0):
            writer = PackWriter(pack)
            writer.write(first_row, images[first_row : first_row + 2])
            writer.close()

    assert np.array_equal(open_pack(tmp_path / "images.npy"), images)


def test_a_pack_that_is_left_by_an_error_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), creating_pack(tmp_path / "images.npy", (1, 2, 2, 3)):
        raise RuntimeError("the disk is gone")

    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="is missing"):
        open_pack(tmp_path / "images.npy")


def test_the_room_that_a_killed_run_took_is_there_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom twinrun.dataset.pack import creating_pack\n"
        "with creating_pack(Path('images.npy'), (1, 100, 100, 1)): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    (left,) = tmp_path.iterdir()

    def disk(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=15_000 - sum(file.stat().st_size for file in tmp_path.iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", disk)
    with creating_pack(tmp_path / "images.npy", (1, 100, 100, 1)):
        pass

    assert killed.returncode == -signal.SIGKILL
    assert not left.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["images.npy"]


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.uint8), np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 4), np.uint8)]
)
def test_an_array_that_is_no_pack_is_named_by_its_type_and_shape(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "images.npy", array)

    with pytest.raises(DataError, match=f"has {array.dtype}"):
        open_pack(tmp_path / "images.npy")
