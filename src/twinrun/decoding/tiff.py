"""TIFF files: which of them Pillow reads rightly, and the samples of all others, by tifffile.

Pillow garbles some layouts without a word (planes of 16 bits) and cannot open many others. So it is asked only for
those that are listed here. The first page counts.
"""

import io
import logging
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from twinrun.decoding.diagnosis import too_many_scans
from twinrun.decoding.samples import Color, FormatError, Samples, Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from tifffile import TiffPage

_BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANES = 258, 259, 262, 266, 277, 284
_PLACES = ((273, 279), (324, 325))  # offsets and lengths: of strips, of tiles
_ORIENTATION, _MAKE, _MODEL, _INK_SET, _EXTRA, _FORMAT, _COLOR_MAP, _DNG = 274, 271, 272, 332, 338, 339, 320, 50706
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = range(7)
_CFA, _LINEAR_RAW = 32803, 34892
_COLORS: dict[int, Color] = {
    _WHITE_IS_ZERO: "gray", _BLACK_IS_ZERO: "gray", _MASK: "gray",
    _RGB: "rgb", _PALETTE: "rgb", _CMYK: "cmyk", _YCBCR: "ycbcr",
}  # fmt: skip
_COLOR_SAMPLES: dict[Color, int] = {"gray": 1, "rgb": 3, "cmyk": 4, "ycbcr": 3}
_OTHER_COLORS = {8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32844: "LogL", 32845: "LogLuv"}
_OF_LIBTIFF = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
_LZW, JPEG, JPEG_2000 = 5, 7, 34712
_JPEG = frozenset({6, 7, 34892})
_JPEG_2000 = frozenset({33003, 33004, 33005, 34712})
_OF_OWN_SIZE = frozenset({22610, 34887, 34927, 34933, 34934, 50001, 50002, 52546})  # JPEG XR and XL, LERC, WebP, PNG
# Each looks ahead, so that a header that begins within what looks like another is found too.
_JPEG_SIZE = re.compile(rb"(?=\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf](..).(..)(..)(.))", re.DOTALL)
_JPEG_2000_SIZE = re.compile(rb"(?=\xff\x4f\xff\x51.{4}(.{4})(.{4}).{24}(..))", re.DOTALL)
_FEW_SAMPLES = 4_000_000  # that all parts may have: a tile may be larger than its picture
_MOST_OVERLAP = 4  # lengths of all different parts, as a multiple of the file's
_PREMULTIPLIED, _ALPHA = 1, 2
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_MODES = {("gray", False): "L", ("gray", True): "LA", ("rgb", False): "RGB", ("rgb", True): "RGBA"}
_BYTES_PER_PIXEL = 16  # beyond this for each pixel that is allowed, a file is a bomb of samples


@dataclass(frozen=True)
class TiffHeader:
    """What the first page declares; `mode` by Pillow's name for the nearest of its modes."""

    width: int
    height: int
    mode: str
    orientation: int
    camera: tuple[str, str]
    load: "Callable[[], Samples]"


def silence_tiff_logs() -> None:
    """Keep what Pillow and tifffile log of odd files from the terminal, unless the program shows logs."""
    for name in ("tifffile", "PIL.TiffImagePlugin"):
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def is_read_rightly_by_pillow(image: TiffImageFile, *, has_bands: bool) -> bool:
    """Whether the layout of a file that Pillow opened is one that it and other decoders agree on.

    With `has_bands` a person chooses among more bands than three, which Pillow does not offer.
    """
    tags = image.tag_v2
    samples, photometric = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC)
    bits, extra = set(tags.get(_BITS, (1,))), tuple(tags.get(_EXTRA, ()))
    if set(tags.get(_FORMAT, (_UNSIGNED,))) != {_UNSIGNED} or tags.get(_COMPRESSION, 1) not in _OF_LIBTIFF:
        return False
    if _DNG in tags or tags.get(_FILL_ORDER, 1) != 1 or (has_bands and samples > 3):
        return False
    match photometric:
        case 0 | 1 if samples == 1:
            return bits in ({1}, {8}) or (bits == {16} and photometric == _BLACK_IS_ZERO)
        case 2 if bits == {8}:
            return (samples, extra) in ((3, ()), (4, ()), (4, (0,)), (4, (_PREMULTIPLIED,)), (4, (_ALPHA,)))
        case 3:
            # A few writers put colours of 8 bits into a palette of 16, which Pillow shows as black.
            return samples == 1 and bits == {8} and max(tags.get(_COLOR_MAP, (0,))) > 255
        case 5:
            return samples == 4 and bits == {8} and tags.get(_INK_SET, 1) == 1
        case 6:
            return samples == 3 and bits == {8} and tags.get(_PLANES, 1) == 1
    return False


