"""What is measured of each image: hashes, size, light, colour. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from twinrun.core.arrays import IntArray, Pixels
from twinrun.decoding.decode import Header, resize

_STRIP_PIXELS = 1 << 20
_PHASH_SIDE = 8
_PHASH_INPUT_PX = 32


@dataclass(frozen=True, slots=True)
class Facts:
    """One row of the table, but for the image's name, label and split; see table.py for ranges and units."""

    file_bytes: int
    bytes_sha256: str | None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    pixels_sha256: str | None = None
    phash: str | None = None
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None
    red: float | None = None
    green: float | None = None
    blue: float | None = None
    entropy: float | None = None
    gray_p5: float | None = None
    gray_p95: float | None = None
    camera: str | None = None
    error: str | None = None
    used_bits: tuple[int, int] | None = None  # not in the table, nor is the next: what notes are made of
    is_transparent: bool = False


def broken(known: Facts, error: str, header: Header | None = None) -> Facts:
    """The facts of an image that cannot be decoded: what is known of its file, and why."""
    return replace(with_header(known, header) if header else known, error=error)


def with_header(known: Facts, header: Header) -> Facts:
    """`known` with what the file declares."""
    return replace(known, width=header.width, height=header.height, mode=header.mode, format=header.format)


def measured(known: Facts, pixels: Pixels) -> Facts:
    """`known` with what is measured of uint8 pixels (H, W, C) at full size, in the channels asked for."""
    gray = _gray(pixels)
    counts = np.bincount(gray.reshape(-1), minlength=256)[None]
    return _with_measures([known], pixels[None], counts, [_sharpness(gray)], _phashes(gray[None]))[0]


def measured_stack(known: Sequence[Facts], images: Pixels) -> list[Facts]:
    """What `measured` says of each of many small images (N, H, W, C), at a fraction of its time."""
    count, height, width, channels = images.shape
    grays = _gray(images.reshape(count * height, width, channels)).reshape(count, height, width)
    places = grays.reshape(count, -1) + np.arange(count)[:, None] * 256
    counts = np.bincount(places.reshape(-1), minlength=count * 256).reshape(count, 256)
    return _with_measures(known, images, counts, _sharpnesses(grays), _phashes(grays))


def pixels_sha256(pixels: Pixels) -> str:
    """Sha256 of shape and values of uint8 pixels (H, W, C), in hexadecimal."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _gray(pixels: Pixels) -> Pixels:
    """Gray values (H, W), by Pillow's weights (ITU-R 601)."""
    height, width, channels = pixels.shape
    if channels == 1:
        return np.ascontiguousarray(pixels[:, :, 0])
    gray = np.empty((height, width), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        gray[top : top + rows] = np.asarray(Image.fromarray(pixels[top : top + rows]).convert("L"))
    return gray


def _with_measures(
    known: Sequence[Facts],
    images: Pixels,
    counts: IntArray,
    sharpness: Sequence[float],
    phashes: Sequence[str],
) -> list[Facts]:
    """Facts of `images` (N, H, W, C): `counts` (N, 256) are of their gray values."""
    pixels = images.shape[1] * images.shape[2]
    values = np.arange(256)
    # One channel at a time: NumPy is eight times slower on all at once, with three values to a pixel.
    colours = [images[..., channel].sum(axis=(1, 2), dtype=np.int64).tolist() for channel in range(images.shape[3])]
    totals, squares = (counts @ values).tolist(), (counts @ values**2).tolist()
    entropies, percentiles = _entropies(counts), _percentiles(counts, (0.05, 0.95))
    measured = []
    for i, fact in enumerate(known):
        brightness, contrast = _mean_and_deviation(totals[i], squares[i], pixels)
        channels = [sums[i] / pixels / 255 for sums in colours]
        red, green, blue = channels * 3 if len(channels) == 1 else channels
        measured.append(
            replace(
                fact,
                pixels_sha256=pixels_sha256(images[i]),
                phash=phashes[i],
                brightness=brightness,
                contrast=contrast,
                sharpness=sharpness[i],
                red=red,
                green=green,
                blue=blue,
                entropy=entropies[i],
                gray_p5=percentiles[0][i],
                gray_p95=percentiles[1][i],
            )
        )
    return measured


def _entropies(counts: IntArray) -> list[float]:
    """Shannon entropy of each row of `counts`, bits."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return [float(value) for value in -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1) + 0.0]


def _percentiles(counts: IntArray, shares: Sequence[float]) -> list[list[float]]:
    """For each share, the smallest gray value, in units of white, that so many pixels of each row do not exceed."""
    sums = counts.cumsum(axis=1)
    return [((sums >= share * sums[:, -1:]).argmax(axis=1) / 255).tolist() for share in shares]


def _sharpness(gray: Pixels) -> float:
    """Standard deviation of the Laplacian (4 neighbours), in units of white; 0 for images under 3 pixels.

    After Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000. Sums are of integers, so that
    the strips, which bound the memory, do not change the result.
    """
    height, width = gray.shape
    if height < 3 or width < 3:
        return 0.0
    total, squares = 0, 0
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(1, height - 1, rows):
        laplacian = _laplacian(gray[top - 1 : min(top + rows, height - 1) + 1])
        total += int(laplacian.sum(dtype=np.int64))
        squares += int(np.square(laplacian, dtype=np.int32).sum(dtype=np.int64))
    return _mean_and_deviation(total, squares, (height - 2) * (width - 2))[1]


def _sharpnesses(grays: Pixels) -> list[float]:
    """As `_sharpness`, for each of (N, H, W)."""
    count, height, width = grays.shape
    if height < 3 or width < 3:
        return [0.0] * count
    values = _laplacian(grays).reshape(count, -1)
    totals, squares = values.sum(axis=1, dtype=np.int64), np.square(values, dtype=np.int32).sum(axis=1, dtype=np.int64)
    return [
        _mean_and_deviation(*sums, values.shape[1])[1] for sums in zip(totals.tolist(), squares.tolist(), strict=True)
    ]


def _laplacian(grays: Pixels) -> npt.NDArray[np.int16]:
    """The Laplacian of (..., H, W) inside its border: (..., H - 2, W - 2)."""
    values = grays.astype(np.int16)
    middle = values[..., 1:-1, 1:-1]
    return 4 * middle - values[..., :-2, 1:-1] - values[..., 2:, 1:-1] - values[..., 1:-1, :-2] - values[..., 1:-1, 2:]


def _mean_and_deviation(total: int, squares: int, count: int) -> tuple[float, float]:
    """Of `count` gray values with these sums of values and of squares, in units of white."""
    mean = total / count
    variance = squares / count - mean**2
    return mean / 255, max(variance, 0.0) ** 0.5 / 255


def _phashes(grays: Pixels) -> list[str]:
    """What imagehash.phash gives for each gray image of (N, H, W), bit for bit: the same resampling and transform.

    The resampling is that of Pillow 12, horizontally first, under every Pillow. The library takes one image at a time,
    and half of its time goes into calls; here all share them.
    """
    from scipy.fftpack import dct

    small = resize(grays[..., None], (_PHASH_INPUT_PX, _PHASH_INPUT_PX), Image.Resampling.LANCZOS)[..., 0]
    low = dct(dct(small, axis=1)[:, :_PHASH_SIDE], axis=2)[:, :, :_PHASH_SIDE].reshape(len(small), -1)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    return [row.tobytes().hex() for row in bits]
