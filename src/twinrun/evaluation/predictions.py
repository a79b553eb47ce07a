"""What a model said about each image of a split, as values and tables, and its mistakes. Refuses to know pixels."""

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from twinrun.data.prediction_table import prediction_table
from twinrun.errors import DataError
from twinrun.evaluation.metrics import FloatArray, IntArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, C) for the images `ids`, whose actual class indices are `targets` (N,)."""

    ids: list[str]
    targets: IntArray
    probabilities: FloatArray
    classes: tuple[str, ...]

    @property
    def predicted(self) -> IntArray:
        """The class index with the largest probability, shape (N,); the first of equals."""
        predicted: IntArray = self.probabilities.argmax(axis=1)
        return predicted


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the image's position in the predictions, and the probability of what was said."""

    position: int
    actual: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Confusion:
    """How many images of class `actual`, out of `of`, were taken for `predicted`."""

    actual: str
    predicted: str
    images: int
    of: int


def require_same_classes(of_model: tuple[str, ...], of_data: tuple[str, ...]) -> None:
    """Raise DataError unless a model's classes are those of the data, in the same order."""
    if of_model != of_data:
        missing, extra = sorted(set(of_data) - set(of_model)), sorted(set(of_model) - set(of_data))
        raise DataError(
            "The model and the images do not have the same classes."
            + (f" Unknown to the model: {', '.join(missing[:10])}." if missing else "")
            + (f" Not in the images: {', '.join(extra[:10])}." if extra else "")
            + " Train again on these images: dvc repro train."
        )


def mistakes(predictions: Predictions, limit: int) -> list[Mistake]:
    """The `limit` mistakes that the model was surest of, the surest first; equals in the order of the images."""
    predicted = predictions.predicted
    wrong = np.flatnonzero(predicted != predictions.targets)
    said = predictions.probabilities[wrong, predicted[wrong]]
    order = np.argsort(-said, kind="stable")[:limit]
    names = predictions.classes
    return [
        Mistake(
            int(at), names[predictions.targets[at]], names[predicted[at]], float(predictions.probabilities[at].max())
        )
        for at in wrong[order]
    ]


def confusions(matrix: IntArray, classes: tuple[str, ...], limit: int) -> list[Confusion]:
    """The `limit` commonest wrong pairs of a confusion matrix (actual, predicted), the commonest first."""
    wrong = matrix * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-wrong.ravel(), kind="stable")[:limit]
    pairs = [divmod(int(cell), len(classes)) for cell in order if wrong.ravel()[cell] > 0]
    return [Confusion(classes[i], classes[j], int(matrix[i, j]), int(matrix[i].sum())) for i, j in pairs]


def predictions_table(predictions: Predictions) -> "pa.Table":
    """The predictions as `prediction_table` writes them."""
    return prediction_table(predictions.ids, predictions.targets, predictions.probabilities, predictions.classes)


def confusion_csv(predictions: Predictions) -> str:
    """A CSV with a row for each image and the columns actual and predicted, for DVC's confusion template."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["actual", "predicted"])
    names = predictions.classes
    writer.writerows((names[a], names[p]) for a, p in zip(predictions.targets, predictions.predicted, strict=True))
    return text.getvalue()
