"""Atomic writes: a file is written beside its place, synced and renamed.

A reader sees the old file or the new one, never half of one. In a folder of several files the manifest, with the sha256
of each, is written last: a folder without a manifest that verifies counts as missing. The order write, fsync, rename,
fsync of the folder is that of Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import DataError, PublishError, os_problem

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
_TEMP_PREFIX = ".unfinished-"
_ABANDONED_S = 86400.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
# Where `cache.type: symlink` makes DVC link to.
IN_DVC_CACHE = re.compile(r"/(files/md5|cache)/[0-9a-f]{2}/[0-9a-f]{30}$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there takes the place of `path` on a clean exit.

    The permission bits of a file stay the same, and its owner always may write it. Raises PublishError, with the path
    and what to do, where the folder is read-only or the disk full.
    """
    temp = _temporary(path)
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(path)
            yield temp
            with suppress(OSError):  # usually there is none
                if stat.S_ISREG(mode := path.lstat().st_mode):
                    temp.chmod(mode & 0o777 | stat.S_IWUSR)
            _sync(temp)
            temp.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # a disk that fails must not hide why
            temp.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on a clean exit it gets its manifest and takes the place of `path`.

    The manifest holds the sha256 of every file and is written last. Old and new folder change places in one step where
    the file system can do that (Linux); elsewhere there is none for a moment. Raises PublishError as `replacing` does.
    """
    temp = _temporary(path)
    old = temp.with_name(temp.name + "-old")
    try:
        with explained(path):
            temp.mkdir(parents=True)
            _sweep(path)
            yield temp
            for file in sorted(temp.rglob("*")):
                if file.is_file():
                    _sync(file)
            write_json({"sha256": folder_hashes(temp)}, temp / MANIFEST)
            if not path.exists():
                temp.replace(path)
            elif not _exchange(temp, path):
                path.replace(old)
                temp.replace(path)
            _sync_folder(path.parent)
    finally:
        _settle(old, path)
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder below the temporary one, removed at the end.

    If a process is killed, its folder stays until the next process on this machine asks for the same `name`.
    """
    path = Path(tempfile.gettempdir(), name)
    with suppress(OSError):  # those of other users
        _sweep(path)
    temp = _temporary(path)
    temp.mkdir(mode=0o700)
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def folder_hashes(folder: Path) -> dict[str, str]:
    """Map the path of each file in `folder`, but the manifest, to its sha256 in hexadecimal."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}


def folder_faults(folder: Path) -> list[str]:
    """Say what differs between `folder` and its manifest, a line for each fault; an empty list if nothing does."""
    try:
        wanted = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        if not isinstance(wanted, dict):
            raise ValueError("sha256 is not a mapping")
    except FileNotFoundError:
        return [f"{folder / MANIFEST} is missing"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return [f"{folder / MANIFEST} cannot be read: {error}"]
    hashes = folder_hashes(folder)
    faults = [f"{folder / name} is missing" for name in wanted.keys() - hashes.keys()]
    faults += [f"{folder / name} is not in the manifest" for name in hashes.keys() - wanted.keys()]
    faults += [
        f"{folder / name} has sha256 {hashes[name][:12]}... and its manifest says {str(wanted[name])[:12]}..."
        for name in wanted.keys() & hashes.keys()
        if wanted[name] != hashes[name]
    ]
    return sorted(faults)


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one way to write `value` as JSON: sorted keys, no spaces, UTF-8. For hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or invalid."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(value: Any, path: Path) -> None:
    """Publish `value` as indented JSON that ends with a newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8, such as those of a patch, become escapes
        text = json.dumps(value, indent=2) + "\n"
    write_text(text, path)


def write_text(text: str, path: Path) -> None:
    """Publish `text` as UTF-8."""
    with replacing(path) as temp:
        temp.write_text(text, encoding="utf-8")


def write_table(table: "pa.Table", path: Path) -> None:
    """Publish an Arrow table as Parquet, byte for byte the same for the same table."""
    import pyarrow.parquet as pq

    with replacing(path) as temp:
        pq.write_table(table, temp, compression="zstd")


