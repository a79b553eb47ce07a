"""What is measured of an image."""

import imagehash
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from twinrun.core.arrays import Pixels
from twinrun.ingest.facts import Facts, measured, measured_stack, pixels_sha256

EMPTY = Facts(file_bytes=0, bytes_sha256=None)


def test_brightness_contrast_and_sharpness_are_what_numpy_says() -> None:
    pixels: Pixels = np.random.default_rng(0).integers(0, 256, (700, 2100, 1), dtype=np.uint8)

    facts = measured(EMPTY, pixels)

    gray = pixels[:, :, 0] / 255
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    np.testing.assert_allclose(np.array([facts.brightness, facts.contrast], float), [gray.mean(), gray.std()])
    np.testing.assert_allclose(np.array([facts.sharpness], float), [laplacian.std()])


def test_a_blurred_image_is_less_sharp_and_a_darker_one_less_bright() -> None:
    digit = load_digits().images[0] * 15
    sharp = np.asarray(Image.fromarray(digit.astype(np.uint8)).resize((32, 32), Image.Resampling.NEAREST))[..., None]
    blurred = np.asarray(Image.fromarray(sharp[..., 0]).resize((8, 8)).resize((32, 32)))[..., None]

    first, second, third = (measured(EMPTY, pixels) for pixels in (sharp, blurred, sharp // 2))

    assert first.sharpness is not None
    assert second.sharpness is not None
    assert first.sharpness > 1.5 * second.sharpness
    assert (third.brightness or 1) < (first.brightness or 0)


def test_the_perceptual_hash_is_imagehash_own_and_forgives_a_change_of_size() -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large, small = (Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC) for side in (200, 90))

    facts = [measured(EMPTY, np.asarray(image)) for image in (large, small)]

    hashes = [imagehash.hex_to_hash(fact.phash or "") for fact in facts]
    assert hashes[0] == imagehash.phash(large)
    assert hashes[0] - hashes[1] <= 4


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (32, 32, 3), (2, 9, 3), (1, 1, 1)])
def test_a_stack_of_images_is_measured_as_each_alone(shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, *shape), dtype=np.uint8)
    flat = np.stack([np.full(shape, value, np.uint8) for value in (0, 7, 255)])
    mirrored = np.maximum(noise, noise[:, ::-1, ::-1])
    images = np.concatenate([noise, flat, mirrored])
    known = [Facts(file_bytes=number, bytes_sha256=str(number)) for number in range(len(images))]

    assert measured_stack(known, images) == [measured(*pair) for pair in zip(known, images, strict=True)]


def test_the_perceptual_hashes_of_real_digits_are_imagehash_own_in_a_stack_and_alone() -> None:
    images = (load_digits().images[:, :, :, None] * 15).astype(np.uint8)

    facts = measured_stack([EMPTY] * len(images), images)

    own = [str(imagehash.phash(Image.fromarray(image[:, :, 0]))) for image in images]
    assert [fact.phash for fact in facts] == own
    assert [measured(EMPTY, image).phash for image in images[::20]] == own[::20]


def test_the_hash_of_pixels_tells_shapes_apart() -> None:
    row, column = np.zeros((1, 4, 1), np.uint8), np.zeros((4, 1, 1), np.uint8)

    assert pixels_sha256(row) != pixels_sha256(column)
    assert pixels_sha256(row) == pixels_sha256(np.zeros((1, 8, 1), np.uint8)[:, ::2])


def test_images_too_small_for_a_laplacian_have_no_sharpness() -> None:
    assert measured(EMPTY, np.zeros((2, 9, 3), np.uint8)).sharpness == 0


def test_colour_entropy_and_percentiles_are_what_numpy_says() -> None:
    pixels = np.random.default_rng(0).integers(0, 90, (64, 50, 3), dtype=np.uint8)
    pixels[:, :, 1] //= 3

    facts = measured(EMPTY, pixels)

    gray = np.asarray(Image.fromarray(pixels).convert("L")) / 255
    shares = np.unique(gray, return_counts=True)[1] / gray.size
    np.testing.assert_allclose(np.array([facts.red, facts.green, facts.blue], float), pixels.mean(axis=(0, 1)) / 255)
    np.testing.assert_allclose(facts.entropy or 0, -(shares * np.log2(shares)).sum())
    wanted = np.quantile(gray, [0.05, 0.95], method="inverted_cdf")
    np.testing.assert_allclose(np.array([facts.gray_p5, facts.gray_p95], float), wanted)


def test_a_gray_image_has_one_colour_and_a_blank_one_no_entropy() -> None:
    facts = measured(EMPTY, np.full((5, 5, 1), 51, np.uint8))

    assert facts.red == facts.green == facts.blue == facts.brightness == 0.2
    assert facts.entropy == 0
