"""Scoring predictions against the truth, with intervals. Pure: no files, no tracker, no torch.

Most numbers come from scikit-learn. Computed here are the calibration error, which scikit-learn does not have for many
classes, and the bootstrap: a thousand resamples take less time than ten with scikit-learn's functions.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twinrun.base.errors import DataError
from twinrun.core.arrays import BoolArray, FloatArray, IntArray
from twinrun.core.intervals import wilson_interval

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
LEVEL = 0.95
FEW_GROUPS = 10
"""With fewer groups, or fewer of them that hold a mistake, resampling gives intervals that are too narrow."""
_SHARES = HEADLINES[:3]  # those that are 1 where every image is classified correctly, and 0 where none is
_CHUNK_CELLS = 2_000_000  # weights held at once: 16 MB


@dataclass(frozen=True)
class ClassScores:
    """One class against all others, in [0, 1]; a share of nothing is 0."""

    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Scores:
    """How well a model did on one set of images.

    Accuracies, F1 and calibration error are in [0, 1]; the log loss is in nats. `intervals` maps each name of
    HEADLINES to the (low, high) ends of its 95% interval.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    images: int
    intervals: dict[str, tuple[float, float]]
    per_class: dict[str, ClassScores]

    def headlines(self) -> dict[str, float]:
        """The numbers that stand for the model, by name."""
        return {name: getattr(self, name) for name in HEADLINES}

    def shown(self) -> dict[str, float]:
        """The headlines that `dvc metrics` and `dvc exp show` print: few enough for a line of 100 characters."""
        return {name: getattr(self, name) for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")}

    def details(self) -> dict[str, Any]:
        """Intervals and numbers of each class, as plain values."""
        return {
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "per_class": [{"label": name, **asdict(one)} for name, one in self.per_class.items()],
        }


@dataclass(frozen=True)
class CalibrationBins:
    """Images sorted into equal-width bins of confidence; arrays of shape (bins,), NaN where a bin is empty."""

    edges: FloatArray
    images: IntArray
    confidence: FloatArray
    accuracy: FloatArray


def score(
    targets: IntArray,
    probabilities: FloatArray,
    classes: tuple[str, ...],
    *,
    bins: int,
    samples: int,
    seed: int,
    groups: IntArray | None = None,
) -> Scores:
    """Score probabilities (N, C) against the class indices `targets` (N,), with `samples` bootstrap resamples.

    `groups` (N,) numbers images that show one thing, and so are no independent evidence: they widen the intervals.
    Balanced accuracy is the mean recall of the classes that have images; macro F1 the mean over the classes that have
    images or were predicted. Raises DataError if N = 0, shapes disagree, a target is not a class, or the probabilities
    are not finite and in [0, 1].
    """
    _check(targets, probabilities, classes)
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, precision_recall_fscore_support

    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, images = precision_recall_fscore_support(
        targets, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    return Scores(
        accuracy=float(accuracy_score(targets, predicted)),
        balanced_accuracy=float(_quietly(balanced_accuracy_score, targets, predicted)),
        macro_f1=float(f1_score(targets, predicted, average="macro", zero_division=0.0)),
        log_loss=float(surprise(targets, probabilities).mean()),
        calibration_error=calibration_error(targets, probabilities, bins),
        images=len(targets),
        intervals=intervals(targets, probabilities, bins=bins, samples=samples, seed=seed, groups=groups),
        per_class={
            name: ClassScores(float(precision[i]), float(recall[i]), float(f1[i]), int(images[i]))
            for i, name in enumerate(classes)
        },
    )


def confusion_matrix(targets: IntArray, predicted: IntArray, n_classes: int) -> IntArray:
    """Images by actual class (rows) and predicted class (columns), shape (n_classes, n_classes)."""
    from sklearn.metrics import confusion_matrix as counted

    matrix: IntArray = counted(targets, predicted, labels=np.arange(n_classes)).astype(np.int64)
    return matrix


def surprise(targets: IntArray, probabilities: FloatArray) -> FloatArray:
    """Negative log of the probability given to the truth, in nats, shape (N,); their mean is the log loss.

    Clipped as scikit-learn clips it, so that one certain mistake does not make the mean infinite.
    """
    smallest = float(np.finfo(np.float64).eps)
    of_truth = np.take_along_axis(probabilities, targets[:, None], axis=1)[:, 0]
    return -np.log(np.clip(of_truth, smallest, 1 - smallest))


def calibration_error(targets: IntArray, probabilities: FloatArray, bins: int) -> float:
    """Expected calibration error, in [0, 1]: how far confidence and accuracy lie apart, averaged over the images.

    The confidence of an image is its largest probability; images share a bin of width 1 / `bins`. Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017.
    """
    groups, excess = _calibration_parts(targets, probabilities, bins)
    return float(np.abs(np.bincount(groups, weights=excess, minlength=bins)).sum() / len(targets))


def calibration_bins(targets: IntArray, probabilities: FloatArray, bins: int) -> CalibrationBins:
    """The bins that `calibration_error` averages over, for a reliability diagram."""
    groups, _ = _calibration_parts(targets, probabilities, bins)
    images = np.bincount(groups, minlength=bins)
    right = np.bincount(groups, weights=probabilities.argmax(axis=1) == targets, minlength=bins)
    sure = np.bincount(groups, weights=probabilities.max(axis=1), minlength=bins)
    with np.errstate(invalid="ignore"):
        return CalibrationBins(np.linspace(0, 1, bins + 1), images, sure / images, right / images)


def intervals(
    targets: IntArray,
    probabilities: FloatArray,
    *,
    bins: int,
    samples: int,
    seed: int,
    groups: IntArray | None = None,
) -> dict[str, tuple[float, float]]:
    """Low and high end of the 95% percentile bootstrap interval of every headline number.

    Each of `samples` resamples draws N images with replacement, and all numbers are computed on the same ones. Where
    `groups` (N,) numbers images that belong together, as many whole groups are drawn as there are ("cluster bootstrap",
    Davison and Hinkley, "Bootstrap Methods and their Application", 1997). Resamples of fewer than FEW_GROUPS vary too
    little: the intervals then hold those of single images as well. A resample repeats images, which makes its
    calibration error larger than that of the whole on average, and a class that it lacks but for predictions has an F1
    of 0 there. This excess, or lack, is subtracted, or the interval would lie beside the number that it belongs to.
    Otherwise a class that a resample lacks is left out of its means. Memory does not grow with `samples` times N. Where
    accuracies and F1 `vary_little`, their intervals hold Wilson's for as many groups.
    """
    names, group_of = np.unique(np.arange(len(targets)) if groups is None else groups, return_inverse=True)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // len(targets))
    statistics = _Resampled(targets, probabilities, bins)
    draws = (_draw(random, min(chunk, samples - done), len(names)) for done in range(0, samples, chunk))
    values = np.concatenate([statistics.of(drawn if groups is None else drawn[:, group_of]) for drawn in draws])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    whole = statistics.of(np.ones((1, len(targets))))[0]
    for at in map(HEADLINES.index, ("macro_f1", "calibration_error")):
        excess = values[:, at].mean() - whole[at]
        low[at], high[at] = max(0.0, low[at] - excess), min(1.0, high[at] - excess)
    ends = {name: (float(low[i]), float(high[i])) for i, name in enumerate(HEADLINES)}
    if groups is not None and len(names) < FEW_GROUPS:
        of_images = intervals(targets, probabilities, bins=bins, samples=samples, seed=seed)
        ends = {name: _hull(ends[name], of_images[name]) for name in HEADLINES}
    if vary_little(probabilities.argmax(axis=1) == targets, groups):
        shares = zip(_SHARES, whole.tolist(), strict=False)
        ends |= {name: _hull(ends[name], wilson_interval(share, len(names))) for name, share in shares}
    return ends


def vary_little(is_right: BoolArray, groups: IntArray | None = None) -> bool:
    """Whether so few of the images (N,), or of their `groups`, are right, or wrong, that resamples vary too little.

    With one mistake every third resample has none, and with none no resample has one.
    """
    sides = (np.flatnonzero(side) for side in (is_right, ~is_right))
    return min(len(side if groups is None else np.unique(groups[side])) for side in sides) < FEW_GROUPS


def _hull(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return min(one[0], other[0]), max(one[1], other[1])


class _Resampled:
    """The headline numbers of many resamples at once, from how often each resample holds each image.

    Sums run over images in one fixed order, never through BLAS, whose rounding depends on the number of threads.
    """

    def __init__(self, targets: IntArray, probabilities: FloatArray, bins: int) -> None:
        predicted = probabilities.argmax(axis=1)
        self._right = predicted == targets
        self._surprise = surprise(targets, probabilities)
        self._bin, self._excess = _calibration_parts(targets, probabilities, bins)
        # The classes that occur at all, renumbered: the others are in no resample.
        self._classes, both = np.unique(np.concatenate([targets, predicted]), return_inverse=True)
        self._actual, self._predicted = both[: len(targets)], both[len(targets) :]

    def of(self, counts: FloatArray) -> FloatArray:
        """Headline numbers (samples, 5) from `counts` (samples, N)."""
        n_images, n_classes = counts.sum(axis=1), len(self._classes)
        right = counts * self._right
        images = _grouped(counts, self._actual, n_classes)
        hits = _grouped(right, self._actual, n_classes)
        claims = _grouped(counts, self._predicted, n_classes)
        gaps = _grouped(counts * self._excess, self._bin, int(self._bin.max()) + 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = hits / images
            f1 = 2 * hits / (images + claims)
        return np.stack(
            [
                right.sum(axis=1) / n_images,
                np.nanmean(recall, axis=1),
                np.nanmean(f1, axis=1),
                (counts * self._surprise).sum(axis=1) / n_images,
                np.abs(gaps).sum(axis=1) / n_images,
            ],
            axis=1,
        )


def _draw(random: np.random.Generator, samples: int, n_units: int) -> FloatArray:
    """How often each image, or group, is in each of `samples` resamples, shape (samples, n_units)."""
    drawn = random.integers(0, n_units, size=(samples, n_units))
    drawn += np.arange(samples)[:, None] * n_units
    return np.bincount(drawn.ravel(), minlength=samples * n_units).reshape(samples, n_units).astype(np.float64)


def _grouped(values: FloatArray, groups: IntArray, n_groups: int) -> FloatArray:
    """Sum the columns of `values` (samples, N) that share a group, into (samples, n_groups)."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((len(values), n_groups))
    sums[:, present] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def _calibration_parts(targets: IntArray, probabilities: FloatArray, bins: int) -> tuple[IntArray, FloatArray]:
    """The bin of each image, and its confidence less 1 where it is right, both of shape (N,)."""
    confidence = probabilities.max(axis=1)
    groups = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return groups, confidence - (probabilities.argmax(axis=1) == targets)


def _quietly(function: Any, *arguments: Any) -> Any:
    """Call a scikit-learn metric without its warning on classes that are predicted and have no images."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*arguments)


def _check(targets: IntArray, probabilities: FloatArray, classes: tuple[str, ...]) -> None:
    if len(targets) == 0:
        raise DataError("There are no images to score.")
    if probabilities.shape != (len(targets), len(classes)):
        raise DataError(
            f"Probabilities have shape {probabilities.shape}; {len(targets)} images and {len(classes)} classes need "
            f"({len(targets)}, {len(classes)})."
        )
    if targets.min() < 0 or targets.max() >= len(classes):
        raise DataError(f"Class indices run from {targets.min()} to {targets.max()}; there are {len(classes)} classes.")
    bad = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1 + 1e-9)).all(axis=1))
    if len(bad):
        raise DataError(
            f"The model's probabilities of {len(bad)} of {len(targets)} images are not numbers between 0 and 1 "
            f"(first: {probabilities[bad[0]].tolist()}). Train again with a smaller learning rate."
        )
