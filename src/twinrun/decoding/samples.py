"""From the samples of an image, of any depth, to 8 bits. Pure: no files, no decoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from twinrun.core.arrays import Pixels

Depth = Literal["file", "data"] | int
Ground = Literal["white", "gray", "black"]
Color = Literal["gray", "rgb", "cmyk", "ycbcr"]
Values = npt.NDArray[Any]

_MODES: dict[Color, str] = {"gray": "L", "rgb": "RGB", "cmyk": "CMYK", "ycbcr": "YCbCr"}
_WITH_ALPHA = {"L": ("LA", "La"), "RGB": ("RGBA", "RGBa")}
_GROUNDS: dict[Ground, int] = {"white": 255, "gray": 128, "black": 0}


class FormatError(ValueError):
    """Why a file has no picture that could be read, as a sentence without its subject."""


@dataclass(frozen=True)
class SampleRules:
    """What a person may decide about images that are not plainly 8-bit gray or colour.

    `depth` is the range of samples of more than 8 bits: "file", that of the type in the file; "data", from the smallest
    to the largest value of each image; or a number of bits. Transparent parts show `ground`. `bands`, counted from 1,
    make the picture where a TIFF file or an array has more than three, or two; None: what the file calls its colours.
    """

    depth: Depth = "file"
    ground: Ground = "white"
    bands: tuple[int, ...] | None = None

    @property
    def ground_value(self) -> int:
        """The ground as one value of each channel, 0 to 255."""
        return _GROUNDS[self.ground]


class _Settings(Protocol):
    """Settings that have rules for samples: those of ingest, and those of a bundle."""

    @property
    def depth(self) -> Depth: ...
    @property
    def ground(self) -> Ground: ...
    @property
    def bands(self) -> Sequence[int] | None: ...


def sample_rules(settings: _Settings) -> SampleRules:
    """The rules that settings describe."""
    bands = None if settings.bands is None else tuple(settings.bands)
    return SampleRules(settings.depth, settings.ground, bands)


@dataclass(frozen=True)
class Samples:
    """Samples as stored: `values` (H, W, C), and `alpha` (H, W), both of any numeric type.

    `bits` is the depth that the file gives its samples, of which zero is black, or None where nothing says how bright a
    value is; `unranged` says why. `premultiplied`: colours were multiplied by alpha. `is_negative`: the lowest value is
    white.
    """

    values: Values
    color: Color
    bits: int | None
    alpha: Values | None = None
    premultiplied: bool = False
    unranged: str = ""
    is_negative: bool = False

    @property
    def used_bits(self) -> tuple[int, int] | None:
        """How many bits the largest value needs, and how many the file gives it; None where those are 8 or fewer."""
        if self.bits is None or self.bits <= 8:
            return None
        return int(self.values.max()).bit_length(), self.bits


@dataclass(frozen=True)
class Range:
    """The values that become black and white."""

    black: float
    white: float


def sample_range(samples: Samples, depth: Depth) -> Range:
    """The range of an image's samples under `depth`. Raises FormatError where it has none, or values lie outside."""
    if samples.bits is not None and samples.bits <= 8:
        return Range(0, (1 << samples.bits) - 1)
    if depth == "file":
        if samples.bits is None:
            raise FormatError(
                f"cannot be decoded: {samples.unranged}; save it with 8 or 16 bits, or set a range "
                "(params.yaml: ingest.depth)"
            )
        return Range(0, (1 << samples.bits) - 1)
    low, high = _extremes(samples.values)
    if depth == "data":
        return Range(low, high)
    if low < 0 or high >= 1 << depth:
        raise FormatError(
            f"cannot be decoded: its values go from {low:,.6g} to {high:,.6g}, and {depth} bits hold 0 to "
            f"{(1 << depth) - 1:,} (params.yaml: ingest.depth)"
        )
    return Range(0, (1 << depth) - 1)


def samples_image(samples: Samples, top: int, bottom: int, scale: Range) -> Image.Image:
    """Rows `top` to `bottom` as an image of 8 bits: L, LA, RGB, RGBA, CMYK or YCbCr."""
    values = samples.values[top:bottom]
    colors = _to_8_bits(values, scale)
    if samples.is_negative:
        colors = np.where(np.isnan(values), 0, 255 - colors) if values.dtype.kind == "f" else 255 - colors
    mode = _MODES[samples.color]
    image = _image(colors[:, :, 0] if samples.color == "gray" else colors, mode)
    if samples.alpha is None:
        return image
    if mode not in _WITH_ALPHA:
        image = image.convert("RGB")
    alpha = _image(_to_8_bits(samples.alpha[top:bottom], alpha_range(samples)), "L")
    straight, premultiplied = _WITH_ALPHA[image.mode]
    merged = Image.merge(straight, (*image.split(), alpha))
    if not samples.premultiplied:
        return merged
    return Image.frombytes(premultiplied, merged.size, merged.tobytes()).convert(straight)


def alpha_range(samples: Samples) -> Range:
    """The range of alpha: that of its type, and 0 to 1 for floating-point numbers."""
    if samples.alpha is None or samples.alpha.dtype.kind == "f":
        return Range(0, 1)
    return Range(0, (1 << samples.bits) - 1 if samples.bits is not None else int(np.iinfo(samples.alpha.dtype).max))


def _extremes(values: Values) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _to_8_bits(values: Values, scale: Range) -> Pixels:
    """The nearest of 256 steps from black to white; what is not a number becomes black."""
    if scale == Range(0, 255) and values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    span = scale.white - scale.black
    if values.dtype.kind in "bu" and values.dtype.itemsize <= 4 and scale.black == 0 and span >= 1:
        white = int(span)
        steps = (values.astype(np.uint64) * 255 + white // 2) // white
        return np.asarray(steps.clip(0, 255), np.uint8)
    shares = (values.astype(np.float64) - scale.black) / (span or 1)
    shares = np.nan_to_num(shares, nan=0, posinf=1, neginf=0).clip(0, 1)
    return np.asarray(np.rint(shares * 255), np.uint8)


def _image(values: Pixels, mode: str) -> Image.Image:
    height, width = values.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(values).tobytes())
