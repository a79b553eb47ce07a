"""From the bytes of an image file to pixels of one kind. Refuses to know where the bytes come from.

What is decided here, once, for ingest and for serving: the kind of file is told by its content and not by its name;
only the first frame counts; the EXIF orientation is applied; transparency shows white, as in a browser; 16 bits become
the 8 upper ones, rounded; colour profiles are ignored, as most training sets were made. A JPEG is decoded at full size
even where less would do, since the hash of its pixels must not depend on the size asked for.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from twinrun.data.diagnosis import FORMATS, decoder_error, not_an_image, too_many_pixels
from twinrun.errors import DecodeError

Channels = Literal["gray", "rgb"]
Fit = Literal["pad", "crop"]
Resample = Literal["bilinear", "bicubic"]
Size = tuple[int, int]
Pixels = npt.NDArray[np.uint8]

_METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_ORIENTATION_TAG = 0x0112
_MAKE_TAG, _MODEL_TAG = 0x010F, 0x0110
_CAMERA_LENGTH = 80
_STRIP_PIXELS = 1 << 22
_LARGEST_SIDE_PX = (1 << 31) - 1  # that the table of facts can hold; what claims more is not measured but nonsense


@dataclass(frozen=True)
class Header:
    """What the file says of itself before any pixel is decoded: size as stored, colour mode by Pillow's name."""

    width: int
    height: int
    mode: str
    format: str


@dataclass(frozen=True)
class Decoded:
    """Pixels, uint8 (H, W, C), upright; the header of the file that they came from; the camera by its EXIF block."""

    pixels: Pixels
    header: Header
    camera: str | None = None


class BrokenImage(DecodeError):
    """Why an image could not be decoded, with its header where that much could be read."""

    def __init__(self, message: str, header: Header | None = None) -> None:
        super().__init__(message)
        self.header = header


def decode(data: bytes, *, channels: Channels, fit: Fit, resample: Resample, size: Size, max_pixels: int) -> Pixels:
    """The image in `data` as a network takes it: uint8 (H, W, C) of `size` (H, W). Raises DecodeError that says why."""
    return fit_image(decode_image(data, channels=channels, max_pixels=max_pixels).pixels, size, fit, resample)


