"""A reader sees the old file or the new one, never a half."""

from contextlib import suppress
from pathlib import Path

import pytest

from twinrun.errors import PublishError
from twinrun.publish import ensure_writable, folder_faults, replacing, replacing_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text("old", tmp_path / "file.txt")

    with suppress(ZeroDivisionError), replacing(tmp_path / "file.txt") as temp:
        temp.write_text("ne")
        raise ZeroDivisionError

    assert (tmp_path / "file.txt").read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".unfinished-0123abcd-file.txt").write_text("half")

    write_text("new", tmp_path / "file.txt")

    assert names(tmp_path) == ["file.txt"]


def test_a_published_folder_verifies_until_a_byte_changes(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "bundle") as temp:
        (temp / "weights").write_bytes(b"12345678")
    assert folder_faults(tmp_path / "bundle") == []

    (tmp_path / "bundle/weights").write_bytes(b"12345679")

    (fault,) = folder_faults(tmp_path / "bundle")
    assert "weights has sha256" in fault


@pytest.mark.parametrize("change", ["missing", "extra", "no manifest", "torn manifest"])
def test_a_folder_that_is_not_what_was_written_does_not_verify(tmp_path: Path, change: str) -> None:
    with replacing_folder(tmp_path / "bundle") as temp:
        (temp / "weights").write_bytes(b"1")

    match change:
        case "missing":
            (tmp_path / "bundle/weights").unlink()
        case "extra":
            (tmp_path / "bundle/extra").touch()
        case "no manifest":
            (tmp_path / "bundle/manifest.json").unlink()
        case "torn manifest":
            (tmp_path / "bundle/manifest.json").write_bytes(b'{"sha256": {"weig')

    assert folder_faults(tmp_path / "bundle")


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with replacing_folder(tmp_path / "bundle") as temp:
            (temp / name).touch()

    assert names(tmp_path / "bundle") == ["manifest.json", "second"]
    assert names(tmp_path) == ["bundle"]


def test_a_disk_that_is_too_full_is_named_with_the_need(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"1000000000000.0 MB are needed"):
        ensure_writable(tmp_path, needed_bytes=10**18)


def test_a_full_disk_is_named_whichever_language_found_it_full(tmp_path: Path) -> None:
    with (
        pytest.raises(PublishError, match="weights cannot be written: the disk is full"),
        replacing(tmp_path / "weights"),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    assert names(tmp_path) == []
