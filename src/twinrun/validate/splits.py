"""Stratified splits: which image goes to train, val or test. Pure: no files, no tables, no clock.

The result is a function of seed, pixels, labels, groups and fractions. It depends on no order, file name or time.

- Within each class, images are ranked by a hash of the seed and their pixels, and the ranking is cut at the quotas.
- A class's quotas are its images times the fractions, rounded by largest remainder: 150 images in three classes at
  0.7 / 0.15 / 0.15 give 35, 7 and 8 (or 35, 8 and 7) of each. A tie goes to the split that has had too few so far.
  Where rounding adds up to more than one image over all classes, single classes are rounded the other way, except that
  this leaves no class with fewer than two images in val or test.
- Images that belong together (one group, equal pixels, near duplicates) are one unit and stay in one split. Units of
  several images are placed first, the largest first, each in the split that lacks most images; single images then fill
  the quotas. So each split is within one unit of its quota. A unit of several classes goes to the split that lacks most
  images of these classes, weighted by its images of each.
- A few large units may leave a split without a class. A unit of one class then moves there if quotas allow it, and one
  of several classes (a camera, a batch) if its old split keeps others of these classes.
- Splits that the source published are kept. Those that it did not publish are taken from its `train`.
- Images whose split is fixed (a file of `twinrun data split`) never move. New ones fill the quotas around them, and
  follow the fixed ones of their unit.

One more image may move a few others, since it changes quotas and ranks. To keep a split, fix it in a file.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from twinrun.dataset.manifest import SPLITS, SplitName

_SPARED = 2  # balancing does not take images of a class from val or test if that leaves fewer

Splits = list[SplitName | None]
Table = dict[str, dict[SplitName, int]]  # images by class and split


def assign_splits(
    published: Sequence[SplitName | None],
    keys: Sequence[str | None],
    labels: Sequence[str | None],
    fractions: Mapping[SplitName, float],
    seed: int,
    *,
    fixed: Sequence[SplitName | None] | None = None,
    counted: Sequence[bool] | None = None,
) -> Splits:
    """The split of each image, or None where nothing decides it.

    `keys` are those of `split_keys`. An image without a key keeps its published split. An image that is not `counted`,
    because it will not be used, does not affect the quotas; it follows the others of its unit, or keeps its published
    split. Where the source published some splits, an image without one follows its unit into val or test (the last of
    them), and counts as `train` otherwise.
    """
    fixed = fixed if fixed is not None else [None] * len(keys)
    counted = counted if counted is not None else [True] * len(keys)
    names = [name for name in SPLITS if name not in set(published) or name == "train"]
    homes = _homes(published, fixed, keys)
    splits: Splits = [known or given for known, given in zip(fixed, published, strict=True)]
    members: dict[str, list[int]] = defaultdict(list)
    for row, (key, given) in enumerate(zip(keys, published, strict=True)):
        if key is None or fixed[row] is not None or given not in (None, "train"):
            continue
        if key in homes and (given is None or homes[key] in names):
            splits[row] = homes[key]
        else:
            members[key].append(row)
            splits[row] = None
    units = [
        _Unit(_rank(seed, key), tuple(rows), Counter(str(labels[row]) for row in rows if counted[row]))
        for key, rows in members.items()
    ]
    standing = Counter(
        (str(label), split) for label, split, used in zip(labels, splits, counted, strict=True) if used and split
    )
    for unit, name in _placed([unit for unit in units if unit.images], names, fractions, standing):
        for row in unit.rows:
            splits[row] = name
    for unit in units:
        if not unit.images:
            for row in unit.rows:
                splits[row] = published[row]
    return splits


def split_keys(
    pixels_sha256: Sequence[str | None], groups: Sequence[str | None], copies: Iterable[tuple[int, int]]
) -> list[str | None]:
    """One key for all images of a unit: images linked by `groups`, equal pixels or `copies` (pairs of rows).

    It is the smallest hash of the unit's pixels; None for an image without pixels.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = list(copies)
    for values in (pixels_sha256, groups):
        first: dict[str, int] = {}
        links += [
            (earlier, row)
            for row, value in enumerate(values)
            if value is not None and (earlier := first.setdefault(value, row)) != row
        ]
    ends = np.array(links, np.int64).reshape(-1, 2)
    count = len(pixels_sha256)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    unit_of = connected_components(graph, directed=False)[1].tolist()
    keys: dict[int, str] = {}
    for unit, pixels in zip(unit_of, pixels_sha256, strict=True):
        if pixels is not None:
            keys[unit] = min(pixels, keys.get(unit, pixels))
    return [keys[unit] if pixels is not None else None for unit, pixels in zip(unit_of, pixels_sha256, strict=True)]


