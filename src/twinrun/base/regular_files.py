"""Opening files that others may have put there: regular ones alone, and without ever waiting."""

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes. Raises OSError, with a reason of its own for a pipe, device or socket.

    A file of no bytes is not read: those of /proc claim none, and some of them wait for ever or never end.
    """
    _expect_regular(path, path.stat())  # before it is opened, since that may wake a device
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        _expect_regular(path, status)
        if status.st_size > 0:
            return file
    except OSError:
        file.close()
        raise
    file.close()
    return io.BytesIO()


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises OSError as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def _expect_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
