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
    _expect_regular(path.stat())  # before it is opened, since that may wake a device
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        _expect_regular(status)
        if status.st_size > 0:
            return file
    except OSError:
        file.close()
        raise
    file.close()
    return io.BytesIO()


def _expect_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
