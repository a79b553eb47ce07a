"""Near duplicates: every pair of images of which one is an altered copy of the other. Labels and splits are not used.

Changed means several of these at once: re-encoded, resized, other colours and contrast, moved, scaled or cropped by up
to about a tenth, framed, mirrored. Candidates come from a forest over short descriptors of the inner part of each
image, in which every image looks for itself through 75 windows, mirrored too; the image is then laid over each
candidate as well as it can be. What counts as alike is measured against the data: the two are far nearer to each other
than to the next neighbours of either (after Lowe, "Distinctive image features from scale-invariant keypoints", IJCV
2004), so that in a data set whose images all look alike nothing stands out but copies.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import combinations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from twinrun.core.arrays import Float32Array, Int32Array, Pixels
from twinrun.core.cores import available_cores
from twinrun.dataset.pairs import Change, NearPair
from twinrun.ingest.copies.alignment import align, spectrum
from twinrun.ingest.copies.descriptors import (
    VIEWS,
    Boxes,
    content_boxes,
    descriptors,
    gray_pictures,
    learned_metric,
)
from twinrun.ingest.copies.forest import Forest, grow, nearest
from twinrun.ingest.facts import Facts

_T = TypeVar("_T")

_ORDER = 10
_SAMPLE = 2000
_TREES = 4
_DESCRIBED_AT_ONCE = 2048
_ALIGNED_AT_ONCE = 512
_LEAST_CONTRAST = 1.0  # gray levels of 255: below it noise is all there is to compare
_NEIGHBOURS = 6
_RIVAL = 4  # the neighbour to be nearer than: an image may have three copies
_RIVAL_RATIO = 0.33
_ALWAYS_A_COPY = 0.012
_NEVER_A_COPY = 0.16
_NO_RIVAL = 0.3
_STILL = 0.03  # windows further than this from the whole are crops


@dataclass(frozen=True)
class _Candidates:
    """Pairs to be judged: `match` is like `view` of `owner`, at `distance` between descriptors."""

    owner: Int32Array
    match: Int32Array
    view: Int32Array
    distance: Float32Array

    def __getitem__(self, chosen: npt.NDArray[np.generic] | slice) -> "_Candidates":
        return _Candidates(self.owner[chosen], self.match[chosen], self.view[chosen], self.distance[chosen])


@dataclass(frozen=True)
class _Verdicts:
    """For each candidate its distance once aligned, and whether that took a window that is not the whole."""

    distance: Float32Array
    moved: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Search:
    """What all steps share: the images, where their content lies, threads, and where progress is reported."""

    images: Pixels
    boxes: Boxes | None
    pool: ThreadPoolExecutor
    progress: Callable[[float], None]


def near_duplicates(
    images: Pixels, facts: Sequence[Facts], *, progress: Callable[[float], None] | None = None
) -> list[NearPair]:
    """Pairs of rows of `images` (N, H, W, C) that show the same picture, sorted.

    Of `facts`, one for each image, the error says what to leave out; of images with the same pixels the first stands
    for all; width and height separate the bars of padding from the picture. Images of next to no contrast have no near
    duplicates. `progress` gets the share done, in [0, 1]. The result depends on neither threads nor time. Memory: some
    hundred bytes for each image, and no copy of the pixels.
    """
    from threadpoolctl import threadpool_limits

    rows = _first_of_each(facts)
    boxes = content_boxes(images, [(fact.width, fact.height) for fact in facts])
    # One thread for each product of matrices: how BLAS cuts one up between threads would change its last bits.
    with threadpool_limits(1), ThreadPoolExecutor(available_cores()) as pool:
        search = _Search(images, boxes, pool, progress or (lambda _: None))
        pairs = _judged(search, _candidates(search, rows)) if len(rows) > 1 else {}
        pairs |= _within_groups(search, pairs)
    search.progress(1.0)
    return [NearPair(*pair, *measured) for pair, measured in sorted(pairs.items())]


def _first_of_each(facts: Sequence[Facts]) -> Int32Array:
    """One row for each picture, in an order that does not depend on that of the files."""
    first: dict[str, int] = {}
    for row, fact in enumerate(facts):
        if fact.error is None and fact.pixels_sha256 is not None:
            first.setdefault(fact.pixels_sha256, row)
    return np.array([row for _, row in sorted(first.items())], np.int32)


def _candidates(search: _Search, rows: Int32Array) -> _Candidates:
    """For each of `rows` its nearest neighbours among them, at most `_NEIGHBOURS`, nearest first."""
    sample = rows[:: -(-len(rows) // _SAMPLE)]
    metric = learned_metric(gray_pictures(search.images, sample, search.boxes))

    def describe(chunk: Int32Array) -> tuple[Float32Array, Float32Array]:
        return descriptors(gray_pictures(search.images, chunk, search.boxes), metric, VIEWS[:1])

    points, contrasts = zip(*_on_all_threads(search, describe, _cut(rows, _DESCRIBED_AT_ONCE), 0.0, 0.1), strict=True)
    clear = np.concatenate(contrasts) >= _LEAST_CONTRAST
    rows, forest = rows[clear], grow(np.concatenate(points)[:, 0][clear], _TREES)

    def ask(places: Int32Array) -> _Candidates:
        asked, _ = descriptors(gray_pictures(search.images, rows[places], search.boxes), metric)
        neighbours = _neighbours(forest, asked, places)
        return _Candidates(rows[neighbours.owner], rows[neighbours.match], neighbours.view, neighbours.distance)

    places = np.arange(len(rows), dtype=np.int32)
    return _joined(_on_all_threads(search, ask, _cut(places, _DESCRIBED_AT_ONCE), 0.1, 0.6))


def _neighbours(forest: Forest, asked: Float32Array, owners: Int32Array) -> _Candidates:
    """The nearest points to any view of `asked` (n, views, D), each once, but for `owners` (n,) themselves."""
    count, views, dimensions = asked.shape
    match, squared = nearest(forest, asked.reshape(-1, dimensions), np.repeat(owners, views))
    match, distance = match.reshape(count, views), np.sqrt(squared).reshape(count, views)
    # By match and then distance, as one number of which both are parts: the bits of a positive float order as it does.
    keys = (match.astype(np.int64) << 32) + distance.view(np.int32)
    view = np.argsort(keys, axis=1, kind="stable").astype(np.int32)
    match, distance = np.take_along_axis(match, view, 1), np.take_along_axis(distance, view, 1)
    distance[:, 1:][match[:, 1:] == match[:, :-1]] = np.inf
    distance[match < 0] = np.inf
    nearest_first = np.argsort(distance, axis=1, kind="stable")[:, :_NEIGHBOURS]
    view, match, distance = (np.take_along_axis(table, nearest_first, 1) for table in (view, match, distance))
    owner = np.repeat(owners, nearest_first.shape[1]).reshape(match.shape)
    return _Candidates(owner, match, view, distance)[np.isfinite(distance)]


def _judged(search: _Search, candidates: _Candidates) -> dict[tuple[int, int], tuple[float, Change]]:
    """The candidates that are copies: distance and change of each pair of rows."""
    verdicts = _aligned(search, candidates, 0.6, 1.0)
    limits = np.clip(_RIVAL_RATIO * _rival_distances(candidates, verdicts.distance), _ALWAYS_A_COPY, _NEVER_A_COPY)
    return _pairs(candidates, verdicts, verdicts.distance < limits)


def _rival_distances(candidates: _Candidates, distances: Float32Array) -> Float32Array:
    """For each candidate the aligned distance of the `_RIVAL`-th nearest: its owner's or its match's, which is less.

    So that a picture unlike all others is not called a copy of one that many resemble. `_NO_RIVAL` where there are
    fewer.
    """
    by_distance = distances[np.lexsort((distances, candidates.owner))]
    owners, counts = np.unique(candidates.owner, return_counts=True)
    starts = np.cumsum(counts) - counts
    rivals = np.full(1 + max(candidates.owner.max(initial=0), candidates.match.max(initial=0)), np.float32(_NO_RIVAL))
    rivals[owners[counts >= _RIVAL]] = by_distance[starts[counts >= _RIVAL] + _RIVAL - 1]
    return np.minimum(rivals[candidates.owner], rivals[candidates.match])


def _within_groups(
    search: _Search, pairs: dict[tuple[int, int], tuple[float, Change]]
) -> dict[tuple[int, int], tuple[float, Change]]:
    """The pairs that two pairs with a row in common imply, where they too are alike: copies of the same image."""
    partners: dict[int, set[int]] = {}
    for first, second in pairs:
        partners.setdefault(first, set()).add(second)
        partners.setdefault(second, set()).add(first)
    implied = {pair for of_row in partners.values() for pair in combinations(sorted(of_row), 2)} - pairs.keys()
    if not implied:
        return {}
    both = np.array(sorted(implied), np.int32)
    plain, flipped = np.zeros(len(both), np.int32), np.full(len(both), len(VIEWS), np.int32)
    ways = _joined(
        _Candidates(both[:, i], both[:, 1 - i], view, np.zeros(len(both), np.float32))
        for i in (0, 1)
        for view in (plain, flipped)
    )
    verdicts = _aligned(search, ways, 1.0, 1.0)
    return _pairs(ways, verdicts, verdicts.distance < _NEVER_A_COPY)


def _pairs(
    candidates: _Candidates, verdicts: _Verdicts, chosen: npt.NDArray[np.bool_]
) -> dict[tuple[int, int], tuple[float, Change]]:
    pairs: dict[tuple[int, int], tuple[float, Change]] = {}
    for i in np.flatnonzero(chosen).tolist():
        rows = sorted((int(candidates.owner[i]), int(candidates.match[i])))
        change: Change = "cropped" if verdicts.moved[i] else "re-encoded"
        if candidates.view[i] >= len(VIEWS):
            change = "mirrored"
        measured = (float(verdicts.distance[i]), change)
        pair = (rows[0], rows[1])
        pairs[pair] = min(measured, pairs.get(pair, measured))
    return pairs


def _aligned(search: _Search, candidates: _Candidates, start: float, stop: float) -> _Verdicts:
    """Lay the owner of each candidate over its match."""

    def lay(chunk: Int32Array) -> _Verdicts:
        part = candidates[chunk]
        flipped = part.view >= len(VIEWS)
        pictures = gray_pictures(search.images, part.owner, search.boxes)
        pictures[flipped] = pictures[flipped, :, ::-1]
        targets = spectrum(gray_pictures(search.images, part.match, search.boxes), _ORDER, VIEWS[:1])
        laid = align(pictures, targets, VIEWS[part.view % len(VIEWS)])
        return _Verdicts(laid.distance, np.abs(laid.windows - VIEWS[0]).max(axis=1) > _STILL)

    chunks = _cut(np.arange(len(candidates.owner), dtype=np.int32), _ALIGNED_AT_ONCE)
    parts = list(_on_all_threads(search, lay, chunks, start, stop))
    if not parts:
        return _Verdicts(np.empty(0, np.float32), np.empty(0, np.bool_))
    return _Verdicts(np.concatenate([part.distance for part in parts]), np.concatenate([part.moved for part in parts]))


def _on_all_threads(
    search: _Search, work: Callable[[Int32Array], _T], chunks: Sequence[Int32Array], start: float, stop: float
) -> Iterator[_T]:
    """Work through `chunks` on all threads, in order; progress goes from `start` to `stop`."""
    for done, result in enumerate(search.pool.map(work, chunks), start=1):
        search.progress(start + (stop - start) * done / len(chunks))
        yield result


def _cut(rows: Int32Array, size: int) -> list[Int32Array]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _joined(parts: Iterable[_Candidates]) -> _Candidates:
    held = list(parts)
    if not held:
        none = np.empty(0, np.int32)
        return _Candidates(none, none, none, np.empty(0, np.float32))
    return _Candidates(*(np.concatenate([getattr(part, field.name) for part in held]) for field in fields(_Candidates)))
