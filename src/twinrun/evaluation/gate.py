"""The gates: tests that a version must pass to be a candidate, alone and compared with the champion. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twinrun.base.printing import percent
from twinrun.core.arrays import FloatArray
from twinrun.core.intervals import wilson_interval
from twinrun.core.params import GateParams, UserExpectation
from twinrun.core.rules import METRICS, columns_of
from twinrun.evaluation.comparison import (
    ALPHA,
    Aligned,
    class_differences,
    difference,
    non_inferiority,
)
from twinrun.evaluation.conformal import softmax
from twinrun.evaluation.predictions import Predictions
from twinrun.evaluation.trial import Trial

GUESSING = "better than guessing"
LOADED = "same answers when loaded"
SAME_IN_ONNX = "same answers in ONNX"
CHANGES = {"shift": "a small shift", "brightness": "a change of light", "mirror": "mirroring"}
_ROUNDING = 1e-4
_ONNX_ROUNDING = 1e-4  # of the scale of the logits
_LEAST_PROBABILITY = 1e-300
_MOST_DECIMALS = 9
_MOST_NAMED = 10  # classes; MLflow takes no description of more than 5,000 characters on some databases


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The result of one gate: its name, whether the model passed, and a sentence with the numbers.

    `passed` is None where the gate could not be judged, and the sentence then says why. `value` is what was measured
    and `limit` what it was compared with, if the gate has such numbers.
    """

    name: str
    passed: bool | None
    sentence: str
    value: float | None = None
    limit: float | None = None

    def values(self) -> dict[str, Any]:
        """The gate as plain values."""
        return asdict(self)

    @property
    def answer(self) -> str:
        """ "passed", "refused" or "not judged"."""
        return "not judged" if self.passed is None else "passed" if self.passed else "refused"

    def __str__(self) -> str:
        """The answer in one line."""
        return f"{self.answer}: {self.sentence}"


def judge_alone(metrics: Mapping[str, Any], min_accuracy: float, gates: GateParams) -> list[Gate]:
    """The gates that need only a model's metrics.json.

    The model must reach `min_accuracy`, and be better than always guessing the commonest class: the lower end of its
    accuracy's 95% interval (Wilson's, which has a width even at 100%, or the report's if wider) must be above
    the share of that class among the same images. So a few lucky images never make a candidate, whatever `min_accuracy`
    is.
    """
    accuracy, images = float(metrics["accuracy"]), int(metrics.get("images", 0)) if metrics.get("per_class") else 0
    judged = [
        Gate(
            name="accuracy",
            passed=accuracy >= min_accuracy,
            sentence=f"its accuracy is {percent(accuracy)}; at least {percent(min_accuracy)} is required "
            "(register.min_accuracy)"
            + ("" if accuracy >= min_accuracy else f", {100 * (min_accuracy - accuracy):.3g} points more"),
            value=accuracy,
            limit=min_accuracy,
        ),
        _better_than_guessing(metrics, accuracy, images),
    ]
    for name, measure, scale, digits, limit, described in (
        (
            "calibration",
            "calibration_error",
            1.0,
            3,
            gates.max_calibration_error,
            "its calibration error is {}; at most {:g} is allowed (register.gates.max_calibration_error)",
        ),
        (
            "size",
            "model_bytes",
            1e-6,
            1,
            gates.max_model_mb,
            "its size is {} MB; at most {:g} MB is allowed (register.gates.max_model_mb)",
        ),
    ):
        value = metrics.get(measure)
        if limit is None:
            continue
        if value is None:
            reason = f"metrics.json has no {measure}. Evaluate again: dvc repro -f evaluate"
            judged.append(Gate(name=name, passed=None, sentence=reason, limit=limit))
        else:
            size = scale * float(value)
            sentence = described.format(_beside(size, limit, digits), limit)
            judged.append(Gate(name=name, passed=size <= limit, sentence=sentence, value=size, limit=limit))
    return judged


