"""What is measured of an image."""

import imagehash
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from twinrun.data.decode import Pixels
from twinrun.data.facts import Facts, measured, pixels_sha256

EMPTY = Facts(file_bytes=0, bytes_sha256=None)


def test_brightness_contrast_and_sharpness_are_what_numpy_says() -> None:
    pixels: Pixels = np.random.default_rng(0).integers(0, 256, (700, 2100, 1), dtype=np.uint8)

    facts = measured(EMPTY, pixels)

    gray = pixels[:, :, 0] / 255
    laplacian = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    np.testing.assert_allclose([facts.brightness, facts.contrast], [gray.mean(), gray.std()])
    np.testing.assert_allclose([facts.sharpness], [laplacian.std()])


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


def test_the_hash_of_pixels_tells_shapes_apart() -> None:
    row, column = np.zeros((1, 4, 1), np.uint8), np.zeros((4, 1, 1), np.uint8)

    assert pixels_sha256(row) != pixels_sha256(column)
    assert pixels_sha256(row) == pixels_sha256(np.zeros((1, 8, 1), np.uint8)[:, ::2])


def test_images_too_small_for_a_laplacian_have_no_sharpness() -> None:
    assert measured(EMPTY, np.zeros((2, 9, 3), np.uint8)).sharpness == 0
