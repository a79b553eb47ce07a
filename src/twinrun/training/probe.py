"""A linear probe: a head trained to convergence on the features of a frozen network.

The head is multinomial logistic regression on standardised features, scikit-learn's L-BFGS in float64 with one thread,
whose result depends on no number of cores. How strong its L2 penalty is, cross-validation within the training images
decides. Standardisation becomes part of the head's weights, so that the model is an ordinary network.

Guillaume Alain and Yoshua Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinrun.base.progress import phase, progress
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import Manifest, Split
from twinrun.models.architectures import find_head
from twinrun.training.folds import Labels, OutOfFold

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties that cross-validation chooses from: l2 / 2 times the squared weights, beside the mean loss of an image."""

MOST_CROSS_VALIDATED = 10_000
"""Images from which the penalty is chosen, at most; larger sets get no scores out of fold, and need none."""

NEAREST = "nearest neighbour"
"""What is compared with a head: the class of the training image whose features are nearest."""

_TOLERANCE = 1e-6
_MOST_STEPS = 10_000
_SMALLEST = float(np.finfo(np.float64).eps)
_CONSTANT = 1e-12  # a smaller deviation is none
_RULED_OUT = -1e3


@dataclass(frozen=True)
class Strength:
    """How well heads with one penalty do on images that they were not trained on."""

    l2: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class Probe:
    """A trained head, weight (C, D) and bias (C,), its penalty, and the penalties that it was chosen from."""

    weight: FloatArray
    bias: FloatArray
    l2: float
    tried: tuple[Strength, ...]

    def describe(self) -> dict[str, Any]:
        """As plain values, for the run card."""
        return {"l2": self.l2, "tried": [asdict(strength) for strength in self.tried]}

    def summary(self) -> str:
        """The penalty of the head, and how it came about."""
        if not self.tried:
            return f"head with L2 penalty {self.l2:g}, as set"
        (best,) = (strength for strength in self.tried if strength.l2 == self.l2)
        return f"head with L2 penalty {self.l2:g}, chosen by cross-validation ({best.accuracy:.1%} of training images)"

    def score(self, features: NDArray[np.float32], targets: IntArray) -> tuple[float, float]:
        """Mean loss in nats and accuracy on images with these features (N, D) and class indices (N,)."""
        if len(targets) == 0:
            return float("nan"), float("nan")
        with _one_thread():
            shares = _softmax(features.astype(np.float64) @ self.weight.T + self.bias)
        return log_loss(shares, targets), float((shares.argmax(axis=1) == targets).mean())

    def put_into(self, network: nn.Module) -> dict[str, Tensor]:
        """Give the network this head; returns the state of the whole."""
        head = find_head(network, len(self.bias))
        if head is None:
            raise ValueError("the network does not end in a linear layer")
        with torch.no_grad():
            head[1].weight.copy_(torch.from_numpy(self.weight).float())
            head[1].bias.copy_(torch.from_numpy(self.bias).float())
        return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def train_probe(features: NDArray[np.float32], split: Split, classes: int, params: TrainParams, threads: int) -> Probe:
    """Train a head on the features (V, N, D) of the views of the images of `split`, the image as it is first.

    `threads` heads are trained at a time, which changes no result.
    """
    with _one_thread(), ThreadPoolExecutor(threads) as pool:
        return _trained(features.astype(np.float64), Labels.of(split), classes, params, pool)


def out_of_fold(features: NDArray[np.float32], manifest: Manifest, params: TrainParams, threads: int) -> OutOfFold:
    """Score the recipe on every usable image, by heads that saw nothing of its fold.

    `features` (V, N, D) are of all images of the splits train, val and test, one after the other, and their views, of
    which heads are trained on all and scored on the first. Units stay in one fold. The penalty of a fold's head is the
    one that does best on the images of the other folds.
    """
    labels = Labels.of_all(manifest)
    count = params.folds or params.probe.folds
    fold = labels.folds(count, params.seed)
    values, classes = features.astype(np.float64), len(manifest.classes)
    with _one_thread(), ThreadPoolExecutor(threads) as pool:
        paths = _cross_validated("Scoring out of fold", values, labels.targets, fold, classes, params, pool)
    probabilities = np.empty((len(labels.ids), len(manifest.classes)))
    for number in range(count):
        others = fold != number
        losses = {l2: log_loss(shares[others], labels.targets[others]) for l2, shares in paths.items()}
        probabilities[~others] = paths[_best(losses)][~others]
    return OutOfFold(labels.ids, labels.targets, probabilities, fold)


def nearest_neighbour(
    features: NDArray[np.float32], targets: IntArray, others: NDArray[np.float32], classes: int
) -> FloatArray:
    """Probabilities (M, classes), 0 or 1, of images with the features `others` (M, D): the class of the nearest.

    Nearest by the angle, of the images with the features (N, D) and classes (N,) that are given.
    """
    with _one_thread():
        known, asked = (_directions(values.astype(np.float64)) for values in (features, others))
        nearest = np.array([int(np.argmax(known @ one)) for one in asked], np.int64)
    return np.eye(classes)[targets[nearest]]


