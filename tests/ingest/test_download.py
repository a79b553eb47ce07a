"""What stands in the folder when fetching ends early."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from data_support import Project

from twinrun.ingest import download
from twinrun.ingest.download import unpack

STEMS = ["data_batch_1", "test_batch"]
CONTENT = {f"{stem}.bin": hashlib.sha256(stem.encode()).digest() * 10_000 for stem in STEMS}


def test_unpacking_that_ends_midway_leaves_no_cut_file_and_can_be_done_again(tmp_path: Path) -> None:
    archive, folder = tmp_path / "published.tar", tmp_path / "cifar10"
    with tarfile.open(archive, "w") as tar:
        for name, content in [("readme.html", b"about"), *CONTENT.items()]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    whole = archive.read_bytes()

    archive.write_bytes(whole[: whole.index(CONTENT["test_batch.bin"]) + 1000])
    with pytest.raises(tarfile.ReadError):
        unpack(archive, folder, STEMS)
    left = files(folder / "cifar-10-batches-bin")
    archive.write_bytes(whole)
    unpack(archive, folder, STEMS)

    assert left == {"data_batch_1.bin": CONTENT["data_batch_1.bin"]}
    assert files(folder / "cifar-10-batches-bin") == CONTENT


def test_an_archive_that_a_person_fetched_is_unpacked_and_stays(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = project.folder / "data/raw/cifar10/cifar-10-binary.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        for number, stem in enumerate(["test_batch", *(f"data_batch_{number}" for number in range(1, 6))]):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{stem}.bin")
            member.size = 1 + 3 * 32 * 32
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
    whole = archive.read_bytes()
    monkeypatch.setattr(download, "_CIFAR10_MD5", hashlib.md5(whole).hexdigest())
    project.set(ingest__source="cifar10", ingest__path="data/raw/cifar10")

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert len(project.table()) == 6
    assert archive.read_bytes() == whole


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