def expect_few_scans(image: TiffImageFile, stream: BinaryIO) -> None:
    """Raise FormatError where the JPEGs in a file that Pillow opened have so many scans that decoding takes hours."""
    tags, before = image.tag_v2, stream.tell()
    if tags.get(_COMPRESSION) not in _JPEG:
        return
    places = [place for tag, length in _PLACES for place in zip(tags.get(tag, ()), tags.get(length, ()), strict=False)]
    if reason := too_many_scans(_parts(stream, places)):
        raise FormatError(reason)
    stream.seek(before)


def _parts(stream: Any, places: Iterable[tuple[int, int]]) -> Iterator[tuple[bytes, int]]:
    """Each of the parts at these offsets, of these lengths, and how often it is named.

    Raises FormatError where different parts share so much that together they are far longer than the file.
    """
    size = stream.seek(0, 2)
    counts = Counter((offset, min(length, size - offset)) for offset, length in places if 0 <= offset < size)
    if sum(length for _, length in counts) > _MOST_OVERLAP * size:
        raise FormatError("damaged: the parts of its picture overlap")
    for (offset, length), times in counts.items():
        stream.seek(offset)
        yield stream.read(max(0, length)), times


def open_tiff(stream: BinaryIO, max_pixels: int, bands: tuple[int, ...] | None) -> TiffHeader:
    """Read the header of the first page by tifffile; `load` of the result decodes it while `stream` is open.

    Raises FormatError where the page holds no picture that is understood, and what tifffile raises.
    """
    from tifffile import TiffFile

    stream.seek(0)
    page: TiffPage = TiffFile(stream, _multifile=False).pages.first
    _expect_picture(page)
    if page.imagewidth * page.imagelength * page.samplesperpixel * _sample_bytes(page) > _BYTES_PER_PIXEL * max_pixels:
        raise FormatError(
            f"claims {page.imagewidth:,} x {page.imagelength:,} pixels of {page.samplesperpixel:,} samples"
        )
    colors, alpha = _chosen_bands(page, bands)
    size = stream.seek(0, 2)
    return TiffHeader(
        width=page.imagewidth,
        height=page.imagelength,
        mode=_mode(page, len(colors), alpha is not None),
        orientation=_tag(page, _ORIENTATION, 1),
        camera=(_tag(page, _MAKE, ""), _tag(page, _MODEL, "")),
        load=partial(_samples, page, colors, alpha, size, max_pixels),
    )


def _expect_picture(page: "TiffPage") -> None:
    if int(page.photometric) in (_CFA, _LINEAR_RAW) or _DNG in page.tags:
        raise FormatError("is a camera's raw file (such as DNG), which is not developed here: save it as TIFF or JPEG")
    if name := _OTHER_COLORS.get(int(page.photometric)):
        raise FormatError(f"is a TIFF file whose colours are {name}, which are not converted here: save it as RGB")
    if int(page.photometric) not in _COLORS:
        raise FormatError(f"is a TIFF file of an unknown kind of colours (photometric {int(page.photometric)})")
    if int(page.photometric) == _CMYK and _tag(page, _INK_SET, 1) != 1:
        raise FormatError("is a TIFF file of inks that are not CMYK: save it as RGB")
    if page.imagedepth > 1:
        raise FormatError(f"is a TIFF file of a volume of {page.imagedepth:,} slices: save one of them as an image")
    if page.sampleformat not in (_UNSIGNED, _SIGNED, _FLOAT) or page.dtype is None:
        raise FormatError(
            f"is a TIFF file of samples that are not plain numbers (sample format {page.sampleformat}, "
            f"{page.bitspersample} bits)"
        )


