"""The manifest and the pack, as later stages read them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twinrun.base.errors import DataError, PublishError
from twinrun.base.files import write_table
from twinrun.core.params import load_params
from twinrun.dataset.manifest import read_manifest, read_manifest_table, write_manifest
from twinrun.dataset.pack import PackWriter, creating_pack, open_pack
from twinrun.training.fingerprint import fingerprint_parts


def test_a_manifest_gives_back_the_usable_rows_of_each_split(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(
        path,
        ids=["i0", "i1", "i2", "i3", "i4"],
        labels=["cat", "ant", None, "cat", "ant"],
        splits=["train", "test", None, "train", "val"],
        dropped=[None, None, "broken: is empty", "leak: ...", None],
    )

    manifest = read_manifest(path)

    assert manifest.classes == ("ant", "cat")
    assert [len(manifest.split(name)) for name in ("train", "val", "test")] == [1, 1, 1]
    assert manifest.split("train").rows.tolist() == [0]
    assert manifest.split("train").targets.tolist() == [1]
    assert manifest.split("test").ids == ["i1"]
    assert manifest.split("val").targets.dtype == np.int64
    with pytest.raises(DataError, match="There is no split 'dev'"):
        manifest.split("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [None, b"", b"not parquet at all"])
def test_a_manifest_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "manifest.parquet"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match="dvc repro"):
        read_manifest(path)


def test_a_manifest_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    write_table(pa.table({"row": [0], "id": ["i0"]}), tmp_path / "manifest.parquet")

    with pytest.raises(DataError, match=r"is not a manifest .*label.*dvc repro"):
        read_manifest(tmp_path / "manifest.parquet")


def test_what_a_person_decided_is_recorded_and_the_words_of_it_change_no_training(tmp_path: Path) -> None:
    train = load_params(Path("params.yaml")).train
    hashes = []
    for words in ("relabel: it barks", "relabel"):
        path = tmp_path / "manifest.parquet"
        write_manifest(
            path,
            ids=["i0", "i1"],
            labels=["cat", "dog"],
            splits=["train", "train"],
            dropped=[None, None],
            given=["dog", "dog"],
            decisions=[words, None],
        )
        assert read_manifest_table(path)["decision"].to_pylist() == [words, None]
        hashes.append(fingerprint_parts(train, {}, path, read_manifest(path), {})["data"]["manifest"])

    assert hashes[0] == hashes[1]


def test_a_manifest_of_before_there_were_decisions_in_it_is_read_as_one_without(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(path, ids=["i0"], labels=["cat"], splits=["train"], dropped=[None])
    before = read_manifest_table(path)
    write_table(before.drop_columns(["decision"]), path)

    assert read_manifest_table(path) == before


def test_rows_written_in_any_order_are_found_in_their_places_and_others_are_zero(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "images.npy"
    images = np.random.default_rng(0).integers(1, 256, (5, 4, 4, 3), dtype=np.uint8)

    with creating_pack(path, (6, 4, 4, 3)) as temp:
        assert not path.exists()
        for first, last in ((3, 5), (0, 2), (2, 3)):
            writer = PackWriter(temp)
            writer.write(first, images[first:last])
            writer.close()

    pack = open_pack(path)
    assert np.array_equal(pack[:5], images)
    assert not pack[5].any()
    assert isinstance(pack, np.memmap)
    assert [file.name for file in path.parent.iterdir()] == ["images.npy"]


def test_a_pack_that_was_not_finished_never_appears(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), creating_pack(tmp_path / "images.npy", (6, 4, 4, 3)):
        raise RuntimeError("stopped")

    assert list(tmp_path.iterdir()) == []


def test_a_pack_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="too full"), creating_pack(tmp_path / "images.npy", (10**9, 1024, 1024, 3)):
        raise AssertionError("never reached")


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00"])
def test_a_pack_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "images.npy"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(DataError, match="dvc repro"):
        open_pack(path)


def test_an_array_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((3, 4), np.float32))

    with pytest.raises(DataError, match=r"has float32 \(3, 4\)"):
        open_pack(tmp_path / "images.npy")


def test_reading_a_manifest_and_a_pack_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    write_manifest(path, ids=["i0"], labels=["cat"], splits=["train"], dropped=[None])
    code = (
        "import sys, pathlib, twinrun.dataset.pack\n"
        "from twinrun.dataset.manifest import read_manifest\n"
        "def heavy(): return sorted({'torch', 'pandas', 'PIL', 'great_expectations', 'pyarrow'} & set(sys.modules))\n"
        "print(heavy())\n"
        "read_manifest(pathlib.Path(sys.argv[1]))\n"
        "print(heavy())"
    )

    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["[]", "['pyarrow']"]
