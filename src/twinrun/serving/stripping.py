"""A photo without what its file says of place, time and camera, and with the same pixels."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from twinrun.base.errors import DecodeError
from twinrun.core.arrays import Pixels
from twinrun.decoding.samples import sample_rules
from twinrun.models.stored import StoredPreprocessing
from twinrun.prediction.inputs import read_image

_START, _END, _SCAN, _EXIF, _JFIF, _ADOBE, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE1, 0xE0, 0xEE, 0xFE
_ORIENTATION = 0x0112
_PLAIN_JFIF = 16  # bytes of the segment without a small picture


def without_metadata(image: bytes, settings: StoredPreprocessing) -> tuple[bytes, str]:
    """The file of a photo without metadata, and its suffix, such as ".jpg"; it decodes to the very same pixels.

    A JPEG keeps its compressed data and the EXIF orientation; what cannot be stripped so becomes a PNG of the pixels.
    Raises DecodeError where the image cannot be decoded.
    """
    pixels = _pixels(image, settings)
    if image.startswith(b"\xff\xd8\xff"):
        stripped = _stripped_jpeg(image)
        try:
            if np.array_equal(_pixels(stripped, settings), pixels):
                return stripped, ".jpg"
        except DecodeError:  # an odd file, whose pixels are kept all the same
            pass
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue(), ".png"


def _pixels(image: bytes, settings: StoredPreprocessing) -> Pixels:
    return read_image(image, settings.channels, settings.max_pixels, sample_rules(settings))


def _stripped_jpeg(image: bytes) -> bytes:
    """The segments that decide pixels, an EXIF block of nothing but the orientation, and nothing behind the end."""
    parts, orientation = [], 1
    for kind, segment in _segments(image):
        is_application = 0xE0 <= kind <= 0xEF
        if kind == _EXIF and segment[4:10] == b"Exif\0\0":
            orientation = _orientation(segment[4:])
        plain_jfif = kind == _JFIF and segment[4:9] == b"JFIF\0" and len(segment) == 2 + _PLAIN_JFIF
        if kind == _ADOBE or plain_jfif or not (is_application or kind == _COMMENT):
            parts.append(segment)
    if orientation != 1:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        block = exif.tobytes()
        parts.insert(1, bytes((0xFF, _EXIF)) + (len(block) + 2).to_bytes(2, "big") + block)
    return b"".join(parts)


def _orientation(block: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(block)
        found = exif.get(_ORIENTATION, 1)
    except Exception:  # a broken block says nothing of it, as in decode.py
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _segments(image: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind and the bytes of each segment, compressed data with the one before them, up to the end of the image."""
    at = 0
    while at + 2 <= len(image):
        kind = image[at + 1]
        length = 2 if kind in (_START, _END) else 2 + int.from_bytes(image[at + 2 : at + 4], "big")
        end = at + length
        if kind == _SCAN:
            end = _end_of_data(image, end)
        yield kind, image[at:end]
        if kind == _END:
            return
        at = end
        while image[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1


def _end_of_data(image: bytes, at: int) -> int:
    """Where the next marker stands; in compressed data, 0xFF is followed by 0 or a restart's number."""
    while (at := image.find(b"\xff", at)) >= 0 and at + 1 < len(image):
        if image[at + 1] != 0 and not 0xD0 <= image[at + 1] <= 0xD7 and image[at + 1] != 0xFF:
            return at
        at += 1
    return len(image)
