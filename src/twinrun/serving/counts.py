"""What a server counts for Prometheus, summed over its workers, also those that died."""

import json
import os
import time
from collections import Counter
from pathlib import Path

from twinrun.base.files import read_json

_EVERY_S = 1.0


class Counts:
    """Counters by their name in Prometheus; touched by the event loop alone.

    With a `folder`, each worker leaves its counters there, at most once a second, and reads those of the others.
    """

    def __init__(self, folder: Path | None) -> None:
        self.in_flight = 0  # images
        self.body_bytes = 0  # of requests that wait for their answer
        self._own: Counter[str] = Counter({"twinrun_images_total": 0})
        self._file = None if folder is None else folder / f"{os.getpid()}.json"
        self._written = 0.0

    def add(self, name: str, number: float) -> None:
        """Count `number` more of `name`."""
        self._own[name] += number  # type: ignore[assignment]
        if self._file is not None and time.monotonic() > self._written + _EVERY_S:
            self._write(self._file)

    def set(self, name: str, number: int) -> None:
        """So many of `name` were counted elsewhere in this process."""
        self._own[name] = number

    def of_all(self) -> dict[str, float]:
        """The counters of all workers."""
        total = Counter(self._own)
        if self._file is not None:
            self._write(self._file)
            for file in self._file.parent.glob("*.json"):
                if file != self._file:
                    total.update(read_json(file))
        return dict(total)

    def _write(self, file: Path) -> None:
        self._written = time.monotonic()
        unfinished = file.with_suffix(".unfinished")
        try:
            unfinished.write_text(json.dumps(self._own))
            unfinished.replace(file)
        except OSError:  # counts are no reason to fail
            pass