def _chosen_bands(page: "TiffPage", bands: tuple[int, ...] | None) -> tuple[list[int], int | None]:
    """Indices of the samples that are the colours, and of the one that is alpha."""
    color = _COLORS[int(page.photometric)]
    count, wanted = page.samplesperpixel, 1 if int(page.photometric) == _PALETTE else _COLOR_SAMPLES[color]
    if bands is not None and count not in (1, 3):
        if max(bands) > count:
            raise FormatError(f"has {count} bands and not the band {max(bands)} (params.yaml: ingest.bands)")
        return [band - 1 for band in bands], None
    if count < wanted:
        raise FormatError(f"is a TIFF file of {count} samples for each pixel, and its colours need {wanted}")
    extra = [int(kind) for kind in page.extrasamples]
    kinds = dict(zip(range(count - len(extra), count), extra, strict=True))
    if color == "rgb" and count == 4 and not extra:  # a common omission
        kinds = {3: _ALPHA}
    alpha = next((index for index, kind in kinds.items() if kind in (_PREMULTIPLIED, _ALPHA) and index >= wanted), None)
    unnamed = count - wanted - (alpha is not None)
    if color == "gray" and unnamed > 0:
        raise FormatError(
            f"has {count} bands, and none of them is said to be a colour: name one or three (params.yaml: ingest.bands)"
        )
    return list(range(wanted)), alpha


def _mode(page: "TiffPage", colors: int, has_alpha: bool) -> str:
    bits, photometric = page.bitspersample, int(page.photometric)
    if photometric == _PALETTE:
        return "P"
    if photometric == _CMYK:
        return "CMYK"
    if colors == 1 and not has_alpha and bits != 8:
        if page.sampleformat == _FLOAT:
            return "F"
        return "1" if bits == 1 else "L" if bits < 8 else "I;16" if bits <= 16 and page.sampleformat == 1 else "I"
    return _MODES["gray" if colors == 1 else "rgb", has_alpha]


def _samples(page: "TiffPage", colors: list[int], alpha: int | None, size: int, max_pixels: int) -> Samples:
    _expect_whole(page, size)
    _expect_small_parts(page, max_pixels)
    if int(page.compression) == _LZW:
        _unpack_lzw_by_libtiff()
    array = page.asarray(squeeze=False, maxworkers=1)  # planes, depth, height, width, samples
    array = array[0, 0] if len(array) == 1 else np.moveaxis(array[:, 0, :, :, 0], 0, -1)
    return _meant(page, array[:, :, colors], None if alpha is None else array[:, :, alpha])


def _unpack_lzw_by_libtiff() -> None:
    """Let tifffile unpack LZW by Pillow's libtiff, since imagecodecs crashes the process on damaged data."""
    from tifffile import TIFF

    TIFF.DECOMPRESSORS[_LZW]  # looked up once, and kept in a table from then on
    TIFF.DECOMPRESSORS._codecs[_LZW] = _lzw_decoded


