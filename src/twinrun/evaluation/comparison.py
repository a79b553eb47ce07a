"""Two or more models on the same images: what differs, whether it is significant, and the power of the test. Pure.

The unit of every test is the image, or the group of images that show one thing: their answers change together, so they
are no independent evidence. If a model was trained with several seeds, the correctness of an image is the share
of the seeds that classify it correctly, so more seeds do not count as more images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Literal

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.evaluation.metrics import FEW_GROUPS, surprise
from twinrun.evaluation.predictions import Predictions, numbered

ALPHA = 0.05
# Quantiles of the normal distribution: a two-sided test at 5%, and a power of 80%.
_TEST, _FOUND = 1.959964, 0.841621
_PSEUDO = 2  # images, or groups, that the adjusted interval adds, one for each model

State = Literal["worse", "not worse", "open"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a comparison: a model, or several that differ in the seed alone, with the same classes."""

    name: str
    members: tuple[Predictions, ...]


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """Contenders on the images that all of them have under the same label.

    `ids` has length N and `targets` shape (N,); `groups` (N,) numbers the images that show one thing, None where each
    image is one of its own. Each contender has probabilities of shape (members, N, C) and
    correctness of shape (N,): the share of its members that classify the image correctly. `left_out` counts the images
    of each contender that the others do not have, `relabelled` those whose label differs.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    ids: list[str]
    targets: IntArray
    groups: IntArray | None
    probabilities: tuple[npt.NDArray[np.float64], ...]
    correct: tuple[FloatArray, ...]
    left_out: dict[str, int]
    relabelled: int

    def predicted(self, at: int) -> IntArray:
        """The class that contender `at` predicts, by the mean probabilities of its members, shape (N,)."""
        predicted: IntArray = self.probabilities[at].mean(axis=0).argmax(axis=1)
        return predicted

    def groups_of(self, rows: IntArray) -> IntArray | None:
        """The groups of the images at the positions `rows`, numbered from 0."""
        return None if self.groups is None else np.unique(self.groups[rows], return_inverse=True)[1].astype(np.int64)

    def log_loss(self, at: int) -> float:
        """Mean log loss of the members, nats."""
        return float(np.mean([surprise(self.targets, member).mean() for member in self.probabilities[at]]))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second model less the first, on one set of images; shares in [-1, 1].

    `exact_p` is the p-value of McNemar's exact test (with several seeds or groups, of the permutation test of which it
    is a special case), `mid_p` its mid-p; both two-sided. `low` and `high` are the 95% interval: by the paired
    bootstrap for all images, adjusted Wald's for a class, and the hull of both where few of the images, or of their
    groups, changed otherwise than most.
    `shows_from` is the smallest difference that this number of images detects with a power of 80%.
    """

    images: int
    before: float
    after: float
    broken: float
    fixed: float
    exact_p: float
    mid_p: float
    low: float
    high: float
    shows_from: float

    @property
    def value(self) -> float:
        """How much larger the second model's share is."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """The difference in the recall of one class, with an interval that is simultaneous for all classes."""

    label: str
    difference: Difference
    state: State


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Positions of the images whose answer changed: correct to wrong, wrong to correct, wrong to another wrong one."""

    broken: list[int]
    fixed: list[int]
    otherwise: list[int]

    @property
    def churn(self) -> int:
        """How many answers changed."""
        return len(self.broken) + len(self.fixed) + len(self.otherwise)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The difference on a part of the images, such as the darkest quarter."""

    name: str
    difference: Difference


def align(contenders: Sequence[Contender]) -> Aligned:
    """Restrict all contenders to the images that they share, in the order of the first.

    Raises DataError where they have no image in common, or not the same classes.
    """
    everyone = [(contender.name, member) for contender in contenders for member in contender.members]
    classes = everyone[0][1].classes
    for name, member in everyone:
        if member.classes != classes:
            raise DataError(
                f"{everyone[0][0]} and {name} do not have the same classes, so they cannot be compared: "
                f"{', '.join(sorted(set(classes) ^ set(member.classes))) or 'their order differs'}."
            )
    keys = _keys([member for _, member in everyone])
    places = [{key: at for at, key in enumerate(member)} for member in keys]
    shared = [key for key in keys[0] if all(key in place for place in places)]
    labels = [
        [int(member.targets[place[key]]) for key in shared] for (_, member), place in zip(everyone, places, strict=True)
    ]
    same = [at for at in range(len(shared)) if len({column[at] for column in labels}) == 1]
    chosen_keys = [shared[at] for at in same]
    if not chosen_keys:
        raise DataError(
            "These models have no image with the same label in common, so they cannot be compared. Evaluate them on "
            "the same data: dvc repro evaluate"
        )
    rows = [np.array([place[key] for key in chosen_keys], np.int64) for place in places]
    chosen = iter([member.probabilities[row] for (_, member), row in zip(everyone, rows, strict=True)])
    targets = np.array([labels[0][at] for at in same], np.int64)
    probabilities = tuple(np.stack([next(chosen) for _ in contender.members]) for contender in contenders)
    return Aligned(
        names=tuple(contender.name for contender in contenders),
        classes=classes,
        ids=[everyone[0][1].ids[at] for at in rows[0]],
        targets=targets,
        groups=_groups([member.units for _, member in everyone], rows),
        probabilities=probabilities,
        correct=tuple((shares.argmax(axis=2) == targets).mean(axis=0) for shares in probabilities),
        left_out={contender.name: len(contender.members[0].ids) - len(shared) for contender in contenders},
        relabelled=len(shared) - len(chosen_keys),
    )


def _keys(members: Sequence[Predictions]) -> list[list[tuple[str, int]]]:
    """Keys by which images are matched in all of `members`: the pixels, or the ids where a table lacks the pixels.

    Identical images in one table are numbered, so that each is counted.
    """
    by_pixels = all(member.pixels is not None for member in members)
    keys: list[list[tuple[str, int]]] = []
    for member in members:
        seen: Counter[str] = Counter()
        keys.append([])
        for name in member.pixels if by_pixels and member.pixels is not None else member.ids:
            keys[-1].append((name, seen[name]))
            seen[name] += 1
    return keys


def _groups(units: Sequence[list[str] | None], rows: Sequence[IntArray]) -> IntArray | None:
    """Numbers of the units that images belong to, by the table that joins most images; None where each is a unit.

    A table of an earlier version has no units, and one of before images were grouped has fewer groups.
    """
    known = [numbered([names[row] for row in at.tolist()]) for names, at in zip(units, rows, strict=True) if names]
    return min((numbers for numbers in known if numbers is not None), key=lambda numbers: numbers.max(), default=None)


def difference(
    before: FloatArray,
    after: FloatArray,
    groups: IntArray | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare the correctness (N,) of two models, in [0, 1], image by image.

    `groups` (N,) numbers the images that belong together: they are swapped and drawn as a whole.
    """
    change = after - before
    exact, mid = permutation_test(change, groups)
    low, high = bootstrap_interval(change, groups, samples=samples, seed=seed)
    values, counts = np.unique(change, return_counts=True)
    units = np.arange(len(change)) if groups is None else groups
    number, others = (len(np.unique(some)) for some in (units, units[change != values[counts.argmax()]]))
    if min(number, others) < FEW_GROUPS:  # which resampled, vary too little, or not at all
        from scipy.stats import t

        quantile = float(t.ppf(1 - ALPHA / 2, max(1, number - 1)))
        ends = adjusted_interval(change, quantile=quantile, groups=groups)
        low, high = min(low, ends[0]), max(high, ends[1])
    return _difference(before, after, (exact, mid), (low, high), groups)


