"""Why bytes are no image, or only a part of one, in words for a person."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMATS = (
    *("JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "HEIC", "AVIF", "JPEG 2000", "PPM", "ICO"),
    *("DICOM", "a NumPy array"),
)

_STARTS = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", b"\x89PNG\r\n"),
    ("GIF", b"GIF8"),
    ("TIFF", b"II*\0"),
    ("TIFF", b"MM\0*"),
    ("TIFF", b"II+\0"),
    ("TIFF", b"MM\0+"),
    ("BMP", b"BM"),
    ("ICO", b"\0\0\1\0"),
    ("JPEG 2000", b"\0\0\0\x0cjP  "),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
)
_OTHERS = (
    ("an HTML page", rb"(?i)\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)"),
    ("an SVG drawing", rb"(?is)\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*|<!doctype svg.*?>\s*)*<svg"),
    ("an XML document", rb"\s*<\?xml"),
    ("a PDF document", rb"%PDF-"),
    ("a NumPy archive of several arrays (.npz)", rb"PK\x03\x04.{26}[^/]{1,64}\.npy"),
    ("a ZIP archive", rb"PK\x03\x04"),
    ("a gzip archive", rb"\x1f\x8b"),
    ("a sound or a video", rb"RIFF....(WAVE|AVI )"),
    ("a camera's raw file (CR3)", rb"....ftypcrx "),
    ("a camera's raw file", rb"FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|\0MRM"),
    ("starts like AVIF and has a header that cannot be read", rb"....ftypavi[fs]|....ftypmi.{1,40}avif"),
    ("a video", rb"....ftyp"),
    ("a JPEG XL image (save it as PNG or JPEG)", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("a JPEG XR image", rb"II\xbc"),
    ("a Photoshop file", rb"8BPS"),
    ("a GIMP file", rb"gimp xcf"),
    ("an OpenEXR image", rb"\x76\x2f\x31\x01"),
    ("a Radiance HDR image", rb"#\?(RADIANCE|RGBE)"),
    ("a QOI image", rb"qoif"),
    ("a farbfeld image", rb"farbfeld"),
    ("a PAM image", rb"P7\s"),
    ("a DDS texture", rb"DDS "),
    ("a FITS image", rb"SIMPLE  ="),
    ("a NIfTI volume", rb".{344}(n\+1|ni1)\0"),
    ("a PCX image", rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]"),
    ("a Windows cursor", rb"\0\0\x02\0"),
    ("an Apple icon", rb"icns"),
    ("a PostScript document", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("a Windows metafile", rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    ("an HDF5 file", rb"\x89HDF"),
    ("a DjVu document", rb"AT&TFORM"),
    ("a Git LFS pointer, whose file was not fetched,", rb"version https://git-lfs"),
)
_LOOKED_AT = 1024
_RIFF_HEADER = 8
_PNG_SIGNATURE = 8
_PNG_AROUND_DATA = 12  # length, kind and checksum of a chunk
_FEWEST_ZEROS = 512  # what was reserved on a disk and never written comes in sectors
_FEWEST_ZEROS_OF_JPEG = 16
_END_OF_IMAGE, _SCAN = 0xD9, 0xDA
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # headers with the size
_SCANS_OF_PHOTOS, _MOST_SCANS = 32, 500  # of any size, and of small ones
_MOST_SCANNED_PIXELS = 2_000_000_000  # in all scans together, which take about 2 s
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_CUT = "truncated: the end of the file is missing"


def not_an_image(stream: BinaryIO, named: str) -> str:
    """What `stream`, which no decoder takes, holds instead; `named` is the suffix of its name, such as ".jpg"."""
    stream.seek(0)
    start = stream.read(_LOOKED_AT)
    if not start:
        return "is empty"
    if share := _webp_share(stream):
        return f"truncated after {100 * share:.0f}%"
    for kind, magic in _STARTS:
        if start.startswith(magic):
            return f"starts like {kind} and has a header that cannot be read"
    for other, pattern in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            if other.startswith("starts like"):
                return other
            return f"is {other} named {named}" if named else f"is {other} and no image that can be decoded"
    return f"is not an image: it is neither {', '.join(FORMATS[:-1])} nor {FORMATS[-1]} (it starts with {start[:8]!r})"


def too_many_pixels(error: Exception, max_pixels: int) -> str:
    """What Pillow's own guard against decompression bombs has seen, where the header gives no size."""
    claimed = re.search(r"\d+", str(error))
    pixels = f"{int(claimed.group()):,}" if claimed else "too many"
    return f"claims {pixels} pixels, and at most {max_pixels:,} in all are decoded (params.yaml: ingest.max_pixels)"


def missing_end(stream: BinaryIO) -> str | None:
    """What is wrong with a JPEG that ends in zeros before its end marker: libjpeg takes them for gray pixels."""
    zeros = stream.seek(0, io.SEEK_END) - _FEWEST_ZEROS_OF_JPEG
    stream.seek(max(0, zeros))
    if stream.read() != bytes(_FEWEST_ZEROS_OF_JPEG):
        return None
    stream.seek(0)
    data = stream.read()
    if any(marker == _END_OF_IMAGE for marker, _ in _markers(data)):
        return None
    return f"damaged: the last {100 * (1 - len(data.rstrip(bytes(1))) / len(data)):.0f}% of the file are zeros"


