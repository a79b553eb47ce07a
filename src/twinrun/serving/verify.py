"""Verifying a served answer: classify the photo again with the same model, and compare label and logits."""

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from twinrun.base.errors import DataError
from twinrun.base.regular_files import read_regular
from twinrun.serving.answer_log import AnsweringModel, Sha256
from twinrun.serving.engine import Engine
from twinrun.serving.json_lines import read_line

_MOST_BYTES = 100_000_000


class _Model(AnsweringModel):
    onnx_sha256: Sha256


class ServedAnswer(BaseModel):
    """The fields of an answer that are needed to verify it; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    label: str
    image_sha256: Sha256
    logits_sha256: Sha256
    model: _Model


@dataclass(frozen=True)
class Verdict:
    """Whether the answer is the same, and a sentence that says so."""

    same: bool
    sentence: str


def verify_answer(answer: Path, photo: Path, open_engine: Callable[[ServedAnswer], Engine]) -> Verdict:
    """Compute an answer again and compare it.

    `answer` is the file with the server's JSON, or the answer log, in which the last line about the photo counts.
    Raises DataError if a file cannot be read or has no answer, or if the engine has other weights than the answer.
    """
    try:
        image = read_regular(photo)
    except OSError as error:
        raise DataError(f"{photo} cannot be read: {error.strerror}. Name the photo that was sent.") from None
    digest = hashlib.sha256(image).hexdigest()
    served = _read(answer, digest)
    if served.image_sha256 != digest:
        return Verdict(
            False, f"{photo} has the sha256 {digest[:12]}..., but the answer is for {served.image_sha256[:12]}..."
        )
    engine = open_engine(served)
    if engine.model.weights_hash != served.model.weights_hash:
        raise DataError(
            f"The answer was given with the weights {served.model.weights_hash[:12]} of {served.model.name}, but this "
            f"model has {engine.model.weights_hash[:12]}. Name the version with those weights: --model (twinrun models "
            "lists versions and hashes)"
        )
    found = engine.classify(image)
    if found.label != served.label:
        return Verdict(False, f"The answer was {served.label}, but the model now gives {found.label}.")
    if found.logits_sha256 != served.logits_sha256:
        return Verdict(
            False,
            f"The label is the same, {found.label}, but the logits differ: sha256 {found.logits_sha256[:12]}..., not "
            f"{served.logits_sha256[:12]}.... Another processor or version of ONNX Runtime rounds differently.",
        )
    return Verdict(
        True, f"{found.label}, with the weights {engine.model.weights_hash[:12]}, logits {found.logits_sha256[:12]}..."
    )


def _read(file: Path, image_sha256: str) -> ServedAnswer:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(
                f"{file} has more than {_MOST_BYTES:,} bytes. Name a smaller file with the answer: "
                f"grep {image_sha256} {shlex.quote(str(file))} > answer-of-photo.jsonl"
            )
        content = read_regular(file).strip()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}. Name the JSON that POST /classify sent, or the answer log."
        ) from None
    try:
        answers: list[Any] = [json.loads(content)]
    except (ValueError, RecursionError):
        try:
            answers = [answer for line in content.splitlines() if (answer := read_line(line)) is not None]
        except ValueError as error:
            raise DataError(f"{file} is neither JSON nor an answer log: {error}") from None
    of_photo = [row for row in answers if isinstance(row, dict) and row.get("image_sha256") == image_sha256]
    try:
        return ServedAnswer.model_validate((of_photo or answers)[-1])
    except (ValidationError, IndexError) as error:
        problem = (
            error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "it is empty, or cut off"}
        )
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{file} holds no answer of POST /classify: {where} {problem['msg']}") from None
