"""Reads images from NumPy files (.npy), without pickle."""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from twinrun.decoding.samples import Depth, FormatError, Samples, Values

if TYPE_CHECKING:
    from collections.abc import Callable

MAGIC = b"\x93NUMPY"
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class NpyHeader:
    """The size of an array, its number of bands; `load` reads it while the stream is open."""

    width: int
    height: int
    bands: int
    load: "Callable[[], Samples]"


def open_npy(stream: BinaryIO, bands: tuple[int, ...] | None, depth: Depth = "file") -> NpyHeader:
    """Read the header of an array (H, W) or (H, W, C). Raises FormatError if it cannot be an image.

    What is said of `depth` in SampleRules decides the range of values whose type does not.
    """
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    if version not in _READERS:
        raise FormatError(f"is a NumPy array of version {version[0]}.{version[1]}, which Twinrun does not read")
    shape, in_columns, dtype = _READERS[version](stream)
    if dtype.kind not in "buif":
        raise FormatError(f"is a NumPy array of {dtype}; pixels must be uint8, uint16, or floats from 0 to 1")
    if len(shape) not in (2, 3) or 0 in shape:
        raise FormatError(f"is a NumPy array of shape {shape}; an image has shape (H, W) or (H, W, C)")
    count = shape[2] if len(shape) == 3 else 1
    if bands is not None and count not in (1, 3):
        if max(bands) > count:
            raise FormatError(f"has {count} bands and not the band {max(bands)} (params.yaml: ingest.bands)")
    elif count not in (1, 3, 4):
        first = "; channels first: np.moveaxis(array, 0, -1)" if shape[0] in (1, 3, 4) else ""
        raise FormatError(
            f"is a NumPy array of shape {shape}; an image has shape (H, W) or (H, W, C), C = 1, 3 or 4 "
            f"(or name the bands in params.yaml: ingest.bands{first})"
        )
    start, size = stream.tell(), stream.seek(0, 2)
    if (wanted := math.prod(shape) * dtype.itemsize) > size - start:
        raise FormatError(f"truncated after {100 * size / (start + wanted):.0f}%")
    order = "F" if in_columns else "C"
    return NpyHeader(
        shape[1], shape[0], count, partial(_samples, stream, start, dtype, shape, order, bands=bands, depth=depth)
    )


def _samples(
    stream: BinaryIO,
    start: int,
    dtype: Any,
    shape: tuple[int, ...],
    order: Any,
    *,
    bands: tuple[int, ...] | None,
    depth: Depth,
) -> Samples:
    stream.seek(start)
    data = stream.read(math.prod(shape) * dtype.itemsize)
    values = np.frombuffer(data, dtype).reshape(shape, order=order).astype(dtype.newbyteorder("="))
    values = values.reshape(*shape[:2], -1)
    if bands is not None and values.shape[2] not in (1, 3):
        return _meant(values[:, :, [band - 1 for band in bands]], None, depth)
    return _meant(values[:, :, :3], values[:, :, 3] if values.shape[2] == 4 else None, depth)


def _meant(values: Values, alpha: Values | None, depth: Depth) -> Samples:
    color: Any = "gray" if values.shape[2] == 1 else "rgb"
    if values.dtype.kind == "b":
        return Samples(values.astype(np.uint8), color, 1, None if alpha is None else alpha.astype(np.uint8))
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return Samples(values, color, 8 * values.dtype.itemsize, alpha)
    low, high = values.min(), values.max()
    # Only where no setting says what the range is: otherwise a dark image would become brighter than the others.
    if values.dtype.kind == "f" and depth != "data" and low >= 0 and high <= 1:  # NaN is in no range
        return Samples(np.rint(values * 255.0).astype(np.uint8), color, 8, None if alpha is None else _eighth(alpha))
    if values.dtype.kind in "ui" and depth == "file" and low >= 0 and high <= 255:
        return Samples(values.astype(np.uint8), color, 8, None if alpha is None else alpha.astype(np.uint8))
    if alpha is not None and alpha.dtype.kind != "f":  # its largest value is opaque
        alpha = alpha / max(alpha.max(), 1)
    return Samples(values, color, None, alpha, unranged=f"its values, of {values.dtype}, go from {low:g} to {high:g}")


def _eighth(alpha: Values) -> Values:
    return np.rint(alpha.clip(0, 1) * 255.0).astype(np.uint8)
