"""What changed between two tables of facts: the distributions of the facts, the labels, the images. Pure.

Each fact is compared by the population stability index (Siddiqi, "Credit Risk Scorecards", 2006): over bins with
shares p before and q now, the sum of (q - p) ln(q / p). Bins of numbers are the deciles of both tables together; each
category is a bin, and so is null; half an image is added to every bin. By convention less than 0.1 is no relevant
change and more than 0.25 a large one.

A permutation test says whether chance explains it: if the images are assigned to the two tables at random, how often is
the index as large? Since the bins come from both tables together, this means drawing counts from a multivariate
hypergeometric distribution, which is fast for any number of images. P-values are corrected for the number of facts
(Holm, "A simple sequentially rejective multiple test procedure", 1979). Where the tables share images, as two versions
of one data set do, the test is conservative.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinrun.core.arrays import IntArray
from twinrun.core.keyed import keyed_seed

_NUMBERS = (
    "width", "height", "file_bytes", "brightness", "contrast", "sharpness", "entropy", "gray_p5", "gray_p95",
    "red", "green", "blue",
)  # fmt: skip
_CATEGORIES = ("label", "format", "mode", "camera")
_MEASURE = "PSI"
_NUMBER_OF_BINS = 10
_MOST_CATEGORIES = 100
_PERMUTATIONS = 1999
_DOUBT = 0.05
_SMALLEST_SHIFT = 0.1
_ROUNDING = 1e-12

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Shift:
    """How far the distribution of fact `name` moved: `value` of `measure`, 0 or more.

    `p_value` is corrected for the number of facts. `significant` where it is small enough and the shift 0.1 or more:
    with many images even an irrelevant shift has a small p-value.
    """

    name: str
    measure: str
    value: float
    p_value: float
    significant: bool


@dataclass(frozen=True)
class Drift:
    """What changed from the reference to the current table.

    `added` and `removed` are paths, sorted; an image whose pixels were replaced under the same path is in both, one
    that was only renamed is in neither. `relabelled` holds (path now, label before, label now).
    """

    shifts: list[Shift]
    new_labels: list[str]
    vanished_labels: list[str]
    added: list[str]
    removed: list[str]
    relabelled: list[tuple[str, str, str]]


def find_drift(reference: Columns, current: Columns, *, seed: int) -> Drift:
    """Compare two tables of facts, as columns with an entry for each image; columns that one lacks are skipped.

    `path`, `label` and `pixels_sha256` must be in both. The largest shift comes first. The same for the same seed.
    """
    before, now = ({label for label in columns["label"] if label is not None} for columns in (reference, current))
    added, removed, relabelled = _changed_images(reference, current)
    return Drift(
        shifts=_shifts(reference, current, seed),
        new_labels=sorted(now - before),
        vanished_labels=sorted(before - now),
        added=added,
        removed=removed,
        relabelled=relabelled,
    )


def compare_counts(
    reference: Mapping[str, IntArray], current: Mapping[str, IntArray], *, seed: int, doubt: float = _DOUBT
) -> list[Shift]:
    """The shift of every fact between two histograms (bins,) of it, the largest first.

    A shift is significant where its p-value, corrected for the number of facts, is below `doubt`. The same for the same
    seed.
    """
    shifts = []
    for number, (name, before) in enumerate(reference.items()):
        before, now = _without_empty(before, current[name])
        if len(before) > 1 and before.any() and now.any():
            generator = np.random.default_rng(keyed_seed(seed, number))
            shifts.append(Shift(name, _MEASURE, *_tested(before, now, generator), significant=False))
    return sorted(_corrected(shifts, doubt), key=lambda shift: (-shift.value, shift.p_value))


def drift_lines(drift: Drift, most: int = 5) -> list[str]:
    """A line for each change; at most `most` names of each kind. Empty where nothing changed."""
    lines = [
        f"{shift.name}: {shift.measure} {shift.value:.3f}, p {shift.p_value:.2g}"
        for shift in drift.shifts
        if shift.significant
    ]
    relabelled = [f"{path} (was {before}, is {now})" for path, before, now in drift.relabelled]
    for names, heading in (
        (drift.new_labels, "new label"),
        (drift.vanished_labels, "label that is gone"),
        (drift.added, "new image"),
        (drift.removed, "image that is gone"),
        (relabelled, "image with another label"),
    ):
        if names:
            more = f" and {len(names) - most:,} more" if len(names) > most else ""
            shown = ", ".join(ascii(name)[1:-1] if not name.isprintable() else name for name in names[:most])
            lines.append(f"{heading}: {shown}{more}")
    return lines


def _shifts(reference: Columns, current: Columns, seed: int) -> list[Shift]:
    """The shift of every fact that both tables have and that varies, the largest first."""
    counts = {}
    for name in (*_CATEGORIES, *_NUMBERS):
        if name in reference and name in current and len(reference[name]) and len(current[name]):
            binned = _numbers_binned if name in _NUMBERS else _categories_binned
            counts[name] = binned(reference[name], current[name])
    before, now = ({name: pair[side] for name, pair in counts.items()} for side in (0, 1))
    return compare_counts(before, now, seed=seed)


def _tested(before: IntArray, now: IntArray, generator: np.random.Generator) -> tuple[float, float]:
    """The index of two histograms (bins,), and the p-value of the permutation test."""
    value = float(_stability_index(before, now))
    both = before + now
    drawn = generator.multivariate_hypergeometric(both, int(now.sum()), size=_PERMUTATIONS, method="marginals")
    as_large = int((_stability_index(both - drawn, drawn) >= value - _ROUNDING).sum())
    return value, (1 + as_large) / (1 + _PERMUTATIONS)


def _stability_index(before: IntArray, now: IntArray) -> NDArray[np.float64]:
    """The index of histograms (..., bins)."""
    bins = before.shape[-1]
    p = (before + 0.5) / (before.sum(axis=-1, keepdims=True) + 0.5 * bins)
    q = (now + 0.5) / (now.sum(axis=-1, keepdims=True) + 0.5 * bins)
    index: NDArray[np.float64] = ((q - p) * np.log(q / p)).sum(axis=-1)
    return index


def _corrected(shifts: Sequence[Shift], doubt: float) -> list[Shift]:
    """The shifts with p-values by Holm's correction, in [0, 1]."""
    corrected, largest = [], 0.0
    for rank, shift in enumerate(sorted(shifts, key=lambda shift: shift.p_value)):
        largest = max(largest, min(1.0, shift.p_value * (len(shifts) - rank)))
        significant = largest < doubt and shift.value >= _SMALLEST_SHIFT
        corrected.append(replace(shift, p_value=largest, significant=significant))
    return corrected