def too_many_scans(parts: Iterable[tuple[bytes, int]]) -> str | None:
    """What is wrong with a picture of so many scans that decoding takes hours; None where it has few.

    `parts` are its JPEGs, one or many, each with the number of places in the picture that show it. A few bytes of a
    file make a pass over all pixels, and libjpeg has no limit of its own. Scans of other pictures in the file do not
    count.
    """
    scans = pixels = 0
    for data, times in parts:
        markers = _markers(data)
        at = next((at for marker, at in markers if marker in _FRAMES), len(data))
        pixels += times * int.from_bytes(data[at + 5 : at + 7], "big") * int.from_bytes(data[at + 7 : at + 9], "big")
        if data.count(bytes((0xFF, _SCAN))) > _SCANS_OF_PHOTOS:  # quick; a video behind the picture may hold such bytes
            scans = max(scans, sum(marker == _SCAN for marker, _ in markers))
    most = max(_SCANS_OF_PHOTOS, min(_MOST_SCANS, _MOST_SCANNED_PIXELS // max(1, pixels)))
    if scans <= most:
        return None
    return (
        f"has {scans:,} scans, and a JPEG of {pixels:,} pixels with more than {most} is not decoded, since that could "
        "take hours: most have about 10. Save it again"
    )


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Those of the first image of a JPEG file, to its end, with their places.

    Segments are passed over, scans searched through.
    """
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            yield marker, at
            if marker == _END_OF_IMAGE:
                return
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def decoder_error(error: Exception, image: Image.Image | None, stream: BinaryIO) -> str:
    """What a decoder that failed on `image`, which it had opened from `stream`, has to say."""
    # An object's address or a file's place would make two equal tables differ.
    message = re.sub(r"\s*<[^<>]* (object at|name=)[^<>]*>", "", str(error)).strip()
    if share := _webp_share(stream):
        return f"truncated after {100 * share:.0f}%"
    if image is not None and image.format not in ("BMP", "TIFF") and (share := _zeros_share(stream)):
        return f"damaged: the last {100 * share:.0f}% of the file are zeros"
    if message.startswith("broken PNG file") and (share := _png_share(stream)):
        return f"damaged: the PNG data after {100 * share:.0f}% of the file do not give their checksum"
    if "truncated" in message.lower():
        return _truncated(image, stream)
    if message.startswith("decoder error"):  # a bare number of Pillow's
        message = f"its data are damaged, {message}"
    return (
        f"cannot be decoded: {message} ({type(error).__name__})"
        if message
        else f"cannot be decoded: {type(error).__name__}"
    )


def _truncated(image: Image.Image | None, stream: BinaryIO) -> str:
    if image is None:
        return "truncated before its picture begins"
    # A progressive JPEG fills all rows at first and refines them, so its rows do not show how much is missing.
    share = None if image.info.get("progressive") else _decoded_share(image, stream)
    if share is None or round(100 * share) == 100:
        return _CUT
    return f"truncated after {100 * share:.0f}%"


def _webp_share(stream: BinaryIO) -> float | None:
    """Share of a WebP's bytes that are there, by the length in its header; None where all are, or it is not a WebP."""
    stream.seek(0)
    start = stream.read(_RIFF_HEADER + 4)
    wanted = int.from_bytes(start[4:_RIFF_HEADER], "little") + _RIFF_HEADER
    size = stream.seek(0, io.SEEK_END)
    is_webp = start.startswith(b"RIFF") and start.endswith(b"WEBP")
    return size / wanted if is_webp and size < wanted else None


def _zeros_share(stream: BinaryIO) -> float | None:
    """Share of zeros at the end of a file; None where there are no more of them than chance puts there."""
    stream.seek(0)
    data = stream.read()
    zeros = len(data) - len(data.rstrip(b"\0"))
    return zeros / len(data) if zeros >= _FEWEST_ZEROS else None


def _png_share(stream: BinaryIO) -> float | None:
    """Share of a PNG's bytes before the first chunk whose data do not give its checksum; None where all do."""
    stream.seek(0)
    data = stream.read()
    start = _PNG_SIGNATURE
    while start < len(data):
        end = start + _PNG_AROUND_DATA + int.from_bytes(data[start : start + 4], "big")
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return start / len(data)
        start = end
    return None


def _decoded_share(image: Image.Image, stream: BinaryIO) -> float | None:
    """Share of the pixels that a decoder filled before the file ended, in [0, 1]; None where that is unknown.

    Those that it left alone are those that keep the colour of the canvas that it was given.
    """
    try:
        black, white = (_on_canvas(str(image.format), stream, value) for value in (0, 255))
    except Exception:  # a broken file may break in another way the second time
        return None
    filled = black == white
    return float(filled.reshape(*filled.shape[:2], -1).all(axis=2).mean())


def _on_canvas(kind: str, stream: BinaryIO, value: int) -> npt.NDArray[Any]:
    """Pixels (H, W, ...) of an image that ends early, decoded onto a canvas whose numbers are all `value`."""
    stream.seek(0)
    image = Image.open(stream, formats=[kind])
    bands = len(image.getbands())
    image.im = Image.new(image.mode, image.size, value if bands == 1 else (value,) * bands).im
    try:
        image.load()
    except OSError:
        image.tile = []
    return np.asarray(image)
