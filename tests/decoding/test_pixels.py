"""The same bytes give the same pixels, under every version of Pillow and in every frame."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.pillow_versions import CASES, Case, image, pixels_hash
from twinrun.decoding import decode
from twinrun.decoding.decode import fit_image, fit_images
from twinrun.ingest.copies.descriptors import content_boxes
from twinrun.ingest.facts import Facts, measured
from twinrun.validate.searches.shortcuts import corner_colours

# Computed under Pillow 12.3.0 and 13.0.0 alike: `python -m benchmarks.pillow_versions`.
GOLDEN = (
    "a63615724ea9c89ee192360bed8e10608d13308827dc5f032e228b35cc814cb2",
    "de3bb0fa475918ec21ff1cdbeb09383a8899e39cdc2d809967e2b44a0e470ea4",
    "cf02f5e4cf6b7cf3283164d018498d29287f7a7d2179bfd7b6ba1e25373a2139",
    "2647f07aaf7b6958f35caa6ebc4b36420dda0004d1c36c98bbbf6de15d545b39",
    "3875d778d33f37dfaadf2aafe0c9f2e0890507c541aa10540cfab8b33f2249f8",
    "29e31f6eb86472cdc9f213297586a54870eba2d7b0bd11e0e72fa626075228b3",
    "847064f69afe961869dc12bf3dda952159970d9b218e6a3363aa0d981d1a09d0",
    "25c3f2ab749516bb777a991a2feea5c3fc8ffd6d42fdd3d523cda97b40104635",
    "d6a1328039fca4d096086b2cae45d9d2767728b0d63bdde73ee1f18287f1c6a2",
    "f6a7b1ffd1d1395561f6eb68a1cfd3f7a36984269674b1bb33157c3e2260628e",
    "63006e233291e71a365d58bd3c758d38d619fa591dd58df45cbfc2b30d409569",
    "7eaa7c8980a1a873194ad08ca8febbdaf7483a4b35013e92b721a7cba8592107",
)


@pytest.mark.parametrize(("case", "digest"), list(zip(CASES, GOLDEN, strict=True)), ids=lambda value: str(value)[:60])
def test_an_image_becomes_the_pixels_that_it_became_under_every_pillow(case: Case, digest: str) -> None:
    assert pixels_hash(case) == digest


def test_one_perceptual_hash_is_that_of_every_pillow() -> None:
    hashes = [measured(Facts(0, None), image(case.height, case.width, case.channels)).phash for case in CASES]

    assert (
        hashlib.sha256(" ".join(map(str, hashes)).encode()).hexdigest()
        == "8532b27ddd2856c7031a21429ebcde2e0cfc306db887843a44f84c72606fbabd"
    )


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(40, 90, 3), (28, 28, 1), (9, 4, 3), (1, 1, 1)])
def test_a_stack_of_images_becomes_what_each_becomes_alone(
    shape: tuple[int, int, int], fit: decode.Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, *shape), dtype=np.uint8)

    alone = np.stack([fit_image(each, (32, 24), fit, "bicubic") for each in images])

    assert np.array_equal(fit_images(images, (32, 24), fit, "bicubic"), alone)
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 3 * shape[0] * shape[1])
    assert np.array_equal(fit_images(images, (32, 24), fit, "bicubic"), alone)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_two_passes_give_what_pillow_gives_where_only_one_side_changes(resample: str) -> None:
    pixels = image(40, 90, 3)

    fitted = fit_image(pixels, (40, 40), "crop", resample)  # type: ignore[arg-type]

    method = Image.Resampling[resample.upper()]
    assert np.array_equal(fitted, np.asarray(Image.fromarray(pixels).resize((40, 40), method, box=(25, 0, 65, 40))))


def test_bicubic_pixels_are_not_bilinear_ones() -> None:
    pixels = image(90, 60, 3)

    smooth, sharp = (fit_image(pixels, (32, 32), "pad", resample) for resample in ("bilinear", "bicubic"))

    assert smooth.shape == sharp.shape
    assert not np.array_equal(smooth, sharp)


def test_padding_into_an_oblong_frame_keeps_the_aspect_and_cropping_fills_it() -> None:
    tall, wide = np.full((80, 20, 1), 255, np.uint8), np.full((20, 80, 1), 255, np.uint8)
    size = (24, 32)

    padded, cropped = (fit_image(tall, size, fit, "bilinear") for fit in ("pad", "crop"))

    assert padded.shape == cropped.shape == (24, 32, 1)
    assert np.flatnonzero(padded[12, :, 0]).tolist() == list(range(13, 19))
    assert padded[:, 13:19].all()
    assert cropped.all()
    assert np.flatnonzero(fit_image(wide, size, "pad", "bilinear")[:, 16, 0]).tolist() == list(range(8, 16))


def test_cropping_cuts_the_same_from_both_sides_beyond_the_frame() -> None:
    columns = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 30, axis=0)

    cropped = fit_image(columns, (30, 40), "crop", "bilinear")

    assert np.array_equal(cropped[0, :, 0], np.arange(30, 70))


@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "turned by EXIF"])
def test_the_bars_of_an_oblong_frame_are_told_from_the_picture(turned: bool) -> None:
    wide, tall = image(60, 80, 3) // 2 + 100, image(80, 60, 3) // 2 + 100
    tall[:20, :20] = (255, 0, 0)
    images = np.stack([fit_image(pixels, (48, 64), "pad", "bilinear") for pixels in (wide, tall)])
    widths, heights = [80, 80 if turned else 60], [60, 60 if turned else 80]

    boxes = content_boxes(images, list(zip(widths, heights, strict=True)))
    corners = corner_colours(images, widths, heights)

    assert boxes is not None
    assert boxes.tolist() == [[0, 0, 48, 64], [0, 14, 48, 36]]
    assert corners["corner_top_left_red"][1] == pytest.approx(1, abs=0.05)
    assert corners["corner_top_left_blue"][1] == pytest.approx(0, abs=0.05)