def _numbers_binned(reference: Sequence[Any], current: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """Histograms over the deciles of both together, equal ones merged, with nulls last."""
    before, now = np.array(reference, dtype=np.float64), np.array(current, dtype=np.float64)
    both = np.concatenate([before, now])
    if not (known := both[np.isfinite(both)]).size:
        return np.array([len(before)]), np.array([len(now)])
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _NUMBER_OF_BINS + 1), method="inverted_cdf"))
    bins = [np.where(np.isfinite(values), np.searchsorted(edges, values), len(edges)) for values in (before, now)]
    return _without_empty(*(np.bincount(values, minlength=len(edges) + 1) for values in bins))


def _categories_binned(reference: Sequence[Any], current: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """Histograms over the most frequent categories of both together and all others; null is a category."""
    before, now = Counter(reference), Counter(current)
    both = before + now
    known = sorted(both, key=lambda value: (-both[value], str(value)))[:_MOST_CATEGORIES]
    counts = [[counter[value] for value in known] for counter in (before, now)]
    others = [counter.total() - sum(some) for counter, some in zip((before, now), counts, strict=True)]
    return _without_empty(*(np.array([*some, other]) for some, other in zip(counts, others, strict=True)))


def _without_empty(before: IntArray, now: IntArray) -> tuple[IntArray, IntArray]:
    filled = before + now > 0
    return before[filled], now[filled]


def _changed_images(reference: Columns, current: Columns) -> tuple[list[str], list[str], list[tuple[str, str, str]]]:
    """Paths added, paths removed, and (path now, label before, label now) of images with another label.

    Images are matched by their pixels, or by their path where they cannot be decoded. Among images with the same
    pixels, those with the same path are matched first, then those with the same label, then in the order of the tables.
    """
    before, now = _images(reference), _images(current)
    relabelled = []
    keys: tuple[Callable[[_Image], Any], ...] = (
        lambda image: (image.pixels, image.path),
        lambda image: (image.pixels, image.label),
        lambda image: image.pixels,
    )
    for key in keys:
        pairs, before, now = _matched(before, now, key)
        relabelled += [
            (new.path, old.label, new.label)
            for old, new in pairs
            if old.label != new.label and old.label is not None and new.label is not None
        ]
    return sorted(image.path for image in now), sorted(image.path for image in before), sorted(relabelled)


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    label: str | None
    pixels: str


def _images(columns: Columns) -> list[_Image]:
    rows = zip(columns["path"], columns["label"], columns["pixels_sha256"], strict=True)
    return [_Image(path, label, pixels or f"broken: {path}") for path, label, pixels in rows]


def _matched(
    before: Iterable[_Image], now: Iterable[_Image], key: Callable[[_Image], Any]
) -> tuple[list[tuple[_Image, _Image]], list[_Image], list[_Image]]:
    """Pairs with equal keys, in order, and what is left of each side."""
    waiting: dict[Any, list[_Image]] = defaultdict(list)
    for image in now:
        waiting[key(image)].append(image)
    queues = {label: iter(images) for label, images in waiting.items()}
    pairs, unpaired, taken = [], [], set()
    for image in before:
        if (match := next(queues.get(key(image), iter(())), None)) is None:
            unpaired.append(image)
        else:
            pairs.append((image, match))
            taken.add(id(match))
    return pairs, unpaired, [image for image in now if id(image) not in taken]
