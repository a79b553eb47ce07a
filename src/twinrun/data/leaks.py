"""Pixel-identical images: in two splits a leak, under two labels a contradiction. Pure: no files, no policy."""

from collections.abc import Sequence

from twinrun.data.manifest import SPLITS


def distinct_per_pixels(pixels_sha256: Sequence[str | None], values: Sequence[str | None]) -> list[int]:
    """For each image, how many different `values` the images with its pixels have; nulls count for nothing."""
    found: dict[str, str] = {}
    several: dict[str, set[str]] = {}  # a set for each image would take longer than all the rest
    for pixels, value in zip(pixels_sha256, values, strict=True):
        if pixels is not None and value is not None and (first := found.setdefault(pixels, value)) != value:
            several.setdefault(pixels, {first}).add(value)
    return [
        0 if pixels is None else len(several[pixels]) if pixels in several else int(pixels in found)
        for pixels in pixels_sha256
    ]


def leaked(pixels_sha256: Sequence[str | None], splits: Sequence[str | None]) -> list[bool]:
    """For each image, whether one with its pixels is in a later split (train, then val, then test).

    Without those, no pixels are in two splits, and what a model is scored on stays whole.
    """
    rank: dict[str | None, int] = {name: index for index, name in enumerate(SPLITS)}
    last: dict[str, int] = {}
    places = [rank.get(split) for split in splits]
    for pixels, place in zip(pixels_sha256, places, strict=True):
        if pixels is not None and place is not None:
            last[pixels] = max(place, last.get(pixels, place))
    return [
        pixels is not None and place is not None and place < last[pixels]
        for pixels, place in zip(pixels_sha256, places, strict=True)
    ]
