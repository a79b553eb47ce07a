"""From the bytes of an image file to pixels of one kind. Where the bytes come from is decided elsewhere.

What is decided here, once, for ingest and for serving: the content of a file says what it is, and not its name; only
the first frame counts; the EXIF orientation is applied, and that of XMP is not; transparency shows a ground, white
unless a setting says otherwise; 16 bits become the nearest of 8; colour profiles are ignored, as most training sets
were made; metadata never decides whether pixels are sound. A JPEG is decoded at full size even where less would do,
since the hash of its pixels must not depend on the size asked for.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from twinrun.base.errors import DecodeError
from twinrun.core.arrays import Pixels, Size
from twinrun.core.framing import padded_box
from twinrun.decoding.diagnosis import decoder_error, missing_end, not_an_image, too_many_pixels, too_many_scans
from twinrun.decoding.dicom import is_dicom, open_dicom
from twinrun.decoding.npy import MAGIC, open_npy
from twinrun.decoding.png import (
    SIGNATURE,
    ChecksumError,
    PngPixels,
    check_sums,
    pixels_of_png,
    share_of_rows,
    without_metadata,
)
from twinrun.decoding.samples import FormatError, SampleRules, Samples, Values, sample_range, samples_image
from twinrun.decoding.tiff import expect_few_scans, is_read_rightly_by_pillow, open_tiff, silence_tiff_logs

Channels = Literal["gray", "rgb"]
Fit = Literal["pad", "crop"]
Resample = Literal["bilinear", "bicubic"]

AS_STORED = SampleRules()
NO_MEMORY = "cannot be decoded: it needs more memory than there is"
_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BY_PILLOW = ("JPEG", "BMP", "DIB", "GIF", "PPM", "WEBP", "AVIF", "JPEG2000", "ICO")
_NAMES = {"MPO": "JPEG", "DIB": "BMP", "WEBP": "WebP", "HEIF": "HEIC", "JPEG2000": "JPEG 2000"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"})
_LOOKED_AT = 256
_JPEG_2000_SIZES = b"\xff\x4f\xff\x51"  # where its codestream begins
_JPEG_2000_DEPTH = 42  # bytes after that: depth of the first component
_ORIENTATION_TAG = 0x0112
_MAKE_TAG, _MODEL_TAG = 0x010F, 0x0110
_CAMERA_LENGTH = 80
_STRIP_PIXELS = 1 << 22
_LARGEST_SIDE_PX = (1 << 31) - 1  # that the table of facts can hold; what claims more is not measured but nonsense
_LONGEST_SIDE_PX = 250_000  # resizing takes memory for this side times the other one of the result


@dataclass(frozen=True)
class Header:
    """What the file declares before any pixel is decoded: size as stored, colour mode by Pillow's name."""

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 (H, W, C), upright; the header of the file that they came from; the camera by its EXIF block.

    `used_bits`: how many bits the largest sample needs, and how many the file gives it, where those are more than 8.
    `is_transparent`: whether it says that parts of it are transparent.
    """

    pixels: Pixels
    header: Header
    camera: str | None = None
    used_bits: tuple[int, int] | None = None
    is_transparent: bool = False


class BrokenImage(DecodeError):
    """Why an image could not be decoded, with its header where that much could be read."""

    def __init__(self, message: str, header: Header | None = None) -> None:
        super().__init__(message)
        self.header = header


@dataclass(frozen=True)
class _Picture:
    """A picture as stored, decoded, and what its metadata say of it."""

    source: Image.Image | Samples
    orientation: int = 1
    camera: str | None = None


@dataclass(frozen=True)
class _Opened:
    """A file whose header was read; `image` is Pillow's where Pillow reads it."""

    header: Header
    load: Callable[[], _Picture]
    image: Image.Image | None = None