def _lzw_decoded(data: bytes, out: int) -> bytes:
    """`out` bytes that were packed by LZW, which libtiff reads as one row of a gray picture."""
    tags = {256: out, 257: 1, _BITS: 8, _COMPRESSION: _LZW, _PHOTOMETRIC: _BLACK_IS_ZERO, 273: 8, _SAMPLES: 1}
    tags |= {278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", code, 4, 1, tags[code]) for code in sorted(tags))
    start = 8 + len(data) + len(data) % 2
    file = b"II*\0" + start.to_bytes(4, "little") + data + bytes(len(data) % 2)
    with Image.open(io.BytesIO(file + struct.pack("<H", len(tags)) + entries + bytes(4)), formats=("TIFF",)) as row:
        return row.tobytes()


def _meant(page: "TiffPage", values: Values, alpha: Values | None) -> Samples:
    photometric = int(page.photometric)
    # Of colours with unequal bits, such as 5, 6 and 5, tifffile makes 8.
    bits: int | None = page.bitspersample if isinstance(page.bitspersample, int) else 8
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    unranged = ""
    if page.sampleformat == _FLOAT:
        bits, unranged = None, "its pixels are floating-point numbers, which have no set range"
    elif page.sampleformat == _SIGNED:
        bits, unranged = None, f"its pixels are numbers of {bits} bits with a sign, which have no set range"
    elif bits is not None and bits > 16:
        # Some write 16 bits as 32; more than 16 have no range that all agree on.
        unranged = f"its pixels have {bits} bits, which have no set range"
        bits = 16 if values.max() <= 65535 else None
    if photometric == _PALETTE:
        values, bits = _colors_of(page, values[:, :, 0]), 16
        alpha = None if alpha is None else _as_16_bits(alpha)
    color: Color = "gray" if values.shape[2] == 1 else _COLORS[photometric]
    if (color == "ycbcr" and int(page.compression) in _JPEG) or (color == "gray" and values.shape[2] == 3):
        color = "rgb"
    is_premultiplied = _PREMULTIPLIED in map(int, page.extrasamples)
    return Samples(values, color, bits, alpha, is_premultiplied, unranged, photometric == _WHITE_IS_ZERO)


def _colors_of(page: "TiffPage", indices: Values) -> Values:
    colors = page.colormap
    if colors is None or indices.dtype.kind != "u" or int(indices.max()) >= colors.shape[1]:
        raise FormatError("is a TIFF file whose palette is missing or too short")
    colors = colors.astype(np.uint16)
    palette: Values = colors * np.uint16(257) if colors.max() < 256 else colors
    return palette.T[indices]


def _as_16_bits(values: Values) -> Values:
    return values.astype(np.uint16) * np.uint16(257) if values.dtype == np.uint8 else values


def _expect_whole(page: "TiffPage", size: int) -> None:
    """Raise FormatError where parts of the picture are absent, in whose place tifffile puts zeros."""
    wanted = math.prod(page.chunked)
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))[:wanted]
    absent = wanted - sum(offset > 0 and count > 0 for offset, count in parts)
    if absent and not (parts and page.is_contiguous):
        raise FormatError(f"damaged: {absent:,} of {wanted:,} parts of its picture are missing")
    # A plain picture needs no more than its pixels, whatever length it declares.
    ends = [parts[0][0] + page.nbytes] if page.is_contiguous else [offset + count for offset, count in parts]
    if max(ends) > size:
        raise FormatError(f"truncated after {100 * size / max(ends):.0f}%")


def _expect_small_parts(page: "TiffPage", max_pixels: int) -> None:
    """Raise FormatError where parts are images of formats that have sizes of their own, together far beyond the page's.

    Tiles at its borders may make it four times as large, but many parts may name the same few bytes.
    """
    if int(page.compression) not in _JPEG | _JPEG_2000 | _OF_OWN_SIZE:
        return
    most = max(_FEW_SAMPLES, 4 * max_pixels, 4 * page.imagewidth * page.imagelength * page.samplesperpixel)
    file, places = page.parent.filehandle, list(zip(page.dataoffsets, page.databytecounts, strict=False))
    claimed = 0
    for data, times in _parts(file, places):
        claimed += times * claimed_samples(int(page.compression), data)
        if claimed > most:
            raise FormatError(f"damaged: parts of its picture claim {claimed:,} samples")
    if int(page.compression) in _JPEG and (reason := too_many_scans(_parts(file, places))):
        raise FormatError(reason)


def claimed_samples(compression: int, data: bytes) -> int:
    """The number of samples by the header of a compressed image, the largest where it has several; 0: unknown."""
    if compression in _JPEG:
        sizes = [[int.from_bytes(field, "big") for field in found] for found in _JPEG_SIZE.findall(data)]
        return max((math.prod(size) for length, *size in sizes if length == 8 + 3 * size[2]), default=0)
    if compression in _JPEG_2000:
        found = _JPEG_2000_SIZE.findall(data)
        return max((math.prod(int.from_bytes(field, "big") for field in size) for size in found), default=0)
    from tifffile import TIFF

    for kind in ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8"):
        # Given an array of another type or shape, a decoder names the one that it needs, and takes no memory.
        try:
            TIFF.DECOMPRESSORS[compression](data, out=np.empty((1, 1), kind))
        except Exception as error:
            if shape := re.search(r"shape=\(([\d, ]+)\)$", str(error)):
                return math.prod(map(int, re.findall(r"\d+", shape[1])))
    return 0


def _sample_bytes(page: "TiffPage") -> int:
    return page.dtype.itemsize if page.dtype is not None else 1


def _tag(page: "TiffPage", code: int, default: Any) -> Any:
    """The value of a tag, where it has the type of `default`."""
    value = page.tags.valueof(code, default)
    return value if isinstance(value, type(default)) else default