def read_parquet(
    path: Path,
    schema: "pa.Schema",
    description: str,
    again: str,
    *,
    optional: Collection[str] = (),
    nulls: Collection[str] | None = None,
) -> "pa.Table":
    """The columns of `schema` in a Parquet file, each of its type, with the metadata of the file.

    Columns in `optional` that the file lacks are null. Values may be missing in the columns of `nulls` only, or
    anywhere if that is None. Raises DataError, which says that the file is not `description` and how to get it `again`;
    a missing file raises FileNotFoundError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a regular file")
        # Not pq.read_table, which imports pandas and takes a second of every training.
        with pq.ParquetFile(path) as file:
            present = [name for name in schema.names if name in file.schema_arrow.names]
            if lacking := [name for name in schema.names if name not in present and name not in optional]:
                raise ValueError(f"it lacks the column {lacking[0]}")
            table = file.read(columns=present)
        if len(table.column_names) != len(set(table.column_names)):
            raise ValueError("two of its columns have the same name")
        for name in set(schema.names) - set(present):
            table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
        metadata = table.schema.metadata
        table = table.select(schema.names).cast(schema.remove_metadata())
        table.validate(full=True)  # text that is not UTF-8, offsets that lead out of the file
        for name in schema.names:
            if nulls is not None and name not in nulls and table[name].null_count:
                raise ValueError(f"values of the column {name} are missing")
        return table.replace_schema_metadata(metadata)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is not {description} ({error}). {again}") from None


def ensure_writable(folder: Path, needed_bytes: int) -> None:
    """Raise PublishError unless `folder` can be written and its disk has `needed_bytes` free."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{_TEMP_PREFIX}probe-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise PublishError(
            f"The disk of {folder} is too full: {needed_bytes / 1e6:.1f} MB are needed and "
            f"{free / 1e6:.1f} MB are free. Free some space and run again; finished results are kept."
        )


def require_replaceable(path: Path, is_own: Callable[[Path], bool], option: str = "") -> None:
    """Raise PublishError where a file at `path` would be lost: one that holds something and that `is_own` denies.

    Called before long work, whose result is to be written to `path`. `option` is the one that names another place.
    """
    elsewhere = f"Name another place{f' ({option})' if option else ''}"
    if path.is_dir():
        raise PublishError(f"{path} is a folder, where a file is to be written. {elsewhere}.")
    if not path.exists():
        if path.is_symlink():
            raise PublishError(f"{path} is a link to a file that does not exist. Remove it. {elsewhere}.")
        return
    if not path.is_file():
        raise PublishError(f"{path} is a pipe or a device, and would be replaced by a file. {elsewhere}.")
    try:
        is_lost = path.stat().st_size > 0 and not is_own(path)
    except OSError as error:
        raise PublishError(os_problem(error, path)) from None
    if is_lost:
        raise PublishError(
            f"{path} exists, is not what this command writes, and would be lost. {elsewhere}, or move that file away."
        )


def behind_links(path: Path) -> Path:
    """The file that `path` leads to by links, since a file that replaces `path` would take the place of the link.

    It is `path` itself where it leads nowhere, or into DVC's cache, whose files never change.
    """
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return path
    return path if IN_DVC_CACHE.search(target.as_posix()) else target


def is_read_only(folder: Path) -> bool:
    """Whether a folder exists in which this user can create no file."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the disk while `path` is written into a PublishError that says what to do."""
    try:
        yield
    except Exception as error:
        number = _error_number(error)
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PublishError(
                f"{path} cannot be written: its folder is read-only for this user ({os.strerror(number)}). "
                f"Make {path.parent} writable and run again."
            ) from error
        if number in _OF_THE_DISK:
            raise PublishError(os_problem(OSError(number, os.strerror(number)), path, verb="written")) from error
        raise


# With these, `path` is not written, whichever file they name; others, such as ENOENT, may be about another file.
_OF_THE_DISK = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE),
        *(errno.ENOLCK, errno.EFBIG, errno.ELOOP),
    }
)


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # A library written in Rust, as safetensors is, raises its own error with the number in its text.
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Sync a folder after a rename in it, where its file system can: some of VirtualBox, FUSE and CIFS cannot."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _settle(old: Path, path: Path) -> None:
    """Rename the replaced folder `old` back to `path` where nothing took its place; remove it where something did."""
    with suppress(OSError):  # usually there is none
        if not path.exists():
            old.replace(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` that identifies the process and the machine that write it."""
    return path.with_name(f"{_TEMP_PREFIX}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}-{path.name}")


def _machine() -> str:
    """A hash of this boot of this machine and this container, in which a process id is unique."""
    facts = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            facts.append(os.readlink(place) if "/ns/" in place else Path(place).read_text())  # noqa: PTH115
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:8]


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` left behind, but not the files of a writer that may be running.

    A folder that was to be replaced is renamed back if its writer was killed before the new one took its place.
    """
    pattern = re.compile(
        rf"{re.escape(_TEMP_PREFIX)}([0-9a-f]{{8}})-(?:(\d+)-[0-9a-f]{{8}}-)?{re.escape(path.name)}(-old)?"
    )
    for leftover in path.parent.glob(f"{_TEMP_PREFIX}*"):
        match = pattern.fullmatch(leftover.name)
        if match is None or not _is_left(leftover, match[1], match[2]):
            continue
        if match[3] and (leftover / MANIFEST).is_file():  # not half of another folder, whose name ends with -old
            _settle(leftover, path)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_left(leftover: Path, machine: str, process: str | None) -> bool:
    """Whether its writer is gone: the process is dead or, for a process on another machine, the file is a day old."""
    if process is not None and machine == _machine():
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            return False
        return False
    try:
        return time.time() - leftover.lstat().st_mtime > _ABANDONED_S
    except OSError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