def class_differences(
    aligned: Aligned, first: int, second: int, *, margin: float, alpha: float = ALPHA
) -> list[ClassDifference]:
    """The difference in recall of each class that has images, in the order of the classes.

    A class is "not worse" if a loss of `margin` or more is excluded, otherwise "worse" if its loss is significant, and
    otherwise "open". Both are one-sided tests at `alpha` for all classes together (Holm). The intervals are
    simultaneous (Bonferroni).
    """
    from scipy.stats import norm

    rows = [np.flatnonzero(aligned.targets == label) for label in range(len(aligned.classes))]
    present = [label for label, row in enumerate(rows) if len(row)]
    quantile = float(norm.ppf(1 - alpha / (2 * len(present))))
    pairs = [(aligned.correct[first][rows[label]], aligned.correct[second][rows[label]]) for label in present]
    changes = [
        (after - before, aligned.groups_of(rows[label])) for label, (before, after) in zip(present, pairs, strict=True)
    ]
    lost = holm([_one_sided_loss(*change) for change in changes])
    kept = holm([non_inferiority(change, margin, groups) for change, groups in changes])
    differences = []
    for label, (before, after), (change, groups), p_lost, p_kept in zip(
        present, pairs, changes, lost, kept, strict=True
    ):
        state: State = "not worse" if p_kept <= alpha else "worse" if p_lost <= alpha else "open"
        differences.append(
            ClassDifference(
                label=aligned.classes[label],
                difference=_difference(
                    before,
                    after,
                    permutation_test(change, groups),
                    adjusted_interval(change, quantile=quantile, groups=groups),
                    groups,
                ),
                state=state,
            )
        )
    return differences


