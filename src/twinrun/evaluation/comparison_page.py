"""A comparison for a person: about ten lines for a terminal, and one offline page. comparison.py computes the tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinrun.base.printing import percent
from twinrun.evaluation.comparison import (
    ALPHA,
    Aligned,
    ClassDifference,
    Difference,
    Flips,
    Slice,
    best,
    class_differences,
    difference,
    equivalence,
    flips,
    seed_churn,
)
from twinrun.evaluation.metrics import calibration_error
from twinrun.evaluation.sheet import Tile, picture_of
from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("comparison.html")
_FLIPS_SHOWN = 24  # pictures of each kind
_LOST_NAMED = 3  # classes in the headline
_BINS = 15  # of the calibration error
_FEWEST = 10  # images of a bin that is drawn


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Further numbers of a contender, from DVC's metrics and its run's card; None where unknown.

    `curve` is the validation accuracy after each epoch, of its first seed.
    """

    seeds: int = 1
    model_bytes: int | None = None
    wall_time_s: float | None = None
    latency_ms: float | None = None
    curve: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contenders on the same images; the others are compared with the first.

    `kind` says which images: "test images" or "images out of fold". `differing` are lines on what differs between the
    first and the last, and `cause` a sentence where exactly one thing does.
    """

    aligned: Aligned
    beside: Sequence[Beside]
    kind: str
    margin: float
    same_weights: bool = False
    slices: Sequence[Slice] = ()
    differing: Sequence[str] = ()
    cause: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    def overall(self, at: int) -> Difference:
        """Contender `at` against the first, on all images."""
        return self._differences[at]

    @cached_property
    def _differences(self) -> list[Difference]:
        correct = self.aligned.correct
        return [difference(correct[0], other, self.aligned.groups) for other in correct]

    @cached_property
    def leader(self) -> int | None:
        """The contender that is significantly better than all others, if there is one."""
        return best(self.aligned)

    def classes(self, at: int) -> list[ClassDifference]:
        """The same class by class."""
        return class_differences(self.aligned, 0, at, margin=self.margin)

    def flips(self, at: int) -> Flips:
        """The answers that changed."""
        return flips(self.aligned, 0, at)


def lines(comparison: Comparison) -> list[str]:
    """The comparison in about ten lines: of two contenders in sentences, of more as a table."""
    aligned = comparison.aligned
    images = f"{len(aligned.ids):,} {comparison.kind}"
    if comparison.same_weights:
        return [
            f"{aligned.names[0]} and {aligned.names[-1]} have the same weights, so they give the same answers.",
            f"On {images} no answer changed: accuracy {percent(float(aligned.correct[0].mean()))}.",
            *comparison.notes,
            *comparison.differing,
        ]
    if len(aligned.names) > 2:
        return [f"{len(aligned.names)} models on {images}", *_table_lines(comparison), *comparison.notes]
    overall = comparison.overall(1)
    return [
        f"{aligned.names[0]}  ->  {aligned.names[1]}, on {images}",
        f"accuracy  {percent(overall.before)} -> {percent(overall.after)}  ({_points(overall.value)}; 95% interval "
        f"{_interval(overall)})",
        verdict(comparison),
        f"{len(aligned.ids):,} images{_in_groups(aligned)} can show a difference of about "
        f"{100 * overall.shows_from:.1f} points or more.",
        _flip_line(comparison),
        "log loss  {} -> {}".format(*(f"{aligned.log_loss(at):.3f}" for at in (0, 1)))
        + "; calibration error  {} -> {}".format(*(f"{_calibration(aligned, at):.3f}" for at in (0, 1))),
        *_class_lines(comparison),
        *comparison.notes,
        *comparison.differing,
        *([comparison.cause] if comparison.cause else []),
    ]


def _in_groups(aligned: Aligned) -> str:
    return "" if aligned.groups is None else f" in {len(np.unique(aligned.groups)):,} groups"


def verdict(comparison: Comparison, at: int = 1) -> str:
    """Whether contender `at` differs from the first, in one sentence."""
    overall = comparison.overall(at)
    change = comparison.aligned.correct[at] - comparison.aligned.correct[0]
    p_value = f"p {_p(overall.mid_p)}, McNemar's mid-p"
    if overall.mid_p <= ALPHA:
        return f"It is significantly {'better' if overall.value > 0 else 'worse'}: {p_value}."
    if equivalence(change, comparison.margin, comparison.aligned.groups) <= ALPHA:
        return f"They are equally good to within {100 * comparison.margin:g} points ({p_value})."
    return f"Inconclusive: neither different nor equal to within {100 * comparison.margin:g} points ({p_value})."


def page(comparison: Comparison, pictures: Sequence[npt.NDArray[np.uint8] | None] | None, paths: Sequence[str]) -> str:
    """The page as HTML. `pictures` are the images (H, W, C), where they are here, and `paths` their files' names."""
    aligned = comparison.aligned
    last = len(aligned.names) - 1
    overall = comparison.overall(last)
    return fill_page(
        _TEMPLATE,
        title=f"{aligned.names[0]} and {aligned.names[last]}" if last == 1 else f"{last + 1} models",
        headline=_headline(comparison),
        sentences=_sentences(comparison),
        images=f"{len(aligned.ids):,} {comparison.kind}",
        rows=_rows(comparison),
        two=last == 1,
        names=aligned.names,
        difference=_interval_row("all images", overall),
        classes=[
            {**_interval_row(row.label, row.difference), "state": row.state}
            for row in (comparison.classes(last) if last == 1 else [])
        ],
        margin=f"{100 * comparison.margin:g}",
        slices=[_interval_row(part.name, part.difference) for part in comparison.slices],
        flips=_flip_groups(comparison, last, pictures, paths) if last == 1 else [],
        differing=comparison.differing,
        cause=comparison.cause,
        reach=_reach(comparison, last),
        curves=_lines_of([training.curve for training in comparison.beside]),
        calibration=_calibration_lines(aligned),
    )


