"""Changed copies are found among images that look alike, and nothing else is."""

import gzip
import io
import os
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinrun.core.arrays import Pixels
from twinrun.dataset.pairs import NearPair
from twinrun.ingest.copies.nearest import near_duplicates
from twinrun.ingest.facts import Facts, broken, pixels_sha256
from twinrun.validate.searches.leaks import kept_pairs
from twinrun.validate.splits import split_keys

SHOT_TWICE = {(1168, 2063), (2101, 2384), (2407, 2477), (2809, 2862)}
"""Test images of Fashion-MNIST that show one product as published, in other light."""


def pairs(images: Pixels) -> list[NearPair]:
    """The pairs that are found among images (N, H, W, C), all of which can be decoded."""
    return near_duplicates(images, facts_of(images))


def facts_of(images: Pixels, size: tuple[int, int] | None = None) -> list[Facts]:
    """What the search asks of images (N, H, W, C); `size` is the width and height that they had before padding."""
    width, height = size or (images.shape[2], images.shape[1])
    return [Facts(0, None, width=width, height=height, pixels_sha256=pixels_sha256(image)) for image in images]


def picture(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def array(image: Image.Image, like: Pixels) -> Pixels:
    height, width = like.shape[:2]
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).reshape(like.shape)


def encoded(pixels: Pixels) -> Pixels:
    buffer = io.BytesIO()
    picture(pixels).save(buffer, "JPEG", quality=50)
    return array(Image.open(buffer), pixels)


def resized(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    return array(picture(pixels).resize((round(0.8 * width), round(0.8 * height)), Image.Resampling.BILINEAR), pixels)


def mirrored(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def darker(pixels: Pixels) -> Pixels:
    return np.asarray(np.rint(pixels * 0.8), np.uint8)


def brighter(pixels: Pixels) -> Pixels:
    return np.asarray(np.minimum(np.rint(pixels * 1.2), 255), np.uint8)


def cropped(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    top, left = round(0.05 * height), round(0.05 * width)
    return array(picture(pixels).crop((left, top, width - left, height - top)), pixels)


@pytest.fixture(scope="module")
def fashion() -> Pixels:
    """3,000 real pictures of clothes, 28 x 28 pixels: (3000, 28, 28, 1)."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with fashion-mnist")
    with gzip.open(Path(folder) / "fashion-mnist/t10k-images-idx3-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)[:3000]


@pytest.mark.parametrize(
    ("change", "least"),
    [(encoded, 0.95), (resized, 0.95), (darker, 0.95), (brighter, 0.95), (mirrored, 0.9), (cropped, 0.9)],
)
def test_changed_copies_of_real_pictures_are_found_and_next_to_no_others(
    fashion: Pixels, change: Callable[[Pixels], Pixels], least: float
) -> None:
    copies = np.stack([change(image) for image in fashion[:40]])

    found = {(pair.first, pair.second) for pair in pairs(np.concatenate([fashion, copies]))}

    planted = {(number, len(fashion) + number) for number in range(len(copies))}
    assert len(found & planted) >= least * len(planted)
    assert len(found - planted - SHOT_TWICE) <= 0.001 * len(fashion)


def moved(pixels: Pixels) -> Pixels:
    """Two pixels to the right and one down; the edge is repeated."""
    return np.pad(pixels, ((1, 0), (2, 0), (0, 0)), mode="edge")[:-1, :-2]


def framed(pixels: Pixels) -> Pixels:
    """A white frame of one pixel in 28 around all of the picture, which shrinks."""
    border = max(1, pixels.shape[0] // 28)
    inner = np.full_like(pixels, 255)
    size = (pixels.shape[1] - 2 * border, pixels.shape[0] - 2 * border)
    small = np.asarray(picture(pixels).resize(size, Image.Resampling.BILINEAR))
    inner[border:-border, border:-border] = small.reshape(size[1], size[0], -1)
    return inner


def recoloured(pixels: Pixels) -> Pixels:
    """Another gain and offset for each channel."""
    gains, offsets = np.array([1.2, 0.85, 1.05]), np.array([-10, 15, 5])
    channels = pixels.shape[2]
    return np.asarray(np.clip(np.rint(pixels * gains[:channels] + offsets[:channels]), 0, 255), np.uint8)


@pytest.fixture(scope="module")
def photos() -> Pixels:
    """400 real photos of waste, 48 x 64 pixels in colour: (400, 48, 64, 3)."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with trashnet")
    files = sorted(Path(folder).glob("trashnet/dataset-resized/*/*.jpg"))[::6][:400]
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((64, 48))) for file in files])


@pytest.mark.parametrize("combination", list(combinations([mirrored, moved, framed, recoloured], 2)))
def test_copies_that_differ_in_two_ways_at_once_are_found_among_clothes(
    fashion: Pixels, combination: tuple[Callable[[Pixels], Pixels], ...]
) -> None:
    copies = np.stack([combination[1](combination[0](image)) for image in fashion[:40]])

    found = {(pair.first, pair.second) for pair in pairs(np.concatenate([fashion[:1000], copies]))}

    planted = {(number, 1000 + number) for number in range(len(copies))}
    assert len(found & planted) >= 0.8 * len(planted)
    assert len(found - planted) <= 1


def test_copies_that_differ_in_four_ways_at_once_are_found_among_clothes(fashion: Pixels) -> None:
    copies = np.stack([encoded(recoloured(moved(mirrored(image)))) for image in fashion[:40]])

    found = {(pair.first, pair.second) for pair in pairs(np.concatenate([fashion, copies]))}

    planted = {(number, len(fashion) + number) for number in range(len(copies))}
    assert len(found & planted) >= 0.6 * len(planted)
    assert len(found - planted - SHOT_TWICE) <= 0.001 * len(fashion)


