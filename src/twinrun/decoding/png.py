"""The chunks of a PNG that decide its pixels. What else is in the file, and whether it is sound, changes nothing."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AROUND_DATA = 12  # length, kind and checksum of a chunk
_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_IS_LOWER_CASE = 0x20
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the kind of colour
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # of Adam7
_PACKED_AT_ONCE, _UNPACKED_AT_ONCE = 1 << 16, 1 << 20


@dataclass(frozen=True)
class PngPixels:
    """A PNG reduced to what decides its pixels, its depth in bits, and whether a color of it is transparent."""

    data: bytes
    bits: int
    is_gray: bool
    has_transparent_color: bool

    @property
    def is_beyond_pillow(self) -> bool:
        """Whether Pillow drops a part of it: lower bytes, or a transparent gray of less than 8 bits."""
        return self.bits == 16 or (self.is_gray and self.bits < 8 and self.has_transparent_color)


class ChecksumError(ValueError):
    """A chunk that decides pixels does not give its checksum. `share`: of the file before it, in [0, 1]."""

    def __init__(self, share: float) -> None:
        super().__init__("wrong checksum")
        self.share = share


def pixels_of_png(stream: BinaryIO) -> PngPixels:
    """Reduce a PNG; a cut chunk stays as it is, for the decoder to judge. Wrong checksums are not looked for."""
    stream.seek(0)
    data = memoryview(stream.read())
    parts: list[bytes | memoryview] = [SIGNATURE]
    bits, color, has_transparent_color = 8, 2, False
    for kind, start, end in _chunks(data):
        if kind == b"IHDR" and end - start >= _AROUND_DATA + 10:
            bits, color = data[start + 16], data[start + 17]
        has_transparent_color |= kind == b"tRNS"
        is_critical = not kind or not kind[0] & _IS_LOWER_CASE
        if is_critical or kind in _OF_PIXELS or (kind == b"eXIf" and _is_sound(data[start:end])):
            parts.append(data[start:end])
    return PngPixels(b"".join(parts), bits, color == 0, has_transparent_color)


def check_sums(png: PngPixels, stream: BinaryIO) -> None:
    """Raise ChecksumError where a chunk that decides pixels does not give its checksum, which decoders overlook."""
    data = memoryview(png.data)
    for kind, start, end in _chunks(data):
        if kind in _OF_PIXELS and not _is_sound(data[start:end]):
            raise ChecksumError(_share_before(data[start:end], stream))


def share_of_rows(png: PngPixels) -> float:
    """Share of the bytes of all rows that the compressed data give, in [0, 1]: decoders leave out what is missing."""
    data = memoryview(png.data)
    chunks = list(_chunks(data))
    start = next(start for kind, start, _ in chunks if kind == b"IHDR") + 8
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", data[start : start + 13])
    bits *= _SAMPLES[color]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        wanted += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    unpacked, held = zlib.decompressobj(), 0
    pieces = (
        data[at : min(at + _PACKED_AT_ONCE, end - 4)]
        for kind, start, end in chunks
        if kind == b"IDAT"
        for at in range(start + 8, end - 4, _PACKED_AT_ONCE)
    )
    try:
        for piece in pieces:
            packed: bytes | memoryview = piece
            while held < wanted:
                given = len(unpacked.decompress(packed, _UNPACKED_AT_ONCE))
                held, packed = held + given, unpacked.unconsumed_tail
                if not packed and given < _UNPACKED_AT_ONCE:  # else more may be waiting
                    break
    except zlib.error:  # a sum over all data that is wrong, which decoders do not look at
        return 1.0
    return min(held / wanted, 1)


def without_metadata(png: PngPixels) -> BinaryIO:
    """The reduced PNG as a file."""
    return io.BytesIO(png.data)


def _is_sound(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def _share_before(chunk: memoryview, stream: BinaryIO) -> float:
    stream.seek(0)
    data = stream.read()
    return data.index(chunk) / len(data)


def _chunks(data: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk; the last may end beyond the file."""
    start = len(SIGNATURE)
    while start < len(data):
        end = start + _AROUND_DATA + int.from_bytes(data[start : start + 4], "big")
        kind = bytes(data[start + 4 : start + 8])
        yield kind, start, min(end, len(data))
        if kind == b"IEND":
            return
        start = end
