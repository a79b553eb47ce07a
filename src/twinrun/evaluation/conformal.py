"""Which labels an answer must name so that the true one is among them in 95% of cases, and when to say "I don't know".

Split conformal prediction on the validation split: probabilities are calibrated by a temperature, and a label is named
where its probability reaches what all but 5% of the validation images of that label reach. The guarantee is for images
like those of the validation split. An image that looks like none of them is found by its energy. Pure: no files.

Guo et al., "On Calibration of Modern Neural Networks", 2017. Vovk, "Conditional Validity of Inductive Conformal
Predictors", 2012. Liu et al., "Energy-based Out-of-distribution Detection", 2020.
"""

from dataclasses import dataclass
from math import exp, floor
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinrun.core.arrays import FloatArray, IntArray
from twinrun.core.errors import DataError
from twinrun.core.intervals import wilson_interval

CALIBRATION = "calibration"  # its key in the metadata of an ONNX file
MOST_LABELS = 3  # of an answer; with more it is "I don't know"
UNUSUAL_SHARE = 0.01  # of validation images whose energy counts as that of something else
_LOG_TEMPERATURES = (-4.0, 4.0)

Flags = NDArray[np.bool_]
Kind = Literal["answer", "choice", "unknown"]


class Calibration(BaseModel):
    """What makes sets of labels from a model's logits.

    `least` has for each class the smallest calibrated probability of a label that is named, in [0, 1]; `images` the
    validation images that it comes from, 0 where all classes were taken together. `energy` is the largest of an image
    like those of the validation split.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    weights_hash: str
    alpha: Annotated[float, Field(gt=0, lt=1)]
    temperature: Annotated[float, Field(gt=0)]
    least: list[Annotated[float, Field(ge=0, le=1)]]
    images: list[Annotated[int, Field(ge=0)]]
    energy: float

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Calibrated probabilities (N, C) for logits (N, C)."""
        return softmax(logits / self.temperature)

    def named(self, logits: FloatArray) -> Flags:
        """Which labels belong to the answer, (N, C): those that are likely enough, and always the likeliest."""
        shares = self.probabilities(logits)
        chosen = shares >= np.array(self.least)
        chosen[np.arange(len(shares)), logits.argmax(axis=1)] = True
        result: Flags = chosen
        return result

    def unusual(self, logits: FloatArray) -> Flags:
        """Which images (N,) look like none of the validation split."""
        result: Flags = energy(logits) > self.energy
        return result


@dataclass(frozen=True)
class Coverage:
    """How often the true label was among the labels of the answer, with its 95% interval."""

    label: str
    images: int
    share: float
    interval: tuple[float, float]
    of_its_own: bool


@dataclass(frozen=True)
class AnswerScores:
    """How answers do on a test split; shares of its images in [0, 1].

    `single` is the share of answers with one label and `single_accuracy` how many of these are right (None where there
    is none), `unknown` the share without an answer. `risk` (N,) is the share of wrong labels among the k surest images.
    """

    alpha: float
    single: float
    single_accuracy: float | None
    choice: float
    unknown: float
    coverage: list[Coverage]
    risk: FloatArray


def calibrate(logits: FloatArray, targets: IntArray, alpha: float, weights_hash: str) -> Calibration | None:
    """Calibrate on logits (N, C) of the validation split and its class indices (N,); None where it is too small.

    A class with fewer than 1 / alpha - 1 images, which have no such quantile, gets that of all classes, or the smallest
    probability of its own images where that is less.
    """
    if not _enough(len(targets), alpha):
        return None
    temperature = fit_temperature(logits, targets)
    of_truth = softmax(logits / temperature)[np.arange(len(targets)), targets]
    together = least_probability(of_truth, alpha)
    counts = np.bincount(targets, minlength=logits.shape[1]).tolist()
    own = [count if _enough(count, alpha) else 0 for count in counts]
    return Calibration(
        weights_hash=weights_hash,
        alpha=alpha,
        temperature=temperature,
        least=[
            least_probability(of_truth[targets == label], alpha)
            if own[label]
            else float(min(together, *of_truth[targets == label]))
            for label in range(len(counts))
        ],
        images=own,
        energy=float(np.quantile(energy(logits), 1 - UNUSUAL_SHARE, method="higher")),
    )


