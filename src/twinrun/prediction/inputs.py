"""What people pass as images (files, paths, base64 text, arrays, tables of these), as one list of images.

Nothing is decoded here but text; `read_image` decodes one image of the list.
"""

import base64
import binascii
import os
import re
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from twinrun.base.errors import DataError, DecodeError
from twinrun.base.paths import expanded
from twinrun.base.regular_files import open_regular
from twinrun.core.arrays import Pixels
from twinrun.decoding.decode import AS_STORED, Channels, decode_image, opened_pixels
from twinrun.decoding.samples import SampleRules
from twinrun.ingest.walking import starts_like_an_image

IMAGE_COLUMNS = ("image", "path", "file", "filename")
_LONGEST_PATH = 4096
_CHANNELS = (1, 3, 4)
_MOST_LEVELS = 4  # of lists in lists: (N, H, W, C)
_SHOWN_TEXT = 80
_loading = threading.Lock()  # two threads must not load one image, which a list may hold twice


@dataclass(frozen=True)
class Unreadable:
    """What stands where an image was wanted, and why it is none."""

    reason: str


Given = bytes | Path | Image.Image | npt.NDArray[Any] | Unreadable


def images_in(data: Any, *, paths: bool, most_images: int | None = None) -> list[Given]:
    """The images that `data` holds, in order.

    It may be a DataFrame, a dict of columns, a Series, a list, a tuple or an array of images, or one image. An image
    is the bytes of its file, their base64 text, a PIL image or a numeric array; where `paths` is true, a path as well.
    What is not an image has its place in the list with the reason. Raises DataError, with an example of what can be
    passed, where `data` is none of these, and where it holds more than `most_images`, before any of them is looked at.
    """
    if isinstance(data, Mapping):
        return images_in(_column(list(data), data, "dictionary"), paths=paths, most_images=most_images)
    if hasattr(data, "columns") and hasattr(data, "iloc"):  # a DataFrame; importing pandas takes a second
        column = [] if len(data) == 0 else _column(list(data.columns), data, "table")
        return images_in(column, paths=paths, most_images=most_images)
    if hasattr(data, "to_numpy") and hasattr(data, "index"):  # a Series
        _limit(len(data), most_images)
        return [_image(value, paths) for value in data]
    if isinstance(data, np.ndarray):
        return _images_of_array(data, paths, most_images)
    if isinstance(data, list | tuple):
        return _images_of_list(data, paths, most_images)
    if isinstance(data, str | bytes | bytearray | memoryview | os.PathLike | Image.Image):
        return [_image(data, paths)]
    raise DataError(f"{_article(type(data).__name__)} is not understood as images. {_examples(paths)}")


def read_image(image: Given, channels: Channels, max_pixels: int, rules: SampleRules = AS_STORED) -> Pixels:
    """Decode one image to uint8 (H, W, C), upright, C = 1 for gray and 3 for rgb. Raises DecodeError."""
    if isinstance(image, Unreadable):
        raise DecodeError(image.reason)
    if isinstance(image, Path):
        return _read_file(image, channels, max_pixels, rules)
    if isinstance(image, bytes):
        return decode_image(image, channels=channels, max_pixels=max_pixels, rules=rules).pixels
    if isinstance(image, np.ndarray):
        image = Image.fromarray(_as_uint8(image))
        return opened_pixels(image, channels=channels, max_pixels=max_pixels, rules=rules)
    with _loading:
        return opened_pixels(image, channels=channels, max_pixels=max_pixels, rules=rules)


def _read_file(path: Path, channels: Channels, max_pixels: int, rules: SampleRules) -> Pixels:
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            raise DecodeError("is a folder" if stat.S_ISDIR(kind) else "is not a regular file")
        with open_regular(path) as file:
            return decode_image(file, channels=channels, max_pixels=max_pixels, rules=rules, named=path.suffix).pixels
    except OSError as error:
        raise DecodeError(f"cannot be read: {error.strerror or error}") from None


def _column(names: list[Any], columns: Any, container: str) -> Any:
    """The column with the images: the only one, or the one that is named so."""
    if len(names) == 1:
        return columns[names[0]]
    named = [name for name in names if str(name).lower() in IMAGE_COLUMNS]
    if len(named) != 1:
        listed = ", ".join(map(repr, names[:10])) or "none"
        raise DataError(
            f"The images of a {container} are in its only column, or in the one called {', '.join(IMAGE_COLUMNS[:-1])} "
            f"or {IMAGE_COLUMNS[-1]}; the columns are: {listed}. Rename that column, or pass it alone."
        )
    return columns[named[0]]


def _limit(images: int, most: int | None) -> None:
    if most is not None and images > most:
        raise DataError(f"There are {images:,} images, and at most {most} are taken at a time.")


def _images_of_list(values: Sequence[Any], paths: bool, most: int | None) -> list[Given]:
    if values and all(isinstance(value, list | tuple | int | float) for value in values):  # an image, or some, as JSON
        if _levels(values) >= _MOST_LEVELS:
            _limit(len(values), most)
        try:
            array = _as_array(values)
        except ValueError as error:
            raise DataError(f"This list has {error}. {_examples(paths)}") from None
        return _images_of_array(array, paths, most)
    _limit(len(values), most)
    return [_image(value, paths) for value in values]


