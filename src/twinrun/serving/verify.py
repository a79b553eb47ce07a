"""Whether an answer that was served is what its model says of a photo, computed again."""

import hashlib
import json
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
    """What an answer claims; it has more fields, which are not compared."""

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
    """Compute an answer again. `answer` is what the server sent, or its log, in which the photo's last line counts.

    Raises DataError where a file cannot be read, and where the engine has other weights than the answer's.
    """
    try:
        image = read_regular(photo)
    except OSError as error:
        raise DataError(f"{photo} cannot be read: {error.strerror}. Name the photo that was sent.") from None
    digest = hashlib.sha256(image).hexdigest()
    served = _read(answer, digest)
    if served.image_sha256 != digest:
        return Verdict(
            False, f"{photo} has sha256 {digest[:12]}..., and the answer is for {served.image_sha256[:12]}..."
        )
    engine = open_engine(served)
    if engine.model.weights_hash != served.model.weights_hash:
        raise DataError(
            f"The answer is by the weights {served.model.weights_hash[:12]} of {served.model.name}, and this model has "
            f"{engine.model.weights_hash[:12]}. Name the version that has them: --model (see them: twinrun models)"
        )
    found = engine.classify(image)
    if found.label != served.label:
        return Verdict(False, f"The answer was {served.label}, and the model says {found.label}.")
    if found.logits_sha256 != served.logits_sha256:
        return Verdict(
            False,
            f"The label is the same, {found.label}, and the logits are not: {found.logits_sha256[:12]}... and not "
            f"{served.logits_sha256[:12]}.... Another processor or version of ONNX Runtime rounds differently.",
        )
    return Verdict(
        True, f"{found.label}, by the weights {engine.model.weights_hash[:12]}, logits {found.logits_sha256[:12]}..."
    )


def _read(file: Path, image_sha256: str) -> ServedAnswer:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(f"{file} has more than {_MOST_BYTES:,} bytes, which no answer has.")
        content = read_regular(file).strip()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}. Name the JSON that POST /classify sent, or the log of answers."
        ) from None
    try:
        answers: list[Any] = [json.loads(content)]
    except (ValueError, RecursionError):
        try:
            answers = [answer for line in content.splitlines() if (answer := read_line(line)) is not None]
        except ValueError as error:
            raise DataError(f"{file} is not JSON, nor a log of answers: {error}") from None
    chosen = [each for each in answers if isinstance(each, dict) and each.get("image_sha256") == image_sha256]
    try:
        return ServedAnswer.model_validate((chosen or answers)[-1])
    except (ValidationError, IndexError) as error:
        problem = (
            error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "it is empty, or cut off"}
        )
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{file} holds no answer of POST /classify: {where} {problem['msg']}") from None
