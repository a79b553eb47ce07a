"""What a model predicts for each image of a split, as values and tables, and its mistakes. No pixels are read here."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinrun.base.errors import DataError
from twinrun.base.files import read_parquet
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.dataset.prediction_table import prediction_table
from twinrun.tables.sheet import sheet_text

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Predictions:
    """Probabilities (N, C) for the images `ids`, whose actual class indices are `targets` (N,).

    `logits` (N, C) are what they were computed from, and `features` (N, D) what the last linear layer got, where the
    model itself was asked.
    `pixels` are the sha256 of the images' pixels, and `units` what an image shows with others (as in a manifest), where
    they are known.
    """

    ids: list[str]
    targets: IntArray
    probabilities: FloatArray
    classes: tuple[str, ...]
    pixels: list[str] | None = None
    units: list[str] | None = None
    logits: FloatArray | None = None
    features: FloatArray | None = None

    @property
    def predicted(self) -> IntArray:
        """The class index with the largest probability, shape (N,); the first of equals."""
        predicted: IntArray = self.probabilities.argmax(axis=1)
        return predicted

    @property
    def groups(self) -> IntArray | None:
        """A number for the unit of each image, shape (N,); None where units are unknown, or each image is one."""
        return None if self.units is None else numbered(self.units)

    @property
    def n_units(self) -> int:
        """How many units there are: as many as images where units are unknown."""
        return len(self.ids) if self.units is None else len(set(self.units))

    @property
    def images_hash(self) -> str:
        """Sha256 of the set of images, in any order: of their pixels' hashes, or of their ids."""
        return hashlib.sha256("\n".join(sorted(self.pixels or self.ids)).encode()).hexdigest()

    def at(self, rows: IntArray) -> "Predictions":
        """Those of the images at the positions `rows` (n,)."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            targets=self.targets[rows],
            probabilities=self.probabilities[rows],
            pixels=None if self.pixels is None else [self.pixels[row] for row in rows],
            units=None if self.units is None else [self.units[row] for row in rows],
            logits=None if self.logits is None else self.logits[rows],
            features=None if self.features is None else self.features[rows],
        )


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: the image's position in the predictions, and the probability of the predicted class."""

    position: int
    actual: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Confusion:
    """How many images of class `actual`, out of `of`, were classified as `predicted`."""

    actual: str
    predicted: str
    images: int
    of: int


def numbered(units: Sequence[str]) -> IntArray | None:
    """A number for the unit of each image, shape (N,); None where each image is a unit of its own."""
    names, numbers = np.unique(np.array(units, dtype=object).astype(str), return_inverse=True)
    return None if len(names) == len(units) else numbers.astype(np.int64)


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
    """The `limit` most confident mistakes, the most confident first; ties in the order of the images."""
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
    return prediction_table(
        predictions.ids,
        predictions.targets,
        predictions.probabilities,
        predictions.classes,
        pixels=predictions.pixels,
        units=predictions.units,
    )


def read_predictions(path: Path) -> Predictions:
    """Read a table that `prediction_table` wrote, also one of an earlier version, which has no pixels and no units.

    Raises DataError, naming the file, where it is damaged or of another kind.
    """
    again = "Evaluate again: dvc repro evaluate"
    try:
        table, names, probabilities = read_scores(path, again)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {again}") from None
    places = {name: place for place, name in enumerate(names)}
    pixels, units = (table[name].to_pylist() for name in ("pixels_sha256", "unit"))
    return Predictions(
        ids=table["id"].to_pylist(),
        targets=np.array([places[label] for label in table["label"].to_pylist()], np.int64),
        probabilities=probabilities,
        classes=names,
        pixels=None if None in pixels else pixels,
        units=None if all(unit is None for unit in units) else units,
    )


def read_scores(path: Path, again: str) -> "tuple[pa.Table, tuple[str, ...], FloatArray]":
    """A table that `prediction_table` wrote, its C classes, and the probabilities of its N images, shape (N, C).

    Columns that it lacks, of those that are not always there, are null. Raises DataError where it is damaged or of
    another kind; a missing file raises FileNotFoundError.
    """
    import pyarrow as pa

    text = pa.string()
    always = {"id": text, "label": text, "probabilities": pa.list_(pa.float64())}
    sometimes = {"fold": pa.int64(), "pixels_sha256": text, "unit": text, "by": text}
    description = "a table of predictions"
    table = read_parquet(path, pa.schema(always | sometimes), description, again, optional=sometimes, nulls=sometimes)
    try:
        names = tuple(json.loads((table.schema.metadata or {})[b"classes"]))
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise ValueError("its classes are not different texts")
        if unknown := sorted(set(table["label"].to_pylist()) - set(names)):
            raise ValueError(f"the label {unknown[0]!r} is not one of its classes")
        lists = table["probabilities"].combine_chunks()
        if not (lists.value_lengths().to_numpy() == len(names)).all():
            raise ValueError(f"an image has other than {len(names)} probabilities, one for each class")
        probabilities = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(table), len(names))
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("some probabilities are not between 0 and 1")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not {description} ({error}). {again}") from None
    return table, names, probabilities


def confusion_csv(predictions: Predictions) -> str:
    """A CSV with a row for each image and the columns actual and predicted, for DVC's confusion template."""
    names = [_inert(name) for name in predictions.classes]
    pairs = zip(predictions.targets, predictions.predicted, strict=True)
    return sheet_text([("actual", "predicted"), *((names[actual], names[predicted]) for actual, predicted in pairs)])


def _inert(name: str) -> str:
    """A name that neither ends the script of DVC's page nor opens a comment in it, which would hide the rest of it."""
    return name.replace("<!--", "\\x3c!--").replace("</", "\\x3c/")
