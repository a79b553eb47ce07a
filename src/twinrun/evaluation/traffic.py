"""How images and answers are spread on the test split, in counts, to compare served images with. Pure."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from twinrun.core.arrays import FloatArray, IntArray, Pixels

IMAGE_FACTS = ("brightness", "sharpness", "longest side", "short to long side")
PREDICTED, KIND = "predicted label", "kind of answer"
_BINS = 10
_PIXELS_AT_ONCE = 4_000_000
_Count = Annotated[int, Field(ge=0)]


class Spread(BaseModel):
    """How many images lie in each bin of a fact.

    Of numbers, `edges` are the upper ends of the bins, included, and one more bin is open; None for categories.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    edges: list[float] | None
    counts: list[_Count]

    @model_validator(mode="after")
    def _fit(self) -> "Spread":
        if self.edges is not None and (len(self.counts) != len(self.edges) + 1 or self.edges != sorted(self.edges)):
            raise ValueError("there must be one more count than edges, and the edges ascend")
        return self

    def bin_of(self, value: float) -> int:
        """The bin of a number, or of a category's place."""
        return int(value) if self.edges is None else int(np.searchsorted(self.edges, value))


Traffic = Mapping[str, Spread]


def spread_of(values: FloatArray) -> Spread:
    """How numbers (N,) are spread over their tenths; a bin on either side is empty."""
    tenths = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1), method="inverted_cdf"))
    edges = np.concatenate([[np.nextafter(tenths[0], -np.inf)], tenths])
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return Spread(edges=edges.tolist(), counts=counts.tolist())


def spread_of_places(places: IntArray | Sequence[int], categories: int) -> Spread:
    """How many of `places` (N,), from 0 on, are each of so many categories."""
    return Spread(edges=None, counts=np.bincount(np.array(places, np.int64), minlength=categories).tolist())


def image_facts(
    images: Pixels, sizes: Sequence[tuple[int, int]] | IntArray | FloatArray, rows: IntArray | None = None
) -> NDArray[np.float64]:
    """The IMAGE_FACTS (n, 4) of `images[rows]`, as the network takes them, that had `sizes` (n, 2) before.

    Images have shape (N, H, W, C); without `rows` all are measured. Few are in memory at a time.

    Brightness is the mean, in [0, 1]; sharpness the standard deviation of the Laplacian, in units of white; the longest
    side is in pixels.
    """
    rows = np.arange(len(images)) if rows is None else rows
    measured = np.empty((len(rows), len(IMAGE_FACTS)))
    at_once = max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    for start in range(0, len(rows), at_once):
        some = images[rows[start : start + at_once]]
        grays = some[:, :, :, 0].astype(np.int16)  # sums of channels
        for channel in range(1, images.shape[3]):
            grays += some[:, :, :, channel]
        middle = grays[:, 1:-1, 1:-1]
        around = grays[:, :-2, 1:-1] + grays[:, 2:, 1:-1] + grays[:, 1:-1, :-2] + grays[:, 1:-1, 2:]
        laplacian = 4 * middle - around
        end = start + len(grays)
        measured[start:end, 0] = grays.mean(axis=(1, 2))
        measured[start:end, 1] = laplacian.std(axis=(1, 2), dtype=np.float32) if laplacian.size else 0.0
    measured[:, :2] /= 255 * images.shape[3]
    sides = np.array(sizes, np.float64).reshape(-1, 2)
    measured[:, 2], measured[:, 3] = sides.max(axis=1), sides.min(axis=1) / sides.max(axis=1)
    return measured.round(4)
