"""Labels that are probably wrong, by confident learning. Pure.

In cross-validation, a quick model predicts the probability of each label of every image; from these cleanlab
(Northcutt, Jiang & Chuang, "Confident Learning", JAIR 2021) finds the labels that are probably wrong. The model
is a single layer of patch features (Coates, Lee & Ng, "An analysis of single-layer networks in unsupervised feature
learning", AISTATS 2011): whitened patches against centroids of k-means, a soft threshold, sums over the cells of a
grid, and a multinomial logistic regression on those. It needs no PyTorch, has an accuracy of 91% on Fashion-MNIST and,
being linear, hardly memorises single wrong labels.

Flagged labels are those that cleanlab prunes by noise rate; they are ranked by self-confidence, the probability of the
given label. benchmarks/data/labels.py measures that ranking against cleanlab's others. Where the model agrees with too
few labels to be trusted, none is flagged.

Sums of floating-point numbers depend on how they are divided among threads. So BLAS gets one thread, the work is cut
into pieces of fixed size, several pieces are computed at a time, and their results are added in a fixed order: the
result is the same for any number of cores.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from twinrun.core.arrays import Float32Array, FloatArray, IntArray, Pixels
from twinrun.core.cores import available_cores
from twinrun.core.keyed import keyed_order, keyed_seed

_LARGEST_SIDE_PX = 32
_PATCH_PX = 6
_GRID = 3
_CENTROIDS = 256
_KMEANS_STEPS = 10
_PATCHES_FOR_CENTROIDS = 100_000
_IMAGES_FOR_CENTROIDS = 5_000
_CONTRAST_FLOOR = 10.0
_WHITENING_FLOOR = 0.1
_THRESHOLD = 0.5
_WEIGHT_DECAY = 1e-2
_STEPS = 60
_IMAGES_AT_ONCE = 32
_ROWS_AT_ONCE = 2048
_COLUMNS_AT_ONCE = 32
_FEWEST_PER_LABEL = 2
# Below it, most flags are mistakes of the model: on clean TrashNet (accuracy 72%) it flagged 466 of 2,527 images, and
# with 5% of the labels made wrong, one flag in six was right; on Fashion-MNIST (83%) two in five. Whether such a set is
# hard or has very many wrong labels cannot be told.
LEAST_AGREEMENT = 0.75
_JUDGED_AFTER = 0.05
_DIGITS = 6

Progress = Callable[[float], None]
Made = TypeVar("Made")


@dataclass(frozen=True)
class LabelIssue:
    """A label that is probably wrong: its image's `row`, the label `given`, and the one `suggested` instead.

    `confidence` is the probability of the given label, in [0, 1], by a model that was not trained on this image.
    """

    row: int
    given: str
    suggested: str
    confidence: float


@dataclass(frozen=True)
class LabelSearch:
    """What was found, the least confident first.

    `accuracy` is the share of images whose given label is the most probable one, in [0, 1]; below LEAST_AGREEMENT there
    are no issues. If the time ran out, `finished` is False, there are no issues and `accuracy` is 0. `unjudged` is the
    reason why no label could be judged, as a sentence without its full stop; None where they were.
    """

    issues: list[LabelIssue]
    accuracy: float
    finished: bool
    unjudged: str | None = None


def find_label_errors(
    images: Pixels,
    rows: Sequence[int],
    labels: Sequence[str],
    *,
    folds: int,
    budget_s: float,
    seed: int,
    progress: Progress | None = None,
) -> LabelSearch:
    """Search the images (N, H, W, C) at `rows`, whose labels are `labels`, for labels that are probably wrong.

    `folds` is 2 or more. Labels that only one image has cannot be judged and are skipped. After `budget_s` seconds, or
    as soon as they will clearly not suffice, the search ends unfinished. `progress` gets the share that is done. The
    result is the same for the same seed and any number of threads.
    """
    names, codes = np.unique(np.array(labels, dtype=str), return_inverse=True)
    many = np.flatnonzero(np.bincount(codes, minlength=len(names))[codes] >= _FEWEST_PER_LABEL)
    if len(set(codes[many].tolist())) < 2:
        return LabelSearch([], 0.0, True, "Fewer than two classes have two images or more")
    names, codes = np.unique(names[codes[many]], return_inverse=True)
    judged = np.array(rows, dtype=np.int64)[many]
    try:
        probabilities = out_of_fold(images, judged, codes, folds=folds, budget_s=budget_s, seed=seed, progress=progress)
    except OutOfTime:
        return LabelSearch([], 0.0, False, f"The search for wrong labels does not finish within {budget_s:g} s")
    agreement = float((probabilities.argmax(axis=1) == codes).mean())
    if agreement < LEAST_AGREEMENT:
        agreed = f"The quick model agrees with only {agreement:.0%} of the labels, too few to doubt any"
        return LabelSearch([], agreement, True, agreed)
    issues = [
        LabelIssue(int(judged[i]), str(names[codes[i]]), str(names[suggested]), float(probabilities[i, codes[i]]))
        for i, suggested in doubted(codes, probabilities)
    ]
    return LabelSearch(issues, agreement, finished=True)


def doubted(codes: IntArray, probabilities: FloatArray) -> list[tuple[int, int]]:
    """Positions of labels that are probably wrong, each with the most probable label; the least confident first.

    `codes` (n,) are label numbers, and `probabilities` (n, labels) those of models that were not trained on the image.
    These are the labels that cleanlab prunes and that are not the most probable ones; ties stand in their order.
    """
    from cleanlab.filter import find_label_issues

    pruned = np.flatnonzero(find_label_issues(codes, probabilities, filter_by="prune_by_noise_rate", n_jobs=1))
    suggested = probabilities[pruned].argmax(axis=1)
    ranked = np.argsort(probabilities[pruned, codes[pruned]], kind="stable")
    return [(int(pruned[i]), int(suggested[i])) for i in ranked if suggested[i] != codes[pruned[i]]]


class OutOfTime(Exception):
    """The time budget will not do."""


def out_of_fold(
    images: Pixels,
    rows: IntArray,
    codes: IntArray,
    *,
    folds: int,
    budget_s: float,
    seed: int,
    progress: Progress | None = None,
    apart: int = 0,
) -> FloatArray:
    """Probabilities (n, labels) of the images at `rows`, each by a model trained on the other folds.

    `codes` (n,) are label numbers from 0 on, each occurring at least twice. The last `apart` rows are a fold of their
    own, so that they are judged by a model trained on all others. Raises OutOfTime.
    """
    from threadpoolctl import threadpool_limits

    order, starts = _in_folds(codes[: len(codes) - apart], folds, seed)
    if apart:
        order, starts = np.concatenate([order, np.arange(len(order), len(codes))]), np.append(starts, len(codes))
    side = min(max(images.shape[1:3]), _LARGEST_SIDE_PX)
    meter = _Meter(budget_s, progress)
    with threadpool_limits(1), ThreadPoolExecutor(available_cores()) as pool:
        encoder = _learn_encoder(images, rows, side, seed)
        work = encoder.work_per_image(side), 4 * _STEPS * folds * encoder.size * (int(codes.max()) + 1)
        meter.expect(len(rows) * work[0], len(rows) * work[1])
        features = _features(images, rows[order], encoder, side, pool, meter)
        scores = _fit_folds(features, codes[order], starts, pool, meter)
    probabilities = np.empty(scores.shape)
    probabilities[order] = np.exp(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
    return np.round(probabilities, _DIGITS)


class _Meter:
    """Measures how much of the expected work is done, and stops it when the time will not suffice."""

    def __init__(self, budget_s: float, progress: Progress | None) -> None:
        self._budget_s = budget_s
        self._progress = progress or (lambda _: None)
        self._started = time.monotonic()
        self._expected = [1.0]
        self._done = 0.0

    def expect(self, *work: float) -> None:
        """Set the parts of the work, in multiplications."""
        self._expected = list(work)

    def done(self, part: int, share: float) -> None:
        """Report that `share`, in [0, 1], of part number `part` is done; raises OutOfTime."""
        self._done = (sum(self._expected[:part]) + share * self._expected[part]) / sum(self._expected)
        spent = time.monotonic() - self._started
        if spent > self._budget_s or (self._done > _JUDGED_AFTER and spent / self._done > 1.5 * self._budget_s):
            raise OutOfTime
        self._progress(self._done)


def _in_folds(codes: IntArray, folds: int, seed: int) -> tuple[IntArray, IntArray]:
    """An order (n,) in which the images of a fold are neighbours, and where folds start and end (folds + 1,).

    Every label is spread over the folds as evenly as possible, so that none is in only one fold.
    """
    drawn = keyed_order(np.arange(len(codes), dtype=np.uint64), seed)
    by_label = drawn[np.argsort(codes[drawn], kind="stable")]
    order = np.concatenate([by_label[fold::folds] for fold in range(folds)])
    sizes = [len(by_label[fold::folds]) for fold in range(folds)]
    return order, np.concatenate([[0], np.cumsum(sizes)])


@dataclass(frozen=True)
class _Encoder:
    """From normalised patches (m, d) to activations (m, k): `patches @ weights + bias`, negative values set to zero."""

    patch_px: int
    grid: int
    weights: Float32Array
    bias: Float32Array

    @property
    def size(self) -> int:
        """Number of features of an image."""
        return self.grid**2 * len(self.bias)

    def work_per_image(self, side: int) -> float:
        """The approximate number of multiplications."""
        return 2.0 * (side - self.patch_px + 1) ** 2 * self.weights.size

    def encode(self, images: Float32Array) -> Float32Array:
        """Features (n, size) of (n, H, W, C), roots of sums over the cells of the grid."""
        patches = _patches(images, self.patch_px)
        count, height, width, depth = patches.shape
        active = _evened(patches.reshape(-1, depth)) @ self.weights
        active += self.bias
        np.maximum(active, 0, out=active)
        down, across = (np.arange(self.grid) * length // self.grid for length in (height, width))
        cells = np.add.reduceat(active.reshape(count, height, width, -1), down, axis=1)
        features: Float32Array = np.sqrt(np.add.reduceat(cells, across, axis=2).reshape(count, -1))
        return features


def _learn_encoder(images: Pixels, rows: IntArray, side: int, seed: int) -> _Encoder:
    """Whiten patches and find their centroids (Coates & Ng, "Learning Feature Representations with K-means", 2012)."""
    generator = np.random.default_rng(keyed_seed(seed, 1))
    sample = np.sort(generator.choice(rows, min(len(rows), _IMAGES_FOR_CENTROIDS), replace=False))
    pieces = range(0, len(sample), _IMAGES_AT_ONCE)  # all of them at their full size may not fit into memory
    small = np.concatenate([_shrunk(images[sample[start : start + _IMAGES_AT_ONCE]], side) for start in pieces])
    shortest = min(small.shape[1:3])
    patch_px = max(1, min(_PATCH_PX, shortest - _GRID + 1))
    windows = _windows(small, patch_px)
    places = generator.integers(0, windows.shape[:3], size=(_PATCHES_FOR_CENTROIDS, 3))
    evened = _evened(windows[places[:, 0], places[:, 1], places[:, 2]].reshape(len(places), -1))
    varied = evened[(evened**2).sum(axis=1) > 1]
    evened = varied if len(varied) >= _CENTROIDS else evened
    mean = evened.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((evened - mean).T).reshape(len(mean), len(mean)).astype(np.float64))
    whitening = ((vectors / np.sqrt(np.maximum(values, 0) + _WHITENING_FLOOR)) @ vectors.T).astype(np.float32)
    centroids = _spherical_kmeans(_on_sphere((evened - mean) @ whitening), generator)
    weights = np.ascontiguousarray(whitening @ centroids.T)
    return _Encoder(patch_px, min(_GRID, shortest - patch_px + 1), weights, -mean @ weights - np.float32(_THRESHOLD))


def _spherical_kmeans(points: Float32Array, generator: np.random.Generator) -> Float32Array:
    """Directions (k, d) of unit length, each the mean of the points (m, d) that are nearest to it."""
    centroids = points[generator.choice(len(points), _CENTROIDS, replace=False)]
    for _ in range(_KMEANS_STEPS):
        nearest = np.argmax(points @ centroids.T, axis=1)
        order = np.argsort(nearest, kind="stable")
        occupied, starts = np.unique(nearest[order], return_index=True)
        centroids[occupied] = _on_sphere(np.add.reduceat(points[order], starts, axis=0))
    return centroids


def _on_sphere(points: Float32Array) -> Float32Array:
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    directions: Float32Array = (points / np.maximum(lengths, 1e-6)).astype(np.float32)
    return directions


def _patches(images: Float32Array, patch_px: int) -> Float32Array:
    """Every patch of (n, H, W, C) as (n, H - p + 1, W - p + 1, p * p * C)."""
    windows = _windows(images, patch_px)
    return windows.reshape(*windows.shape[:3], -1)


def _windows(images: Float32Array, patch_px: int) -> Float32Array:
    """Every patch of (n, H, W, C) as a view (n, H - p + 1, W - p + 1, C, p, p), which takes no memory."""
    return np.lib.stride_tricks.sliding_window_view(images, (patch_px, patch_px), axis=(1, 2))


def _evened(patches: Float32Array) -> Float32Array:
    """Patches (m, d) normalised to mean 0 and deviation 1, or less for those that are nearly flat."""
    centred = patches - patches.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(_CONTRAST_FLOOR))
    evened: Float32Array = np.divide(centred, deviation, dtype=np.float32)
    return evened


def _shrunk(images: Pixels, side: int) -> Float32Array:
    """Images (n, H, W, C) as floats, averaged over areas so that no side is longer than `side`."""
    height, width = images.shape[1:3]
    if max(height, width) <= side:
        return images.astype(np.float32)
    scale = side / max(height, width)
    down, across = _areas(height, max(1, round(height * scale))), _areas(width, max(1, round(width * scale)))
    rows = np.tensordot(images.astype(np.float32), down, axes=(1, 1))
    small = np.tensordot(rows, across, axes=(1, 1))
    return np.ascontiguousarray(small.transpose(0, 2, 3, 1))


def _areas(long: int, short: int) -> Float32Array:
    """Weights (short, long) of an average over areas."""
    edges = np.linspace(0, long, short + 1)
    pixels = np.arange(long)
    ends, starts = np.minimum(edges[1:, None], pixels + 1), np.maximum(edges[:-1, None], pixels)
    weights: Float32Array = (np.clip(ends - starts, 0, None) * short / long).astype(np.float32)
    return weights


def _features(
    images: Pixels, rows: IntArray, encoder: _Encoder, side: int, pool: Executor, meter: _Meter
) -> Float32Array:
    """Standardised features (n, size), in the order of `rows`."""
    features = np.empty((len(rows), encoder.size), np.float32)

    def encode(start: int) -> int:
        some = rows[start : start + _IMAGES_AT_ONCE]
        features[start : start + len(some)] = encoder.encode(_shrunk(images[some], side))
        return start + len(some)

    for end in _in_order(pool, encode, range(0, len(rows), _IMAGES_AT_ONCE)):
        meter.done(0, end / len(rows))
    for column in range(0, encoder.size, _COLUMNS_AT_ONCE):
        block = features[:, column : column + _COLUMNS_AT_ONCE]
        block -= block.mean(axis=0)
        block /= block.std(axis=0) + np.float32(1e-3)
    return features


def _fit_folds(features: Float32Array, codes: IntArray, starts: IntArray, pool: Executor, meter: _Meter) -> FloatArray:
    """Logits (n, labels) of each image by a logistic regression on the other folds.

    The regressions of all folds are fitted at once, as one separable problem: most of the time goes into reading the
    features, which are then read once for all folds.
    """
    from scipy.optimize import minimize

    count, labels, folds = len(codes), int(codes.max()) + 1, len(starts) - 1
    fold = np.repeat(np.arange(folds), np.diff(starts))
    trained_on = count - np.diff(starts)
    pieces = range(0, count, _ROWS_AT_ONCE)
    asked = 0

    def scores(start: int, weights: Float32Array) -> Float32Array:
        piece: Float32Array = (features[start : start + _ROWS_AT_ONCE] @ weights).reshape(-1, folds, labels)
        piece -= piece.max(axis=2, keepdims=True)
        return piece

    def piece_loss(start: int, weights: Float32Array) -> tuple[float, Float32Array]:
        logits = scores(start, weights)
        here = np.arange(len(logits))
        own, others = codes[start : start + len(logits)], fold[start : start + len(logits), None] != np.arange(folds)
        share = (others / trained_on).astype(np.float32)
        exponents = np.exp(logits)
        sums = exponents.sum(axis=2)
        loss = float((share * (np.log(sums) - logits[here, :, own])).sum(dtype=np.float64))
        exponents /= sums[:, :, None]
        exponents[here, :, own] -= 1
        exponents *= share[:, :, None]
        return loss, features[start : start + len(logits)].T @ exponents.reshape(len(logits), -1)

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        nonlocal asked
        weights = flat.reshape(-1, folds * labels).astype(np.float32)
        value, gradient = 0.5 * _WEIGHT_DECAY * float(flat @ flat), _WEIGHT_DECAY * flat.reshape(weights.shape)
        for piece_value, piece_gradient in _in_order(pool, lambda start: piece_loss(start, weights), pieces):
            value += piece_value
            gradient += piece_gradient
        asked += 1
        meter.done(1, min(1.0, asked / _STEPS))
        return value, gradient.reshape(-1)

    begin = np.zeros(features.shape[1] * folds * labels)
    optimum = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS, "maxfun": _STEPS})
    meter.done(1, 1.0)
    weights = optimum.x.reshape(-1, folds * labels).astype(np.float32)
    logits = np.concatenate(list(_in_order(pool, lambda start: scores(start, weights), pieces)))
    return logits[np.arange(count), fold].astype(np.float64)


def _in_order(pool: Executor, make: Callable[[int], Made], given: Iterable[int]) -> Iterator[Made]:
    """The results of `make` for each of `given`, in order; only a few are computed ahead, to save memory."""
    ahead: deque[Future[Made]] = deque()
    for one in given:
        ahead.append(pool.submit(make, one))
        if len(ahead) > 2 * available_cores():
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()
