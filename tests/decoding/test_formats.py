"""Every layout of a format gives the pixels that its samples mean, or the true reason why it gives none."""

import contextlib
import io
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock import takes_at_most
from image_files import HEIC, Array, app1, chunk, encoded, exif, png, tiff, xmp
from imagecodecs import jpeg2k_encode, jpeg8_encode, jpegxl_encode, lerc_encode, png_encode, webp_encode
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit

from twinrun.base.errors import DecodeError
from twinrun.decoding import diagnosis
from twinrun.decoding.decode import Decoded, Header, decode_image
from twinrun.decoding.png import PngPixels, pixels_of_png, share_of_rows
from twinrun.decoding.samples import SampleRules

COLORS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
GRAY = COLORS[:, :, 0]
LARGE = np.zeros((2050, 2000), np.uint8)
DEEP, DEEP_GRAY = COLORS.astype(np.uint16) * 257, GRAY.astype(np.uint16) * 257


def read(data: bytes, **rules: Any) -> Decoded:
    return decode_image(data, channels="rgb", max_pixels=1_000_000, rules=SampleRules(**rules))


def pixels(data: bytes, **rules: Any) -> Array:
    return read(data, **rules).pixels


def why_not(data: bytes, **rules: Any) -> str:
    with pytest.raises(DecodeError) as caught:
        read(data, **rules)
    return str(caught.value)


def rgb(gray: Array) -> Array:
    return np.repeat(gray[:, :, None], 3, axis=2)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 5}], ids=["whole", "tiles", "strips"])
@pytest.mark.parametrize("order", [{}, {"byteorder": ">"}, {"bigtiff": True}], ids=["little", "big", "BigTIFF"])
def test_every_layout_of_a_tiff_gives_the_picture_that_its_samples_are(
    compression: str | None, layout: dict[str, Any], order: dict[str, Any]
) -> None:
    how = {**layout, **order, "compression": compression}
    planes, deep_planes = (np.moveaxis(samples, 2, 0) for samples in (COLORS, DEEP))

    read_back = {
        "rgb": pixels(tiff(COLORS, photometric="rgb", **how)),
        "rgb planes": pixels(tiff(planes, photometric="rgb", planarconfig="separate", **how)),
        "rgb 16": pixels(tiff(DEEP, photometric="rgb", **how)),
        "rgb 16 planes": pixels(tiff(deep_planes, photometric="rgb", planarconfig="separate", **how)),
    }
    gray_back = {
        "gray": pixels(tiff(GRAY, photometric="minisblack", **how)),
        "gray, white is 0": pixels(tiff(255 - GRAY, photometric="miniswhite", **how)),
        "gray 16": pixels(tiff(DEEP_GRAY, photometric="minisblack", **how)),
        "gray 16, white is 0": pixels(tiff(65535 - DEEP_GRAY, photometric="miniswhite", **how)),
    }

    assert [name for name, found in read_back.items() if not np.array_equal(found, COLORS)] == []
    assert [name for name, found in gray_back.items() if not np.array_equal(found, rgb(GRAY))] == []


@pytest.mark.parametrize("predictor", [2, 3])
def test_the_differences_that_a_tiff_may_store_are_added_up_again(predictor: int) -> None:
    whole = DEEP if predictor == 2 else DEEP.astype(np.float32)

    data = tiff(whole, photometric="rgb", compression="deflate", predictor=predictor)

    assert np.array_equal(pixels(data, depth=16), COLORS)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 7, 9, 10, 12, 14])
def test_packed_samples_of_a_tiff_use_the_whole_range_of_their_bits(bits: int) -> None:
    most = (1 << bits) - 1
    values = (np.arange(48 * 64) % (most + 1)).astype(np.uint16 if bits > 8 else np.uint8).reshape(48, 64)
    stream = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :]
    rows = np.packbits(stream.reshape(48, -1), axis=1)
    data = bytearray(tiff(rows, photometric="minisblack"))
    with io.BytesIO(data) as buffer:
        tags = Image.open(buffer).tag_v2  # type: ignore[attr-defined]
        assert tags[256] == rows.shape[1]
    data = retagged(data, {256: 64, 258: bits})

    found = pixels(bytes(data))

    assert np.array_equal(found[:, :, 0], np.rint(values.astype(float) * 255 / most).astype(np.uint8))