def decode_image(
    source: bytes | BinaryIO,
    *,
    channels: Channels,
    max_pixels: int,
    rules: SampleRules = AS_STORED,
    on_header: Callable[[Header], None] | None = None,
    named: str = "",
) -> Decoded:
    """Decode the first frame to uint8 (H, W, C), upright, C = 1 for gray and 3 for rgb.

    `rules` decide what 8-bit gray or colour leave open. `on_header` is called when the header was read and its size
    accepted, before memory is taken for the pixels; `named` is the suffix of the file's name, for the words on a file
    that is not an image. Any error of the decoder becomes a BrokenImage.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    opened: _Opened | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = _open(stream, max_pixels, rules)
            _check_size(opened.header, max_pixels)
            if on_header is not None:
                on_header(opened.header)
            picture = opened.load()
            return Decoded(
                _upright(_pixels(picture.source, channels, rules), picture.orientation),
                opened.header,
                picture.camera,
                picture.source.used_bits if isinstance(picture.source, Samples) else None,
                _is_transparent(picture.source),
            )
    except BrokenImage:
        raise
    except UnidentifiedImageError:
        raise BrokenImage(not_an_image(stream, named)) from None
    except FormatError as error:
        raise BrokenImage(str(error), opened.header if opened else None) from None
    except Image.DecompressionBombError as error:  # Pillow's own cap, which guards some headers before they reach ours
        claimed = opened.header if opened else _claimed_header(stream)
        if claimed is not None:
            _check_size(claimed, max_pixels)
        raise BrokenImage(too_many_pixels(error, max_pixels), claimed) from None
    except MemoryError:
        raise BrokenImage(NO_MEMORY, opened.header if opened else None) from None
    except (
        Exception
    ) as error:  # decoders raise OSError, ValueError, TypeError, SyntaxError, IndexError, struct.error, ...
        header, image = (opened.header, opened.image) if opened else (None, None)
        raise BrokenImage(decoder_error(error, image, stream), header) from None


def opened_pixels(image: Image.Image, *, channels: Channels, max_pixels: int, rules: SampleRules = AS_STORED) -> Pixels:
    """The pixels of an image that Pillow opened or made, uint8 (H, W, C), as `decode_image` gives those of a file.

    Any error of Pillow becomes a BrokenImage.
    """
    try:
        _check_size(_header(image), max_pixels)
        picture = _loaded(image)
        return _upright(_pixels(picture.source, channels, rules), picture.orientation)
    except BrokenImage:
        raise
    except Exception as error:  # as in decode_image
        raise BrokenImage(f"cannot be decoded: {error} ({type(error).__name__})") from None


def fit_image(pixels: Pixels, size: Size, fit: Fit, resample: Resample) -> Pixels:
    """Resize uint8 (h, w, C) to (H, W, C) for `size` (H, W), with antialias, keeping the aspect.

    `pad` shows all of the image, centred on black; `crop` fills the frame and cuts the two sides that reach beyond it.
    """
    fitted: Pixels = fit_images(pixels[None], size, fit, resample)[0]
    return fitted


def fit_images(images: Pixels, size: Size, fit: Fit, resample: Resample) -> Pixels:
    """As `fit_image`, for each of (N, h, w, C): (N, H, W, C)."""
    if images.shape[1:3] == size:
        return images
    count, height, width, channels = images.shape
    frame_height, frame_width = size
    method = _METHODS[resample]
    if fit == "crop":
        across, down = min(width, height * frame_width / frame_height), min(height, width * frame_height / frame_width)
        left, top = (width - across) / 2, (height - down) / 2
        return resize(images, size, method, (left, top, left + across, top + down))
    top, left, inner_height, inner_width = padded_box(height, width, size)
    frames = np.zeros((count, *size, channels), np.uint8)
    inner = resize(images, (inner_height, inner_width), method)
    frames[:, top : top + inner_height, left : left + inner_width] = inner
    return frames


def resize(
    images: Pixels, size: Size, method: Image.Resampling, box: tuple[float, float, float, float] | None = None
) -> Pixels:
    """Resize uint8 (N, h, w, C) to (N, H, W, C) for `size` (H, W); `box` is left, top, right, bottom.

    First horizontally and then vertically. Pillow rounds to 8 bits after each axis, and which axis it takes first
    differs between its versions. Two calls with one axis each give the same bytes under all of them, and then many
    images can be one: on top of one another for the first call, side by side for the second.
    """
    count, height, width, channels = images.shape
    if count > (most := max(1, _STRIP_PIXELS // (height * width))):
        parts = (images[start : start + most] for start in range(0, count, most))
        return np.concatenate([resize(part, size, method, box) for part in parts])
    left, top, right, bottom = box or (0, 0, width, height)
    tall = _resized(
        images.reshape(-1, width, channels), (count * height, size[1]), method, (left, 0, right, count * height)
    )
    wide = tall.reshape(count, height, size[1], channels).swapaxes(0, 1).reshape(height, -1, channels)
    wide = _resized(wide, (size[0], wide.shape[1]), method, (0, top, wide.shape[1], bottom))
    return np.ascontiguousarray(wide.reshape(size[0], count, size[1], channels).swapaxes(0, 1))


def _resized(pixels: Pixels, size: Size, method: Image.Resampling, box: tuple[float, float, float, float]) -> Pixels:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _to_array(image.resize(size[::-1], method, box))


def _open(stream: BinaryIO, max_pixels: int, rules: SampleRules) -> _Opened:
    """Read the header of a file by the decoder for its kind; raises UnidentifiedImageError where there is none."""
    stream.seek(0)
    start = stream.read(_LOOKED_AT)
    stream.seek(0)
    if is_dicom(start):  # what stands before its mark may be that of a TIFF file
        dicom = open_dicom(stream, max_pixels, windowed=rules.depth == "file")
        header = Header(dicom.width, dicom.height, "L" if dicom.is_gray else "RGB", "DICOM")
        return _Opened(header, lambda: _Picture(dicom.load()))
    if start.startswith(SIGNATURE):
        return _open_png(stream)
    if start.startswith(_TIFF_STARTS):
        return _open_tiff(stream, max_pixels, rules)
    if _is_heic(start):
        return _open_heic(stream)
    if start.startswith(MAGIC):
        array = open_npy(stream, rules.bands, rules.depth)
        header = Header(array.width, array.height, "L" if array.bands == 1 else "RGB", "NumPy")
        return _Opened(header, lambda: _Picture(array.load()))
    image = Image.open(stream, formats=_BY_PILLOW)
    header = _header(image)
    if header.format == "JPEG":
        return _Opened(header, partial(_loaded_jpeg, image, stream), image)
    if header.format == "JPEG 2000":
        return _Opened(header, partial(_loaded_jpeg_2000, image, stream), image)
    return _Opened(header, partial(_loaded_gif if header.format == "GIF" else _loaded, image), image)


def _open_png(stream: BinaryIO) -> _Opened:
    png = pixels_of_png(stream)
    image = Image.open(without_metadata(png), formats=("PNG",))
    return _Opened(_header(image), partial(_loaded_png, image, png, stream), image)


def _loaded_png(image: Image.Image, png: PngPixels, stream: BinaryIO) -> _Picture:
    picture = _loaded(image)
    try:
        check_sums(png, stream)
    except ChecksumError as error:
        reason = f"damaged: the PNG data after {100 * error.share:.0f}% of the file do not give their checksum"
        raise FormatError(reason) from None
    if _may_lack_rows(image) and (share := share_of_rows(png)) < 1:
        raise FormatError(f"truncated after {int(100 * share)}% of its rows")
    return _Picture(_all_bits(png), picture.orientation, picture.camera) if png.is_beyond_pillow else picture


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows is empty, as where compressed data end early, which Pillow passes over."""
    last = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
    return not all(row.any() for row in last)


