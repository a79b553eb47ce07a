"""The 95% interval of a share."""

import pytest
from scipy.stats import binomtest

from twinrun.core.intervals import widest_interval_points, wilson_interval


@pytest.mark.parametrize(("right", "images"), [(0, 5), (1, 1), (7, 10), (430, 432), (5000, 10000)])
def test_the_interval_is_wilsons_as_scipy_computes_it(right: int, images: int) -> None:
    interval = wilson_interval(right / images, images)

    expected = binomtest(right, images).proportion_ci(0.95, "wilson")
    assert interval == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_the_widest_interval_shrinks_with_the_number_of_images() -> None:
    widths = [widest_interval_points(images) for images in (10, 100, 380, 10_000)]

    assert widths == [53, 19, 10, 2]
