"""Whether served images are like the test split: facts of them in windows of some hundred answers. No image is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinrun.base.errors import DataError
from twinrun.base.regular_files import read_regular
from twinrun.evaluation.conformal import KINDS
from twinrun.evaluation.traffic import IMAGE_FACTS, KIND, PREDICTED, Spread
from twinrun.serving.engine import Answer, Engine
from twinrun.serving.json_lines import JsonLines, read_line
from twinrun.validate.searches.drift import Shift, compare_counts

WINDOW = 500  # answers
DOUBT = 0.01  # of windows without drift, at most so many alarm
_MOST_BYTES = 1_000_000_000
_MOST_IMAGES = 100_000_000  # of a window or a test split; NumPy draws from fewer than ten times as many


class Window(BaseModel):
    """The counts of so many answers in a row, and of the test split of the model that gave them."""

    model_config = ConfigDict(strict=True, frozen=True)

    time: str
    model: dict[str, Any]
    images: Annotated[int, Field(ge=1)]
    reference: dict[str, Spread]
    counts: dict[str, list[Annotated[int, Field(ge=0)]]]

    def shifts(self) -> list[Shift]:
        """How far each fact moved, the largest shift first; significant ones by chance in at most 1% of windows."""
        before = {name: np.array(spread.counts) for name, spread in self.reference.items()}
        now = {name: np.array(self.counts[name]) for name in before}
        return compare_counts(before, now, seed=0, doubt=DOUBT)


@dataclass
class TrafficWatch:
    """Counts answers; every `size` of one model make a window, which is judged and, where wanted, written to a file.

    `last` are the shifts of the last window, None before it; `windows` and `alarms` are counts since the start.
    """

    size: int = WINDOW
    file: JsonLines | None = None
    last: list[Shift] | None = None
    windows: int = 0
    alarms: int = 0
    _lock: Lock = field(default_factory=Lock)
    _model: str = ""
    _counts: dict[str, list[int]] = field(default_factory=dict)
    _images: int = 0

    @property
    def is_nearly_full(self) -> bool:
        """Whether the next answer ends a window, which takes a second to judge."""
        return self._images + 1 >= self.size

    def add(self, engine: Engine, answer: Answer) -> None:
        """Count one answer of a model that has a reference. Raises OSError where the disk does not take a window."""
        reference = None if engine.calibration is None else engine.calibration.traffic
        if reference is None:
            return
        values = dict(zip(IMAGE_FACTS, answer.observed, strict=True)) | {
            PREDICTED: engine.model.classes.index(answer.label),
            KIND: KINDS.index(answer.kind),
        }
        with self._lock:
            if self._model != engine.sha256:
                self._start(engine, reference)
            for name, spread in reference.items():
                self._counts[name][spread.bin_of(values[name])] += 1
            self._images += 1
            if self._images < self.size:
                return
            now = datetime.now(UTC).isoformat(timespec="seconds")
            facts = engine.facts()
            window = Window(time=now, model=facts, images=self._images, reference=dict(reference), counts=self._counts)
            self._start(engine, reference)
        self._judge(window)

    def _start(self, engine: Engine, reference: Mapping[str, Spread]) -> None:
        self._model, self._images = engine.sha256, 0
        self._counts = {name: [0] * len(spread.counts) for name, spread in reference.items()}

    def _judge(self, window: Window) -> None:
        shifts = window.shifts()
        with self._lock:
            self.last, self.windows = shifts, self.windows + 1
            self.alarms += any(shift.significant for shift in shifts)
        if self.file is not None:
            self.file.append(window.model_dump())


def read_windows(path: Path) -> list[Window]:
    """The windows of a file of `twinrun serve --watch`, in order; a line that was cut off is passed over.

    Raises DataError where it is something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} has more than {_MOST_BYTES:,} bytes. Keep the newest lines of it alone.")
        lines = read_regular(path).splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. The server writes it: twinrun serve --watch {path}"
        ) from None
    windows = []
    for number, line in enumerate(lines, 1):
        try:
            if (content := read_line(line)) is None:
                continue
            window = Window.model_validate(content)
            if max([window.images, *(sum(spread.counts) for spread in window.reference.values())]) > _MOST_IMAGES:
                raise ValueError(f"it has more than {_MOST_IMAGES:,} images")
            if any(sum(counts) != window.images for counts in window.counts.values()):
                raise ValueError(f"the counts do not add up to {window.images} answers")
            if {name: len(spread.counts) for name, spread in window.reference.items()} != {
                name: len(counts) for name, counts in window.counts.items()
            }:
                raise ValueError("the counts are of other facts than the reference")
            windows.append(window)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise DataError(f"{path}, line {number}: {where} {error.errors()[0]['msg']}") from None
        except ValueError as error:
            raise DataError(f"{path}, line {number} is no window of answers: {error}. Remove the line.") from None
    return windows
