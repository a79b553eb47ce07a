"""The gates: what a version must pass to be a candidate, alone and beside the champion. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twinrun.core.intervals import wilson_interval
from twinrun.core.params import GateParams
from twinrun.evaluation.comparison import (
    ALPHA,
    Aligned,
    class_differences,
    difference,
    non_inferiority,
)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The answer of one gate: its name, whether the model passed, and a sentence with the numbers."""

    name: str
    passed: bool
    sentence: str

    def value(self) -> dict[str, Any]:
        """The gate as plain values."""
        return asdict(self)


def judge_alone(metrics: Mapping[str, Any], min_accuracy: float, gates: GateParams) -> list[Gate]:
    """The gates that ask a model's metrics.json alone.

    It must reach `min_accuracy`, and be better than always guessing the commonest class: the lower end of its
    accuracy's 95% interval (Wilson's, which has a width even at 100%) must lie above the share
    of that class among the same images. So a few lucky images never make a candidate, whatever `min_accuracy` is.
    """
    accuracy, images = float(metrics["accuracy"]), int(metrics["images"])
    found = [
        Gate(
            name="accuracy",
            passed=accuracy >= min_accuracy,
            sentence=f"its accuracy is {_percent(accuracy)}; at least {_percent(min_accuracy)} is asked for "
            "(register.min_accuracy)",
        ),
        _better_than_guessing(metrics, accuracy, images),
    ]
    error, most = metrics.get("calibration_error"), gates.max_calibration_error
    if most is not None and error is not None:
        found.append(
            Gate(
                name="calibration",
                passed=float(error) <= most,
                sentence=f"its calibration error is {float(error):.3f}; at most {most:g} is allowed "
                "(register.gates.max_calibration_error)",
            )
        )
    size, largest = metrics.get("model_bytes"), gates.max_model_mb
    if largest is not None and size is not None:
        found.append(
            Gate(
                name="size",
                passed=float(size) <= largest * 1e6,
                sentence=f"its size is {float(size) / 1e6:.1f} MB; at most {largest:g} MB is allowed "
                "(register.gates.max_model_mb)",
            )
        )
    return found


def judge_beside(aligned: Aligned, champion: str, gates: GateParams) -> list[Gate]:
    """The gates that compare a model, the second of `aligned`, with the champion, the first, on the same images.

    Overall, a loss of the margin must be excluded (one-sided, 5%) and no loss be shown. A class is refused where a loss
    is shown, and not excluded from reaching `class_margin` (Holm, 5% for all classes together).
    """
    before, after = aligned.correct[0], aligned.correct[1]
    found = difference(before, after, aligned.groups)
    kept = non_inferiority(after - before, gates.margin, aligned.groups)
    worse = found.value < 0 and found.mid_p / 2 <= ALPHA
    seen = (
        f"{_percent(found.after)} against the {_percent(found.before)} of {champion} on the same {found.images:,} "
        f"images ({_points(found.value)}, 95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f})"
    )
    answers = [
        Gate(
            name="not worse than the champion",
            passed=kept <= ALPHA and not worse,
            sentence=seen
            + (
                ": a loss is shown"
                if worse
                else f"; a loss of {100 * gates.margin:g} points (register.gates.margin) is "
                + ("excluded" if kept <= ALPHA else "not excluded: more test images would tell")
            ),
        )
    ]
    lost = [each for each in class_differences(aligned, 0, 1, margin=gates.class_margin) if each.state == "worse"]
    answers.append(
        Gate(
            name="no class worse than the champion's",
            passed=not lost,
            sentence="; ".join(
                f'it finds {_percent(each.difference.after)} of "{each.label}" where {champion} finds '
                f"{_percent(each.difference.before)} ({each.difference.images:,} images, register.gates.class_margin)"
                for each in lost
            )
            or f"no class is shown to have lost against {champion}",
        )
    )
    if gates.require_improvement:
        better = found.value > 0 and found.mid_p <= ALPHA
        answers.append(
            Gate(
                name="better than the champion",
                passed=better,
                sentence=f"{seen}; that is {'' if better else 'not '}shown to be better (McNemar's mid-p "
                f"{found.mid_p:.3f}, register.gates.require_improvement)",
            )
        )
    return answers


def refusal(gates: Sequence[Gate]) -> str | None:
    """Why the model was refused, in sentences that name the gates; None where it passed all of them."""
    return " ".join(f"Refused by the gate “{each.name}”: {each.sentence}." for each in gates if not each.passed) or None


def _better_than_guessing(metrics: Mapping[str, Any], accuracy: float, images: int) -> Gate:
    commonest = max(metrics["per_class"], key=lambda row: int(row["images"]))
    share = int(commonest["images"]) / images
    low, high = wilson_interval(accuracy, images)
    guessing = (
        f'always guessing "{commonest["label"]}", the commonest class, which is right for {_percent(share)} of these '
        f"{images:,} images: its accuracy is {_percent(accuracy)} (95% interval {100 * low:.1f} to {_percent(high)})"
    )
    passed = low > share
    return Gate(
        name="better than guessing",
        passed=passed,
        sentence=f"it is shown to be better than {guessing}"
        if passed
        else f"it is not shown to be better than {guessing}. Add images, or train a better model",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