def _directions(values: FloatArray) -> FloatArray:
    directions: FloatArray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _SMALLEST)
    return directions


def log_loss(probabilities: FloatArray, targets: IntArray) -> float:
    """Mean negative log of the probability (N, C) of the truth (N,), in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(targets)), targets], _SMALLEST, 1)).mean())


def _one_thread() -> AbstractContextManager[Any]:
    """BLAS on one thread: how it adds up a product depends on how many share it."""
    with phase("Loading scikit-learn"):  # which takes longer than the heads for a few hundred images
        import sklearn.linear_model  # noqa: F401 - brings a BLAS, and only those that are loaded are limited
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


def _trained(values: FloatArray, labels: Labels, classes: int, params: TrainParams, pool: ThreadPoolExecutor) -> Probe:
    tried: tuple[Strength, ...] = ()
    if params.probe.l2 == "auto":
        tried = _compared(values, labels, classes, params, pool)
        l2 = _best({strength.l2: strength.log_loss for strength in tried})
    else:
        l2 = params.probe.l2
    solver = _Solver(values, labels.targets, classes)
    with phase("Training the head"):
        solver.fit(l2)
    return Probe(solver.weight, solver.bias, l2, tried)


def _compared(
    values: FloatArray, labels: Labels, classes: int, params: TrainParams, pool: ThreadPoolExecutor
) -> tuple[Strength, ...]:
    """The mean loss and accuracy of each penalty over the folds of at most MOST_CROSS_VALIDATED images."""
    chosen = np.sort(labels.order(params.seed)[:MOST_CROSS_VALIDATED])
    labels = labels.take(chosen)
    fold = labels.folds(params.probe.folds, params.seed)
    paths = _cross_validated("Comparing penalties", values[:, chosen], labels.targets, fold, classes, params, pool)
    return tuple(
        Strength(l2, log_loss(shares, labels.targets), float((shares.argmax(axis=1) == labels.targets).mean()))
        for l2, shares in paths.items()
    )


def _cross_validated(
    title: str,
    values: FloatArray,
    targets: IntArray,
    fold: IntArray,
    classes: int,
    params: TrainParams,
    pool: ThreadPoolExecutor,
) -> dict[float, FloatArray]:
    """For each penalty the probabilities (N, C) of all images, each by a head that was trained without its fold.

    From the strongest penalty on, each head starting from the one before, until the loss has risen twice in a row: weak
    penalties take longest, and beyond that point they only fit the training images. The progress has a `title`.
    """
    strengths = STRENGTHS if params.probe.l2 == "auto" else (params.probe.l2,)
    numbers = [number for number in np.unique(fold).tolist() if (fold != number).any()]
    solvers = {number: _Solver(values[:, fold != number], targets[fold != number], classes) for number in numbers}
    paths: dict[float, FloatArray] = {}
    losses: list[float] = []
    with progress(title, len(strengths) * len(numbers)) as advance:
        for l2 in strengths:
            for _ in pool.map(lambda number, l2=l2: solvers[number].fit(l2), numbers):
                advance(1)
            shares = np.full((len(targets), classes), 1 / classes)
            for number, solver in solvers.items():
                shares[fold == number] = solver.probabilities(values[0, fold == number])
            paths[l2] = shares
            losses.append(log_loss(shares, targets))
            if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:
                break
    return paths


def _best(losses: dict[float, float]) -> float:
    """The penalty with the lowest loss; of equals the stronger."""
    return min(losses, key=lambda l2: (losses[l2], -l2))


class _Solver:
    """Heads for the same images, one penalty after the other: weights (C, D), biases (C,) for features as they are."""

    def __init__(self, values: FloatArray, targets: IntArray, classes: int) -> None:
        """`values` are features (V, N, D) of N images in V views, `targets` class indices (N,)."""
        from sklearn.linear_model import LogisticRegression

        values, targets = values.reshape(-1, values.shape[2]), np.tile(targets, len(values))
        self._mean, self._deviation = values.mean(axis=0), values.std(axis=0)
        self._deviation[self._deviation < _CONSTANT] = 1.0
        self._standard = (values - self._mean) / self._deviation
        self._targets, self._present = targets, np.unique(targets)
        self._model = LogisticRegression(tol=_TOLERANCE, max_iter=_MOST_STEPS, warm_start=True)
        self.weight = np.zeros((classes, values.shape[1]))
        self.bias = np.full(classes, _RULED_OUT)  # of classes without images here
        self.bias[self._present] = 0.0

    def fit(self, l2: float) -> None:
        """Train to convergence, from the weights of the penalty before."""
        if len(self._present) < 2:
            return
        model = self._model.set_params(C=1 / (l2 * len(self._targets))).fit(self._standard, self._targets)
        weight, bias = model.coef_, model.intercept_
        if len(self._present) == 2:  # one row for two classes: its logit is the second's less the first's
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.weight[self._present] = weight / self._deviation
        self.bias[self._present] = bias - self.weight[self._present] @ self._mean

    def probabilities(self, values: FloatArray) -> FloatArray:
        """Class probabilities (N, C) of images with features (N, D)."""
        return _softmax(values @ self.weight.T + self.bias)


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result