def judge_beside(aligned: Aligned, champion: str, gates: GateParams) -> list[Gate]:
    """The gates that compare a model, the second of `aligned`, with the champion, the first, on the same images.

    Overall, a loss of the margin must be excluded (one-sided, 5%), and there must be no significant loss. A class fails
    if its loss is significant and a loss of `class_margin` is not excluded (Holm, 5% for all classes together).
    """
    before, after = aligned.correct[0], aligned.correct[1]
    overall = difference(before, after, aligned.groups)
    kept = non_inferiority(after - before, gates.margin, aligned.groups)
    worse = overall.value < 0 and overall.mid_p / 2 <= ALPHA
    seen = (
        f"{percent(overall.after)} against the {percent(overall.before)} of {champion} on the same "
        f"{overall.images:,} images ({_points(overall.value)}, 95% interval {100 * overall.low:+.1f} to "
        f"{100 * overall.high:+.1f})"
    )
    answers = [
        Gate(
            name="not worse than the champion",
            passed=kept <= ALPHA and not worse,
            sentence=seen
            + (
                ": the loss is significant"
                if worse
                else f"; a loss of {100 * gates.margin:g} points (register.gates.margin) is "
                + ("excluded" if kept <= ALPHA else "not excluded; that takes more test images")
            ),
            value=overall.value,
            limit=-gates.margin,
        )
    ]
    losses = class_differences(aligned, 0, 1, margin=gates.class_margin)
    lost = sorted((loss for loss in losses if loss.state == "worse"), key=lambda loss: loss.difference.value)
    answers.append(
        Gate(
            name="no class worse than the champion's",
            passed=not lost,
            sentence="; ".join(
                f'its recall of "{loss.label}" is {percent(loss.difference.after)}, that of {champion} '
                f"{percent(loss.difference.before)} ({loss.difference.images:,} images, register.gates.class_margin)"
                for loss in lost[:_MOST_NAMED]
            )
            + (f"; and {len(lost) - _MOST_NAMED:,} classes more" if lost[_MOST_NAMED:] else "")
            or f"no class is significantly worse than with {champion}",
        )
    )
    if gates.require_improvement:
        better = overall.value > 0 and overall.mid_p <= ALPHA
        answers.append(
            Gate(
                name="better than the champion",
                passed=better,
                sentence=f"{seen}; that is {'' if better else 'not '}significantly better (McNemar's mid-p "
                f"{overall.mid_p:.3f}, register.gates.require_improvement)",
            )
        )
    return answers


def judge_loaded(trial: Trial, expected: Predictions) -> Gate:
    """The gate on a model as it was loaded in a separate process; `expected` is what evaluate wrote.

    Both are of the same images, in the same order. On one class of processor the probabilities are the same to the
    bit. Another one may round differently, so a difference of less than 0.0001 passes.
    """
    apart = float(np.abs(trial.probabilities - expected.probabilities).max())
    return Gate(
        name=LOADED,
        passed=apart < _ROUNDING,
        sentence=f"loaded in a separate process, its probabilities of {len(expected.ids):,} test images differ from "
        f"those that evaluate wrote by at most {apart:.1g}; less than {_ROUNDING:g} is required",
        value=apart,
        limit=_ROUNDING,
    )


def judge_onnx(logits: FloatArray, expected: Predictions) -> Gate:
    """The gate on the network in ONNX: its `logits` (n, classes) against what evaluate wrote for the same images.

    Both are compared as logarithms of probabilities, which are the logits up to a constant for each image. Where a
    probability is so small that it may have been rounded to 0, how small it is does not count.
    """
    certain = np.log(np.maximum(expected.probabilities, _LEAST_PROBABILITY))
    scale = float(np.abs(certain - certain.mean(axis=1, keepdims=True)).max())
    apart = np.log(np.maximum(softmax(logits), _LEAST_PROBABILITY)) - certain
    share = float(np.abs(apart).max()) / (scale or 1.0)
    other_labels = int((logits.argmax(axis=1) != expected.predicted).sum())
    return Gate(
        name=SAME_IN_ONNX,
        passed=share <= _ONNX_ROUNDING and other_labels == 0,
        sentence=f"ONNX Runtime's logits of {len(logits):,} test images differ from PyTorch's by at most {share:.1g} "
        f"of their scale, and {other_labels:,} labels differ; at most {_ONNX_ROUNDING:g} and no label are allowed",
        value=share,
        limit=_ONNX_ROUNDING,
    )


def judge_agreement(
    shares: Mapping[str, float | None], tried: Predictions | None, gates: GateParams, unknown: str, when: str = ""
) -> list[Gate]:
    """The gates on labels that should survive a change of the images; none where `min_agreement` is not set.

    `shares` maps a change to the share of the images of `tried` that keep their label, None where that is `unknown`.
    A share fails only if the limit lies above its 95% interval (Wilson's, of as many images as there are groups).
    """
    least = gates.min_agreement
    if least is None:
        return []
    judged = []
    for change, share in shares.items():
        passed, sentence = None, unknown
        if share is not None and tried is not None:
            images, groups = len(tried.ids), tried.n_units
            passed = wilson_interval(share, groups)[1] >= least
            sentence = (
                f"after {CHANGES[change]} {percent(share)} of {images:,} test images"
                f"{'' if groups == images else f' in {groups:,} groups'} keep their label{when}; at least "
                f"{percent(least)} is required, or a 95% interval that reaches it (register.gates.min_agreement)"
            )
        judged.append(
            Gate(name=f"same label after {CHANGES[change]}", passed=passed, sentence=sentence, value=share, limit=least)
        )
    return judged


def judge_latency(latency_ms: float | None, measured: str, gates: GateParams) -> list[Gate]:
    """The gate on the time that one image takes; none where no limit is set.

    `measured` says how the time was measured, or why it was not.
    """
    most = gates.max_latency_ms
    if most is None:
        return []
    return [
        Gate(
            name="latency",
            passed=None if latency_ms is None else latency_ms <= most,
            sentence=measured
            if latency_ms is None
            else f"one image takes {_beside(latency_ms, most, 1)} ms, from pixels to probabilities, {measured}; at "
            f"most {most:g} ms is allowed (register.gates.max_latency_ms)",
            value=latency_ms,
            limit=most,
        )
    ]


