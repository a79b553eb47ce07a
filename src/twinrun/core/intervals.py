"""What a number of images can show: the 95% interval of a share. Pure."""

from math import sqrt
from statistics import NormalDist

_DOUBT = 0.05


def wilson_interval(share: float, images: float, together: int = 1) -> tuple[float, float]:
    """The 95% interval of a `share` in [0, 1] that was measured on `images` images, at least one.

    Of so many intervals `together`, all are right in 95% of cases (Bonferroni's correction).

    Unlike resampling it has a width where no image, or every one, was classified correctly. Wilson, "Probable
    Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = NormalDist().inv_cdf(1 - _DOUBT / 2 / together)
    square = z * z / images
    middle = (share + square / 2) / (1 + square)
    half = sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def widest_interval_points(images: int) -> int:
    """How wide that interval is at most, percentage points: for a share of a half."""
    low, high = wilson_interval(0.5, images)
    return round(100 * (high - low))
