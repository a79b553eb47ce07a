"""A reader sees the old file or the new one, never a half."""

import ctypes
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from twinrun.base.errors import PublishError
from twinrun.base.files import ensure_writable, folder_faults, replacing, replacing_folder, write_text

# A writer on a system without renameat2 that is killed when the old folder is away and the new one not yet there.
KILLED_BETWEEN_RENAMES = """
import ctypes, os, sys
from pathlib import Path
from twinrun.base.files import replacing_folder

rename = os.replace

def killed_after(source, target):
    rename(source, target)
    if str(target).endswith("-old"):
        os._exit(9)

ctypes.CDLL = lambda *_, **__: object()
with replacing_folder(Path(sys.argv[1])) as temp:
    (temp / "second").touch()
    os.replace = killed_after
"""


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
    code = (
        "import os, sys; from pathlib import Path; from twinrun.base.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temp: temp.write_text('half'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.txt")], check=False)
    left = [file.name for file in tmp_path.iterdir()]

    write_text("whole", tmp_path / "file.txt")

    assert len(left) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_writer_leaves_alone_what_another_one_is_writing(tmp_path: Path) -> None:
    with replacing(tmp_path / "file.txt") as first:
        first.write_text("first")
        write_text("second", tmp_path / "file.txt")
        there = first.read_text()

    assert there == "first"
    assert (tmp_path / "file.txt").read_text() == "first"


def test_a_writer_on_another_machine_is_given_a_day(tmp_path: Path) -> None:
    for name in (".unfinished-00000000-1-0123abcd-file.txt", ".unfinished-0123abcd-file.txt"):
        (tmp_path / name).write_text("half")
        (tmp_path / name).with_name(name.replace("0123", "4567")).write_text("half")
        os.utime(tmp_path / name, (1, 1))

    write_text("whole", tmp_path / "file.txt")

    left = {".unfinished-00000000-1-4567abcd-file.txt", ".unfinished-4567abcd-file.txt"}
    assert {file.name for file in tmp_path.iterdir()} == {"file.txt", *left}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders in one step")
def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    stop, missing = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            try:
                (tmp_path / "bundle").stat()
            except FileNotFoundError:
                missing.append(1)

    with replacing_folder(tmp_path / "bundle"):
        pass
    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(30):
        with replacing_folder(tmp_path / "bundle") as temp:
            (temp / "number").write_text(str(number))
    stop.set()
    watcher.join()

    assert missing == []
    assert (tmp_path / "bundle/number").read_text() == "29"
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


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


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without renameat2, such as macOS."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


@pytest.mark.parametrize("system", ["Linux", "without an exchange of two folders"])
def test_a_folder_takes_the_place_of_the_old_one_whole(
    tmp_path: Path, request: pytest.FixtureRequest, system: str
) -> None:
    if system != "Linux":
        request.getfixturevalue("no_exchange")
    for name in ("first", "second"):
        with replacing_folder(tmp_path / "bundle") as temp:
            (temp / name).touch()

    assert names(tmp_path / "bundle") == ["manifest.json", "second"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.usefixtures("no_exchange")
def test_the_old_folder_is_back_where_the_new_one_could_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replacing_folder(tmp_path / "bundle") as temp:
        (temp / "first").touch()
    rename = os.replace

    def fails_once_the_old_one_is_away(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "bundle" and not Path(source).name.endswith("-old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "replace", fails_once_the_old_one_is_away)
    with pytest.raises(PublishError), replacing_folder(tmp_path / "bundle") as temp:
        (temp / "second").touch()

    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["first", "manifest.json"]


def test_the_old_folder_of_a_writer_that_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "bundle") as temp:
        (temp / "first").touch()
    subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(tmp_path / "bundle")], check=False)
    left = names(tmp_path)

    with suppress(ZeroDivisionError), replacing_folder(tmp_path / "bundle"):
        raise ZeroDivisionError

    assert len(left) == 2
    assert "bundle" not in left
    assert names(tmp_path) == ["bundle"]
    assert names(tmp_path / "bundle") == ["first", "manifest.json"]


def test_half_of_a_folder_whose_name_ends_with_old_is_no_folder_to_put_back(tmp_path: Path) -> None:
    half = tmp_path / ".unfinished-00000000-1-0123abcd-bundle-old"
    half.mkdir()
    (half / "weights").touch()
    os.utime(half, (1, 1))

    with suppress(ZeroDivisionError), replacing_folder(tmp_path / "bundle"):
        raise ZeroDivisionError

    assert names(tmp_path) == []


def failing_for_folders(number: int) -> Callable[[int], None]:
    """An os.fsync that fails for folders."""
    sync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    return failing


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_folders_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing_for_folders(number))

    write_text("text", tmp_path / "file.txt")
    with replacing_folder(tmp_path / "bundle") as temp:
        (temp / "weights").touch()

    assert names(tmp_path) == ["bundle", "file.txt"]
    assert folder_faults(tmp_path / "bundle") == []


def test_a_folder_that_a_failing_disk_cannot_sync_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing_for_folders(errno.EIO))

    with pytest.raises(PublishError, match="input/output error"):
        write_text("text", tmp_path / "file.txt")


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


def test_a_file_that_is_replaced_stays_as_private_as_it_was_and_can_be_written(tmp_path: Path) -> None:
    for name, mode in (("private", 0o600), ("shared", 0o664), ("protected", 0o444)):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
        write_text("new", tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    write_text("new", tmp_path / "link")

    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("link") != 0o600
    assert modes == {"private": 0o600, "shared": 0o664, "protected": 0o644}