def least_probability(of_truth: FloatArray, alpha: float) -> float:
    """What the probabilities (N,) of the truth reach in all but a share `alpha` of cases, one more image counted."""
    rank = len(of_truth) + 1 - floor(alpha * (len(of_truth) + 1) + 1e-9)
    return float(np.sort(of_truth)[::-1][rank - 1])


def fit_temperature(logits: FloatArray, targets: IntArray) -> float:
    """The temperature with the smallest log loss on logits (N, C), in [0.02, 55]."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: _log_loss(logits / exp(power), targets), bounds=_LOG_TEMPERATURES, method="bounded"
    )
    return exp(float(found.x))


def score_answers(
    calibration: Calibration, logits: FloatArray, targets: IntArray, classes: tuple[str, ...]
) -> AnswerScores:
    """How the answers do on the test split, logits (N, C)."""
    named, unusual = calibration.named(logits), calibration.unusual(logits)
    kinds = np.array(
        [kind_of_answer(int(count), bool(odd)) for count, odd in zip(named.sum(axis=1), unusual, strict=True)]
    )
    right = logits.argmax(axis=1) == targets
    single = kinds == "answer"
    covered = named[np.arange(len(targets)), targets]
    order = np.argsort(-calibration.probabilities(logits).max(axis=1), kind="stable")
    return AnswerScores(
        alpha=calibration.alpha,
        single=float(single.mean()),
        single_accuracy=float(right[single].mean()) if single.any() else None,
        choice=float((kinds == "choice").mean()),
        unknown=float((kinds == "unknown").mean()),
        coverage=[
            _coverage("all", covered, of_its_own=True),
            *(
                _coverage(name, covered[targets == at], of_its_own=calibration.images[at] > 0)
                for at, name in enumerate(classes)
                if (targets == at).any()
            ),
        ],
        risk=(~right[order]).cumsum() / np.arange(1, len(right) + 1),
    )


def kind_of_answer(labels: int, unusual: bool) -> Kind:
    """One label is an `answer`, two or three are a `choice`; more, or an image like none before, are `unknown`."""
    if unusual or labels > MOST_LABELS:
        return "unknown"
    return "answer" if labels == 1 else "choice"


def read_calibration(content: str | bytes, weights_hash: str, classes: int) -> Calibration | None:
    """What a file or a model's metadata say; None for null. Raises DataError for that of another model."""
    if content.strip() in ("null", b"null"):
        return None
    try:
        found = Calibration.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"The calibration cannot be read: {error.errors()[0]['msg']}") from None
    if found.weights_hash != weights_hash or {len(found.least), len(found.images)} != {classes}:
        raise DataError(
            f"The calibration is of the weights {found.weights_hash[:12]} and {len(found.least)} classes, and the "
            f"model has the weights {weights_hash[:12]} and {classes}. Evaluate again: dvc repro -f -s evaluate"
        )
    return found


def with_calibration(onnx: bytes, content: str, weights_hash: str, classes: int) -> bytes:
    """An ONNX file that carries a calibration in its metadata. Raises DataError where that is of another model."""
    from onnx import load_model_from_string

    read_calibration(content, weights_hash, classes)
    model = load_model_from_string(onnx)
    model.metadata_props.add(key=CALIBRATION, value=content)
    return bytes(model.SerializeToString(deterministic=True))


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities (N, C)."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = shares / shares.sum(axis=1, keepdims=True)
    return result


def energy(logits: FloatArray) -> FloatArray:
    """The energy (N,) of logits (N, C): small where some class is clearly seen."""
    largest = logits.max(axis=1)
    result: FloatArray = -(largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1)))
    return result


def _log_loss(logits: FloatArray, targets: IntArray) -> float:
    return float((-energy(logits) - logits[np.arange(len(targets)), targets]).mean())


def _enough(images: int, alpha: float) -> bool:
    return floor(alpha * (images + 1) + 1e-9) >= 1


def _coverage(label: str, covered: Flags, *, of_its_own: bool) -> Coverage:
    share = float(covered.mean())
    return Coverage(label, len(covered), share, wilson_interval(share, len(covered)), of_its_own)
