"""The log of answers, one JSON object a line: hashes of image, weights and logits, and never the image."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twinrun.core.errors import DataError

_FIELDS = ("label", "kind", "labels", "image_sha256", "logits_sha256", "error")


class AnswerLog:
    """Appends to one file, a whole line at a time, also from several threads or processes."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where the file cannot be written."""
        self._path, self._lock = path, threading.Lock()
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataError(f"{path} (--log) cannot be written: {error.strerror}. Name another file.") from None

    def add(self, row: dict[str, Any]) -> None:
        """Record one answer. Raises OSError where the disk does not take it."""
        kept = {name: row[name] for name in _FIELDS if name in row}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **kept, "model": row["model"]}, ensure_ascii=False) + "\n"
        data = line.encode("utf-8", "backslashreplace")
        with self._lock:
            if os.write(self._file, data) < len(data):
                raise OSError(f"{self._path}: the disk is full")
            os.fsync(self._file)
