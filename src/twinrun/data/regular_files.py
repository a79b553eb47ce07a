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
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(number)
        _expect_regular(status)
        if status.st_size == 0:
            os.close(number)
            return io.BytesIO()
        return os.fdopen(number, "rb")
    except OSError:
        os.close(number)
        raise


def _expect_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
