"""Files to which the server only appends: one JSON object a line, whole or not at all."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from twinrun.base.errors import DataError

_START = b'{"time":'  # of every line that the server writes


class JsonLines:
    """Appends to one file, a whole line at a time, also from several threads or processes."""

    def __init__(self, path: Path, option: str) -> None:
        """Open `path`, which `option` named. Raises DataError where it cannot be written or holds something else."""
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            start = os.pread(self._file, len(_START), 0) if os.fstat(self._file).st_size else b""
        except OSError as error:
            raise DataError(f"{path} ({option}) cannot be written: {error.strerror}. Name another file.") from None
        if not _START.startswith(start.partition(b"\n")[0]):  # of a line that was cut off, a part is there
            os.close(self._file)
            raise DataError(
                f"{path} ({option}) is not a file that the server writes, and nothing was added to it. Name another "
                "file."
            )

    def append(self, content: dict[str, Any]) -> None:
        """Add one line. Raises OSError where the disk does not take it; what it took of the line stays, by itself."""
        data = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._lock:
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":  # cut off by a crash or a full disk
                data = b"\n" + data
            if os.write(self._file, data) < len(data):
                raise OSError(f"{self._path}: the disk is full")
            os.fsync(self._file)


def read_line(line: bytes) -> Any:
    """The content of one line; None where it is empty or was cut off. Raises ValueError where it is no JSON object."""
    try:
        return json.loads(line) if line.strip() else None
    except (ValueError, RecursionError) as error:
        if line.startswith(b"{"):
            return None
        raise ValueError(str(error)) from None
