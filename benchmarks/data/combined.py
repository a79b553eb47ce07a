"""Random combinations of changes to a picture, as near duplicates in real collections differ. Pure: pixels in, out."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from twinrun.core.arrays import Pixels

Change = Callable[[Pixels, np.random.Generator], Pixels]

_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.BOX)


def combined(pixels: Pixels, count: int, random: np.random.Generator) -> tuple[Pixels, tuple[str, ...]]:
    """`pixels`, uint8 (H, W) or (H, W, 3), after `count` of CHANGES, all different, and their names."""
    chosen = sorted(random.permutation(len(CHANGES))[:count].tolist())
    names = [name for index, name in enumerate(CHANGES) if index in chosen]
    for name in names:
        pixels = CHANGES[name](pixels, random)
    return pixels, tuple(names)


def _mirrored(pixels: Pixels, random: np.random.Generator) -> Pixels:
    del random
    return np.ascontiguousarray(pixels[:, ::-1])


def _translated(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Moved by up to a tenth of each side; what comes into view is black or repeats the edge."""
    down, across = random.uniform(-0.1, 0.1, 2)
    return _window(pixels, (1, down, 1, across), random)


def _scaled(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Larger or smaller by up to 15% about its centre."""
    side = 1 / random.uniform(0.85, 1.15)
    return _window(pixels, (side, (1 - side) / 2, side, (1 - side) / 2), random)


def _framed(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Cropped to 85 to 95% of each side, then framed in black, white or the colour of a corner."""
    (height, width), (tall, wide) = pixels.shape[:2], random.uniform(0.85, 0.95, 2)
    top, left = random.uniform(0, 1 - tall), random.uniform(0, 1 - wide)
    inner = _window(pixels, (tall, top, wide, left), random)
    border = max(1, round(min(height, width) * random.uniform(0.02, 0.06)))
    framed = np.empty_like(pixels)
    framed[...] = (np.zeros_like(pixels[0, 0]), np.full_like(pixels[0, 0], 255), pixels[0, 0])[random.integers(3)]
    size = (width - 2 * border, height - 2 * border)
    framed[border : height - border, border : width - border] = np.asarray(
        Image.fromarray(inner).resize(size, Image.Resampling.BILINEAR)
    )
    return framed


def _recoloured(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Each channel with a gain of 0.8 to 1.25 and an offset of up to 20 gray levels of its own."""
    channels = pixels.shape[2:]
    gain, offset = np.exp(random.uniform(-0.22, 0.22, channels)), random.uniform(-20, 20, channels)
    recoloured: Pixels = np.clip(np.rint(pixels * gain + offset), 0, 255).astype(np.uint8)
    return recoloured


def _recompressed(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Resized to 70 to 95% and back by filters drawn at random, then a JPEG of quality 50 to 95."""
    height, width = pixels.shape[:2]
    share = random.uniform(0.7, 0.95)
    down, up = (_FILTERS[index] for index in random.integers(len(_FILTERS), size=2))
    small = Image.fromarray(pixels).resize((round(width * share), round(height * share)), down)
    file = io.BytesIO()
    small.resize((width, height), up).save(file, "JPEG", quality=int(random.integers(50, 96)))
    return np.asarray(Image.open(file))


CHANGES: dict[str, Change] = {
    "mirrored": _mirrored,
    "translated": _translated,
    "scaled": _scaled,
    "cropped and framed": _framed,
    "recoloured": _recoloured,
    "recompressed": _recompressed,
}
"""By name, in the order in which they are applied."""


def _window(pixels: Pixels, window: tuple[float, float, float, float], random: np.random.Generator) -> Pixels:
    """What is seen through `window` (height, top, width, left, shares of the sides), at the size of the whole."""
    height, width = pixels.shape[:2]
    margin = max(height, width) // 4
    around = ((margin, margin), (margin, margin), *[(0, 0)] * (pixels.ndim - 2))
    larger = np.pad(pixels, around) if random.integers(2) else np.pad(pixels, around, mode="edge")
    top, left = margin + window[1] * height, margin + window[3] * width
    box = (left, top, left + window[2] * width, top + window[0] * height)
    return np.asarray(Image.fromarray(larger).resize((width, height), Image.Resampling.BILINEAR, box=box))
