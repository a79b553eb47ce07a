"""Decoding: every format and mode that people have, and words for everything else."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from twinrun.base.errors import DecodeError
from twinrun.decoding.decode import Header, decode_image, fit_image

LIMIT = 1_000_000


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, channels: str = "rgb") -> Any:
    return decode_image(data, channels=channels, max_pixels=LIMIT).pixels  # type: ignore[arg-type]


@pytest.fixture
def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WebP", {"lossless": True})])
def test_formats_without_loss_give_back_the_pixels_and_their_header(
    picture: Image.Image, kind: str, options: dict[str, Any]
) -> None:
    decoded = decode_image(encoded(picture, kind, **options), channels="rgb", max_pixels=LIMIT)

    assert np.array_equal(decoded.pixels, np.asarray(picture))
    assert decoded.header == Header(width=9, height=6, mode="RGB", format=kind)


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_formats_with_loss_give_nearly_the_pixels(kind: str) -> None:
    smooth = Image.linear_gradient("L").resize((64, 64))

    pixels = pixels_of(encoded(smooth, kind), "gray")[:, :, 0]

    assert np.abs(pixels.astype(int) - np.asarray(smooth)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WebP"])
def test_every_exif_orientation_is_applied(picture: Image.Image, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, kind, exif=exif, **({"lossless": True} if kind == "WebP" else {}))

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif))))

    decoded = decode_image(data, channels="rgb", max_pixels=LIMIT)

    assert np.array_equal(decoded.pixels, np.asarray(upright))
    assert (decoded.header.width, decoded.header.height) == picture.size


def test_a_broken_exif_block_does_not_cost_the_image(picture: Image.Image) -> None:
    data = encoded(picture, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")

    assert np.array_equal(pixels_of(data), np.asarray(picture))


def test_sixteen_bits_become_the_nearest_of_eight() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)

    for kind in ("PNG", "TIFF"):
        assert pixels_of(encoded(image, kind), "gray")[:, :, 0].tolist() == [[0, 0, 1, 1, 128, 255]]


def test_transparency_shows_white_in_every_mode_that_has_it() -> None:
    clear, half = (200, 0, 0, 0), (0, 0, 0, 128)
    image = Image.new("RGBA", (2, 1))
    image.putdata([clear, half])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putdata([0, 1])

    assert pixels_of(encoded(image, "PNG")).tolist() == [[[255, 255, 255], [127, 127, 127]]]
    assert pixels_of(encoded(image.convert("LA"), "PNG"), "gray").tolist() == [[[255], [127]]]
    assert pixels_of(encoded(palette, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 0, 0]]]
    assert pixels_of(encoded(palette, "PNG")).tolist() == [[[10, 20, 30], [0, 0, 0]]]


def test_cmyk_and_one_bit_and_gray_become_what_is_asked_for() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100)
    bits = encoded(Image.new("1", (3, 1), 1), "PNG")
    gray = encoded(Image.new("L", (3, 1), 77), "PNG")

    assert (pixels_of(cmyk) == 255).all()
    assert pixels_of(bits, "gray").tolist() == [[[255]] * 3]
    assert pixels_of(gray).tolist() == [[[77, 77, 77]] * 3]


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]

    for kind in ("GIF", "WebP", "PNG", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixels_of(data)[0, 0, 0] > 250, kind
        assert pixels_of(data)[0, 0, 2] < 5, kind


def test_large_images_are_converted_in_strips_with_the_same_result() -> None:
    values = np.random.default_rng(0).integers(0, 256, (2600, 2000, 4), dtype=np.uint8)
    image = Image.fromarray(values)

    pixels = decode_image(encoded(image, "PNG", compress_level=0), channels="gray", max_pixels=10**7).pixels

    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    assert np.array_equal(pixels[:, :, 0], np.asarray(white.convert("RGB").convert("L")))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"never looked at") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "size"), [(1001, 1000, "1,001 x 1,000"), (65536, 65536, "65,536 x 65,536")]
)
def test_a_bomb_is_refused_from_its_header_and_before_memory_is_taken(width: int, height: int, size: str) -> None:
    seen: list[Header] = []

    with pytest.raises(DecodeError) as caught:
        decode_image(bomb(width, height), channels="gray", max_pixels=LIMIT, on_header=seen.append)

    assert str(caught.value) == (
        f"claims {size} pixels, and at most 1,000,000 in all are decoded (params.yaml: ingest.max_pixels)"
    )
    assert seen == []
    assert caught.value.header == Header(width, height, mode="L", format="PNG")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("width", "height"), [(1, 250_001), (90_000_000, 1)])
def test_an_image_whose_resizing_would_take_gigabytes_is_refused_from_its_header(width: int, height: int) -> None:
    with pytest.raises(DecodeError, match="images with more than 250,000 on a side are not decoded") as caught:
        decode_image(bomb(width, height), channels="gray", max_pixels=100_000_000)

    assert caught.value.header == Header(width, height, mode="L", format="PNG")  # type: ignore[attr-defined]


def test_a_size_that_no_table_holds_is_told_in_words_alone() -> None:
    data = bytearray(encoded(Image.new("RGB", (9, 9)), "BMP"))
    data[18:22] = struct.pack("<i", -127)  # read without its sign

    with pytest.raises(DecodeError, match=r"claims 4,294,967,169 x 9 pixels") as caught:
        decode_image(bytes(data), channels="gray", max_pixels=LIMIT)

    assert caught.value.header is None  # type: ignore[attr-defined]


def test_pillows_guard_against_bombs_stands_after_one_was_refused() -> None:
    before = Image.MAX_IMAGE_PIXELS

    with pytest.raises(DecodeError):
        decode_image(bomb(65536, 65536), channels="gray", max_pixels=LIMIT)

    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb(65536, 65536)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello world", "is not an image"),
        (b"\x89PNG\r\n\x1a\n and more", "starts like PNG"),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:300], "truncated"),
        (b"<!DOCTYPE html><title>Not found</title>", "is an HTML page"),
        (b"%PDF-1.7", "is a PDF document"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        (encoded(Image.new("I", (9, 9), 1 << 20), "TIFF"), "32 bits"),
        (b"farbfeld" + bytes(20), "is a farbfeld image"),
    ],
)
def test_what_cannot_be_decoded_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        decode_image(data, channels="rgb", max_pixels=LIMIT)


def noisy(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), dtype=np.uint8)
    noise[::7] = 0
    return Image.fromarray(noise).convert(mode)


def why_not(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, channels="rgb", max_pixels=LIMIT)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("JPEG", "RGB", {"quality": 95}),
        ("GIF", "P", {"interlace": 0}),
        ("GIF", "P", {"interlace": 1, "transparency": 3}),
        ("WebP", "RGB", {"quality": 80}),
        ("WebP", "RGB", {"lossless": True}),
    ],
)
def test_a_truncated_image_says_after_what_share_it_ends(kind: str, mode: str, options: dict[str, Any]) -> None:
    data = encoded(noisy(mode), kind, **options)

    words = why_not(data[: len(data) * 61 // 100])

    share = re.fullmatch(r"truncated after (\d+)%", words)
    assert share is not None, words
    assert abs(int(share[1]) - 61) <= 4


def test_a_truncated_image_whose_rows_do_not_tell_where_it_ends_is_given_no_share() -> None:
    progressive = encoded(noisy(), "JPEG", progressive=True)
    whole_but_for_its_end = encoded(noisy(), "PNG")[:-30]

    assert why_not(progressive[: len(progressive) * 61 // 100]) == "truncated: the end of the file is missing"
    assert why_not(whole_but_for_its_end) == "truncated: the end of the file is missing"


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("GIF", {}), ("JPEG", {"progressive": True}), ("WebP", {"lossless": True})]
)
def test_a_file_whose_tail_was_never_written_is_said_to_end_in_zeros(kind: str, options: dict[str, Any]) -> None:
    data = encoded(noisy(), kind, **options)
    there = len(data) * 61 // 100

    assert why_not(data[:there] + bytes(len(data) - there)) == "damaged: the last 39% of the file are zeros"


def test_a_png_with_something_else_in_it_says_from_where_on() -> None:
    data = encoded(noisy(), "PNG")
    second_part = data.index(b"IDAT", data.index(b"IDAT") + 4) - 4

    words = why_not(data[:second_part] + b"\n" * (len(data) - second_part))

    share = round(100 * second_part / len(data))
    assert words == f"damaged: the PNG data after {share}% of the file do not give their checksum"


def test_a_page_of_a_web_server_that_was_saved_as_a_picture_is_called_so() -> None:
    with pytest.raises(DecodeError, match=r"^is an HTML page named \.jpg$"):
        decode_image(b"\n<html><body>404</body></html>", channels="rgb", max_pixels=LIMIT, named=".jpg")


def test_the_camera_is_told_by_the_exif_block_and_its_maker_only_once() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon\0", "Canon EOS 5D"

    decoded = decode_image(encoded(Image.new("RGB", (9, 9)), "JPEG", exif=exif), channels="rgb", max_pixels=LIMIT)

    assert decoded.camera == "Canon EOS 5D"
    assert decode_image(encoded(Image.new("RGB", (9, 9)), "JPEG"), channels="rgb", max_pixels=LIMIT).camera is None


def test_nothing_but_a_decode_error_comes_out_of_hostile_files(hostile_images: list[Path]) -> None:
    refused = []
    for path in hostile_images:
        try:
            pixels = decode_image(path.read_bytes(), channels="rgb", max_pixels=LIMIT * 60).pixels
            assert fit_image(pixels, (8, 8), "crop", "bilinear").shape == (8, 8, 3)
        except DecodeError as error:
            refused.append(str(error))

    assert 100 < len(refused) < 250
    assert [words for words in refused if re.search(r"^$|PNG file \(chunk|100%|decoder object", words)] == []


def test_padding_keeps_all_of_the_image_centred_on_black() -> None:
    white = np.full((10, 40, 1), 255, np.uint8)

    fitted = fit_image(white, (20, 20), "pad", "bilinear")

    assert fitted.shape == (20, 20, 1)
    assert np.flatnonzero(fitted[:, 10, 0]).tolist() == [7, 8, 9, 10, 11]
    assert (fitted[7:12] == 255).all()


def test_cropping_fills_the_square_with_the_middle() -> None:
    image = np.zeros((10, 40, 3), np.uint8)
    image[:, 15:25] = 255

    assert (fit_image(image, (10, 10), "crop", "bilinear") == 255).all()


def test_shrinking_is_antialiased_and_equal_size_changes_nothing() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255

    small = fit_image(stripes, (8, 8), "pad", "bilinear")

    assert abs(int(small.mean()) - 127) < 3
    assert small.std() < 20
    assert np.array_equal(fit_image(stripes, (64, 64), "crop", "bilinear"), stripes)


def test_a_thread_of_an_image_survives_both_ways_of_fitting() -> None:
    thread = np.full((1, 3000, 1), 200, np.uint8)

    assert fit_image(thread, (16, 16), "pad", "bilinear").max() == 200
    assert fit_image(thread, (16, 16), "crop", "bilinear").shape == (16, 16, 1)


def test_a_png_whose_pixels_decode_and_whose_checksum_is_wrong_is_broken() -> None:
    whole = encoded(noisy(), "PNG")
    checksum = whole.rindex(b"IEND") - 5  # the last byte of the last chunk of pixels

    assert pixels_of(whole).shape[2] == 3
    words = why_not(whole[:checksum] + bytes([whole[checksum] ^ 1]) + whole[checksum + 1 :])
    assert re.fullmatch(r"damaged: the PNG data after \d+% of the file do not give their checksum", words)
