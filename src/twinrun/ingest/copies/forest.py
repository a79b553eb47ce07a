"""Nearest neighbours without comparing all pairs: a few trees of random cuts. Pure: points in, indices out.

Every tree halves the points along random directions, one for each level, until leaves are small; a query is compared
with the points of its leaf in each tree. Building and one query for each point take n log n; see Dasgupta and Sinha,
"Randomized partition trees for nearest neighbor search", Algorithmica 2015.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from twinrun.core.arrays import Float32Array, Int32Array

_LEAF = 192
_CUT_DIMENSIONS = 10
_SEED = 1


@dataclass(frozen=True)
class Tree:
    """`cuts` (D, levels); `thresholds[l]` (2^l,); leaf j holds the points `order[starts[j]:starts[j + 1]]`."""

    cuts: Float32Array
    thresholds: list[Float32Array]
    order: Int32Array
    starts: Int32Array
    places: Int32Array  # the inverse of order


@dataclass(frozen=True)
class Forest:
    """Trees over `points` (N, D + 1): their coordinates and minus half their squared length."""

    points: Float32Array
    trees: list[Tree]


def grow(points: Float32Array, trees: int) -> Forest:
    """A forest over `points` (N, D), whose first coordinates spread most: the cuts are along mixtures of those."""
    levels = max(0, int(np.ceil(np.log2(max(1, len(points)) / _LEAF))))
    random = np.random.default_rng(_SEED)
    grown = []
    for _ in range(trees):
        directions = random.standard_normal((min(_CUT_DIMENSIONS, points.shape[1]), max(levels, 1))).astype(np.float32)
        grown.append(_tree(points[:, : len(directions)], directions[:, :levels]))
    halves = (points * points).sum(axis=1, keepdims=True) * np.float32(-0.5)
    return Forest(np.concatenate([points, halves], axis=1), grown)


def nearest(forest: Forest, queries: Float32Array, owners: Int32Array) -> tuple[Int32Array, Float32Array]:
    """The point nearest to each of `queries` (Q, D) in its leaves, but for `owners` (Q,), and the squared distance.

    -1 and infinity where the leaves hold no other point.
    """
    best = np.full(len(queries), -np.inf, np.float32)
    neighbours = np.full(len(queries), -1, np.int32)
    asked = np.concatenate([queries, np.ones((len(queries), 1), np.float32)], axis=1)
    for tree in forest.trees:
        leaves = _leaves(tree, queries)
        by_leaf = np.argsort(leaves, kind="stable")
        bounds = np.searchsorted(leaves[by_leaf], np.arange(len(tree.starts)))
        for leaf in np.flatnonzero(np.diff(bounds)).tolist():
            rows = by_leaf[bounds[leaf] : bounds[leaf + 1]]
            start, stop = tree.starts[leaf], tree.starts[leaf + 1]
            members = tree.order[start:stop]
            scores = asked[rows] @ forest.points[members].T
            own = tree.places[owners[rows]] - start
            mine = np.flatnonzero((own >= 0) & (own < stop - start))
            scores[mine, own[mine]] = -np.inf
            nearest_member = scores.argmax(axis=1)
            score = scores[np.arange(len(rows)), nearest_member]
            better = score > best[rows]
            best[rows[better]], neighbours[rows[better]] = score[better], members[nearest_member[better]]
    neighbours[np.isneginf(best)] = -1
    return neighbours, np.maximum((queries * queries).sum(axis=1) - 2 * best, 0)


def _tree(points: Float32Array, cuts: Float32Array) -> Tree:
    heights = points @ cuts
    order = np.arange(len(points), dtype=np.int32)
    starts = [0, len(points)]
    thresholds: list[Float32Array] = []
    for level in range(cuts.shape[1]):
        middles = []
        for start, stop in pairwise(starts):
            part = order[start:stop]
            order[start:stop] = part[np.argsort(heights[part, level], kind="stable")]
            middles.append((start + stop) // 2)
        upper = heights[order[middles], level]
        lower = heights[order[np.array(middles) - 1], level]
        thresholds.append((upper + lower) / 2)
        starts = sorted([*starts, *middles])
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=np.int32)
    return Tree(cuts, thresholds, order, np.array(starts, np.int32), places)


def _leaves(tree: Tree, queries: Float32Array) -> npt.NDArray[np.int32]:
    heights = queries[:, : len(tree.cuts)] @ tree.cuts
    node = np.zeros(len(queries), np.int32)
    for level, thresholds in enumerate(tree.thresholds):
        node = 2 * node + (heights[:, level] > thresholds[node])
    return node
