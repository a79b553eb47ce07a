"""Which labels an answer must name so that the true one is among them in 95% of cases, and when to say "I don't know".

Split conformal prediction on the validation split: probabilities are calibrated by a temperature, and a label is named
where its probability reaches what all but 5% of the validation images of that label reach. The guarantee is for images
like those of the validation split. An image that looks like none of them has features far from theirs. Images that show
one thing are no independent evidence: a group of them counts as one image. Pure: no files.

Guo et al., "On Calibration of Modern Neural Networks", 2017. Vovk, "Conditional Validity of Inductive Conformal
Predictors", 2012. Dunn, Wasserman and Ramdas, "Distribution-Free Prediction Sets for Two-Layer Hierarchical Models",
2022, and Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023, for groups. Sun et al.,
"Out-of-Distribution Detection with Deep Nearest Neighbors", 2022; Liu et al., "Energy-based Out-of-distribution
Detection", 2020, for networks that do not end in a linear layer.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, floor
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.intervals import wilson_interval
from twinrun.evaluation.traffic import IMAGE_FACTS, KIND, PREDICTED, Spread, image_facts, spread_of, spread_of_places

if TYPE_CHECKING:
    from onnx import ModelProto

CALIBRATION = "calibration"  # its key in the metadata of an ONNX file
MOST_LABELS = 3  # of an answer; with more it is "I don't know"
UNUSUAL_SHARE = 0.01  # of validation images that count as something else
NEIGHBOURS = 5  # the similarity to the fifth nearest of the references decides
MOST_REFERENCES = 512
_NOTHING = 1e-12  # added to lengths, so that none is 0
_LOG_TEMPERATURES = (-4.0, 4.0)

Flags = NDArray[np.bool_]
Kind = Literal["answer", "choice", "unknown"]
KINDS: tuple[Kind, ...] = ("answer", "choice", "unknown")


class Calibration(BaseModel):
    """The numbers that turn a model's logits into a set of labels.

    `least` has for each class the smallest calibrated probability with which it is named, in [0, 1]; `images` the
    number of its validation images, where those of one group count as one. An image is unlike those of the validation
    split if its energy is above `energy` or its similarity below `similarity`, which is null for a network without a
    linear layer at its end. `reference` is base64 of the features that images are compared with, int8 (n, D). `traffic`
    has the distributions of the test images and their answers; served images are compared with it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    weights_hash: str
    alpha: Annotated[float, Field(gt=0, lt=1)]
    temperature: Annotated[float, Field(gt=0)]
    least: list[Annotated[float, Field(ge=0, le=1)]]
    images: list[Annotated[int, Field(ge=0)]]
    energy: float
    similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    reference: str | None = None
    traffic: dict[str, Spread] | None = None

    def probabilities(self, logits: FloatArray) -> FloatArray:
        """Calibrated probabilities (N, C) for logits (N, C)."""
        return softmax(logits / self.temperature)

    def named(self, logits: FloatArray) -> Flags:
        """The labels of each answer, (N, C): those that are likely enough, and always the likeliest."""
        shares = self.probabilities(logits)
        chosen = shares >= np.array(self.least)
        chosen[np.arange(len(shares)), logits.argmax(axis=1)] = True
        result: Flags = chosen
        return result

    def unusual(self, logits: FloatArray, similarity: FloatArray | None) -> Flags:
        """Which images (N,) are unlike the validation split, by their similarity (N,) or, without one, their energy."""
        if self.similarity is None or similarity is None:
            result: Flags = energy(logits) > self.energy
        else:
            result = similarity < self.similarity
        return result

    def references(self, size: int) -> NDArray[np.int8] | None:
        """The features (n, `size`) that images are compared with. Raises DataError where they are not such features."""
        if self.reference is None:
            return None
        try:
            return np.frombuffer(b64decode(self.reference, validate=True), np.int8).reshape(-1, size)
        except ValueError:
            raise DataError(
                f"The features of the calibration have another size than the network's, {size}. Evaluate again: "
                "dvc repro -f -s evaluate"
            ) from None


@dataclass(frozen=True)
class Coverage:
    """How often the true label was among the labels of the answer, with its 95% interval.

    The interval is for all photos like those of the validation split, allows for the choice of validation images, and
    is simultaneous for all classes.
    """

    label: str
    images: int
    share: float
    interval: tuple[float, float]
    of_its_own: bool