@dataclass(frozen=True)
class _Unit:
    """Rows that stay together, and how many images of each class count among them."""

    rank: bytes
    rows: tuple[int, ...]
    images: Counter[str]

    @property
    def is_single(self) -> bool:
        return self.images.total() == 1


def _rank(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _homes(
    published: Sequence[SplitName | None], fixed: Sequence[SplitName | None], keys: Sequence[str | None]
) -> dict[str, SplitName]:
    """For each key the last split in which one of its images is fixed, or published in val or test."""
    homes: dict[str, SplitName] = {}
    for name in SPLITS:
        for key, known, given in zip(keys, fixed, published, strict=True):
            if key is not None and (known == name or (known is None and given == name != "train")):
                homes[key] = name
    return homes


def _placed(
    units: list[_Unit],
    names: list[SplitName],
    fractions: Mapping[SplitName, float],
    standing: Counter[tuple[str, SplitName]],
) -> list[tuple[_Unit, SplitName]]:
    """The split of each unit; `standing` counts the images that already have a split, by class and split."""
    images: Counter[str] = Counter()
    for unit in units:
        images.update(unit.images)
    exact = {
        label: _shares(count, {name: standing[label, name] for name in names}, fractions)
        for label, count in images.items()
    }
    missing = _balanced(_rounded(exact, names), exact, names)
    placed = _place_together([unit for unit in units if not unit.is_single], missing, names)
    singles: dict[str, list[_Unit]] = defaultdict(list)
    for unit in sorted((unit for unit in units if unit.is_single), key=lambda unit: unit.rank):
        singles[next(iter(unit.images))].append(unit)
    for label, ranked in singles.items():
        start = 0
        for name, count in _filling(len(ranked), missing[label], names).items():
            placed += [(unit, name) for unit in ranked[start : start + count]]
            missing[label][name] -= count
            start += count
    placed = _without_empty(placed, missing, set(standing), names)
    return _without_empty_across_classes(placed, missing, set(standing), names)


def _shares(
    images: int, standing: Mapping[SplitName, int], fractions: Mapping[SplitName, float]
) -> dict[SplitName, Fraction]:
    """How many of `images` each split gets, so that together with `standing` it comes closest to its fraction.

    A split that already has more than its share gets none, and the others share the rest.
    """
    open_to = dict(standing)
    while True:
        weights = {name: Fraction(str(fractions[name])) for name in open_to}
        whole = Fraction(images + sum(open_to.values())) / sum(weights.values(), Fraction(0))
        full = [name for name, count in open_to.items() if count > whole * weights[name]]
        if not full:
            return {
                name: whole * weights[name] - count if name in open_to else Fraction(0)
                for name, count in standing.items()
            }
        open_to = {name: count for name, count in open_to.items() if name not in full}


def _rounded(exact: Mapping[str, Mapping[SplitName, Fraction]], names: list[SplitName]) -> Table:
    """Integers by largest remainder; of equal remainders, the split that has had too few so far comes first."""
    lacking = dict.fromkeys(names, Fraction(0))
    table: Table = {}
    for label in sorted(exact):
        shares = exact[label]
        table[label] = {name: floor(shares[name]) for name in names}
        spare = int(sum(shares.values())) - sum(table[label].values())
        order = sorted(names, key=lambda name: (table[label][name] - shares[name], -lacking[name], names.index(name)))
        for name in order[:spare]:
            table[label][name] += 1
        for name in names:
            lacking[name] += shares[name] - table[label][name]
    return table


def _balanced(table: Table, exact: Mapping[str, Mapping[SplitName, Fraction]], names: list[SplitName]) -> Table:
    """The table with single classes rounded the other way, until each split is within one image of its quota overall.

    Every entry stays one of the two whole numbers next to its exact one.
    """
    table = {label: dict(row) for label, row in table.items()}
    excess = {name: sum((table[label][name] - exact[label][name] for label in table), Fraction(0)) for name in names}

    def change(label: str, source: SplitName, target: SplitName) -> Fraction | None:
        """The larger rounding error of the class after the move, or None where it must not move."""
        over, under = table[label][source] - exact[label][source], exact[label][target] - table[label][target]
        if over <= 0 or under <= 0 or (source != "train" and table[label][source] <= _SPARED):
            return None
        return max(1 - over, 1 - under)

    while max(map(abs, excess.values())) > 1:
        moves = [
            (off, label, source, target)
            for source in names
            for target in names
            if excess[source] - excess[target] > 1
            for label in table
            if (off := change(label, source, target)) is not None
        ]
        if not moves:
            break
        _, label, source, target = min(moves)
        table[label][source] -= 1
        table[label][target] += 1
        excess[source] -= 1
        excess[target] += 1
    return table


def _place_together(units: list[_Unit], missing: Table, names: list[SplitName]) -> list[tuple[_Unit, SplitName]]:
    """Place units of several images, the largest first, and subtract them from `missing`."""
    lacking = {name: sum(row[name] for row in missing.values()) for name in names}

    def gain(unit: _Unit, name: SplitName) -> tuple[int, int]:
        return sum(count * missing[label][name] for label, count in unit.images.items()), lacking[name]

    placed = []
    for unit in sorted(units, key=lambda unit: (-unit.images.total(), unit.rank)):
        name = max(names, key=lambda name: gain(unit, name))
        for label, count in unit.images.items():
            missing[label][name] -= count
            lacking[name] -= count
        placed.append((unit, name))
    return placed


def _filling(images: int, missing: Mapping[SplitName, int], names: list[SplitName]) -> dict[SplitName, int]:
    """How many of `images` single ones each split gets: each goes to the split that lacks most."""
    left, counts = dict(missing), dict.fromkeys(names, 0)
    for _ in range(images):
        name = max(names, key=left.__getitem__)
        left[name] -= 1
        counts[name] += 1
    return counts


def _without_empty(
    placed: list[tuple[_Unit, SplitName]], missing: Table, standing: set[tuple[str, SplitName]], names: list[SplitName]
) -> list[tuple[_Unit, SplitName]]:
    """Give a class's empty split a unit of a split that has several, where all stay within one unit of their quotas.

    Otherwise, of four clips of equal length, three would be in train, one in val and none in test.
    """
    of_class: dict[str, list[int]] = defaultdict(list)
    for at, (unit, name) in enumerate(placed):
        standing |= {(label, name) for label in unit.images}
        if len(unit.images) == 1:
            of_class[next(iter(unit.images))].append(at)
    placed = list(placed)
    for label, places in of_class.items():
        largest = max(placed[at][0].images[label] for at in places)
        for empty in (name for name in names if (label, name) not in standing and missing[label][name] > 0):
            several = Counter(placed[at][1] for at in places)
            spare = [at for at in places if several[placed[at][1]] > 1]
            for at in sorted(spare, key=lambda at: (missing[label][placed[at][1]], placed[at][0].rank)):
                unit, source = placed[at]
                size = unit.images[label]
                if max(missing[label][source] + size, size - missing[label][empty]) <= largest:
                    missing[label][source] += size
                    missing[label][empty] -= size
                    placed[at] = (unit, empty)
                    break
    return placed


def _without_empty_across_classes(
    placed: list[tuple[_Unit, SplitName]], missing: Table, standing: set[tuple[str, SplitName]], names: list[SplitName]
) -> list[tuple[_Unit, SplitName]]:
    """Give each split that lacks a class a unit of several classes, from a split that keeps each of them.

    The unit that keeps closest to the quotas moves. Otherwise three cameras would be in train and val only.
    """
    placed = list(placed)
    units = Counter((label, name) for unit, name in placed for label in unit.images)

    def off(unit: _Unit, source: SplitName, target: SplitName) -> int:
        return sum(
            abs(missing[label][source] + size) + abs(missing[label][target] - size)
            - abs(missing[label][source]) - abs(missing[label][target])
            for label, size in unit.images.items()
        )  # fmt: skip

    for empty in names:
        for label in sorted(missing):
            if units[label, empty] or (label, empty) in standing or missing[label][empty] <= 0:
                continue
            spare = [
                at
                for at, (unit, source) in enumerate(placed)
                if len(unit.images) > 1 and label in unit.images and all(units[own, source] > 1 for own in unit.images)
            ]
            if not spare:
                continue
            at = min(spare, key=lambda at: (off(*placed[at], empty), placed[at][0].rank))
            unit, source = placed[at]
            for own, size in unit.images.items():
                missing[own][source] += size
                missing[own][empty] -= size
                units[own, source] -= 1
                units[own, empty] += 1
            placed[at] = (unit, empty)
    return placed