def _images_of_array(array: npt.NDArray[Any], paths: bool, most: int | None) -> list[Given]:
    if array.dtype.kind in "OSU" and (array.ndim < 2 or array.shape[1:] == (1,)):  # of objects, bytes or text
        _limit(len(array) if array.ndim else 1, most)
        return [_image(value, paths) for value in array.reshape(-1).tolist()]
    if array.size == 0:
        return []
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS):
        return [_array(array)]
    if array.ndim == 4 and array.shape[3] in _CHANNELS:
        _limit(len(array), most)
        return [_array(image) for image in array]
    raise DataError(
        f"An array of shape {array.shape} is not understood as images. It may be (H, W), (H, W, C) or (N, H, W, C), "
        "where C is 1 (gray), 3 (RGB) or 4 (RGBA). Gray images without C: array[..., None]. Channels first: "
        "np.moveaxis(array, -3, -1)."
    )


def _image(value: Any, paths: bool) -> Given:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return _image_of_text(value, paths)
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, os.PathLike) and paths:
        return expanded(os.fsdecode(value))
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OSU":
        return _array(value)
    if isinstance(value, list | tuple):
        return _image_of_list(value, paths)
    if value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value):
        return Unreadable("is empty: there is no image")
    return Unreadable(f"is {_article(type(value).__name__).lower()}, not an image. {_examples(paths)}")


def _image_of_list(values: Sequence[Any], paths: bool) -> Given:
    try:
        array = _as_array(values)
    except ValueError as error:
        return Unreadable(f"is a list that has {error}")
    return _array(array) if array.dtype.kind in "buif" else Unreadable(f"is a list, not an image. {_examples(paths)}")


def _levels(values: Sequence[Any]) -> int:
    """How deep the first of nested lists is nested; no deeper is looked than a list of images has levels."""
    levels, first = 1, values[0]
    while levels < _MOST_LEVELS and isinstance(first, list | tuple) and first:
        levels, first = levels + 1, first[0]
    return levels


def _as_array(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Nested lists as an array, of objects where there is text: else each would take the bytes of the longest.

    Raises ValueError with what is wrong with the lists.
    """
    innermost, levels = list(values), 1
    while innermost and set(map(type, innermost)) <= {list, tuple}:
        if levels == _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} levels: images are (H, W), (H, W, C) or (N, H, W, C)")
        innermost, levels = list(chain.from_iterable(innermost)), levels + 1
    has_text = any(issubclass(kind, str | bytes) for kind in set(map(type, innermost)))
    try:
        return np.asarray(values, dtype=object if has_text else None)
    except ValueError:
        raise ValueError("rows of different lengths") from None


def _image_of_text(text: str, paths: bool) -> Given:
    if paths and len(text) <= _LONGEST_PATH and not text.startswith("data:"):
        path = expanded(text)
        try:
            if "\0" not in text and text.strip() and path.exists():
                return path
        except OSError:  # too long a name
            pass
    encoded = re.sub(r"\s+", "", re.sub(r"^data:[^,]{0,200},", "", text)).translate(str.maketrans("-_", "+/"))
    try:
        data = base64.b64decode(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not text.strip():
        return Unreadable("is empty: there is no image")
    if len(data) > _LONGEST_PATH or (data and not paths):
        return data
    if paths and not (data and starts_like_an_image(data)):
        return Unreadable(f"{text[:_SHOWN_TEXT]!r} is neither a file that exists nor base64 text of an image")
    return data or Unreadable("is text that is not base64. Send the bytes of the image file, encoded as base64")


def _array(array: npt.NDArray[Any]) -> npt.NDArray[Any] | Unreadable:
    """The array if it can be an image, or why not."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)):
        return Unreadable(f"is an array of shape {array.shape}, and an image has (H, W) or (H, W, C), C = 1, 3 or 4")
    if array.dtype.kind not in "buif":
        return Unreadable(f"is an array of {array.dtype}; pixels must be uint8, or floats from 0 to 1")
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and not (low >= 0 and high <= 1):  # NaN is in no range
        return Unreadable(f"has floats from {low:g} to {high:g}, not 0 to 1: divide them, or pass uint8")
    if array.dtype.kind in "ui" and not (low >= 0 and high <= 255):
        return Unreadable(f"has pixels from {low} to {high}, not 0 to 255: scale them to uint8")
    return array


def _as_uint8(array: npt.NDArray[Any]) -> Pixels:
    if array.dtype.kind == "f":
        return np.rint(array * 255.0).astype(np.uint8)
    return array.astype(np.uint8) * np.uint8(255) if array.dtype.kind == "b" else array.astype(np.uint8)


def _article(name: str) -> str:
    return f"{'An' if name[0].lower() in 'aeiou' else 'A'} {name}"


def _examples(paths: bool) -> str:
    if not paths:
        return 'Send base64 text: {"dataframe_split": {"columns": ["image"], "data": [["iVBORw0..."]]}}'
    return (
        'Pass paths, such as predict(["photo.jpg"]), the bytes of files, base64 text, PIL images, uint8 arrays '
        "(H, W, 3), or a DataFrame with one column of these."
    )