def _lines_of(curves: Sequence[Sequence[tuple[float, float]]]) -> dict[str, Any] | None:
    """Curves as points of a drawing of 100 x 100, with the ends of both axes; None where no curve has two points.

    The only point of a curve is repeated, which draws a dot.
    """
    if all(len(curve) < 2 for curve in curves):
        return None
    curves = [[*curve, *curve] if len(curve) == 1 else curve for curve in curves]
    points = [point for curve in curves for point in curve]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    across, up = (right - left) or 1, (high - low) or 1
    drawn = [
        " ".join(f"{100 * (x - left) / across:.1f},{100 - 100 * (y - low) / up:.1f}" for x, y in curve)
        for curve in curves
    ]
    return {"lines": drawn, "x": (left, right), "y": (percent(low), percent(high))}


def _calibration_lines(aligned: Aligned) -> list[str]:
    """For each contender the share that is correct by confidence, as points of a drawing of 100 x 100."""
    drawn = []
    for at in range(len(aligned.names)):
        shares = aligned.probabilities[at]
        sure, right = shares.max(axis=2).ravel(), (shares.argmax(axis=2) == aligned.targets).ravel()
        bins = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        kept = np.flatnonzero(counts >= _FEWEST)
        x = np.bincount(bins, weights=sure, minlength=_BINS)[kept] / counts[kept]
        y = np.bincount(bins, weights=right, minlength=_BINS)[kept] / counts[kept]
        drawn.append(" ".join(f"{100 * a:.1f},{100 - 100 * b:.1f}" for a, b in zip(x, y, strict=True)))
    return drawn


def _sentences(comparison: Comparison) -> list[str]:
    """The sentences at the top of the page; the differences have their own section."""
    if len(comparison.aligned.names) > 2 and not comparison.same_weights:
        return list(comparison.notes)
    apart = {verdict(comparison), *comparison.differing, comparison.cause}
    return [line for line in lines(comparison)[1:] if line not in apart]


