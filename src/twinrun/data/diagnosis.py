"""Why bytes are no image, or only a part of one, in words for a person. Refuses to decide what is decoded."""

import re
from typing import BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF")

_STARTS = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n"),
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("WebP", b"RIFF"),
    ("BMP", b"BM"),
)
_OTHERS = (
    ("an HTML page", rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)"),
    ("an SVG drawing", rb"(?is)\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*|<!doctype svg.*?>\s*)*<svg"),
    ("an XML document", rb"\s*<\?xml"),
    ("a PDF document", rb"%PDF-"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("a gzip archive", rb"\x1f\x8b"),
    ("an AVIF image", rb"....ftypavi[fs]"),
    ("a HEIC image", rb"....ftyp(heic|heix|mif1|msf1)"),
    ("a video", rb"....ftyp"),
    ("a JPEG XL image", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG 2000 image", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("a Photoshop file", rb"8BPS"),
    ("a Git LFS pointer, whose file was not fetched,", rb"version https://git-lfs"),
)
_LOOKED_AT = 1024


def not_an_image(stream: BinaryIO, named: str) -> str:
    """What `stream`, which no decoder takes, holds instead; `named` is the suffix of its name, such as ".jpg"."""
    stream.seek(0)
    start = stream.read(_LOOKED_AT)
    if not start:
        return "is empty"
    for kind, magic in _STARTS:
        if start.startswith(magic):
            return f"starts like {kind} and has a header that cannot be read"
    for other, pattern in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return f"is {other} named {named}" if named else f"is {other} and no image that can be decoded"
    return f"is no image: it is neither {', '.join(FORMATS[:-1])} nor {FORMATS[-1]} (it starts with {start[:8]!r})"


def too_many_pixels(error: Exception, max_pixels: int) -> str:
    """What Pillow's own guard against decompression bombs has seen."""
    claimed = re.search(r"\d+", str(error))
    pixels = f"{int(claimed.group()):,}" if claimed else "too many"
    return f"claims {pixels} pixels and at most {max_pixels:,} are decoded (params.yaml: ingest.max_pixels)"


def decoder_error(error: Exception, image: Image.Image | None, stream: BinaryIO) -> str:
    """What a decoder that failed on `image`, which it had opened from `stream`, has to say."""
    # An object's address or a file's place would make two equal tables differ.
    words = re.sub(r"\s*<[^<>]* (object at|name=)[^<>]*>", "", str(error)).strip()
    if "truncated" in words.lower():
        share = _decoded_share(image, stream) if image is not None else None
        return "truncated before its picture begins" if share is None else f"truncated after {100 * share:.0f} %"
    if words.startswith("decoder error"):  # a bare number of Pillow's
        words = f"its data are damaged, {words}"
    return (
        f"cannot be decoded: {words} ({type(error).__name__})"
        if words
        else f"cannot be decoded: {type(error).__name__}"
    )


def _decoded_share(image: Image.Image, stream: BinaryIO) -> float | None:
    """Share of the rows that a decoder filled before `image` ended; None where that cannot be told.

    The rows that it left alone are those that stay white on a white canvas and black on a black one.
    """
    try:
        image.tile = []  # type: ignore[attr-defined]
        black = np.asarray(image)
        stream.seek(0)
        again = Image.open(stream, formats=[str(image.format)])
        again.im = Image.new(again.mode, again.size, "white").im
        try:
            again.load()
        except OSError:
            again.tile = []
        changed = np.asarray(again) != black
    except Exception:  # a broken file may break in another way the second time
        return None
    rows = changed.reshape(len(changed), -1).any(axis=1)
    return 1 - float(rows.mean())
