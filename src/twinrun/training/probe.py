"""A linear probe: a head trained to convergence on the features of a frozen network.

The head is multinomial logistic regression on standardised features, scikit-learn's L-BFGS in float64 with one thread,
whose result depends on no number of cores. How strong its L2 penalty is, cross-validation within the training images
decides. Standardisation becomes part of the head's weights, so that the model is an ordinary network.

Guillaume Alain and Yoshua Bengio, "Understanding intermediate layers using linear classifier probes", 2016.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinrun.data.keyed import id_keys, keyed_bits
from twinrun.data.manifest import SPLITS, Manifest, Split
from twinrun.data.progress import phase
from twinrun.models.architectures import find_head
from twinrun.params import TrainParams

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties that cross-validation chooses from: l2 / 2 times the squared weights, beside the mean loss of an image."""

MOST_CROSS_VALIDATED = 10_000
"""Images from which the penalty is chosen, at most; larger sets get no scores out of fold, and need none."""

_FOLDS = 2  # the stream of draws that divides images into folds
_TOLERANCE = 1e-6
_MOST_STEPS = 10_000
_SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Strength:
    """How well heads with one penalty do on images that they were not trained on."""

    l2: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities (N, C) of images, each by a head that was trained without it, its unit and the rest of its fold."""

    ids: list[str]
    targets: IntArray
    probabilities: FloatArray
    fold: IntArray


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
    """Train a head on the features (N, D) of the images of `split`.

    `threads` heads are trained at a time, which changes no result.
    """
    with phase("Training the head"), _one_thread(), ThreadPoolExecutor(threads) as pool:
        return _trained(features.astype(np.float64), _Labels.of(split), classes, params, pool)


def out_of_fold(
    features: NDArray[np.float32], manifest: Manifest, params: TrainParams, threads: int
) -> OutOfFold | None:
    """Score the recipe on every usable image, by heads that saw nothing of its fold; None for very large sets.

    `features` (N, D) are of all images of the splits train, val and test, one after the other. Units stay in one fold,
    and the penalty is chosen anew without the fold.
    """
    labels = _Labels.joined([_Labels.of(manifest.split(name)) for name in SPLITS])
    if len(labels.ids) > MOST_CROSS_VALIDATED:
        return None
    values, classes = features.astype(np.float64), len(manifest.classes)
    fold = labels.folds(params.probe.folds, params.seed)
    probabilities = np.zeros((len(labels.ids), classes))
    with phase("Cross-validating"), _one_thread(), ThreadPoolExecutor(threads) as pool:
        for number in range(params.probe.folds):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            probe = _trained(values[inside], labels.take(inside), classes, params, pool)
            probabilities[outside] = _softmax(values[outside] @ probe.weight.T + probe.bias)
    return OutOfFold(labels.ids, labels.targets, probabilities, fold)


def log_loss(probabilities: FloatArray, targets: IntArray) -> float:
    """Mean negative log of the probability (N, C) of the truth (N,), in nats."""
    return float(-np.log(np.clip(probabilities[np.arange(len(targets)), targets], _SMALLEST, 1)).mean())


def _one_thread() -> AbstractContextManager[Any]:
    """BLAS on one thread: how it adds up a product depends on how many share it."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1)
    return limits


@dataclass(frozen=True)
class _Labels:
    ids: list[str]
    targets: IntArray
    units: list[str]

    @classmethod
    def of(cls, split: Split) -> "_Labels":
        return cls(split.ids, split.targets, split.units or split.ids)

    @classmethod
    def joined(cls, parts: "Sequence[_Labels]") -> "_Labels":
        return cls(
            [image_id for part in parts for image_id in part.ids],
            np.concatenate([part.targets for part in parts]),
            [unit for part in parts for unit in part.units],
        )

    def take(self, chosen: IntArray) -> "_Labels":
        return _Labels([self.ids[i] for i in chosen], self.targets[chosen], [self.units[i] for i in chosen])

    def order(self, seed: int) -> IntArray:
        """The images by a draw for each unit: those of a unit stand together."""
        first: dict[str, str] = {}
        for image_id, unit in sorted(zip(self.ids, self.units, strict=True)):
            first.setdefault(unit, image_id)
        draws = keyed_bits(seed, _FOLDS, id_keys([first[unit] for unit in self.units]))
        return np.lexsort((id_keys(self.ids), draws)).astype(np.int64)

    def folds(self, count: int, seed: int) -> IntArray:
        """The fold of each image, from 0: stratified, and the same for all images of a unit.

        In the order of their draws, units go where there are fewest images of their classes, then fewest images.
        """
        members: dict[str, list[int]] = {}
        for i in self.order(seed).tolist():
            members.setdefault(self.units[i], []).append(i)
        of_class = np.zeros((int(self.targets.max()) + 1, count), np.int64)
        fold = np.zeros(len(self.ids), np.int64)
        for images in sorted(members.values(), key=len, reverse=True):  # large units first, or they find no room
            targets = self.targets[images]
            place = min(range(count), key=lambda k: (of_class[targets, k].sum(), of_class[:, k].sum(), k))
            fold[images] = place
            np.add.at(of_class[:, place], targets, 1)
        return fold