@dataclass(frozen=True)
class AnswerScores:
    """How answers do on a test split; shares of its images in [0, 1].

    `single` is the share of answers with one label and `single_accuracy` how many of these are right (None where there
    is none), `unknown` the share without an answer. `risk` (N,) has at k the share of wrong labels among the k most
    confident answers.
    """

    alpha: float
    single: float
    single_accuracy: float | None
    choice: float
    unknown: float
    coverage: list[Coverage]
    risk: FloatArray


def calibrate(
    logits: FloatArray,
    features: FloatArray | None,
    targets: IntArray,
    alpha: float,
    weights_hash: str,
    groups: IntArray | None = None,
) -> Calibration | None:
    """Calibrate on logits (N, C) and features (N, D) of the validation split; None where it is too small.

    `groups` (N,) numbers images that show one thing: a group counts as one image, here and below, but for the
    temperature.

    A class with n < 1 / alpha - 1 images has no such quantile: to guarantee its coverage, every answer would have to
    name it. It gets the quantile of all classes or, if less, the smallest probability of its own images, which names it
    for n / (n + 1) of its images on average: 94.4% for 17. A class without images gets the quantile of all classes.
    """
    groups = np.arange(len(targets)) if groups is None else groups
    if not _enough(len(np.unique(groups)), alpha):
        return None
    temperature = fit_temperature(logits, targets)
    of_truth = softmax(logits / temperature)[np.arange(len(targets)), targets]
    together = least_probability(of_truth, alpha, groups)
    counts = [len(np.unique(groups[targets == label])) for label in range(logits.shape[1])]
    return Calibration(
        weights_hash=weights_hash,
        alpha=alpha,
        temperature=temperature,
        least=[
            least_probability(of_truth[targets == label], alpha, groups[targets == label])
            if _enough(counts[label], alpha)
            else float(min([together, *of_truth[targets == label]]))
            for label in range(len(counts))
        ],
        images=counts,
        energy=-_lower_quantile(-energy(logits), groups, UNUSUAL_SHARE * (len(np.unique(groups)) - 1)),
        **_likeness(features, groups),
    )


def least_probability(of_truth: FloatArray, alpha: float, groups: IntArray) -> float:
    """The conformal quantile of the probabilities (N,) of the true labels: all but a share `alpha` reach it."""
    return _lower_quantile(of_truth, groups, alpha * (len(np.unique(groups)) + 1) - 1)


def fit_temperature(logits: FloatArray, targets: IntArray) -> float:
    """The temperature with the smallest log loss on logits (N, C), in [0.02, 55].

    Where every image is right, the loss only falls with the temperature, and every confidence would be 1. So one wrong
    label in N + 1 is assumed there, as Platt does ("Probabilistic Outputs for Support Vector Machines", 1999).
    """
    from scipy.optimize import minimize_scalar

    wrong = 1 / (len(targets) + 1) if np.array_equal(logits.argmax(axis=1), targets) else 0.0
    found = minimize_scalar(
        lambda power: _log_loss(logits / exp(power), targets, wrong), bounds=_LOG_TEMPERATURES, method="bounded"
    )
    return exp(float(found.x))


def score_answers(
    calibration: Calibration,
    logits: FloatArray,
    features: FloatArray | None,
    targets: IntArray,
    classes: tuple[str, ...],
    groups: IntArray | None = None,
    calibrated_on: Sequence[float] | None = None,
) -> AnswerScores:
    """How the answers do on the test split, logits (N, C) and features (N, D).

    `groups` (N,) numbers images that show one thing. `calibrated_on` are the numbers of `independent` images behind
    the thresholds; without them, all of the calibration are.
    """
    named, kinds = calibration.named(logits), kinds_of_answers(calibration, logits, features)
    right = logits.argmax(axis=1) == targets
    tested = independent(groups, targets, len(classes))
    behind = [sum(calibration.images), *calibration.images] if calibrated_on is None else calibrated_on
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
            _coverage("all", covered, tested[0], behind[0], 1, of_its_own=True),
            *(
                _coverage(
                    name,
                    covered[targets == at],
                    tested[1 + at],
                    behind[1 + at],
                    len(np.unique(targets)),
                    of_its_own=_enough(calibration.images[at], calibration.alpha),
                )
                for at, name in enumerate(classes)
                if (targets == at).any()
            ),
        ],
        risk=(~right[order]).cumsum() / np.arange(1, len(right) + 1),
    )


