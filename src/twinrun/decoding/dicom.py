"""DICOM files, by pydicom, which the extra `dicom` installs: the first frame, with the window that the file names."""

import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from twinrun.decoding.diagnosis import too_many_scans
from twinrun.decoding.samples import FormatError, Samples, Values
from twinrun.decoding.tiff import JPEG, JPEG_2000, claimed_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydicom import Dataset

_PREAMBLE = 128
_COMPRESSIONS = {b"\xff\xd8": JPEG, b"\xff\x4f": JPEG_2000, b"\0\0": JPEG_2000}  # by how a frame begins
_MOST_SAMPLES = 4  # of a pixel
_ABOUT_THE_FILE = 2  # the group of elements that are never compressed
_BYTES_PER_PIXEL, _BYTES_OF_HEADERS = 16, 16_000_000  # for each pixel that is allowed, and for all else
# Programs that remove what tells who a patient is leave such elements without a value.
_MAY_BE_EMPTY = (
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
)
_WINDOW_BITS = 16  # a window is stretched over so many


@dataclass(frozen=True)
class DicomHeader:
    """What the file says of its picture; `load` decodes it while the stream is open."""

    width: int
    height: int
    is_gray: bool
    load: "Callable[[], Samples]"


def is_dicom(start: bytes) -> bool:
    """Whether the first bytes of a file, at least 132 of them, are those of a DICOM file."""
    return start[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


def open_dicom(stream: BinaryIO, max_pixels: int, *, windowed: bool) -> DicomHeader:
    """Read the header. `windowed`: brightness as the file's window has it; otherwise the values themselves.

    Raises FormatError where there is no picture, or pydicom is not installed, and what pydicom raises.
    """
    try:
        from pydicom import dcmread
    except ImportError:
        raise FormatError("is a DICOM file: to read such files, pip install 'twinrun[dicom]'") from None
    _expect_small(stream, _BYTES_PER_PIXEL * max_pixels + _BYTES_OF_HEADERS)
    stream.seek(0)
    dataset = dcmread(stream)
    if "PixelData" not in dataset or not dataset.get("Rows") or not dataset.get("Columns"):
        raise FormatError("is a DICOM file without a picture")
    for name in _MAY_BE_EMPTY:
        if name in dataset and dataset[name].value in (None, "", []):
            del dataset[name]
    is_gray = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    return DicomHeader(
        int(dataset.Columns), int(dataset.Rows), is_gray, partial(_samples, dataset, is_gray, windowed=windowed)
    )


def _expect_small(stream: BinaryIO, most_bytes: int) -> None:
    """Raise FormatError where a file that is compressed as a whole holds more, which pydicom unpacks at once."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    stream.seek(_PREAMBLE + 4)
    about = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != _ABOUT_THE_FILE)
    if about.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS)
    if len(unpacked.decompress(stream.read(), most_bytes + 1)) > most_bytes:
        raise FormatError(f"is a DICOM file that would take more than {most_bytes:,} bytes of memory")


def _samples(dataset: "Dataset", is_gray: bool, *, windowed: bool) -> Samples:
    from pydicom.encaps import get_frame
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        frames = int(dataset.get("NumberOfFrames") or 1)
        tables = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
        frame = get_frame(
            dataset.PixelData, 0, number_of_frames=frames, extended_offsets=(*tables,) if all(tables) else None
        )
        if reason := too_many_scans([(frame, 1)]):
            raise FormatError(reason)
        compression, pixels = _COMPRESSIONS.get(frame[:2]), int(dataset.Rows) * int(dataset.Columns)
        if compression and (claimed := claimed_samples(compression, frame)) > _MOST_SAMPLES * pixels:
            raise FormatError(f"damaged: its frame claims {claimed:,} samples, and the file {pixels:,} pixels")
    values = pixel_array(dataset, index=0)
    if str(dataset.get("PhotometricInterpretation", "")) == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    if not is_gray:
        return Samples(values, "rgb", int(values.dtype.itemsize) * 8)
    values = _normalised(values, dataset) if windowed else apply_modality_lut(values, dataset)
    is_negative = dataset.PhotometricInterpretation == "MONOCHROME1"
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise FormatError("is a DICOM file whose values are not numbers once its slope is applied")
    if windowed:
        values, bits = np.rint(values * ((1 << _WINDOW_BITS) - 1)).astype(np.uint16), _WINDOW_BITS
        return Samples(values[:, :, None], "gray", bits, is_negative=is_negative)
    return Samples(values[:, :, None], "gray", None, unranged="its values have no set range", is_negative=is_negative)


def _normalised(values: Values, dataset: "Dataset") -> Values:
    """Values from 0 to 1 by the first window of the file, its table, or else the range of its stored bits."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    if "VOILUTSequence" in dataset:
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        looked_up: Values = apply_voi(apply_modality_lut(values, dataset), dataset) / float((1 << bits) - 1)
        return looked_up.clip(0, 1)
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        centers, widths = _numbers(dataset.WindowCenter), _numbers(dataset.WindowWidth)
        windows = list(zip(centers, widths, strict=False))
        center, width = next((window for window in windows if window[1] > 0), windows[0])
        if width <= 0:
            raise FormatError(
                f"is a DICOM file whose window has the width {width:g}; remove WindowWidth from it, so that "
                "the range of its values counts"
            )
        return _window(apply_modality_lut(values, dataset), center, width, str(dataset.get("VOILUTFunction", "LINEAR")))
    bits = int(dataset.BitsStored)
    low = -(1 << (bits - 1)) if dataset.PixelRepresentation == 1 else 0
    return ((values.astype(np.float64) - low) / ((1 << bits) - 1)).clip(0, 1)


def _window(values: Values, center: float, width: float, function: str) -> Values:
    """The three functions of DICOM PS3.3, C.11.2.1, from 0 to 1."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return ((values - center) / width + 0.5).clip(0, 1)
    return ((values - (center - 0.5)) / max(width - 1, 1e-9) + 0.5).clip(0, 1)


def _numbers(value: Any) -> list[float]:
    return [float(each) for each in (value if hasattr(value, "__iter__") else [value])]
