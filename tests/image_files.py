"""Image files whose pixels are known, made sample by sample and chunk by chunk."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

Array = npt.NDArray[Any]

# 48 x 32 pixels: red on the left, blue on the right. HEVC is not encoded by what decodes it here.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoQABAAAAAAAAALgAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAAAADd"
    "aXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAADAAAAABAAAAIAAAAAH////wAAAAAv///+AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAMBtZGF0AAAA"
    "tCgBrwT4QTGZv/R7///yi52X5EYyjxPIPsy+ffgKp//EaEPGEBHDAxms670JiH+dbg7J1zNfp5q5nYz7jDv0Y+MO/wY04Qr+LePtkqAUzlrMn+Xs"
    "XhFq+8vqPYLNreWFIE7sHPFswYHq7Cft/VWLAvWC8bVWsJSLiIIEQtCKUMOyAlWwG992cZW+YJC8y9m74ODFyYQCeWurwHIa2oxVs2Zn/DemLYHb"
    "qCLsDbEUCB83ViFMHw=="
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(samples: Array, **options: Any) -> bytes:
    """The file that tifffile writes."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: Array, bits: int = 8, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of samples (H, W, C), with chunks before and after its pixels."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, count = samples.shape
    rows = [row.astype(">u2").tobytes() if bits == 16 else _packed(row, bits) for row in samples]
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[count], 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def _packed(row: Array, bits: int) -> bytes:
    values = row.reshape(-1).astype(np.uint8)
    return np.packbits(np.unpackbits(values[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes()


def exif(orientation: int) -> bytes:
    """An EXIF block, as it stands in a JPEG."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)


def xmp(orientation: int) -> bytes:
    """An XMP packet that names an orientation."""
    return (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        b"<rdf:Description xmlns:tiff='http://ns.adobe.com/tiff/1.0/' tiff:Orientation=\"%d\"/></rdf:RDF></x:xmpmeta>"
    ) % orientation


def app1(payload: bytes) -> bytes:
    """A segment of metadata in a JPEG."""
    return b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