def _trained(values: FloatArray, labels: _Labels, classes: int, params: TrainParams, pool: ThreadPoolExecutor) -> Probe:
    tried: tuple[Strength, ...] = ()
    if params.probe.l2 == "auto":
        tried = _compared(values, labels, classes, params, pool)
        l2 = min(tried, key=lambda strength: (strength.log_loss, -strength.l2)).l2
    else:
        l2 = params.probe.l2
    (weight, bias), *_ = _heads(values, labels.targets, classes, (l2,))
    return Probe(weight, bias, l2, tried)


def _compared(
    values: FloatArray, labels: _Labels, classes: int, params: TrainParams, pool: ThreadPoolExecutor
) -> tuple[Strength, ...]:
    """The mean loss and accuracy of each penalty over the folds of at most MOST_CROSS_VALIDATED images."""
    chosen = np.sort(labels.order(params.seed)[:MOST_CROSS_VALIDATED])
    values, labels = values[chosen], labels.take(chosen)
    fold = labels.folds(params.probe.folds, params.seed)

    def scored(number: int) -> FloatArray:
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if not len(outside) or not len(inside):
            return np.zeros((len(STRENGTHS), 2))
        targets = labels.targets[outside]
        heads = _heads(values[inside], labels.targets[inside], classes, STRENGTHS)
        shares = [_softmax(values[outside] @ weight.T + bias) for weight, bias in heads]
        return np.array(
            [[log_loss(p, targets) * len(targets), (p.argmax(axis=1) == targets).sum()] for p in shares], np.float64
        )

    sums = sum(pool.map(scored, range(params.probe.folds)), np.zeros((len(STRENGTHS), 2)))
    means = sums / len(labels.ids)
    return tuple(Strength(l2, float(loss), float(right)) for l2, (loss, right) in zip(STRENGTHS, means, strict=True))


def _heads(
    values: FloatArray, targets: IntArray, classes: int, strengths: Sequence[float]
) -> list[tuple[FloatArray, FloatArray]]:
    """Weights (C, D) and biases (C,) for features as they are, for each penalty; each starts from the one before.

    A class without images gets a bias that rules it out.
    """
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    deviation[deviation < 1e-12] = 1.0
    standard = (values - mean) / deviation
    heads, model = [], _solver()
    for l2 in strengths:
        model.set_params(C=1 / (l2 * len(targets)))
        if len(np.unique(targets)) > 1:
            model.fit(standard, targets)
        weight, bias = _for_all_classes(model, targets, classes, values.shape[1])
        weight = weight / deviation
        heads.append((weight, bias - weight @ mean))
    return heads


def _solver() -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(tol=_TOLERANCE, max_iter=_MOST_STEPS, warm_start=True)


def _for_all_classes(
    model: "LogisticRegression", targets: IntArray, classes: int, n_features: int
) -> tuple[FloatArray, FloatArray]:
    weight, bias = np.zeros((classes, n_features)), np.full(classes, -1e3)
    present = np.unique(targets)
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    if len(present) == 2:  # scikit-learn's two classes share one row: its logit is the second's less the first's
        weight[present] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[present] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[present], bias[present] = model.coef_, model.intercept_
    return weight, bias


def _softmax(logits: FloatArray) -> FloatArray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: FloatArray = shifted / shifted.sum(axis=1, keepdims=True)
    return result
