"""Our pixels beside those of OpenCV, libvips and tifffile, on the test files of other decoders."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyvips
import tifffile
from image_files import Array

from twinrun.base.errors import DecodeError
from twinrun.decoding.decode import decode_image

_MOST_PIXELS = 1_000_000
_ROUNDING = 2
_DISPUTED = {
    "TODO hpredict_cmyk.tiff": "libvips alone reads it, and converts CMYK by a profile",
    "tiff_strip_cmyk_16l_jpeg.tif": "likewise",
    "ycbcr_lzw_bt709.tif": "libvips does not read it as YCbCr; OpenCV smooths its colours otherwise",
    "border_touching_layers.gif": "OpenCV and libvips show two backgrounds, we and browsers none",
    "x_consecutive_idat.png": "libvips alone reads it, and not to its end",
    "mmap_error.bmp": "OpenCV alone reads it, and not from where its pixels begin",
    "ycbcr_lzw_broken.tif": "libvips alone reads it, and not as YCbCr",
    **dict.fromkeys(
        ("Core_4_Bit.bmp", "Core_8_Bit.bmp", "pal8os2-hs.bmp", "pal8os2-sz.bmp", "pal8os2sp.bmp"),
        "OpenCV alone reads it, with a palette of four bytes for each colour, where OS/2 has three",
    ),
    **dict.fromkeys(("rgb32h52.bmp", "rgb32bf-abgr.bmp"), "OpenCV alone reads it, and as if it had the usual masks"),
    **dict.fromkeys(
        ("rgb16-565pal.bmp", "Info_X1_R5_G5_B5.bmp", "Info_X1_R5_G5_B5_Top_Down.bmp", "rgb16-565.bmp", "rgb16.bmp"),
        "OpenCV alone reads it, and makes 248 of the largest of 5 bits, where we make 255",
    ),
}


def _by_opencv(data: bytes) -> Array:
    buffer = np.frombuffer(data, np.uint8)
    whole = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if whole is None:
        raise ValueError("unread")
    if whole.ndim == 3 and whole.shape[2] == 4:
        return _on_white(_8_bits(whole)[:, :, [2, 1, 0, 3]])
    if whole.dtype == np.uint16:
        return _on_white(_8_bits(whole[:, :, ::-1] if whole.ndim == 3 else whole))
    return np.asarray(cv2.imdecode(buffer, cv2.IMREAD_COLOR))[:, :, ::-1]  # turned as EXIF says


def _by_libvips(data: bytes) -> Array:
    image = pyvips.Image.new_from_buffer(data, "").autorot()
    return _on_white(_8_bits((image.colourspace("srgb") if image.interpretation == "cmyk" else image).numpy()))


def _by_tifffile(data: bytes) -> Array:
    page = tifffile.TiffFile(io.BytesIO(data)).pages.first
    array = page.asarray(squeeze=False)
    array = array[0, 0] if len(array) == 1 else np.moveaxis(array[:, 0, :, :, 0], 0, -1)
    if page.photometric not in (0, 1, 2) or page.bitspersample not in (8, 16) or array.shape[2] > 4:
        raise ValueError("its samples are not its colours")
    array = _8_bits(array)
    if page.photometric == 0:
        array = 255 - array
    return _premultiplied(array) if 1 in map(int, page.extrasamples) else _on_white(array)


_WITNESSES: tuple[Callable[[bytes], Array], ...] = (_by_opencv, _by_libvips, _by_tifffile)


def _8_bits(array: Array) -> Array:
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError("its samples have no set range")
    return array


def _on_white(array: Array) -> Array:
    """Gray or colour, (H, W, 3), where alpha is transparent on white."""
    array = array.reshape(*array.shape[:2], -1)
    count = array.shape[2]
    colors = array[:, :, :3] if count > 2 else np.repeat(array[:, :, :1], 3, axis=2)
    if count not in (2, 4):
        return colors
    alpha = array[:, :, -1:] / 255
    return np.rint(colors * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _premultiplied(array: Array) -> Array:
    return (array[:, :, :3].astype(int) + 255 - array[:, :, 3:]).clip(0, 255).astype(np.uint8)


def _testimonies(data: bytes) -> Iterator[Array]:
    for witness in _WITNESSES:
        try:
            yield witness(data)
        except Exception:  # each knows other formats
            continue


def _alike(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.abs(one.astype(int) - other).max() <= _ROUNDING)


def test_where_other_decoders_agree_on_a_picture_it_is_ours_as_well(hostile_images: list[Path]) -> None:
    alone, compared = [], 0
    for path in hostile_images:
        data = path.read_bytes()
        try:
            pixels = decode_image(data, channels="rgb", max_pixels=_MOST_PIXELS).pixels
        except DecodeError:
            continue
        found = list(_testimonies(data))
        compared += bool(found)
        if found and not any(_alike(pixels, other) for other in found) and path.name not in _DISPUTED:
            alone.append(str(path))

    assert compared > 800
    assert alone == [], chr(10).join(alone)


def test_what_two_other_decoders_read_alike_is_read_or_refused_for_a_reason(hostile_images: list[Path]) -> None:
    reasons = []
    for path in hostile_images:
        if path.suffix not in (".tif", ".tiff", ".png"):
            continue
        data = path.read_bytes()
        try:
            decode_image(data, channels="rgb", max_pixels=_MOST_PIXELS)
        except DecodeError as error:
            found = list(_testimonies(data))
            if len(found) > 1 and _alike(*found[:2]):
                reasons.append(str(error))

    assert [reason for reason in reasons if "cannot be read" in reason or "cannot be decoded" in reason] == []
