"""Files to which the server only appends: one JSON object a line, whole or not at all."""

import errno
import json
import os
import shlex
import stat
import sys
import threading
from pathlib import Path
from typing import Any

from twinrun.base.errors import DataError
from twinrun.base.printing import print

_START = b'{"time":'  # of every line that the server writes


class JsonLines:
    """Appends to one file, a whole line at a time, also from several threads or processes."""

    def __init__(self, path: Path, option: str) -> None:
        """Open `path`, which `option` named. Raises DataError where it cannot be written or holds something else."""
        self._path, self._named, self._lock = path, f"{path} ({option})", threading.Lock()
        self._is_failing = False
        try:
            if path.is_symlink() and not path.exists():
                raise DataError(
                    f"{self._named} is a link to {path.readlink()}, which does not exist. Create that, or name another "
                    "file."
                )
            if not path.parent.exists():
                folder = shlex.quote(str(path.parent))
                raise DataError(
                    f"{self._named} cannot be written: there is no folder {path.parent}. Create it: mkdir -p {folder}"
                )
            self._file = self._opened()
        except OSError as error:
            raise DataError(f"{self._named} cannot be written: {error.strerror}. Name another file.") from None

    @property
    def is_there(self) -> bool:
        """Whether the path still names the file that was opened: it may have been removed, or moved away."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file))
        except OSError:
            return False

    def append(self, content: dict[str, Any]) -> None:
        """Add one line. Raises OSError where the disk does not take it; what it took of the line stays, by itself.

        The first such line is reported on stderr, and so is the next one after others were taken. A file that was
        removed or moved away meanwhile, alone or with its folder, is begun anew.
        """
        data = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            try:
                self._append(data)
            except OSError as error:
                if not self._is_failing:
                    print(f"Nothing can be added to {self._named}: {error.strerror}.", file=sys.stderr, flush=True)
                self._is_failing = True
                raise
            self._is_failing = False

    def _opened(self) -> int:
        """Raises DataError where the file is something else."""
        file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        status = os.fstat(file)
        start = os.pread(file, len(_START), 0) if stat.S_ISREG(status.st_mode) else b""
        # Of a line that was cut off, a part is there.
        if stat.S_ISREG(status.st_mode) and _START.startswith(start.partition(b"\n")[0]):
            return file
        os.close(file)
        raise DataError(
            f"{self._named} is not a file that the server writes, and nothing was added to it. Name another file."
        )

    def _append(self, data: bytes) -> None:
        if not self.is_there:
            self._path.parent.mkdir(exist_ok=True)  # and none above: a disk that is unmounted lacks those too
            try:
                renewed = self._opened()
            except DataError:
                raise OSError(errno.EEXIST, "another file has its name now", str(self._path)) from None
            os.close(self._file)
            self._file = renewed
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":  # cut off by a crash or a full disk
            data = b"\n" + data
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, "the disk is full", str(self._path))
        os.fsync(self._file)


def read_line(line: bytes) -> Any:
    """The content of one line; None where it is empty or was cut off. Raises ValueError where it is no JSON object."""
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        if line.startswith(b"{"):
            return None
        raise ValueError(str(error)) from None