def agreement(trial: Trial, expected: Predictions) -> dict[str, float]:
    """For each change of the images the share whose label stays, in [0, 1]."""
    return {change: float((said == expected.predicted).mean()) for change, said in trial.changed.items()}


def judge_expectations(row: Mapping[str, float | None], expectations: Sequence[UserExpectation]) -> list[Gate]:
    """The user's own gates, on a table of metrics with the one row `row`.

    An expectation on an unknown metric is not met. One with the severity "warning" never refuses.
    """
    if not expectations:
        return []
    from twinrun.validate.expectations import Rule, judge

    rules = [("metrics", Rule(rule.name, dict(rule.arguments), rule.severity)) for rule in expectations]
    answers = []
    judged = judge({"metrics": {name: [value] for name, value in row.items()}}, rules)
    for asked, answer in zip(expectations, judged, strict=True):
        shown = ", ".join(f"{key} {value}" for key, value in asked.arguments.items())
        metrics = columns_of(asked.arguments)
        unknown = [name for name in metrics if row.get(name) is None]
        met = answer.passed and not unknown
        reason = f"{', '.join(unknown)} is not known" if unknown else answer.problem or _values(row, metrics)
        answers.append(
            Gate(
                name=f"{asked.name} of {', '.join(metrics) or 'the metrics'}",
                passed=met or asked.severity == "warning",
                sentence=f"{reason}; expected: {shown} (register.gates.expectations)"
                + ("" if met or asked.severity == "critical" else "; only a warning"),
                value=row.get(metrics[0]) if metrics else None,
            )
        )
    return answers


def metrics_row(
    metrics: Mapping[str, Any], latency_ms: float | None, shares: Mapping[str, float | None]
) -> dict[str, float | None]:
    """The one row of the table of metrics: each of `rules.METRICS`, None where it is not known.

    `shares` maps a change of the images to the share of labels that survive it. The weakest class is one with images.
    """
    row: dict[str, float | None] = dict.fromkeys(METRICS)
    row |= {name: metrics[name] for name in METRICS if name in metrics}
    for score in ("precision", "recall", "f1"):
        known = [
            one[score] for one in metrics.get("per_class", []) if one.get(score) is not None and one.get("images") != 0
        ]
        row[f"worst_{score}"] = min(known, default=None)
    return row | {"latency_ms": latency_ms} | {f"agreement_{change}": share for change, share in shares.items()}


def refusal(gates: Sequence[Gate]) -> str | None:
    """Why the model was refused, in sentences that name the gates; None where it passed all of them."""
    return (
        " ".join(f"Refused by the gate “{gate.name}”: {gate.sentence}." for gate in gates if gate.passed is False)
        or None
    )


def not_judged(gates: Sequence[Gate]) -> list[str]:
    """A sentence for each reason for which gates could not be judged, naming them."""
    reasons: dict[str, list[str]] = {}
    for gate in gates:
        if gate.passed is None:
            reasons.setdefault(gate.sentence, []).append(f"“{gate.name}”")
    return [f"Not judged: {', '.join(names)}, since {reason}." for reason, names in reasons.items()]


def _better_than_guessing(metrics: Mapping[str, Any], accuracy: float, images: int) -> Gate:
    if not images:
        reason = "metrics.json does not say how many images there are of each class"
        return Gate(
            name=GUESSING,
            passed=False,
            sentence=f"it is not shown to be better than guessing: {reason}. Evaluate again: dvc repro -f evaluate",
        )
    commonest = max(metrics["per_class"], key=lambda row: int(row["images"]))
    share = int(commonest["images"]) / images
    low, high = wilson_interval(accuracy, images)
    if ends := metrics.get("intervals", {}).get("accuracy"):  # wider where images are in groups
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    guessing = (
        f'always guessing "{commonest["label"]}", the commonest class, which is right for {percent(share)} of these '
        f"{images:,} images: its accuracy is {percent(accuracy)} (95% interval {percent(low, '')} to {percent(high)})"
    )
    passed = low > share
    return Gate(
        name=GUESSING,
        passed=passed,
        sentence=f"it is shown to be better than {guessing}"
        if passed
        else f"it is not shown to be better than {guessing}. Add images, or train a better model",
    )


def _beside(value: float, limit: float, digits: int) -> str:
    """`value` with so many decimals, or with as many more as show on which side of `limit` it is."""
    while digits < _MOST_DECIMALS and value != limit and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:,.{digits}f}"


def _values(row: Mapping[str, float | None], names: Sequence[str]) -> str:
    return ", ".join(f"{name} is {row[name]:.4g}" for name in names) or "the table of metrics"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
