"""The pack: every image, decoded once, in one `.npy` file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from twinrun.base.errors import DataError
from twinrun.base.files import ensure_writable, replacing
from twinrun.core.arrays import Pixels

# What NumPy raises of a header that it did not write.
_NO_ARRAY = (ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError, BadZipFile)


def open_pack(path: Path) -> Pixels:
    """Memory-map a pack, read-only: uint8 of shape (N, H, W, C); row i belongs to row i of the table.

    Raises DataError where there is no such file or it is not a pack.
    """
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Create it: dvc repro ingest") from None
    except _NO_ARRAY as error:
        raise DataError(f"{path} is not a pack of images ({error}). Create it again: dvc repro -f ingest") from None
    is_array = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4
    if not is_array or images.shape[3] not in (1, 3):
        content = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(
            f"{path} should hold uint8 images (N, H, W, 1 or 3) and has {content}. Create it again: dvc repro -f ingest"
        )
    pixels: Pixels = images
    return pixels


@contextmanager
def creating_pack(path: Path, shape: tuple[int, int, int, int]) -> Iterator[Path]:
    """Yield a temporary pack of `shape` full of zeros, for PackWriter; it takes the place of `path` on a clean exit.

    The room on the disk is taken at once, so that a full disk is an error here and not halfway.
    """
    with replacing(path) as temp:  # removes what a killed run left, whose room is needed
        ensure_writable(path.parent, int(np.prod(shape)))
        with temp.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            if (size := int(np.prod(shape))) > 0:
                _reserve(file.fileno(), file.tell(), size)
        yield temp


class PackWriter:
    """Writes rows into a pack that `creating_pack` made; several processes may, each its own rows.

    It writes to the file and not through a mapping: a mapping turns a full disk into SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        self._image_shape = shape[1:]
        self._image_bytes = int(np.prod(self._image_shape))

    def write(self, first_row: int, images: Pixels) -> None:
        """Put `images`, of shape (n, H, W, C), into the rows from `first_row` on."""
        if images.dtype != np.uint8 or images.shape[1:] != self._image_shape:
            raise ValueError(f"the pack takes uint8 (n, *{self._image_shape}), got {images.dtype} {images.shape}")
        data = memoryview(np.ascontiguousarray(images).reshape(-1).data)
        position = self._start + first_row * self._image_bytes
        while data:
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)


def _reserve(descriptor: int, start: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, size)
    else:  # macOS has none; there a full disk shows when a row is written
        os.truncate(descriptor, start + size)