def _all_bits(png: PngPixels) -> Samples:
    """The samples of a PNG with those lower bytes and that transparency which Pillow drops."""
    from imagecodecs import png_decode

    values = png_decode(png.data)
    return _gray_or_rgb(values, 8 * values.dtype.itemsize)


def _loaded_jpeg(image: Image.Image, stream: BinaryIO) -> _Picture:
    stream.seek(0)
    if reason := too_many_scans([(stream.read(), 1)]):
        raise FormatError(reason)
    picture = _loaded(image)
    if reason := missing_end(stream):
        raise FormatError(reason)
    return picture


def _loaded_jpeg_2000(image: Image.Image, stream: BinaryIO) -> _Picture:
    """Samples of other than 8 bits by imagecodecs: Pillow makes 0 of the largest, or gray, where they have fewer."""
    picture = _loaded(image)
    stream.seek(0)
    data = stream.read()
    at = data.find(_JPEG_2000_SIZES)
    bits = (data[at + _JPEG_2000_DEPTH] & 0x7F) + 1 if 0 <= at < len(data) - _JPEG_2000_DEPTH else 8
    if bits == 8 or (isinstance(picture.source, Image.Image) and picture.source.mode in ("P", "PA")):
        return picture
    from imagecodecs import jpeg2k_decode

    return replace(picture, source=_gray_or_rgb(jpeg2k_decode(data), bits))