def _headline(comparison: Comparison) -> str:
    names = comparison.aligned.names
    if comparison.same_weights:
        return "The same weights, and so the same answers"
    if len(names) == 2:
        overall = comparison.overall(1)
        lost = [row.label for row in comparison.classes(1) if row.state == "worse"]
        named = ", ".join(lost[:_LOST_NAMED]) + (f" and {len(lost) - _LOST_NAMED} more" if lost[_LOST_NAMED:] else "")
        but = f" Worse on: {named}." if lost else ""
        return f"{percent(overall.before)} -> {percent(overall.after)}. {verdict(comparison)}{but}"
    leader = comparison.leader
    return "No model is significantly better than all others" if leader is None else f"{names[leader]} is the best"


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each contender; the best is marked only where it is significantly better than all others."""
    aligned, leader = comparison.aligned, comparison.leader
    rows = []
    for at, (name, beside) in enumerate(zip(aligned.names, comparison.beside, strict=True)):
        of_seeds = (aligned.probabilities[at].argmax(axis=2) == aligned.targets).mean(axis=1)
        spread = f" ± {100 * float(of_seeds.std(ddof=1)):.1f}" if len(of_seeds) > 1 else ""
        overall = comparison.overall(at)
        rows.append(
            {
                "name": name,
                "seeds": len(of_seeds),
                "accuracy": f"{100 * float(aligned.correct[at].mean()):.1f}{spread}%",
                "change": "" if at == 0 else f"{_points(overall.value)} ({_interval(overall)})",
                "p": "" if at == 0 else _p(overall.mid_p),
                "log_loss": f"{aligned.log_loss(at):.3f}",
                "calibration": f"{_calibration(aligned, at):.3f}",
                "size": "" if beside.model_bytes is None else f"{beside.model_bytes / 1e6:.1f} MB",
                "latency": "" if beside.latency_ms is None else f"{beside.latency_ms:.1f} ms",
                "time": "" if beside.wall_time_s is None else f"{beside.wall_time_s:,.0f} s",
                "best": at == leader,
            }
        )
    return rows


def _table_lines(comparison: Comparison) -> list[str]:
    rows = _rows(comparison)
    width = max(len(row["name"]) for row in rows)
    return [
        f"  {'*' if row['best'] else ' '} {row['name']:<{width}}  {row['accuracy']:>12}  log loss {row['log_loss']}"
        + (f"  {row['change']}, p {row['p']}" if row["change"] else "")
        for row in rows
    ] + ["* better than all others (Holm)" if any(row["best"] for row in rows) else _headline(comparison) + "."]


def _flip_line(comparison: Comparison) -> str:
    flips, aligned = comparison.flips(1), comparison.aligned
    text = (
        f"{flips.churn:,} answers changed: {len(flips.broken)} correct to wrong, {len(flips.fixed)} wrong to correct, "
        f"{len(flips.otherwise)} wrong to another wrong one"
    )
    known = [churn for at in (0, 1) if (churn := seed_churn(aligned, at)) is not None]
    return f"{text}. Another seed alone changes {percent(max(known))} of the answers." if known else f"{text}."


def _class_lines(comparison: Comparison) -> list[str]:
    classes = comparison.classes(1)
    worse = [row for row in classes if row.state == "worse"]
    kept = sum(row.state == "not worse" for row in classes)
    shown = [
        f"Class {row.label!r} is worse: recall {percent(row.difference.before)} -> {percent(row.difference.after)} "
        f"of {row.difference.images:,} images."
        for row in worse
    ]
    return [
        *shown,
        f"{'No' if not worse else 'No other'} class is significantly worse; a loss of {100 * comparison.margin:g} "
        f"points is excluded for {f'all {kept}' if kept == len(classes) else f'{kept} of {len(classes)}'}.",
    ]


def _interval_row(name: str, change: Difference) -> dict[str, Any]:
    return {
        "name": name,
        "images": f"{change.images:,}",
        "before": percent(change.before),
        "after": percent(change.after),
        "change": _points(change.value),
        "interval": _interval(change),
        "p": _p(change.mid_p),
        "low": change.low,
        "high": change.high,
        "value": change.value,
    }


def _reach(comparison: Comparison, last: int) -> float:
    """The largest end of an interval, for the scale of the pictures; at least 2 points."""
    rows = [change.difference for change in comparison.classes(last)] if last == 1 else []
    every = [comparison.overall(last), *rows, *(change.difference for change in comparison.slices)]
    return max(0.02, *(max(abs(change.low), abs(change.high)) for change in every))


def _flip_groups(
    comparison: Comparison,
    last: int,
    pictures: Sequence[npt.NDArray[np.uint8] | None] | None,
    paths: Sequence[str],
) -> list[dict[str, Any]]:
    flips, aligned = comparison.flips(last), comparison.aligned
    said = [aligned.predicted(0), aligned.predicted(last)]
    groups = []
    for title, positions in (
        ("Correct before, wrong now", flips.broken),
        ("Wrong before, correct now", flips.fixed),
        ("Wrong before, another wrong answer now", flips.otherwise),
    ):
        tiles = []
        for at in positions[:_FLIPS_SHOWN]:
            picture = pictures[at] if pictures is not None else None
            labels = [
                (aligned.classes[int(said[which][at])], float(aligned.probabilities[row].mean(axis=0)[at].max()))
                for which, row in ((0, 0), (1, last))
            ]
            label = aligned.classes[int(aligned.targets[at])]
            tiles.append(
                (label, Tile(name=paths[at], picture=None if picture is None else picture_of(picture), labels=labels))
            )
        groups.append({"title": title, "count": len(positions), "tiles": tiles})
    return groups


def _calibration(aligned: Aligned, at: int) -> float:
    return float(np.mean([calibration_error(aligned.targets, shares, _BINS) for shares in aligned.probabilities[at]]))


def _interval(change: Difference) -> str:
    return f"{100 * change.low:+.1f} to {100 * change.high:+.1f} points"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points" if abs(share) >= 5e-4 else "0 points"


def _p(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    text = f"{value:.3f}"
    return text if (float(text) <= ALPHA) == (value <= ALPHA) else f"{value:.4f}"