def decode_image(
    source: bytes | BinaryIO,
    *,
    channels: Channels,
    max_pixels: int,
    on_header: Callable[[Header], None] | None = None,
    named: str = "",
) -> Decoded:
    """Decode the first frame to uint8 (H, W, C), upright, C = 1 for gray and 3 for rgb.

    `on_header` is called when the header was read and its size accepted, before memory is taken for the pixels;
    `named` is the suffix of the file's name, for the words on a file that is no image. Raises BrokenImage whatever the
    decoder raises.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    header, image = None, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=FORMATS)
            header = _header(image)
            _check_size(header, max_pixels)
            if on_header is not None:
                on_header(header)
            image.load()
            pixels = _upright(_pixels(image, channels), _orientation(image))
            if image.format == "PNG":
                _check_sums(stream)
            return Decoded(pixels, header, _camera(image))
    except BrokenImage:
        raise
    except UnidentifiedImageError:
        raise BrokenImage(not_an_image(stream, named)) from None
    except Image.DecompressionBombError as error:  # Pillow's own cap, which guards some headers before they reach ours
        claimed = header or _claimed_header(stream)
        if claimed is not None:
            _check_size(claimed, max_pixels)
        raise BrokenImage(too_many_pixels(error, max_pixels), claimed) from None
    except MemoryError:
        raise BrokenImage("cannot be decoded: it needs more memory than there is", header) from None
    except (
        Exception
    ) as error:  # decoders raise OSError, ValueError, TypeError, SyntaxError, IndexError, struct.error, ...
        raise BrokenImage(decoder_error(error, image, stream), header) from None


def opened_pixels(image: Image.Image, *, channels: Channels, max_pixels: int) -> Pixels:
    """The pixels of an image that Pillow opened or made, uint8 (H, W, C), as `decode_image` gives those of a file.

    Raises BrokenImage whatever Pillow raises.
    """
    try:
        _check_size(_header(image), max_pixels)
        image.load()
        return _upright(_pixels(image, channels), _orientation(image))
    except BrokenImage:
        raise
    except Exception as error:  # as in decode_image
        raise BrokenImage(f"cannot be decoded: {error} ({type(error).__name__})") from None


def fit_image(pixels: Pixels, size: Size, fit: Fit, resample: Resample) -> Pixels:
    """Resize uint8 (h, w, C) to (H, W, C) for `size` (H, W), with antialias, keeping the aspect.

    `pad` shows all of the image, centred on black; `crop` fills the frame and cuts the two sides that reach beyond it.
    """
    if pixels.shape[:2] == size:
        return pixels
    height, width, channels = pixels.shape
    frame_height, frame_width = size
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    method = _METHODS[resample]
    if fit == "crop":
        across, down = min(width, height * frame_width / frame_height), min(height, width * frame_height / frame_width)
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
        return _to_array(resize(image, (frame_width, frame_height), method, box))
    top, left, inner_height, inner_width = padded_box(height, width, size)
    frame = np.zeros((*size, channels), np.uint8)
    inner = resize(image, (inner_width, inner_height), method)
    frame[top : top + inner_height, left : left + inner_width] = _to_array(inner)
    return frame


def padded_box(height: int, width: int, size: Size) -> tuple[int, int, int, int]:
    """Where an image of `height` x `width` lies in the frame `size` (H, W) when padded: top, left, height, width."""
    scale = min(size[0] / height, size[1] / width)
    down, across = max(1, round(height * scale)), max(1, round(width * scale))
    return (size[0] - down) // 2, (size[1] - across) // 2, down, across


def resize(
    image: Image.Image,
    size: tuple[int, int],
    method: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resize to `size` (width, height), first horizontally and then vertically; `box` is left, top, right, bottom.

    Pillow rounds to 8 bits after each axis, and which axis it takes first differs between its versions. Two calls with
    one axis each give the same bytes under all of them.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    across = image.resize((size[0], image.height), method, box=(left, 0, right, image.height))
    return across.resize(size, method, box=(0, top, size[0], bottom))


def _header(image: Image.Image) -> Header:
    kind = image.format or "unknown"
    # A phone's JPEG with a second picture behind the first calls itself MPO; a bitmap without file header, DIB.
    kind = {"MPO": "JPEG", "DIB": "BMP", "WEBP": "WebP"}.get(kind, kind)
    width, height = image.size
    if isinstance(image, TiffImageFile):  # its size is that of the upright image, other formats' as stored
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return Header(width=width, height=height, mode=image.mode, format=kind)


def _claimed_header(stream: BinaryIO) -> Header | None:
    """The header of a file that Pillow refuses to open for its size; None where it says no size.

    Pillow's plugins read the header alone, and are asked here without the guard, which is one for the whole process.
    """
    stream.seek(0)
    start = stream.read(16)
    for name in FORMATS:
        open_as, accepts = Image.OPEN[name.upper()]
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


def _check_sums(stream: BinaryIO) -> None:
    """Raise what Pillow raises on a PNG with a wrong checksum, which its decoder takes for pixels like any others."""
    stream.seek(0)
    with Image.open(stream, formats=("PNG",)) as image:
        image.verify()


def _pixels(image: Image.Image, channels: Channels) -> Pixels:
    """Convert in strips, since a conversion of all of a large image at once takes several times its memory."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if height <= rows:
        return _to_array(_to_channels(image, channels))
    pixels = np.empty((height, width, 1 if channels == "gray" else 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _to_array(_to_channels(image.crop((0, top, width, bottom)), channels))
    return pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 to 8; 1, upright, where it has none that makes sense."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing of the orientation, and the pixels are as good as before
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _camera(image: Image.Image) -> str | None:
    """Make and model of the camera, or None where the EXIF block is absent, broken or silent."""
    try:
        exif = image.getexif()
        make, model = (_printable(exif.get(tag)) for tag in (_MAKE_TAG, _MODEL_TAG))
    except Exception:  # as for the orientation
        return None
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


def _to_channels(image: Image.Image, channels: Channels) -> Image.Image:
    mode = "L" if channels == "gray" else "RGB"
    if image.mode.startswith("I;16"):
        image = _from_16_bits(np.asarray(image))
    elif image.mode == "I":
        image = _from_32_bits(np.asarray(image))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which have no set range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white.convert("RGB")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV") and mode == "L":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(values: npt.NDArray[np.uint16]) -> Image.Image:
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _from_32_bits(values: npt.NDArray[np.int32]) -> Image.Image:
    # Pillow opens some 16-bit files with 32-bit pixels; more than 16 bits have no range that all agree on.
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have 32 bits, which have no set range; save it with 8 or 16 bits")
    return _from_16_bits(values.astype(np.uint16))


def _to_array(image: Image.Image) -> Pixels:
    array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array
