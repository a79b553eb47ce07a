"""Near duplicates: pairs of images of which one is an altered copy of the other. Labels and splits are not used.

An altered copy may be several of these at once: re-encoded, resized, changed in colour and contrast, moved, scaled or
cropped by up to about a tenth, framed, mirrored. Candidates come from a forest over short descriptors of the inner part
of each image, which is searched with 50 windows of every image, mirrored too. Each image is then aligned with its
candidates, roughly at first, and as well as possible where they may be copies. A pair is a near duplicate if the two
are far nearer to each other than to the next neighbours of either (after Lowe, "Distinctive image features from
scale-invariant keypoints", IJCV 2004), so that in a data set whose images all look alike only copies are found.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import combinations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from twinrun.core.arrays import Float32Array, Int32Array, Pixels
from twinrun.core.cores import available_cores
from twinrun.dataset.pairs import Change, NearPair
from twinrun.ingest.copies.alignment import align, spectrum, swapped
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
_LEAST_CONTRAST = 1.0  # gray levels of 255: below it there is only noise to compare
_LIKELY = 3
_RIVALS = 5
_ROUGH_STEPS = 1
_FINE_STEPS = 4
_PROMISING = 0.85  # of the rival's distance: a pair that is not nearer after the rough alignment is hardly ever a copy
_RIVAL = 4  # rank of the neighbour that a copy must be nearer than: an image may have three copies
_RIVAL_RATIO = 0.33
_LIKELY_RATIO = 0.42  # the same, before the rivals were aligned well
_ALWAYS_A_COPY = 0.012
_NEVER_A_COPY = 0.2
_FAR = 0.35  # from this distance after the rough alignment on, a pair is never a copy
_NO_RIVAL = 0.3
_PARTNERS = 16  # of a row whose pairs imply others: a still camera makes a thousand copies, and half a million pairs
_ACROSS = 4  # copies in each split that every copy in another split is compared with, where there are many
_STILL = 0.03  # windows further than this from the whole are crops


@dataclass(frozen=True)
class _Candidates:
    """Pairs to be judged: `match` resembles `view` of `owner`."""

    owner: Int32Array
    match: Int32Array
    view: Int32Array

    def __getitem__(self, chosen: npt.NDArray[np.generic] | slice) -> "_Candidates":
        return _Candidates(self.owner[chosen], self.match[chosen], self.view[chosen])


@dataclass(frozen=True)
class _Verdicts:
    """For each candidate its distance after alignment, and whether the images show different windows."""

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
    images: Pixels,
    facts: Sequence[Facts],
    splits: Sequence[str | None] | None = None,
    *,
    progress: Callable[[float], None] | None = None,
) -> list[NearPair]:
    """Pairs of rows of `images` (N, H, W, C) that show the same picture, sorted.

    `facts` has one entry for each image, and `splits` where some images have a split already. Images with an error are
    left out, only the first of images with the same pixels is used, and width and height tell the picture from the bars
    of padding. Images with almost no contrast have no near duplicates. Of a picture with more than `_PARTNERS` copies
    not every pair is listed, but each copy with its nearest ones and with some of each other split. `progress` gets the
    share done, in [0, 1]. The result does not depend on threads or time. Memory: a few hundred bytes for each image,
    and no copy of the pixels.
    """
    from threadpoolctl import threadpool_limits

    rows = _first_of_each(facts)
    boxes = content_boxes(images, [(fact.width, fact.height) for fact in facts])
    # One thread for each matrix product: the last bits depend on how BLAS divides it among threads.
    with threadpool_limits(1), ThreadPoolExecutor(available_cores()) as pool:
        search = _Search(images, boxes, pool, progress or (lambda _: None))
        pairs = _judged(search, _candidates(search, rows)) if len(rows) > 1 else {}
        pairs |= _within_groups(search, pairs, facts, splits or [None] * len(facts))
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
    """For each of `rows`, those that may be copies of it, and its rivals (the next neighbours)."""
    sample = rows[:: -(-len(rows) // _SAMPLE)]
    metric = learned_metric(gray_pictures(search.images, sample, search.boxes))

    def describe(chunk: Int32Array) -> tuple[Float32Array, Float32Array]:
        return descriptors(gray_pictures(search.images, chunk, search.boxes), metric, VIEWS[:1])

    described, contrasts = zip(
        *_on_all_threads(search, describe, _cut(rows, _DESCRIBED_AT_ONCE), 0.0, 0.1), strict=True
    )
    clear = np.concatenate(contrasts) >= _LEAST_CONTRAST
    rows, points = rows[clear], np.concatenate(described)[:, 0][clear]
    if len(rows) < 2:
        return _joined([])
    forest = grow(points, _TREES)
    chunks = _cut(np.arange(len(rows), dtype=np.int32), _DESCRIBED_AT_ONCE)
    spacing = np.concatenate(list(search.pool.map(lambda places: nearest(forest, points[places], places)[1], chunks)))

    def ask(places: Int32Array) -> _Candidates:
        asked, _ = descriptors(gray_pictures(search.images, rows[places], search.boxes), metric)
        neighbours = _neighbours(forest, asked, places, spacing)
        return _Candidates(rows[neighbours.owner], rows[neighbours.match], neighbours.view)

    return _joined(_on_all_threads(search, ask, chunks, 0.1, 0.6))


def _neighbours(forest: Forest, asked: Float32Array, owners: Int32Array, spacing: Float32Array) -> _Candidates:
    """Points near any view of `asked` (n, views, D), each once, without `owners` (n,) themselves.

    They are the `_RIVALS` nearest, and the `_LIKELY` nearest relative to `spacing` (N,), the squared distance from each
    point to its own nearest neighbour: in a dense region a small distance says little.
    """
    count, views, dimensions = asked.shape
    match, squared = nearest(forest, asked.reshape(-1, dimensions), np.repeat(owners, views))
    match, distance = match.reshape(count, views), np.sqrt(squared).reshape(count, views)
    # Sorted by match, then distance, as one integer: the bits of positive floats have the same order as the floats.
    keys = (match.astype(np.int64) << 32) + distance.view(np.int32)
    view = np.argsort(keys, axis=1, kind="stable").astype(np.int32)
    match, distance = np.take_along_axis(match, view, 1), np.take_along_axis(distance, view, 1)
    distance[:, 1:][match[:, 1:] == match[:, :-1]] = np.inf
    distance[match < 0] = np.inf
    scaled = np.full_like(distance, np.inf)
    np.divide(distance, np.sqrt(np.sqrt(np.maximum(spacing[match], 1e-12))), out=scaled, where=np.isfinite(distance))
    likely = np.argsort(scaled, axis=1, kind="stable")
    close = np.argsort(distance, axis=1, kind="stable")
    chosen = np.zeros(match.shape, np.bool_)
    np.put_along_axis(chosen, np.concatenate([likely[:, :_LIKELY], close[:, :_RIVALS]], axis=1), True, 1)
    chosen &= np.isfinite(distance)
    owner = np.repeat(owners, views).reshape(match.shape)
    return _Candidates(owner[chosen], match[chosen], view[chosen])


def _judged(search: _Search, candidates: _Candidates) -> dict[tuple[int, int], tuple[float, Change]]:
    """The candidates that are copies: distance and change of each pair of rows."""
    rough = _roughly(search, candidates)
    rivals = _rival_distances(candidates, rough)
    promising = (rough < _FAR) & (rough < _PROMISING * rivals)
    pairs, limits = candidates[promising], np.minimum(_LIKELY_RATIO * rivals[promising], _NEVER_A_COPY)
    likely = _aligned(search, pairs, 0.85, 0.95).distance < np.maximum(limits, _ALWAYS_A_COPY)
    # The same fine alignment for these and for their rivals.
    rows = np.unique(np.concatenate([pairs.owner[likely], pairs.match[likely]]))
    candidates = candidates[np.isin(candidates.owner, rows)]
    verdicts = _aligned(search, candidates, 0.95, 1.0)
    limits = np.clip(_RIVAL_RATIO * _rival_distances(candidates, verdicts.distance), _ALWAYS_A_COPY, _NEVER_A_COPY)
    return _pairs(candidates, verdicts, (verdicts.distance < limits) & np.isin(candidates.match, rows))


def _rival_distances(candidates: _Candidates, distances: Float32Array) -> Float32Array:
    """For each candidate the distance of the `_RIVAL`-th nearest of its owner or of its match, whichever is less.

    Otherwise a picture unlike all others could count as a copy of one that many resemble. `_NO_RIVAL` where there are
    fewer.
    """
    by_distance = distances[np.lexsort((distances, candidates.owner))]
    owners, counts = np.unique(candidates.owner, return_counts=True)
    starts = np.cumsum(counts) - counts
    rivals = np.full(1 + max(candidates.owner.max(initial=0), candidates.match.max(initial=0)), np.float32(_NO_RIVAL))
    rivals[owners[counts >= _RIVAL]] = by_distance[starts[counts >= _RIVAL] + _RIVAL - 1]
    return np.minimum(rivals[candidates.owner], rivals[candidates.match])


def _within_groups(
    search: _Search,
    pairs: dict[tuple[int, int], tuple[float, Change]],
    facts: Sequence[Facts],
    splits: Sequence[str | None],
) -> dict[tuple[int, int], tuple[float, Change]]:
    """Pairs of copies of the same image: implied by two pairs with a row in common, if they are alike too.

    Of a row's partners the nearest count, so that the time grows with the images and not with their square.
    """
    partners: dict[int, list[int]] = {}
    for first, second in sorted(pairs, key=lambda pair: (pairs[pair][0], pair)):
        partners.setdefault(first, []).append(second)
        partners.setdefault(second, []).append(first)
    nearest_ones = (sorted(of_row[:_PARTNERS]) for of_row in partners.values())
    implied = {pair for of_row in nearest_ones for pair in combinations(of_row, 2)}
    implied = (implied | _across_splits(partners, facts, _splits_of_pixels(facts, splits))) - pairs.keys()
    if not implied:
        return {}
    both = np.array(sorted(implied), np.int32)
    plain, flipped = np.zeros(len(both), np.int32), np.full(len(both), len(VIEWS), np.int32)
    ways = _joined(_Candidates(both[:, i], both[:, 1 - i], view) for i in (0, 1) for view in (plain, flipped))
    verdicts = _aligned(search, ways, 1.0, 1.0)
    return _pairs(ways, verdicts, verdicts.distance < _NEVER_A_COPY)


def _across_splits(
    partners: Mapping[int, Sequence[int]], facts: Sequence[Facts], splits: Sequence[AbstractSet[str | None]]
) -> set[tuple[int, int]]:
    """Each row of a large group of copies with some of each other split: the nearest of a row may lie in its own."""
    pairs: set[tuple[int, int]] = set()
    seen: set[int] = set()
    for start in sorted(partners):
        group, reached = set[int](), {start} - seen
        while reached:
            group |= reached
            reached = {other for row in reached for other in partners[row]} - group
        seen |= group
        if len(group) <= _PARTNERS:
            continue
        for split in set[str | None]().union(*(splits[row] for row in group)):
            inside = [row for row in group if split in splits[row]]
            most_alike = sorted(inside, key=lambda row: (-len(partners[row]), facts[row].pixels_sha256 or ""))[:_ACROSS]
            others = [row for row in group if splits[row] - {split}]
            pairs |= {(min(pair), max(pair)) for pair in product(others, most_alike) if pair[0] != pair[1]}
    return pairs


def _splits_of_pixels(facts: Sequence[Facts], splits: Sequence[str | None]) -> list[set[str | None]]:
    """The splits of all images with the pixels of each row: one row stands for them."""
    found: dict[str | None, set[str | None]] = {}
    for fact, split in zip(facts, splits, strict=True):
        found.setdefault(fact.pixels_sha256, set()).add(split)
    return [found[fact.pixels_sha256] for fact in facts]


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


def _roughly(search: _Search, candidates: _Candidates) -> Float32Array:
    """The distance of each candidate after a rough alignment."""

    def lay(chunk: Int32Array) -> Float32Array:
        owners, matches, views = _pictures(search, candidates[chunk])
        return align(owners, spectrum(matches, _ORDER, VIEWS[:1]), views, _ROUGH_STEPS).distance

    chunks = _cut(np.arange(len(candidates.owner), dtype=np.int32), _ALIGNED_AT_ONCE)
    return np.concatenate([np.empty(0, np.float32), *_on_all_threads(search, lay, chunks, 0.6, 0.85)])


def _aligned(search: _Search, candidates: _Candidates, start: float, stop: float) -> _Verdicts:
    """Align the owner of each candidate with its match and then the match with the owner; the smaller distance counts.

    A change of the aspect ratio increases the distance: it makes similar pictures match more often than it occurs in
    copies.
    """

    def lay(chunk: Int32Array) -> _Verdicts:
        owners, matches, views = _pictures(search, candidates[chunk])
        there = align(owners, spectrum(matches, _ORDER, VIEWS[:1]), views, _FINE_STEPS)
        back = align(matches, spectrum(owners, _ORDER, VIEWS[:1]), swapped(there.windows, VIEWS[0]), _FINE_STEPS - 1)
        moved = np.abs(there.windows - VIEWS[0]).max(axis=1) > _STILL
        stretch = np.exp(np.abs(np.log(there.windows[:, 0] / there.windows[:, 2])))
        return _Verdicts(np.minimum(np.minimum(there.distance, back.distance) * stretch, 1), moved)

    chunks = _cut(np.arange(len(candidates.owner), dtype=np.int32), _ALIGNED_AT_ONCE)
    parts = list(_on_all_threads(search, lay, chunks, start, stop))
    if not parts:
        return _Verdicts(np.empty(0, np.float32), np.empty(0, np.bool_))
    return _Verdicts(np.concatenate([part.distance for part in parts]), np.concatenate([part.moved for part in parts]))


def _pictures(search: _Search, part: _Candidates) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Owners (mirrored if their view is) and matches as gray pictures (n, h, w); the windows of the views (n, 4)."""
    owners = gray_pictures(search.images, part.owner, search.boxes)
    mirrored = part.view >= len(VIEWS)
    owners[mirrored] = owners[mirrored, :, ::-1]
    return owners, gray_pictures(search.images, part.match, search.boxes), VIEWS[part.view % len(VIEWS)]


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
        return _Candidates(none, none, none)
    return _Candidates(*(np.concatenate([getattr(part, field.name) for part in held]) for field in fields(_Candidates)))
