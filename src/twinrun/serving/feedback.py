"""What users teach back: photos with the label that they gave, in quarantine until a person accepts them.

A photo comes with consent alone, loses its metadata and is named by the sha256 of what is left; a line of items.jsonl
says which label was given and which model said what. `twinrun data feedback` checks them; nothing here is data yet.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinrun.base.errors import DataError
from twinrun.base.files import replacing
from twinrun.models.stored import StoredPreprocessing
from twinrun.serving.answer_log import AnsweringModel
from twinrun.serving.json_lines import JsonLines
from twinrun.serving.stripping import without_metadata

FEEDBACK = Path("data/feedback")
ITEMS = "items.jsonl"
PER_MINUTE = 30
MOST_ITEMS = 10_000
MOST_BYTES = 2_000_000_000  # of all photos together


class FeedbackItem(BaseModel):
    """One photo in quarantine: its file, the label that was given, and what the model had said."""

    model_config = ConfigDict(strict=True, frozen=True)

    time: str
    file: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\.(jpg|png)$")]
    label: str
    predicted: str
    model: AnsweringModel


class TooMuch(Exception):
    """No more feedback is taken for `wait_s` seconds."""

    def __init__(self, message: str, wait_s: int) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass
class _Taken:
    """What the folder holds, and how many more photos may come at once; `counted` is when that was so.

    `lines` are all photos and labels in the table, and `items` those whose photo is there.
    """

    lines: set[tuple[str, str]]
    items: set[tuple[str, str]]
    bytes: int
    allowance: float
    counted: float

    @property
    def is_full(self) -> bool:
        return len(self.items) >= MOST_ITEMS or self.bytes >= MOST_BYTES


class Quarantine:
    """The folder to which feedback goes."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder cannot be written, or holds something else."""
        self._folder, self._lock = folder, Lock()
        with suppress(OSError):  # JsonLines says why
            folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / ITEMS, "--feedback")
        self._taken = _Taken(*_held(folder), PER_MINUTE, time.monotonic())

    def allow(self) -> None:
        """Count one more request. Raises TooMuch where there were too many, or the folder is full."""
        with self._lock:
            taken, now = self._taken, time.monotonic()
            taken.allowance = min(PER_MINUTE, taken.allowance + (now - taken.counted) * PER_MINUTE / 60)
            taken.counted = now
            if taken.allowance < 1:
                raise TooMuch(f"At most {PER_MINUTE} photos a minute are taken. Send it again in a minute.", 60)
            taken.allowance -= 1
            if taken.is_full:
                self._count()
            if taken.is_full:
                raise TooMuch("No more feedback can be kept until what is there was looked at and removed.", 3600)

    def add(self, image: bytes, label: str, answer: dict[str, Any], settings: StoredPreprocessing) -> str:
        """Keep a photo that was classified with `answer` under the label that a person gives it; returns its sha256.

        The same photo with the same label is kept once. Raises OSError or PublishError where it cannot be stored.
        """
        photo, suffix = without_metadata(image, settings)
        digest = hashlib.sha256(photo).hexdigest()
        name = digest + suffix
        with self._lock:
            is_there, item = (self._folder / name).exists(), (name, label)
            if not self._lines.is_there or (item in self._taken.lines and not is_there):
                self._count()
            if not is_there:
                with replacing(self._folder / name) as temp:
                    temp.write_bytes(photo)
                self._taken.bytes += len(photo)
            if item not in self._taken.lines:
                model = {field: answer["model"][field] for field in AnsweringModel.model_fields}
                line = {"file": name, "label": label, "predicted": answer["label"], "model": model}
                self._lines.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **line})
                self._taken.lines.add(item)
            self._taken.items.add(item)
        return digest

    def _count(self) -> None:
        """Look at what is left: a person removes photos, or all of the folder, while the server runs."""
        with suppress(DataError, OSError):  # a spoiled line, which `twinrun data feedback` names; a file just removed
            self._taken.lines, self._taken.items, self._taken.bytes = _held(self._folder)


def _held(folder: Path) -> tuple[set[tuple[str, str]], set[tuple[str, str]], int]:
    """All photos in the table of a folder, each with a label that it was given; those that are there; their bytes."""
    lines = {(item.file, item.label) for item in read_feedback(folder)}
    items = {item for item in lines if (folder / item[0]).is_file()}
    sizes = {file: (folder / file).stat().st_size for file, _ in items}
    return lines, items, sum(sizes.values())


def read_feedback(folder: Path) -> list[FeedbackItem]:
    """The items of a folder in the order in which they came; a line that a crash cut off is passed over.

    Raises DataError, which names the line, where one is something else.
    """
    path = folder / ITEMS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    items = []
    for number, line in enumerate(lines, 1):
        try:
            items += [FeedbackItem.model_validate(json.loads(line))] if line.strip() else []
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise DataError(f"{path}, line {number}: {where} {problem['msg']}. Remove the line.") from None
        except (ValueError, RecursionError):  # cut off
            continue
    return items
