"""The gate: why a model may not become the candidate. Pure."""

from collections.abc import Mapping
from typing import Any

from twinrun.data.intervals import wilson_interval


def why_refused(metrics: Mapping[str, Any], min_accuracy: float) -> str | None:
    """Why the model of a metrics.json does not pass, or None where it does.

    It must reach `min_accuracy`, and be better than always guessing the commonest class: the lower end of its
    accuracy's 95% interval (Wilson's, which has a width even at 100%) must lie above the share
    of that class among the same images. So a few lucky images never make a candidate, whatever `min_accuracy` is.
    """
    accuracy, images = float(metrics["accuracy"]), int(metrics["images"])
    reasons = []
    if accuracy < min_accuracy:
        reasons.append(
            f"Its accuracy of {100 * accuracy:.1f}% is below {100 * min_accuracy:g}% (register.min_accuracy)."
        )
    commonest = max(metrics["per_class"], key=lambda row: int(row["images"]))
    share = int(commonest["images"]) / images
    low, high = wilson_interval(accuracy, images)
    if low <= share:
        reasons.append(
            f'It is not shown to be better than always guessing "{commonest["label"]}", the commonest class, which is '
            f"right for {100 * share:.1f}% of these {images:,} images: its accuracy is {100 * accuracy:.1f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f}%). Add images, or train a better model."
        )
    return " ".join(reasons) or None