def _gray_or_rgb(values: Values, bits: int) -> Samples:
    """The meaning of an array (H, W) or (H, W, C) whose second or fourth channel is alpha."""
    values = values.reshape(*values.shape[:2], -1)
    colors = values.shape[2] - (values.shape[2] in (2, 4))
    alpha = values[:, :, colors] if values.shape[2] > colors else None
    return Samples(values[:, :, :colors], "gray" if colors == 1 else "rgb", bits, alpha)


def _loaded_gif(image: Image.Image) -> _Picture:
    """What the first frame leaves free is transparent, as in browsers; Pillow fills it with the background colour."""
    frame = image.tile[0].extents if isinstance(image, ImageFile.ImageFile) and image.tile else None
    picture = _loaded(image)
    if frame is None or frame == (0, 0, *image.size):
        return picture
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.convert("RGBA").crop(frame), frame[:2])
    return replace(picture, source=canvas)


def _open_tiff(stream: BinaryIO, max_pixels: int, rules: SampleRules) -> _Opened:
    silence_tiff_logs()
    try:
        image = Image.open(stream, formats=("TIFF",))
        if isinstance(image, TiffImageFile) and is_read_rightly_by_pillow(image, has_bands=rules.bands is not None):
            return _Opened(_header(image), partial(_loaded_tiff, image, stream), image)
    except (Image.DecompressionBombError, MemoryError):
        raise
    except Exception:  # Pillow knows fewer layouts than tifffile
        pass
    try:
        tiff = open_tiff(stream, max_pixels, rules.bands)
    except (FormatError, MemoryError):
        raise
    except Exception:
        raise UnidentifiedImageError from None
    camera = _camera_named(*map(_printable, tiff.camera))
    header = Header(tiff.width, tiff.height, tiff.mode, "TIFF")
    return _Opened(header, lambda: _Picture(tiff.load(), _valid_orientation(tiff.orientation), camera))


def _loaded_tiff(image: TiffImageFile, stream: BinaryIO) -> _Picture:
    expect_few_scans(image, stream)
    return _loaded(image)


def _is_heic(start: bytes) -> bool:
    """Whether a file is a HEIF container of anything but AVIF, which Pillow reads."""
    if start[4:8] != b"ftyp" or start[8:12] not in _HEIC_BRANDS:
        return False
    brands = start[8 : min(int.from_bytes(start[:4], "big"), len(start))]
    return not {b"avif", b"avis"} & {brands[at : at + 4] for at in range(0, len(brands), 4)}


def _open_heic(stream: BinaryIO) -> _Opened:
    from pi_heif import HeifImageFile

    try:
        image = HeifImageFile(stream)
    except (SyntaxError, ValueError, EOFError, OSError) as error:
        raise FormatError(f"starts like HEIC and has a header that cannot be read ({error})") from None
    return _Opened(_header(image), partial(_loaded, image), image)


def _loaded(image: Image.Image) -> _Picture:
    image.load()
    source: Image.Image | Samples = image
    if image.mode.startswith("I;16"):
        source = Samples(np.asarray(image)[:, :, None], "gray", 16)
    elif image.mode == "I":  # Pillow opens some 16-bit files with 32-bit pixels
        values = np.asarray(image)[:, :, None]
        bits = 16 if values.min() >= 0 and values.max() <= 65535 else None
        source = Samples(values, "gray", bits, unranged="its pixels have 32 bits, which have no set range")
    elif image.mode == "F":
        unranged = "its pixels are floating-point numbers, which have no set range"
        source = Samples(np.asarray(image)[:, :, None], "gray", None, unranged=unranged)
    elif image.format in ("BMP", "DIB") and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        # Programs that know no alpha leave zeros in the fourth byte.
        source = Image.merge("RGB", image.split()[:3])
    return _Picture(source, _orientation(image), _camera(image))


def _header(image: Image.Image) -> Header:
    # A phone's JPEG with a second picture behind the first calls itself MPO; a bitmap without file header, DIB.
    kind = image.format or "unknown"
    width, height = image.size
    if isinstance(image, TiffImageFile):  # its size is that of the upright image, other formats' as stored
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return Header(width=width, height=height, mode=image.mode, format=_NAMES.get(kind, kind))


