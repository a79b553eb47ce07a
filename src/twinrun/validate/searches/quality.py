"""Images of poor quality, found by their facts alone. Pure.

The list is CleanVision's (https://github.com/cleanlab/cleanvision, Apache-2.0): dark, bright (its "light"), blurred,
low in information, odd in size, odd in aspect, gray among colour. Its thresholds are absolute, and by them all of MNIST
is low in information. Here an image must pass the threshold and also be an outlier of its set, outside the quartiles by
some interquartile ranges (Tukey, "Exploratory Data Analysis", 1977): what is usual in a set is not a flaw. So a flaw
that a quarter of the set has is not found.

    name              passes the threshold where                                  outlier by
    dark              99th percentile of gray < 0.32 (CleanVision's), estimated   1.5 IQR
                      as the larger of the 95th and mean + 2 deviations
    bright            5th percentile of gray > 0.95 (CleanVision's)               1.5 IQR
    blurred           sharpness < 0.1 of the contrast (CleanVision measures a     1.5 IQR of the logarithm of that share
                      copy of 64 pixels, and facts the whole image)               and of the sharpness
    low information   entropy < 3 bits (CleanVision's)                            3 IQR
                      or contrast < 0.03: nearly blank                            in every set
    odd size          -                                                           3 IQR of the area's root (its)
    odd aspect        shorter side < 0.35 of the longer (CleanVision's)           1.5 IQR
    gray              the three channels have one mean                            most of the set is in colour

Facts read: width, height, brightness, contrast, sharpness, entropy, gray_p5, gray_p95, red, green, blue.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinrun.core.arrays import BoolArray, FloatArray

_DARKEST_P99 = 0.32
_BRIGHTEST_P5 = 0.95
_BLURRED_RATIO = 0.1
_FEWEST_BITS = 3.0
_BLANK_CONTRAST = 0.03
_LONGEST_ASPECT = 0.35
_APART = 1.5
_FAR_APART = 3.0
_FEWEST_TO_COMPARE = 8
_TINY = 1e-9


@dataclass(frozen=True)
class QualityIssue:
    """One flaw of one image: the `name` of the flaw, the `row` of the image, and a `text` with its measure."""

    name: str
    row: int
    text: str


def find_quality_issues(facts: Mapping[str, Sequence[Any]]) -> list[QualityIssue]:
    """Flaws of the images by kind, the worst of each kind first.

    `facts` are columns of equal length, one entry for each row. Images with a null fact and checks with missing facts
    are skipped. Sets of under 8 images have no meaningful quartiles: there every image that passes a threshold is
    reported, and none for its size.
    """
    checks = (_dark, _bright, _blurred, _low_information, _odd_size, _odd_aspect, _gray)
    return [issue for check in checks for issue in check(facts)]


def _dark(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "gray_p95", "brightness", "contrast")) is None:
        return
    p95, brightness, contrast = columns
    p99 = np.maximum(p95, brightness + 2 * contrast)
    flags = (p99 < _DARKEST_P99) & _below(p99, _APART)
    usual = _median(p95)
    yield from _issues("dark", flags, p99, lambda row: f"95% of it is at most {p95[row]:.2f} of white; usual: {usual}")


def _bright(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "gray_p5")) is None:
        return
    p5 = columns[0]
    flags = (p5 > _BRIGHTEST_P5) & _below(-p5, _APART)
    usual = _median(p5)
    yield from _issues(
        "bright", flags, -p5, lambda row: f"95% of it is at least {p5[row]:.2f} of white; usual: {usual}"
    )


def _blurred(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "sharpness", "contrast")) is None:
        return
    sharpness, contrast = columns
    contrast = np.where(contrast < _BLANK_CONTRAST, np.nan, contrast)  # a blank image cannot be sharp
    ratio = sharpness / contrast
    log_sharpness, log_ratio = np.log(np.maximum(sharpness, _TINY)), np.log(np.maximum(ratio, _TINY))
    flags = (ratio < _BLURRED_RATIO) & _below(log_sharpness, _APART) & _below(log_ratio, _APART)
    usual = _median(sharpness, digits=3)
    yield from _issues("blurred", flags, ratio, lambda row: f"sharpness {sharpness[row]:.3f}; usual: {usual}")


def _low_information(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "entropy", "contrast")) is None:
        return
    entropy, contrast = columns
    flags = ((entropy < _FEWEST_BITS) & _below(entropy, _FAR_APART)) | (contrast < _BLANK_CONTRAST)
    usual = _median(entropy, digits=1)

    def described(row: int) -> str:
        blank = "nearly blank: " if contrast[row] < _BLANK_CONTRAST else ""
        return f"{blank}entropy {entropy[row]:.1f} bits, contrast {contrast[row]:.3f}; usual entropy: {usual}"

    yield from _issues("low information", flags, entropy, described)


def _odd_size(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "width", "height")) is None:
        return
    width, height = columns
    side = np.sqrt(width * height)
    if np.isfinite(side).sum() < _FEWEST_TO_COMPARE:
        return
    flags = _below(side, _FAR_APART) | _below(-side, _FAR_APART)
    median = float(np.nanmedian(side))
    usual = f"{median:,.0f} x {median:,.0f}"
    yield from _issues(
        "odd size",
        flags,
        -np.abs(np.log(np.maximum(side, 1) / max(median, 1))),
        lambda row: f"{width[row]:,.0f} x {height[row]:,.0f} pixels; usual: about as many as {usual}",
    )


def _odd_aspect(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "width", "height")) is None:
        return
    width, height = columns
    aspect = np.minimum(width, height) / np.maximum(np.maximum(width, height), 1)
    flags = (aspect < _LONGEST_ASPECT) & _below(aspect, _APART)
    yield from _issues("odd aspect", flags, aspect, lambda row: f"{width[row]:,.0f} x {height[row]:,.0f} pixels")


def _gray(facts: Mapping[str, Sequence[Any]]) -> Iterator[QualityIssue]:
    if (columns := _columns(facts, "red", "green", "blue")) is None:
        return
    red, green, blue = columns
    flags = (red == green) & (green == blue)
    colour = int(np.isfinite(red).sum() - flags.sum())
    if flags.sum() < colour:
        text = f"without colour, like {int(flags.sum()):,} of {int(flags.sum()) + colour:,} images"
        yield from _issues("gray", flags, np.zeros(len(red)), lambda _: text)


def _columns(facts: Mapping[str, Sequence[Any]], *names: str) -> list[FloatArray] | None:
    """The columns as floats (N,), nan for null; None where one of them is missing."""
    if not all(name in facts for name in names):
        return None
    return [np.array(facts[name], dtype=np.float64) for name in names]


def _below(values: FloatArray, factor: float) -> BoolArray:
    """Which values are lower than the first quartile by more than `factor` interquartile ranges; nan is not."""
    known = values[np.isfinite(values)]
    if len(known) < _FEWEST_TO_COMPARE:
        return np.isfinite(values)
    first, third = np.percentile(known, [25, 75])
    flags: BoolArray = values < first - factor * (third - first) - _TINY
    return flags


def _issues(name: str, flags: BoolArray, order: FloatArray, described: Callable[[int], str]) -> Iterator[QualityIssue]:
    """An issue for each flagged row, those with the lowest `order` first."""
    rows = np.flatnonzero(flags)
    for row in rows[np.argsort(order[rows], kind="stable")].tolist():
        yield QualityIssue(name, row, described(row))


def _median(values: FloatArray, digits: int = 2) -> str:
    known = values[np.isfinite(values)]
    return f"{np.median(known):.{digits}f}" if len(known) else "unknown"
