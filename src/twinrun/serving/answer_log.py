"""The log of answers, one JSON object a line: hashes of image, weights and logits, and never the image."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from twinrun.serving.json_lines import JsonLines

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FIELDS = ("label", "kind", "labels", "image_sha256", "logits_sha256", "error")


class AnsweringModel(BaseModel):
    """Which model gave an answer, as the answer says it."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    version: int | None
    weights_hash: Sha256


class AnswerLog:
    """Appends to one file, a whole line at a time, also from several threads or processes."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where the file cannot be written."""
        self._lines = JsonLines(path, "--log")

    def add(self, row: dict[str, Any]) -> None:
        """Record one answer. Raises OSError where the disk does not take it."""
        kept = {name: row[name] for name in _FIELDS if name in row}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append({"time": now, **kept, "model": row["model"]})
