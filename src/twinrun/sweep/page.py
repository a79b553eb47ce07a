"""What a sweep says to a person: some lines for a terminal, and one offline page."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from twinrun.sweep.plan import Plan, Range, Scalar
from twinrun.sweep.proposals import Importance, importances
from twinrun.sweep.sweep import Confirmation, Outcome
from twinrun.sweep.table import Row
from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("sweep.html")
_HEIGHT, _APART, _MARGIN = 220.0, 150.0, 60.0


def summary(outcome: Outcome) -> list[str]:
    """What came out, in a few sentences."""
    plan, rows, best = outcome.plan, outcome.rows, outcome.best
    counts = {state: sum(row.state == state for row in rows) for state in ("finished", "stopped", "failed")}
    lines = [
        f"{len(rows)} trials: {counts['finished']} trained to the end, {counts['stopped']} stopped at a rung, "
        f"{counts['failed']} failed."
        + ("" if outcome.idle is None else f" Workers were idle {outcome.idle:.0%} of the time.")
    ]
    if best is None:
        return [*lines, "No trial was trained to its end, so there is no best one."]
    values = ", ".join(f"{name.removeprefix('train.')} {_shown(value)}" for name, value in best.values.items())
    lines.append(
        f"Best: trial {best.number}, {_metric(plan)} {_number(best.metric, plan)}, with {values}. The best of "
        f"{len(rows)} is optimistic: some of it is luck on these validation images."
    )
    return [*lines, *_confirmed(outcome.confirmation, plan)]


def page(outcome: Outcome) -> str:
    """The page as HTML."""
    plan, rows = outcome.plan, outcome.rows
    judged = [row for row in rows if row.first is not None]
    weights = importances(plan, [row.values for row in judged], [row.first or 0.0 for row in judged])
    return fill_page(
        _TEMPLATE,
        title=f"Sweep {outcome.name}",
        kind=f"{len(rows)} trials in generations of {plan.width} · seed {plan.seed} · {_metric(plan)}",
        headline=_headline(outcome),
        sentences=summary(outcome),
        names=[name.removeprefix("train.") for name in plan.space],
        metric=_metric(plan),
        rows=[_table_row(row, outcome) for row in sorted(rows, key=lambda row: _order(row, plan))],
        drawing=_parallel(plan, rows, outcome.best),
        importances=[_bar(row) for row in weights],
        judged_after=f"after epoch {plan.rungs[0]}, where all trials are judged" if plan.rungs else "at the end",
        confirmation=_seeds(outcome),
        take_over=f"cp {outcome.folder / 'best.yaml'} params.yaml && dvc repro" if outcome.best else None,
    )


def _headline(outcome: Outcome) -> str:
    if outcome.best is None:
        return "No trial was trained to its end"
    number = _number(outcome.best.metric, outcome.plan)
    return f"Trial {outcome.best.number} is the best, with a {_metric(outcome.plan)} of {number}"


def _confirmed(confirmation: Confirmation | None, plan: Plan) -> list[str]:
    if confirmation is None:
        return []
    count = len(confirmation.seeds)
    text = (
        f"Trained again with {count} new seed{'' if count == 1 else 's'}: {_spread(confirmation.best, plan)}; "
        f"params.yaml with the same seeds: {_spread(confirmation.base, plan)}."
    )
    both = zip(confirmation.best, confirmation.base, strict=True)
    pairs = [(best, base) for best, base in both if best is not None and base is not None]
    if not pairs:
        return [f"{text} So no seed tells which of the two is better."]
    sign = 1 if plan.maximise else -1
    wins = sum(sign * (best - base) > 0 for best, base in pairs)
    gain = sign * (mean(best for best, _ in pairs) - mean(base for _, base in pairs))
    return [
        f"{text} The sweep {'beats' if gain > 0 else 'does not beat'} params.yaml on the validation images: better "
        f"with {wins} of {len(pairs)} seeds{'' if len(pairs) == count else ' with which neither failed'}."
    ]


def _seeds(outcome: Outcome) -> list[dict[str, str]]:
    confirmation, plan = outcome.confirmation, outcome.plan
    if confirmation is None:
        return []
    pairs = zip(confirmation.seeds, confirmation.best, confirmation.base, strict=True)
    rows = [
        {"seed": str(seed), "best": _number(a, plan) or "failed", "base": _number(b, plan) or "failed"}
        for seed, a, b in pairs
    ]
    return [*rows, {"seed": "mean", "best": _spread(confirmation.best, plan), "base": _spread(confirmation.base, plan)}]


def _spread(scores: Sequence[float | None], plan: Plan) -> str:
    """Mean and standard deviation of the trainings that ended, and how many failed."""
    ended = [score for score in scores if score is not None]
    if not ended:
        return "it failed" if len(scores) == 1 else f"all {len(scores)} failed"
    text = _number(mean(ended), plan) + (f" ± {_number(stdev(ended), plan)}" if len(ended) > 1 else "")
    return text if len(ended) == len(scores) else f"{text} ({len(scores) - len(ended)} of {len(scores)} failed)"


def _table_row(row: Row, outcome: Outcome) -> dict[str, Any]:
    return {
        "number": row.number,
        "generation": row.generation,
        "state": row.state,
        "epochs": row.epochs,
        "metric": _number(row.metric, outcome.plan),
        "values": [_shown(value) for value in row.values.values()],
        "weights": (row.weights_hash or "")[:12],
        "reason": (row.reason or "").partition("\n")[0],
        "best": outcome.best is not None and row.number == outcome.best.number,
    }


def _order(row: Row, plan: Plan) -> tuple[int, float, int]:
    """Trials that came far first, of these the best."""
    score = math.inf if row.metric is None else -row.metric if plan.maximise else row.metric
    return -row.epochs, score, row.number


def _bar(row: Importance) -> dict[str, Any]:
    text = f"{row.mean:.0%} ({row.low:.0%} to {row.high:.0%})"
    return {"name": row.name.removeprefix("train."), "mean": row.mean, "low": row.low, "high": row.high, "text": text}


def _parallel(plan: Plan, rows: Sequence[Row], best: Row | None) -> dict[str, Any]:
    """Parallel coordinates: an axis for each setting and one for the metric, a line for each trial."""
    scored = [row for row in rows if row.metric is not None]
    scores = [row.metric for row in scored if row.metric is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    dimensions = plan.dimensions()
    axes = [
        {"name": name.removeprefix("train."), "x": _MARGIN + i * _APART, "ticks": _ticks(dimension)}
        for i, (name, dimension) in enumerate(dimensions.items())
    ]
    last = _MARGIN + len(axes) * _APART
    ends = [(_number(value, plan), _y(share)) for value, share in ((low, 0.0), (high, 1.0))]
    axes.append({"name": _metric(plan), "x": last, "ticks": ends})
    lines = []
    for row in sorted(scored, key=lambda row: (best is not None and row.number == best.number, row.number)):
        assert row.metric is not None
        shares = [_share(dimensions[name], row.values[name]) for name in dimensions]
        score = (row.metric - low) / (high - low)
        points = [f"{_MARGIN + i * _APART:.0f},{_y(share):.1f}" for i, share in enumerate([*shares, score])]
        quality = score if plan.maximise else 1 - score
        lines.append(
            {
                "points": " ".join(points),
                "hue": round(20 + 190 * quality),
                "best": best is not None and row.number == best.number,
                "stopped": row.state != "finished",
                "title": f"trial {row.number}: {_number(row.metric, plan)}, {row.state}",
            }
        )
    return {
        "axes": axes,
        "lines": lines,
        "width": last + _MARGIN,
        "height": _HEIGHT + 60,
        "bottom": _y(0),
        "top": _y(1),
    }


def _y(share: float) -> float:
    return 30 + _HEIGHT * (1 - share)


def _share(dimension: Range | list[Scalar], value: Scalar) -> float:
    """Where a value lies on its axis, from 0 to 1."""
    if isinstance(dimension, Range):
        assert isinstance(value, int | float)
        if dimension.scale == "log":
            return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
        return (value - dimension.low) / (dimension.high - dimension.low)
    return dimension.index(value) / (len(dimension) - 1)


def _ticks(dimension: Range | list[Scalar]) -> list[tuple[str, float]]:
    values: list[Scalar] = [dimension.low, dimension.high] if isinstance(dimension, Range) else dimension
    return [(_shown(value), _y(_share(dimension, value))) for value in values]


def _shown(value: Scalar) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _metric(plan: Plan) -> str:
    return {"val_accuracy": "validation accuracy", "val_loss": "validation loss"}[plan.metric]


def _number(score: float | None, plan: Plan) -> str:
    return "" if score is None else f"{score:.2%}" if plan.maximise else f"{score:.4f}"