def independent(groups: IntArray | None, targets: IntArray, classes: int) -> list[float]:
    """As how many independent images all count, and those of each class, if images of one of the `groups` (N,) agree.

    Kish, "Survey Sampling", 1965. Without groups they are all independent.
    """
    if groups is None:
        return [float(images) for images in (len(targets), *np.bincount(targets, minlength=classes))]
    parts = (groups, *(groups[targets == label] for label in range(classes)))
    sizes = (np.unique(part, return_counts=True)[1] for part in parts)
    return [float(each.sum() ** 2 / max(1, (each**2).sum())) for each in sizes]


def kinds_of_answers(calibration: Calibration, logits: FloatArray, features: FloatArray | None) -> NDArray[np.str_]:
    """The kind (N,) of the answer for each image, of logits (N, C) and features (N, D)."""
    reference = None if features is None else calibration.references(features.shape[1])
    similarity = None if features is None or reference is None else _nearest(_cosines(features, reference))
    counts, unusual = calibration.named(logits).sum(axis=1), calibration.unusual(logits, similarity)
    return np.array([kind_of_answer(int(count), bool(odd)) for count, odd in zip(counts, unusual, strict=True)])


def with_traffic(
    calibration: Calibration,
    images: Pixels,
    sizes: IntArray | FloatArray,
    logits: FloatArray,
    features: FloatArray | None,
    rows: IntArray | None = None,
) -> Calibration:
    """The calibration with the distributions of the test images, their `sizes` (n, 2) and their answers.

    The images are at the `rows` (n,) of `images` (N, H, W, C), or are all of them.

    It is returned unchanged where a size is unknown (NaN).
    """
    if not np.isfinite(sizes).all():
        return calibration
    facts = image_facts(images, sizes, rows)
    kinds = kinds_of_answers(calibration, logits, features).tolist()
    traffic = {name: spread_of(facts[:, place]) for place, name in enumerate(IMAGE_FACTS)} | {
        PREDICTED: spread_of_places(logits.argmax(axis=1), logits.shape[1]),
        KIND: spread_of_places([KINDS.index(kind) for kind in kinds], len(KINDS)),
    }
    return calibration.model_copy(update={"traffic": traffic})


def kind_of_answer(labels: int, unusual: bool) -> Kind:
    """One label is an `answer`, two or three are a `choice`; more, or an image like none before, are `unknown`."""
    if unusual or labels > MOST_LABELS:
        return "unknown"
    return "answer" if labels == 1 else "choice"


def read_calibration(content: str | bytes, weights_hash: str, classes: int) -> Calibration | None:
    """The calibration in a file or in a model's metadata; None for null. Raises DataError for that of another model."""
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
    sizes = {PREDICTED: classes, KIND: len(KINDS)}
    if found.traffic is not None and (
        set(found.traffic) != {*IMAGE_FACTS, *sizes}
        or any(len(found.traffic[name].counts) != size for name, size in sizes.items())
    ):
        raise DataError("The traffic of the calibration has other facts than this version of Twinrun measures.")
    return found


def with_calibration(onnx: bytes, content: str, weights_hash: str, classes: int) -> bytes:
    """An ONNX file that carries a calibration in its metadata. Raises DataError where that is of another model."""
    from onnx import load_model_from_string

    calibration = read_calibration(content, weights_hash, classes)
    model = load_model_from_string(onnx)
    if calibration is not None:
        if not _add_similarity(model, calibration):
            calibration = calibration.model_copy(update={"similarity": None})
        content = calibration.model_copy(update={"reference": None}).model_dump_json()
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


def _likeness(features: FloatArray | None, groups: IntArray) -> dict[str, Any]:
    """The fields of a calibration for similarity: each validation image is compared with those of other groups."""
    if features is None or len(features) <= NEIGHBOURS:
        return {}
    rows = np.linspace(0, len(features) - 1, min(len(features), MOST_REFERENCES)).round().astype(np.int64)
    largest = np.abs(features[rows]).max(axis=1, keepdims=True)
    reference = np.rint(features[rows] / np.where(largest > 0, largest, 1) * 127).astype(np.int8)
    cosines = _cosines(features, reference)
    cosines[groups[:, None] == groups[rows]] = -1  # not with itself
    limit = _lower_quantile(_nearest(cosines), groups, UNUSUAL_SHARE * (len(np.unique(groups)) - 1))
    return {"similarity": max(-1.0, min(1.0, limit)), "reference": b64encode(reference.tobytes()).decode()}