def test_photos_that_were_mirrored_moved_recoloured_and_compressed_are_found(photos: Pixels) -> None:
    copies = np.stack([encoded(recoloured(moved(mirrored(image)))) for image in photos[:40]])

    found = [pair for pair in pairs(np.concatenate([photos, copies])) if pair.second >= len(photos)]

    assert len({(pair.first, pair.second) for pair in found} & {(row, 400 + row) for row in range(40)}) >= 36
    assert {pair.change for pair in found if pair.second == 400 + pair.first} == {"mirrored"}


def test_the_order_of_the_images_does_not_decide_what_is_found(photos: Pixels) -> None:
    images = np.concatenate([photos[:200], np.stack([framed(recoloured(image)) for image in photos[:20]])])
    order = np.random.default_rng(3).permutation(len(images))

    found = {(pair.first, pair.second) for pair in pairs(images)}
    shuffled = {tuple(sorted((int(order[pair.first]), int(order[pair.second])))) for pair in pairs(images[order])}

    assert shuffled == found


def test_handwritten_digits_which_all_look_alike_hold_only_the_copy_that_was_planted() -> None:
    from sklearn.datasets import load_digits

    digits = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    large = np.stack([np.asarray(Image.fromarray(digit).resize((32, 32))) for digit in digits])[..., None]

    assert pairs(large) == []
    (found,) = pairs(np.concatenate([large, encoded(large[7])[None]]))
    assert (found.first, found.second) == (7, len(large))
    assert found.change == "re-encoded"
    assert 0 < found.distance < 0.1


def test_of_three_copies_of_one_picture_every_pair_is_named(fashion: Pixels) -> None:
    first, second, third = len(fashion), len(fashion) + 1, len(fashion) + 2

    found = pairs(
        np.concatenate([fashion, encoded(fashion[9])[None], mirrored(fashion[9])[None], darker(fashion[9])[None]])
    )

    group = [(pair.first, pair.second) for pair in found if pair.second >= first]
    assert group == [(9, first), (9, second), (9, third), (first, second), (first, third), (second, third)]


@pytest.mark.parametrize("tested", [tuple(range(0, 90, 9)), (90,)])
def test_the_frames_of_a_still_camera_are_one_unit_and_few_of_their_pairs_are_compared(tested: tuple[int, ...]) -> None:
    view = picture(np.random.default_rng(5).integers(0, 256, (16, 16, 3)).astype(np.uint8)).resize((64, 64))
    noise = np.random.default_rng(6).integers(-3, 4, (90, 64, 64, 3))
    frames = (np.asarray(view, np.int64) + noise).clip(0, 255).astype(np.uint8)
    frames = np.concatenate([frames, frames[30:31]])  # for whose pixels row 30 stands
    splits = ["test" if row in tested else "train" for row in range(91)]
    facts = facts_of(frames)

    found = near_duplicates(frames, facts, splits)

    keys = split_keys([str(row) for row in range(90)], [None] * 90, [(pair.first, pair.second) for pair in found])
    assert len(set(keys)) == 1
    assert len(found) < 90 * 89 / 2 / 3
    pairs = kept_pairs(found, [fact.pixels_sha256 for fact in facts], splits, ["view"] * 91, [None] * 91)
    leaks = {row for pair in pairs for row in (pair.first, pair.second) if splits[pair.first] != splits[pair.second]}
    assert leaks >= set(range(90)) - {30}
    turned = near_duplicates(frames[::-1], facts[::-1], splits[::-1])
    by_pixels = [
        {frozenset((of[pair.first].pixels_sha256, of[pair.second].pixels_sha256)) for pair in listed}
        for of, listed in ((facts, found), (facts[::-1], turned))
    ]
    assert by_pixels[0] == by_pixels[1]


def test_cropped_copies_are_found_between_the_bars_of_padding(fashion: Pixels) -> None:
    wide = fashion[:1000, 3:24]
    copies = np.stack([cropped(image) for image in wide[:40]])
    padded = np.zeros((1040, 28, 28, 1), np.uint8)
    padded[:, 3:24] = np.concatenate([wide, copies])

    found = near_duplicates(padded, facts_of(padded, size=(640, 480)))

    planted = {(number, 1000 + number) for number in range(40)}
    assert len(planted & {(pair.first, pair.second) for pair in found}) >= 30


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind a process to a core")
def test_one_core_and_all_cores_find_the_same(fashion: Pixels) -> None:
    images = np.concatenate([fashion, np.stack([cropped(image) for image in fashion[:40]])])
    cores = os.sched_getaffinity(0)

    found = pairs(images)
    try:
        os.sched_setaffinity(0, {min(cores)})
        alone = pairs(images)
    finally:
        os.sched_setaffinity(0, cores)

    assert alone == found


def test_a_blank_picture_is_nobodys_neighbour(fashion: Pixels) -> None:
    blank = np.full((1, 28, 28, 1), 250, np.uint8)
    blank[0, 14, 14] = 252

    found = pairs(np.concatenate([fashion[:500], blank]))

    assert not [pair for pair in found if pair.second == 500]


def test_images_that_could_not_be_decoded_are_left_out() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 1)).astype(np.uint8)
    images[11] = images[3]

    found = near_duplicates(images, [*facts_of(images[:11]), broken(Facts(0, None), "truncated")])

    assert found == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_handful_of_images_is_no_error(count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)

    assert pairs(images) == []