def permutation_test(change: FloatArray, groups: IntArray | None = None) -> tuple[float, float]:
    """Exact and mid-p value, two-sided, of the test that swaps the two models' answers image by image.

    `change` (N,) is the correctness of the second model less that of the first. The answers for one of the `groups`
    (N,) are swapped together. The distribution is computed in full. With one seed each and no groups it is McNemar's
    exact test; the mid-p counts half of the observed outcome: Fagerland, Lydersen and Laake, "The McNemar test for
    binary matched-pairs data", BMC Medical Research Methodology 2013.
    """
    steps, total = _as_integers(_summed(change, groups))
    reach = int(steps.sum())
    if reach == 0:
        return 1.0, 1.0
    chances = _swapped(steps)
    # Position i of `chances` is the sum 2 * i - reach.
    observed = abs(total)
    sums = 2 * np.arange(len(chances)) - reach
    beyond = float(chances[np.abs(sums) > observed].sum())
    at = float(chances[np.abs(sums) == observed].sum())
    return min(1.0, beyond + at), min(1.0, beyond + at / 2)


def bootstrap_interval(
    change: FloatArray, groups: IntArray | None = None, *, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the mean of `change` (N,), over resamples of images, or of whole `groups` (N,)."""
    sums, sizes = (
        (change, np.ones(len(change)))
        if groups is None
        else (np.bincount(groups, weights=change), np.bincount(groups).astype(np.float64))
    )
    kept = sizes > 0
    # Equal units are drawn together: the cost depends on the few kinds of change, not on the number of images.
    kinds, counts = np.unique(np.stack([sums[kept], sizes[kept]], axis=1), axis=0, return_counts=True)
    units = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(units, counts / units, size=samples)
    # Sums by numpy, never through BLAS, whose rounding depends on the number of threads.
    means = (drawn * kinds[:, 0]).sum(axis=1) / (drawn * kinds[:, 1]).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def adjusted_interval(change: FloatArray, *, quantile: float, groups: IntArray | None = None) -> tuple[float, float]:
    """Interval of the mean of `change` (N,) that has a width even where no answer changed; clustered by `groups` (N,).

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 2012: one image, or group, more that only the first model
    classifies correctly, and one that only the second does.
    """
    mean, error = _adjusted(change, groups)
    return max(-1.0, mean - quantile * error), min(1.0, mean + quantile * error)


def non_inferiority(change: FloatArray, margin: float, groups: IntArray | None = None) -> float:
    """One-sided p-value of "the loss is `margin` or more": small where the second model is not that much worse."""
    from scipy.stats import norm

    mean, error = _adjusted(change, groups)
    return float(norm.sf((mean + margin) / error))


def equivalence(change: FloatArray, margin: float, groups: IntArray | None = None) -> float:
    """p-value of the two one-sided tests (TOST) that the means differ by less than `margin` in either direction."""
    return max(non_inferiority(change, margin, groups), non_inferiority(-change, margin, groups))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the family-wise error rate (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


def flips(aligned: Aligned, first: int, second: int) -> Flips:
    """Which answers changed from one contender to another."""
    before, after = aligned.predicted(first), aligned.predicted(second)
    changed = before != after
    was, is_now = before == aligned.targets, after == aligned.targets
    return Flips(
        broken=np.flatnonzero(changed & was).tolist(),
        fixed=np.flatnonzero(changed & is_now).tolist(),
        otherwise=np.flatnonzero(changed & ~was & ~is_now).tolist(),
    )


def seed_churn(aligned: Aligned, at: int) -> float | None:
    """Share of answers that change between two seeds of one contender, on average; None where it has one seed."""
    members = aligned.probabilities[at].argmax(axis=2)
    pairs = [(i, j) for i in range(len(members)) for j in range(i)]
    return float(np.mean([(members[i] != members[j]).mean() for i, j in pairs])) if pairs else None


def slices(aligned: Aligned, first: int, second: int, parts: Mapping[str, IntArray]) -> list[Slice]:
    """The difference on each of `parts`, which map a name to positions of images; empty parts are left out."""
    before, after = aligned.correct[first], aligned.correct[second]
    return [
        Slice(name=name, difference=difference(before[at], after[at], aligned.groups_of(at)))
        for name, at in parts.items()
        if len(at)
    ]


def best(aligned: Aligned, alpha: float = ALPHA) -> int | None:
    """The contender that is better than all others by the mid-p test after Holm's correction, if there is one."""
    means = [float(correct.mean()) for correct in aligned.correct]
    leader = int(np.argmax(means))
    others = [at for at in range(len(means)) if at != leader]
    changes = [aligned.correct[leader] - aligned.correct[at] for at in others]
    p_values = holm([permutation_test(change, aligned.groups)[1] for change in changes])
    shown = all(p <= alpha and means[leader] > means[at] for at, p in zip(others, p_values, strict=True))
    return leader if others and shown else None


def _difference(
    before: FloatArray,
    after: FloatArray,
    p_values: tuple[float, float],
    interval: tuple[float, float],
    groups: IntArray | None,
) -> Difference:
    change = after - before
    return Difference(
        images=len(change),
        before=float(before.mean()),
        after=float(after.mean()),
        broken=float(np.maximum(-change, 0).sum()),
        fixed=float(np.maximum(change, 0).sum()),
        exact_p=p_values[0],
        mid_p=p_values[1],
        low=interval[0],
        high=interval[1],
        shows_from=_shown_from(change, groups),
    )


def _shown_from(change: FloatArray, groups: IntArray | None) -> float:
    """The smallest difference that so many images detect with a power of 80%, given the share of changed answers.

    Images of a group that change together count as fewer: by the ratio of the variances without and with groups.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 1987. The
    share of changed answers is at least the difference, so it cannot be less than about 8 images.
    """
    squares = float((change**2).sum())
    changed = (squares + _PSEUDO) / (len(change) + _PSEUDO)
    together = _summed(change if squares else np.ones(len(change)), groups)
    images = len(change) * min(1.0, (squares or len(change)) / float((together**2).sum() or 1)) + _PSEUDO
    spread = max(0.0, images * _TEST**2 - (images + _FOUND**2) * (_TEST**2 - _FOUND**2))  # below 0 for one image
    shown = np.sqrt(changed) * (np.sqrt(images) * _TEST + np.sqrt(spread)) / (images + _FOUND**2)
    return float(min(1.0, max(shown, (_TEST + _FOUND) ** 2 / images)))


def _adjusted(change: FloatArray, groups: IntArray | None = None) -> tuple[float, float]:
    """Mean of `change` and its standard error, with one image more for each model, and clustered by `groups`.

    With groups it is a whole group more, as large as the one that an image is in on average: that no answer changed in
    few groups of many images shows no more than that it changed in none of few images.
    """
    size = 1.0 if groups is None else float((np.bincount(groups) ** 2).sum()) / len(change)
    images = len(change) + _PSEUDO * size
    mean = float(change.sum()) / images
    rest = change - mean if groups is None else np.bincount(groups, weights=change - mean)
    squares = float((rest**2).sum()) + size**2 * ((1 - mean) ** 2 + (1 + mean) ** 2)
    return mean, float(np.sqrt(squares)) / images


def _one_sided_loss(change: FloatArray, groups: IntArray | None) -> float:
    """One-sided mid-p of "not worse": small where the second model is significantly worse."""
    steps, total = _as_integers(_summed(change, groups))
    reach = int(steps.sum())
    if reach == 0:
        return 1.0
    chances = _swapped(steps)
    sums = 2 * np.arange(len(chances)) - reach
    return float(chances[sums < total].sum() + chances[sums == total].sum() / 2)


def _summed(change: FloatArray, groups: IntArray | None) -> FloatArray:
    """The changes of each group together; rounded, since thirds that cancel out may leave a remainder."""
    return change if groups is None else np.bincount(groups, change).astype(np.float64).round(9)


def _as_integers(change: FloatArray) -> tuple[IntArray, int]:
    """The sizes of all changes that are not zero, in whole steps of the smallest unit, and their signed sum."""
    sizes = np.abs(change[change != 0])
    if not len(sizes):
        return np.zeros(0, np.int64), 0
    from fractions import Fraction

    shares = [Fraction(float(size)).limit_denominator(1000) for size in np.unique(sizes)]
    unit = lcm(*(share.denominator for share in shares))
    return np.rint(sizes * unit).astype(np.int64), int(np.rint(change * unit).sum())


def _swapped(steps: IntArray) -> FloatArray:
    """Chances of all sums when each of `steps` has either sign: element i is that of the sum 2 * i - steps.sum()."""
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    chances = np.ones(1)
    for size, count in zip(*np.unique(steps, return_counts=True), strict=True):
        of_size = np.zeros(int(size) * int(count) + 1)
        of_size[:: int(size)] = binom.pmf(np.arange(int(count) + 1), int(count), 0.5)
        chances = of_size if len(chances) == 1 else np.maximum(fftconvolve(chances, of_size), 0)
    return chances