def _cosines(features: FloatArray, reference: NDArray[np.int8]) -> FloatArray:
    """The cosine of each of the features (N, D) with each reference (n, D), shape (N, n)."""
    result: FloatArray = _directions(features) @ _directions(reference.astype(np.float64)).T
    return result


def _directions(vectors: FloatArray) -> FloatArray:
    result: FloatArray = vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + _NOTHING)
    return result


def _lower_quantile(values: FloatArray, groups: IntArray, below: float) -> float:
    """The largest of `values` (N,) that at most `below` images are less than.

    Each of the `groups` (N,) has the weight of one image, which its images share.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    shares = 1 / sizes[group_of[order]]
    return float(values[order][np.flatnonzero(shares.cumsum() - shares <= below + 1e-9)[-1]])


def _nearest(cosines: FloatArray) -> FloatArray:
    """The similarity (N,) to the reference that is the NEIGHBOURS-th nearest."""
    result: FloatArray = np.sort(cosines, axis=1)[:, -NEIGHBOURS]
    return result


def _add_similarity(model: "ModelProto", calibration: Calibration) -> bool:
    """Give an ONNX model the output `similarity` (batch, 1), as `_nearest`; False where it ends in no linear layer."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    head = next((node for node in graph.node if "logits" in node.output), None)
    weight = next((tensor for tensor in graph.initializer if head is not None and tensor.name == head.input[1]), None)
    if head is None or head.op_type != "Gemm" or weight is None:
        return False
    transposed = any(each.name == "transB" and each.i == 1 for each in head.attribute)
    reference = calibration.references(int(weight.dims[1 if transposed else 0]))
    if reference is None:
        return False
    # The same computation as `_cosines` and `_nearest`.
    graph.initializer.extend(
        [
            numpy_helper.from_array(reference, "references"),
            numpy_helper.from_array(np.array([_NOTHING], np.float32), "nothing"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.array([NEIGHBOURS], np.int64), "neighbours"),
            numpy_helper.from_array(np.array([NEIGHBOURS - 1], np.int64), "last"),
        ]
    )
    graph.node.append(helper.make_node("Cast", ["references"], ["references float"], to=TensorProto.FLOAT))
    for given, name in (("references float", "references"), (head.input[0], "features")):
        graph.node.extend(
            [
                helper.make_node("ReduceL2", [given, "one"], [f"{name} length"], keepdims=1),
                helper.make_node("Add", [f"{name} length", "nothing"], [f"{name} divisor"]),
                helper.make_node("Div", [given, f"{name} divisor"], [f"{name} direction"]),
            ]
        )
    graph.node.extend(
        [
            helper.make_node("Transpose", ["references direction"], ["references turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["features direction", "references turned"], ["cosines"]),
            helper.make_node("TopK", ["cosines", "neighbours"], ["nearest", "nearest places"], axis=1),
            helper.make_node("Gather", ["nearest", "last"], ["similarity"], axis=1),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("similarity", TensorProto.FLOAT, ["batch", 1]))
    return True


def _log_loss(logits: FloatArray, targets: IntArray, wrong: float) -> float:
    """The log loss, where each label is one of the others with the probability `wrong`."""
    of_truth = logits[np.arange(len(targets)), targets]
    of_others = (logits.sum(axis=1) - of_truth) / (logits.shape[1] - 1)
    return float((-energy(logits) - (1 - wrong) * of_truth - wrong * of_others).mean())


def _enough(images: int, alpha: float) -> bool:
    return floor(alpha * (images + 1) + 1e-9) >= 1


def _coverage(
    label: str, covered: Flags, tested: float, calibrated_on: float, together: int, *, of_its_own: bool
) -> Coverage:
    """The interval allows for the sampling of the test images and of the validation images behind the threshold."""
    share, images = float(covered.mean()), 1 / (1 / tested + (1 / calibrated_on if calibrated_on else 0))
    return Coverage(label, len(covered), share, wilson_interval(share, images, together), of_its_own)
