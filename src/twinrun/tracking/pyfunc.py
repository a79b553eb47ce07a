"""A bundle as an MLflow pyfunc, for `mlflow.pyfunc.load_model` and `mlflow models serve`.

MLflow calls `_load_pyfunc` because the registered model names this module as its loader. In a server a request gets no
file of the machine, no stack trace and no path: text is base64 and never a path, and every error is an MlflowException,
since MLflow answers any other with its stack trace.
"""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from twinrun.base.errors import DataError
from twinrun.models.bundle import load_bundle
from twinrun.prediction.classifier import Answer, ImageClassifier
from twinrun.prediction.inputs import images_in

if TYPE_CHECKING:
    import pandas as pd

# MLflow's scoring server has the first, its process the second from its start: see mlflow/pyfunc/scoring_server.
_SERVER_VARIABLES = ("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "__pyfunc_model_path__")
_REASONS_SHOWN = 20
_log = logging.getLogger(__name__)


class RequestError(MlflowException):
    """An error whose answer is its message alone: MLflow puts all that was sent in front of it."""

    def __init__(self, message: str, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        super().__init__(message, error_code)
        self._answer = message

    def serialize_as_json(self) -> str:
        """The body of the answer."""
        return json.dumps({"error_code": self.error_code, "message": self._answer})


class PyfuncClassifier:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, classifier: ImageClassifier, *, paths: bool) -> None:
        self._classifier = classifier
        self._paths = paths

    def predict(self, images: Any, params: dict[str, Any] | None = None) -> "pd.DataFrame":  # noqa: ARG002 - MLflow's signature
        """Classify images: paths, bytes of files, base64 text, PIL images, arrays, or a list or table of these.

        A row for each: `label`, its `probability`, `probabilities`, a mapping of each class to its own, and `error`,
        why an image cannot be read; the other columns of such a row are None. Raises MlflowException where no image
        can be read, or `images` is nothing of the kind.
        """
        paths = self._paths and not _is_server()
        try:
            given = images_in(images, paths=paths)
            answers = list(self._classifier.answers(given, self._classifier.read))
        except DataError as error:
            raise RequestError(str(error)) from None
        except Exception:
            if paths:
                raise
            _log.exception("A request failed")
            raise RequestError(
                "The model failed on this request; the log of the server says why.", INTERNAL_ERROR
            ) from None
        if not any(answer.error is None for answer in answers) and (answers or not paths):
            raise RequestError(_reasons(answers))
        return _table(answers, self._classifier.bundle.classes)


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> PyfuncClassifier:
    """Called by MLflow. `model_config={"paths": False}` makes text base64 in a server of one's own, too."""
    if _is_server():
        _keep_stack_traces()
    paths = bool((model_config or {}).get("paths", True))
    return PyfuncClassifier(ImageClassifier(load_bundle(Path(path))), paths=paths)


def _is_server() -> bool:
    return any(name in os.environ for name in _SERVER_VARIABLES)


def _keep_stack_traces() -> None:
    """Have MLflow's server answer a CSV or Parquet that it cannot parse without its own stack trace."""
    from mlflow.pyfunc import scoring_server

    scoring_server._handle_serving_error.__defaults__ = (False,)


def _reasons(answers: list[Answer]) -> str:
    if not answers:
        return "There are no images in this request."
    lines = [f"  row {row}: {answer.error}" for row, answer in enumerate(answers[:_REASONS_SHOWN])]
    if len(answers) > _REASONS_SHOWN:
        lines.append(f"  and {len(answers) - _REASONS_SHOWN:,} more rows")
    return "\n".join(["No image can be read:", *lines])


def _table(answers: list[Answer], classes: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    shares = [answer.probabilities for answer in answers]
    return pd.DataFrame(
        {
            # Of objects, since pandas would make NaN of None, which is not JSON.
            "label": _objects([None if row is None else classes[int(row.argmax())] for row in shares]),
            "probability": _objects([None if row is None else float(row.max()) for row in shares])
            if any(row is None for row in shares)
            else pd.Series([float(row.max()) for row in shares if row is not None], dtype=float),
            "probabilities": _objects(
                [None if row is None else dict(zip(classes, row.tolist(), strict=True)) for row in shares]
            ),
            "error": _objects([answer.error for answer in answers]),
        }
    )


def _objects(values: list[Any]) -> "pd.Series[Any]":
    import pandas as pd

    return pd.Series(values, dtype=object)
