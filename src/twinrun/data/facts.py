"""What is measured of each image: hashes, size, light. Pure: refuses to know files, labels or what is good."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from twinrun.data.decode import Header, Pixels

_STRIP_PIXELS = 1 << 20


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
    error: str | None = None


def broken(known: Facts, error: str, header: Header | None = None) -> Facts:
    """The facts of an image that cannot be decoded: what is known of its file, and why."""
    return replace(with_header(known, header) if header else known, error=error)


def with_header(known: Facts, header: Header) -> Facts:
    """`known` with what the file says of itself."""
    return replace(known, width=header.width, height=header.height, mode=header.mode, format=header.format)


def measured(known: Facts, pixels: Pixels) -> Facts:
    """`known` with what is measured of uint8 pixels (H, W, C) at full size, in the channels asked for."""
    grays = _gray(pixels)
    gray = Image.fromarray(grays)
    brightness, contrast = _light(gray)
    return replace(
        known,
        pixels_sha256=pixels_sha256(pixels),
        phash=_phash(gray),
        brightness=brightness,
        contrast=contrast,
        sharpness=_sharpness(grays),
    )


def pixels_sha256(pixels: Pixels) -> str:
    """Sha256 of shape and values of uint8 pixels (H, W, C), in hexadecimal."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _gray(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Gray values (H, W), by Pillow's weights (ITU-R 601)."""
    height, width, channels = pixels.shape
    if channels == 1:
        return np.ascontiguousarray(pixels[:, :, 0])
    gray = np.empty((height, width), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        gray[top : top + rows] = np.asarray(Image.fromarray(pixels[top : top + rows]).convert("L"))
    return gray


def _light(gray: Image.Image) -> tuple[float, float]:
    """Mean and standard deviation of a gray image, in units of white; exact, from its histogram."""
    counts, values = np.array(gray.histogram(), dtype=np.int64), np.arange(256, dtype=np.int64)
    total = int(counts.sum())
    mean = int(counts @ values) / total
    variance = int(counts @ values**2) / total - mean**2
    return mean / 255, max(variance, 0.0) ** 0.5 / 255


def _sharpness(gray: npt.NDArray[np.uint8]) -> float:
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
        strip = gray[top - 1 : min(top + rows, height - 1) + 1].astype(np.int16)
        middle = strip[1:-1, 1:-1]
        laplacian = 4 * middle - strip[:-2, 1:-1] - strip[2:, 1:-1] - strip[1:-1, :-2] - strip[1:-1, 2:]
        total += int(laplacian.sum(dtype=np.int64))
        squares += int(np.square(laplacian, dtype=np.int32).sum(dtype=np.int64))
    count = (height - 2) * (width - 2)
    variance = squares / count - (total / count) ** 2
    return float(max(variance, 0.0) ** 0.5 / 255)


def _phash(gray: Image.Image) -> str:
    import imagehash

    return str(imagehash.phash(gray))