def retagged(data: bytearray, values: dict[int, int]) -> bytearray:
    """A little-endian TIFF with other values of some tags."""
    at = int.from_bytes(data[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        if (value := values.get(int.from_bytes(data[entry : entry + 2], "little"))) is not None:
            data[entry + 8 : entry + 12] = value.to_bytes(4, "little")
    return data


def test_bands_beyond_colour_are_passed_over_named_or_refused() -> None:
    infrared = np.dstack([COLORS, 255 - GRAY])
    bands = np.stack([DEEP_GRAY // (number + 1) for number in range(13)], axis=2)
    satellite = tiff(bands, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 12)
    called_alpha = tiff(infrared, photometric="rgb", extrasamples=["unassalpha"])

    assert np.array_equal(pixels(tiff(infrared, photometric="rgb", extrasamples=["unspecified"])), COLORS)
    assert np.array_equal(pixels(called_alpha, bands=(1, 2, 3)), COLORS)
    assert np.array_equal(pixels(called_alpha, bands=(4,)), rgb(255 - GRAY))
    assert "has 13 bands, and none of them is said to be a colour" in why_not(satellite)
    assert "ingest.bands" in why_not(satellite)
    assert np.array_equal(pixels(satellite, bands=(1, 1, 1)), rgb(GRAY))
    assert why_not(satellite, bands=(4, 3, 14)) == "has 13 bands and not the band 14 (params.yaml: ingest.bands)"


def test_transparency_of_16_bits_and_of_palettes_shows_the_ground() -> None:
    clear = np.where(GRAY < 100, 0, 65535).astype(np.uint16)
    options: dict[str, Any] = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    gray = tiff(np.dstack([DEEP_GRAY, clear]), photometric="minisblack", **options)
    color = tiff(np.dstack([DEEP, clear]), photometric="rgb", **options)
    halved = tiff(np.dstack([DEEP // 2, np.full_like(clear, 32768)]), photometric="rgb", extrasamples=["assocalpha"])

    for ground, value in (("white", 255), ("gray", 128), ("black", 0)):
        assert np.array_equal(pixels(gray, ground=ground), rgb(np.where(GRAY < 100, value, GRAY)))
        shown = np.where((GRAY < 100)[:, :, None], value, COLORS)
        assert np.array_equal(pixels(color, ground=ground), shown)
        assert np.abs(pixels(halved, ground=ground) - (COLORS / 2 + value / 2)).max() <= 2
    assert read(gray).is_transparent


def test_samples_without_a_set_range_are_read_where_a_setting_gives_them_one() -> None:
    shares = tiff((GRAY / 255).astype(np.float32), photometric="minisblack")
    signed = tiff((GRAY.astype(np.int16) - 60) * 8, photometric="minisblack")
    spread = np.rint((GRAY - GRAY.min()) * (255 / int(np.ptp(GRAY)))).astype(int)

    assert "floating-point numbers, which have no set range" in why_not(shares)
    assert "16 bits with a sign" in why_not(signed)
    assert "ingest.depth" in why_not(signed)
    for data in (shares, signed):
        assert np.abs(pixels(data, depth="data")[:, :, 0] - spread).max() <= 1
    assert "its values go from -480 to" in why_not(signed, depth=12)


@pytest.mark.parametrize("file", [tiff, lambda samples: png(samples, 16)], ids=["TIFF", "PNG"])
def test_12_bits_in_16_are_as_bright_as_a_setting_says(file: Any) -> None:
    data = file(GRAY.astype(np.uint16) * 16 + 15)

    assert read(data).used_bits == (12, 16)
    assert pixels(data).max() <= 16
    assert np.abs(pixels(data, depth=12)[:, :, 0].astype(int) - GRAY).max() <= 1
    assert "10 bits hold 0 to 1,023 (params.yaml: ingest.depth)" in why_not(data, depth=10)
    assert np.array_equal(pixels(png(COLORS), depth=12), COLORS)


def test_a_tiff_with_parts_missing_or_of_another_kind_says_so() -> None:
    planes = tiff(np.moveaxis(DEEP, 2, 0), photometric="rgb", planarconfig="separate")
    raw = tiff(DEEP_GRAY, photometric="cfa", extratags=[(33421, 3, 2, (2, 2)), (33422, 1, 4, b"\0\1\1\2")])

    assert why_not(planes[: len(planes) // 2]).startswith("truncated after 5")
    assert why_not(raw).startswith("is a camera's raw file")
    assert why_not(tiff(COLORS, photometric="cielab")).startswith("is a TIFF file whose colours are CIE L*a*b*")
    assert why_not(b"II*\0\xff\xff\xff\x7f") == "starts like TIFF and has a header that cannot be read"


def test_damaged_lzw_costs_an_image_and_not_the_process() -> None:
    planes = tiff(np.moveaxis(DEEP, 2, 0), photometric="rgb", planarconfig="separate", compression="lzw")
    values = np.random.default_rng(7)

    for _ in range(150):
        damaged = bytearray(planes)
        for at in values.integers(288, len(planes), 4).tolist():
            damaged[at] = int(values.integers(0, 256))
        with contextlib.suppress(DecodeError):
            assert pixels(bytes(damaged)).shape == COLORS.shape


@pytest.mark.parametrize(
    ("compression", "packed"),
    [
        (34892, lambda: jpeg8_encode(LARGE)),
        (34892, lambda: jpeg8_encode(LARGE).replace(b"\xff\xc0", b"\xff\xfe\0\4\xff\xc1\xff\xc0", 1)),
        (34712, lambda: jpeg2k_encode(LARGE, level=0)),
        (34887, lambda: lerc_encode(LARGE)),
        (34887, lambda: lerc_encode(LARGE.astype(np.float32))),
        (34933, lambda: png_encode(LARGE)),
        (50001, lambda: webp_encode(np.dstack([LARGE] * 3), lossless=True)),
        (50002, lambda: jpegxl_encode(LARGE.astype(np.uint16), lossless=True, effort=1)),
    ],
    ids=["JPEG", "JPEG whose remark hides its header", "JPEG 2000", "LERC", "LERC of floats", "PNG", "WebP", "JPEG XL"],
)
def test_a_part_of_a_tiff_that_claims_more_pixels_than_the_picture_is_not_unpacked(
    compression: int, packed: Any
) -> None:
    part = packed()
    small = bytearray(tiff(np.zeros((8, 8), np.uint8), photometric="minisblack", rowsperstrip=8))
    file = retagged(small, {259: compression, 273: len(small), 279: len(part)}) + part

    assert "damaged: parts of its picture claim" in why_not(bytes(file), depth="data")


def of_eight_parts(part: bytes, compression: int, apart: int = 0) -> bytes:
    """A TIFF of 8 x 8 gray pixels whose eight strips begin `apart` bytes after one another, in one JPEG."""
    small = bytearray(tiff(np.zeros((8, 8), np.uint8), photometric="minisblack", rowsperstrip=1))
    at = len(small) + len(part)
    offsets = b"".join((len(small) + number * apart).to_bytes(4, "little") for number in range(8))
    lengths = b"".join((len(part) - number * apart).to_bytes(4, "little") for number in range(8))
    file = retagged(small, {259: compression, 273: at, 279: at + 32}) + part + offsets + lengths
    for code in (273, 279):  # of 32 bits each
        entry = file.index(struct.pack("<H", code), int.from_bytes(file[4:8], "little"))
        file[entry + 2 : entry + 8] = struct.pack("<HI", 4, 8)
    return bytes(file)


def test_many_parts_of_a_tiff_that_are_the_same_large_image_are_not_unpacked() -> None:
    file = of_eight_parts(bytes(jpeg8_encode(LARGE[:1000])), 34892)

    assert why_not(file, depth="data") == "damaged: parts of its picture claim 16,000,000 samples"


@pytest.mark.parametrize("compression", [7, 34892])
def test_bytes_that_many_parts_of_a_tiff_share_are_looked_through_once(
    compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, markers = bytes(jpeg8_encode(np.zeros((400, 400), np.uint8))), diagnosis._markers
    looked: list[int] = []

    def counted(data: bytes) -> Iterator[tuple[int, int]]:
        looked.append(len(data))
        return markers(data)

    monkeypatch.setattr(diagnosis, "_markers", counted)

    with contextlib.suppress(DecodeError):
        read(of_eight_parts(part, compression))

    assert looked == [len(part)]
    assert why_not(of_eight_parts(part, compression, apart=1)) == "damaged: the parts of its picture overlap"


def test_a_tile_may_be_larger_than_all_pixels_that_are_allowed() -> None:
    small = tiff(COLORS, photometric="rgb", tile=(256, 256), compression="png")

    assert np.array_equal(decode_image(small, channels="rgb", max_pixels=48 * 64).pixels, COLORS)


def test_a_tiff_that_claims_more_samples_than_there_is_memory_for_is_refused_from_its_header() -> None:
    small = tiff(np.zeros((8, 8, 5), np.uint8), photometric="rgb", planarconfig="contig", extrasamples=[0, 0])

    assert why_not(bytes(retagged(bytearray(small), {256: 1000, 257: 1000, 277: 60_000}))).startswith(
        "claims 1,000 x 1,000 pixels of 60,000 samples"
    )


@pytest.mark.parametrize(
    ("samples", "bits", "clear"),
    [(DEEP_GRAY, 16, DEEP_GRAY[0, 0]), (DEEP, 16, DEEP[0, 0]), (GRAY, 8, GRAY[0, 0]), (COLORS, 8, COLORS[0, 0])]
    + [(GRAY % (1 << bits), bits, np.uint8(1)) for bits in (1, 2, 4)],
    ids=["gray 16", "rgb 16", "gray 8", "rgb 8", "gray 1", "gray 2", "gray 4"],
)
def test_the_transparent_color_of_a_png_is_white_whatever_its_depth(samples: Array, bits: int, clear: Any) -> None:
    transparent = np.atleast_1d(clear).astype(">u2").tobytes()

    found = pixels(png(samples, bits, before=chunk(b"tRNS", transparent)))

    is_clear = (samples.reshape(48, 64, -1) == clear).all(axis=2)
    opaque = pixels(png(samples, bits))
    assert is_clear.any()
    assert (found[is_clear] == 255).all()
    assert np.array_equal(found[~is_clear], opaque[~is_clear])


def test_colours_of_16_bits_in_a_png_are_rounded_and_not_cut() -> None:
    values = DEEP ^ 0x00F0

    assert np.array_equal(pixels(png(values, 16)), ((values.astype(int) + 128) // 257).astype(np.uint8))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("color", "samples", "bits"), [(0, 1, 1), (0, 1, 8), (2, 3, 8), (6, 4, 8), (2, 3, 16)])
def test_a_png_whose_data_end_before_its_last_row_is_truncated_and_one_with_dark_rows_is_not(
    color: int, samples: int, bits: int, interlaced: int
) -> None:
    half = 8 * (1 + 16 * samples * bits // 8)
    header = struct.pack(">IIBBBBB", 16, 16, bits, color, 0, 0, interlaced)

    def file(data: bytes) -> bytes:
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    assert pixels(file(bytes(3 * half))).shape == (16, 16, 3)
    assert "truncated after" in why_not(file(bytes(half)))


def test_a_large_png_with_a_dark_last_row_is_read_in_a_time_that_grows_with_its_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), np.uint8)
    noise[-1] = 0

    def file(data: bytes) -> PngPixels:
        parts = (chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 2, 0, 0, 0)), chunk(b"IDAT", data))
        return pixels_of_png(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")))

    rows = np.pad(noise.reshape(4000, -1), ((0, 0), (1, 0))).tobytes()  # each after the number of its filter

    with takes_at_most(1):  # 2.5 s where the rest of the file is copied again and again
        shares = [share_of_rows(file(zlib.compress(data, 0))) for data in (rows, rows[: len(rows) // 2])]

    assert shares == [1, 0.5]


def test_what_stands_beside_the_pixels_of_a_png_never_costs_them() -> None:
    much = zlib.compress(b"A" * 1_200_000)
    wrong = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    wrong[-1] ^= 1
    broken_exif = bytearray(chunk(b"eXIf", exif(6)[6:]))
    broken_exif[-1] ^= 1
    extras = [
        chunk(b"zTXt", b"workflow\0\0" + much),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + much),
        chunk(b"iCCP", b"printer\0\0" + much),
        b"".join(chunk(b"tEXt", b"a\0" + b"A" * 1_000_000) for _ in range(70)),
        bytes(wrong),
        bytes(broken_exif),
        chunk(b"pHYs", b"short"),
        chunk(b"gAMA", b""),
    ]

    for number, extra in enumerate(extras):
        assert np.array_equal(pixels(png(COLORS, before=extra)), COLORS), number
        assert np.array_equal(pixels(png(COLORS, after=extra)), COLORS), number


def test_the_orientation_in_xmp_alone_turns_nothing_and_that_of_exif_does() -> None:
    jpeg = encoded(Image.fromarray(COLORS), "JPEG", quality=95)
    upright = pixels(jpeg)
    packet = app1(b"http://ns.adobe.com/xap/1.0/\0" + xmp(6))

    assert np.array_equal(pixels(jpeg[:2] + packet + jpeg[2:]), upright)
    assert np.array_equal(pixels(jpeg[:2] + app1(exif(1)) + packet + jpeg[2:]), upright)
    assert np.array_equal(pixels(jpeg[:2] + app1(exif(6)) + jpeg[2:]), np.rot90(upright, -1))
    assert np.array_equal(pixels(png(COLORS, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)))), COLORS)
    assert np.array_equal(pixels(png(COLORS, before=chunk(b"eXIf", exif(6)[6:]))), np.rot90(COLORS, -1))
    for kind in ("WEBP", "AVIF"):
        with_xmp = encoded(Image.fromarray(COLORS), kind, xmp=xmp(6), quality=95)
        assert pixels(with_xmp).shape == COLORS.shape, kind


def test_a_bitmap_whose_fourth_byte_is_always_0_is_opaque() -> None:
    bitmap = encoded(Image.fromarray(np.dstack([COLORS, np.zeros_like(GRAY)])), "BMP")

    assert np.array_equal(pixels(bitmap), COLORS)


def test_what_the_first_frame_of_a_gif_leaves_free_shows_the_ground() -> None:
    frame = encoded(Image.new("RGB", (4, 4), "red"), "GIF")
    wide = frame[:6] + (8).to_bytes(2, "little") + frame[8:]

    found = pixels(wide, ground="black")

    assert found.shape == (4, 8, 3)
    assert (found[:, :4] == (255, 0, 0)).all()
    assert (found[:, 4:] == 0).all()


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [("PPM", "PPM", {}), ("JPEG2000", "JPEG 2000", {"irreversible": False}), ("ICO", "ICO", {"sizes": [(64, 48)]})],
)
def test_pictures_in_formats_that_people_have_are_read(kind: str, name: str, options: dict[str, Any]) -> None:
    decoded = read(encoded(Image.fromarray(COLORS), kind, **options))

    assert np.array_equal(decoded.pixels, COLORS)
    assert decoded.header.format == name


@pytest.mark.parametrize("bits", [12, 16])
def test_deep_samples_of_jpeg_2000_are_read_to_their_last_bit(bits: int) -> None:
    values = np.rint(COLORS.astype(float) * ((1 << bits) - 1) / 255).astype(np.uint16)

    data = bytes(jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits))

    assert np.array_equal(pixels(data), COLORS)
    assert np.array_equal(pixels(bytes(jpeg2k_encode(values[:, :, 0], level=0, bitspersample=bits))), rgb(GRAY))
    assert read(data).used_bits == (bits, bits)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_shallow_samples_of_jpeg_2000_reach_white(bits: int) -> None:
    values = GRAY >> (8 - bits)

    data = bytes(jpeg2k_encode(values, level=0, reversible=True, bitspersample=bits, codecformat="jp2"))

    assert np.array_equal(pixels(data), rgb(values * np.uint8(255 // ((1 << bits) - 1))))


def test_a_palette_of_a_tiff_may_hold_16_bits_or_8() -> None:
    palette = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)

    for colormap in (palette * 257, palette):
        data = tiff(GRAY, photometric="palette", colormap=colormap)
        assert np.array_equal(pixels(data), palette.T[GRAY])


def test_heic_and_avif_are_read() -> None:
    sides = np.zeros((32, 48, 3), np.uint8)
    sides[:, :24], sides[:, 24:] = (200, 40, 40), (40, 40, 200)

    for data, name in ((HEIC, "HEIC"), (encoded(Image.fromarray(sides), "AVIF", quality=90), "AVIF")):
        decoded = read(data)
        assert decoded.header.format == name
        assert np.abs(decoded.pixels.astype(int) - sides)[:, [*range(20), *range(28, 48)]].max() < 25


def test_gray_maps_of_16_bits_and_plain_text_are_read() -> None:
    assert np.array_equal(pixels(b"P5 64 48 65535\n" + DEEP_GRAY.astype(">u2").tobytes()), rgb(GRAY))
    assert np.array_equal(pixels(b"P2 64 48 255\n" + b" ".join(b"%d" % value for value in GRAY.flat)), rgb(GRAY))


def test_arrays_of_numpy_are_images_where_their_values_can_be() -> None:
    def npy(array: Array) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    for array in (COLORS, DEEP, COLORS / 255, np.asfortranarray(COLORS), COLORS.astype(np.int64), DEEP.astype(">u2")):
        assert np.array_equal(pixels(npy(array)), COLORS), array.dtype
    assert np.array_equal(pixels(npy(GRAY > 99)), rgb(np.where(GRAY > 99, 255, 0)))
    assert np.array_equal(pixels(npy(np.dstack([COLORS, GRAY])), bands=(3, 2, 1)), COLORS[:, :, ::-1])
    assert "channels first: np.moveaxis" in why_not(npy(np.moveaxis(COLORS, 2, 0)))
    assert "pixels must be uint8" in why_not(npy(np.array([object()])))
    assert "go from -4" in why_not(npy(GRAY - 4.0 - GRAY.min()))
    assert why_not(npy(COLORS)[:5000]).startswith("truncated after 5")


def test_a_dicom_file_shows_the_window_that_it_names() -> None:
    path = Path(str(get_testdata_file("MR_small.dcm")))
    dataset = dcmread(path)
    windowed = apply_voi_lut(dataset.pixel_array, dataset)  # from the lowest of 16 bits with a sign to the highest
    levels = np.rint((windowed + 32768) * (255 / 65535)).astype(np.uint8)

    decoded = read(path.read_bytes())

    assert decoded.header == Header(64, 64, "L", "DICOM")
    assert np.array_equal(decoded.pixels, rgb(levels))


def test_a_dicom_file_without_a_window_and_one_read_by_its_data_use_their_range() -> None:
    data = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()

    stored, spread = pixels(data), pixels(data, depth="data")

    assert stored.shape == spread.shape == (128, 128, 3)
    assert np.ptp(stored) < 20
    assert np.ptp(spread) == 255


def dicom(**elements: Any) -> bytes:
    """The file with a window, with other values of some elements."""
    dataset = dcmread(Path(str(get_testdata_file("MR_small.dcm"))))
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize("depth", ["file", "data", 12])
def test_where_the_lowest_value_is_white_every_depth_gives_the_negative(depth: Any) -> None:
    deep = GRAY.astype(np.uint16) * 16
    black, white = (pixels(tiff(deep, photometric=kind), depth=depth) for kind in ("minisblack", "miniswhite"))

    assert np.array_equal(white, 255 - black)
    if depth == "data":
        holed = np.where(np.arange(deep.shape[1]) < 3, np.nan, deep.astype(np.float32)).astype(np.float32)
        assert not pixels(tiff(holed, photometric="miniswhite"), depth=depth)[:, :3].any()
    negative = pixels(dicom(PhotometricInterpretation="MONOCHROME1"), depth=depth)
    assert np.array_equal(negative, 255 - pixels(dicom(), depth=depth))


def test_elements_of_a_dicom_file_without_a_value_are_as_good_as_absent() -> None:
    plain = pixels(dicom())

    assert np.array_equal(pixels(dicom(VOILUTSequence=[], RescaleSlope=None, RescaleIntercept=None)), plain)
    assert np.ptp(pixels(dicom(WindowCenter=None, WindowWidth=None))) > 0
    windows = pixels(dicom(WindowCenter=[0, 600], WindowWidth=[0, 1600]))
    assert np.array_equal(windows, pixels(dicom(WindowCenter=600, WindowWidth=1600)))
    assert why_not(dicom(Rows=None)) == "is a DICOM file without a picture"


def test_a_dicom_file_that_unpacks_to_more_than_images_may_take_is_refused_before_it_is_unpacked() -> None:
    dataset = dcmread(Path(str(get_testdata_file("MR_small.dcm"))))
    plain = pixels(dicom())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file, bomb = io.BytesIO(), io.BytesIO()
    dataset.save_as(file)
    dataset.add_new(0xFFFCFFFC, "OB", bytes(33_000_000))
    dataset.save_as(bomb)

    assert np.array_equal(pixels(file.getvalue()), plain)
    assert len(bomb.getvalue()) < 60_000
    assert why_not(bomb.getvalue()) == "is a DICOM file that would take more than 32,000,000 bytes of memory"


@pytest.mark.parametrize(
    ("elements", "problem"),
    [
        ({"WindowWidth": 0}, "whose window has the width 0"),
        ({"WindowWidth": -800}, "whose window has the width -800"),
        ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "whose values are not numbers"),
    ],
)
def test_a_dicom_file_whose_window_or_slope_makes_no_picture_is_refused(elements: dict[str, Any], problem: str) -> None:
    assert problem in why_not(dicom(**elements))


def test_a_dicom_file_without_pydicom_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)

    assert why_not(bytes(128) + b"DICM") == "is a DICOM file: to read such files, pip install 'twinrun[dicom]'"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\xff\x0a" + bytes(40), "is a JPEG XL image"),
        (b"8BPS\0\1", "is a Photoshop file"),
        (b"\x76\x2f\x31\x01" + bytes(40), "is an OpenEXR image"),
        (b"#?RADIANCE\n", "is a Radiance HDR image"),
        (b"qoif" + bytes(40), "is a QOI image"),
        (b"P7\nWIDTH 3", "is a PAM image"),
        (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "is a camera's raw file (CR3)"),
        (bytes(344) + b"n+1\0", "is a NIfTI volume"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0mif1hevc", "starts like HEIC and has a header that cannot be read"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "starts like AVIF and has a header that cannot be read"),
        (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0", "starts like ICO and has a header that cannot be read"),
        (b"\0\0\2\0\1\0\x10\x10\0\0\1\0\x20\0", "is a Windows cursor"),
        (b"PK\3\4" + bytes(26) + b"arr_0.npy", "is a NumPy archive of several arrays"),
    ],
)
def test_what_stays_out_is_called_what_it_is(start: bytes, words: str) -> None:
    assert why_not(start).startswith(words)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("beyond", [0, 5_000], ids=["to its length", "beyond its length"])
@pytest.mark.parametrize("there", [0.3, 0.6, 0.9, 0.97])
def test_a_jpeg_that_is_cut_and_filled_up_with_zeros_is_damaged(progressive: bool, beyond: int, there: float) -> None:
    whole = encoded(Image.fromarray(COLORS.repeat(6, axis=0).repeat(6, axis=1)), "JPEG", progressive=progressive)
    kept = int(there * len(whole))

    words = why_not(whole[:kept] + bytes(len(whole) - kept + beyond))

    assert words.startswith(("damaged: the last", "truncated"))


def test_zeros_after_the_end_of_a_jpeg_are_nobodys_business() -> None:
    whole = encoded(Image.fromarray(COLORS), "JPEG", progressive=True)

    assert np.array_equal(pixels(whole + bytes(4096)), pixels(whole))
    assert np.array_equal(pixels(whole + b"a trailer" + bytes(4096)), pixels(whole))


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded_and_the_bytes_of_one_in_a_video_are_not() -> None:
    whole = encoded(Image.fromarray(COLORS), "JPEG", progressive=True)

    assert re.match(r"has 6\d\d scans, and a JPEG of 3,072 pixels with more than 500 is not", why_not(scanned(600)))
    assert np.array_equal(pixels(whole + b"\xff\xda" * 600), pixels(whole))


def scanned(times: int) -> bytes:
    """A progressive JPEG in gray, 48 x 64, whose last scan comes some more times."""
    whole = encoded(Image.fromarray(GRAY), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * times + whole[-2:]


def test_a_large_jpeg_may_have_as_many_scans_as_photos_have_and_fewer_than_a_small_one() -> None:
    def enlarged(data: bytes) -> Array:
        at = data.index(b"\xff\xc2") + 5
        large = data[:at] + struct.pack(">HH", 6000, 5000) + data[at + 4 :]
        return decode_image(large, channels="gray", max_pixels=30_000_000).pixels

    with pytest.raises(DecodeError, match="a JPEG of 30,000,000 pixels with more than 66 is not decoded"):
        enlarged(scanned(80))
    assert enlarged(scanned(20)).shape == (6000, 5000, 1)
    assert pixels(scanned(80)).shape == COLORS.shape


def jpeg_in_tiff(compression: int) -> Any:
    def file(part: bytes) -> bytes:
        whole = bytearray(tiff(np.zeros_like(GRAY), photometric="minisblack", rowsperstrip=48))
        return bytes(retagged(whole, {259: compression, 273: len(whole), 279: len(part)})) + part

    return file


def jpeg_in_dicom(part: bytes) -> bytes:
    dataset = dcmread(Path(str(get_testdata_file("MR_small.dcm"))))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 48, 64, 8, 8, 7
    dataset.PixelRepresentation, dataset.PixelData = 0, encapsulate([part])
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    "file", [jpeg_in_tiff(7), jpeg_in_tiff(34892), jpeg_in_dicom], ids=["TIFF of libtiff", "other TIFF", "DICOM"]
)
def test_a_jpeg_of_thousands_of_scans_inside_another_file_is_refused_before_it_is_decoded(file: Any) -> None:
    assert pixels(file(scanned(20))).shape == COLORS.shape
    assert re.match(
        r"has 6\d\d scans, and a JPEG of 3,072 pixels with more than 500 is not", why_not(file(scanned(600)))
    )


@pytest.mark.parametrize("encode", [jpeg8_encode, lambda image: jpeg2k_encode(image, level=0)], ids=["JPEG", "2000"])
def test_a_frame_of_a_dicom_file_that_claims_more_pixels_than_the_file_is_not_decoded(encode: Any) -> None:
    assert why_not(jpeg_in_dicom(encode(LARGE))) == (
        "damaged: its frame claims 4,100,000 samples, and the file 3,072 pixels"
    )