def _claimed_header(stream: BinaryIO) -> Header | None:
    """The header of a file that Pillow refuses to open for its size; None where it says no size.

    Pillow's plugins read the header alone, and are asked here without the guard, which is one for the whole process.
    """
    stream.seek(0)
    start = stream.read(16)
    Image.init()
    for name in (*_BY_PILLOW, "PNG", "TIFF"):
        open_as, accepts = Image.OPEN[name]
        if accepts is not None and accepts(start):
            stream.seek(0)
            try:
                return _header(open_as(stream, ""))
            except Exception:  # some have a guard of their own
                return None
    return None


def _check_size(header: Header, max_pixels: int) -> None:
    if header.width < 1 or header.height < 1:
        raise BrokenImage(f"claims to be {header.width} x {header.height} pixels", header)
    if header.width * header.height > max_pixels:
        raise BrokenImage(
            f"claims {header.width:,} x {header.height:,} pixels, and at most {max_pixels:,} in all are decoded "
            "(params.yaml: ingest.max_pixels)",
            header if max(header.width, header.height) <= _LARGEST_SIDE_PX else None,
        )
    if max(header.width, header.height) > _LONGEST_SIDE_PX:
        raise BrokenImage(
            f"claims {header.width:,} x {header.height:,} pixels, and images with more than {_LONGEST_SIDE_PX:,} on a "
            "side are not decoded: cut it into several images",
            header,
        )


def _pixels(source: Image.Image | Samples, channels: Channels, rules: SampleRules) -> Pixels:
    """Convert in strips, since a conversion of all of a large image at once takes several times its memory."""
    height, width = source.values.shape[:2] if isinstance(source, Samples) else (source.height, source.width)
    rows = max(1, _STRIP_PIXELS // width)
    strip = _strips(source, rules)
    if height <= rows:
        return _to_array(_to_channels(strip(0, height), channels, rules))
    pixels = np.empty((height, width, 1 if channels == "gray" else 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _to_array(_to_channels(strip(top, bottom), channels, rules))
    return pixels


def _strips(source: Image.Image | Samples, rules: SampleRules) -> Callable[[int, int], Image.Image]:
    """What gives the rows from `top` to `bottom` of a picture, as an image of 8 bits."""
    if isinstance(source, Samples):
        return partial(samples_image, source, scale=sample_range(source, rules.depth))
    width, height = source.size
    return lambda top, bottom: source if (top, bottom) == (0, height) else source.crop((0, top, width, bottom))


def _is_transparent(source: Image.Image | Samples) -> bool:
    """Whether a picture says that parts of it are transparent."""
    if isinstance(source, Samples):
        return source.alpha is not None and bool((source.alpha < source.alpha.max()).any() or not source.alpha.any())
    if source.mode in ("RGBA", "LA"):
        return int(source.getchannel("A").getextrema()[0]) < 255  # type: ignore[arg-type]
    return source.has_transparency_data


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 to 8; 1, upright, where it has none that makes sense.

    Pillow's own `getexif` takes the one in XMP where EXIF has none, and browsers do not.
    """
    if isinstance(image, TiffImageFile):
        return _valid_orientation(image.tag_v2.get(_ORIENTATION_TAG, 1))
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif") or b"")
        return _valid_orientation(exif.get(_ORIENTATION_TAG, 1))
    except Exception:  # a broken EXIF block says nothing of the orientation, and the pixels are as good as before
        return 1


def _valid_orientation(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _camera(image: Image.Image) -> str | None:
    """Make and model of the camera, or None where the EXIF block is absent, broken or silent."""
    try:
        exif = image.getexif()
        make, model = (_printable(exif.get(tag)) for tag in (_MAKE_TAG, _MODEL_TAG))
    except Exception:  # as for the orientation
        return None
    return _camera_named(make, model)


def _camera_named(make: str, model: str) -> str | None:
    name = model if model.startswith(make) else f"{make} {model}".strip()
    return name[:_CAMERA_LENGTH] or None


def _printable(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation == 1:
        return pixels
    turned = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def _to_channels(image: Image.Image, channels: Channels, rules: SampleRules) -> Image.Image:
    mode = "L" if channels == "gray" else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*[rules.ground_value] * 3, 255))
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") and mode == "L":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _to_array(image: Image.Image) -> Pixels:
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array
