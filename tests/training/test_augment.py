"""What an image becomes depends on (seed, epoch, image id), not on its company."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from twinrun.core.arrays import Pixels
from twinrun.core.keyed import UInt64Array, id_keys
from twinrun.core.params import AugmentParams
from twinrun.training.augment import augment, mix, partners

_NONE = dict.fromkeys(("rotate_deg", "erase", "brightness", "contrast", "saturation", "hue", "mixup", "cutmix"), 0.0)
NOTHING = AugmentParams(
    **_NONE, shift_px=0, shift_border="zeros", flip=False, flip_in_turn=False, crop_scale=1.0, crop_ratio=1.0
)
EVERYTHING = replace(
    NOTHING,
    shift_px=2,
    flip=True,
    rotate_deg=15.0,
    erase=0.5,
    crop_scale=0.6,
    crop_ratio=1.3,
    brightness=0.2,
    contrast=0.2,
)
IMAGES = np.ascontiguousarray((load_digits().images[:100] * 15).astype(np.uint8).repeat(4, 1).repeat(4, 2)[..., None])
KEYS = id_keys([f"{i:016x}" for i in range(100)])


def test_an_image_becomes_the_same_alone_and_in_any_batch() -> None:
    together = augment(IMAGES, KEYS, 7, 3, EVERYTHING)

    alone = np.concatenate([augment(IMAGES[i : i + 1], KEYS[i : i + 1], 7, 3, EVERYTHING) for i in range(100)])
    backwards = augment(IMAGES[::-1].copy(), KEYS[::-1].copy(), 7, 3, EVERYTHING)[::-1]

    assert (together == alone).all()
    assert (together == backwards).all()


@pytest.mark.parametrize(("seed", "epoch"), [(8, 3), (7, 4)])
def test_another_seed_or_epoch_gives_other_pictures(seed: int, epoch: int) -> None:
    assert (augment(IMAGES, KEYS, 7, 3, EVERYTHING) != augment(IMAGES, KEYS, seed, epoch, EVERYTHING)).any()


def test_without_settings_nothing_changes_and_the_given_images_never_do() -> None:
    before = IMAGES.copy()

    unchanged = augment(IMAGES, KEYS, 0, 0, NOTHING)
    augment(IMAGES, KEYS, 0, 0, EVERYTHING)

    assert (unchanged == IMAGES).all()
    assert (before == IMAGES).all()


def test_a_shift_moves_whole_pixels_by_at_most_the_set_number_and_fills_with_zeros() -> None:
    image = np.zeros((100, 9, 9, 1), dtype=np.uint8)
    image[:, 4, 4] = 255

    moved = augment(image, KEYS, 0, 0, replace(NOTHING, shift_px=2))

    places = np.argwhere(moved[..., 0] == 255)[:, 1:] - 4
    assert (moved.sum(axis=(1, 2, 3)) == 255).all()
    assert {tuple(place) for place in np.abs(places).tolist()} == {(a, b) for a in range(3) for b in range(3)}


def test_a_shift_lets_in_the_image_mirrored_at_its_border_where_that_is_set() -> None:
    random = np.random.default_rng(0)
    images = np.full_like(IMAGES, random.integers(1, 256, IMAGES.shape))  # no border is zeros by chance
    wide = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    side = images.shape[1]
    cuts = np.stack([wide[:, y : y + side, x : x + side] for y in range(7) for x in range(7)])
    params = replace(NOTHING, shift_px=3, shift_border="mirror")

    moved = augment(images, KEYS, 0, 0, params)
    flipped = augment(images, KEYS, 0, 0, replace(params, flip=True))

    same = (cuts == moved).all(axis=(2, 3, 4))
    assert (same.sum(axis=0) == 1).all()
    assert same.any(axis=1).sum() > 30
    either = (cuts == flipped).all(axis=(2, 3, 4)) | (cuts[..., ::-1, :] == flipped).all(axis=(2, 3, 4))
    assert (either.sum(axis=0) == 1).all()


def test_half_of_the_images_are_mirrored() -> None:
    flipped = augment(IMAGES, KEYS, 0, 0, replace(NOTHING, flip=True))

    mirrored = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (flipped == IMAGES).all(axis=(1, 2, 3))
    assert (mirrored | kept).all()
    assert 30 < mirrored.sum() < 70


def test_a_rotation_turns_about_the_centre_and_keeps_the_picture() -> None:
    disc = np.zeros((100, 33, 33, 3), dtype=np.uint8)
    y, x = np.mgrid[:33, :33] - 16
    disc[:, y**2 + x**2 < 100] = 200

    turned = augment(disc, KEYS, 0, 0, replace(NOTHING, rotate_deg=180.0))

    assert np.abs(turned.astype(int) - disc).mean() < 4


def test_erasing_takes_a_rectangle_of_the_set_share_of_images() -> None:
    white = np.full((100, 32, 32, 1), 255, dtype=np.uint8)

    erased = augment(white, KEYS, 0, 0, replace(NOTHING, erase=0.5))

    holes = (erased == 0).mean(axis=(1, 2, 3))
    assert 30 < (holes > 0).sum() < 70
    assert holes.max() < 0.4


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_a_crop_keeps_at_least_the_set_share_of_the_area_and_fills_the_frame(scale: float) -> None:
    ramp = np.zeros((100, 64, 64, 1), dtype=np.uint8)
    ramp[...] = (np.arange(64) * 4).astype(np.uint8)[None, None, :, None]

    cropped = augment(ramp, KEYS, 0, 0, replace(NOTHING, crop_scale=scale)).astype(int)

    widths = (cropped[:, 32, 56, 0] - cropped[:, 32, 8, 0]) / (4 * 48)  # how fast the ramp rises now
    assert widths.min() > np.sqrt(scale) - 0.02
    assert widths.min() < np.sqrt(scale) + 0.15
    assert widths.max() < 1.02
    assert np.ptp(cropped[:, 8, 8, 0]) > 4 * 64 * (1 - np.sqrt(scale)) * 0.5  # from many places


def test_the_ratio_stretches_a_crop_both_ways() -> None:
    y, x = np.mgrid[:64, :64] * 4
    ramps = np.stack([x, y], axis=-1)[None].repeat(100, 0).astype(np.uint8)
    images = np.concatenate([ramps, ramps[..., :1]], axis=-1)

    cropped = augment(images, KEYS, 0, 0, replace(NOTHING, crop_scale=0.3, crop_ratio=2.0)).astype(int)

    wide = cropped[:, 32, 56, 0] - cropped[:, 32, 8, 0]
    tall = cropped[:, 56, 32, 1] - cropped[:, 8, 32, 1]
    assert 1.6 < (wide / tall).max() < 2.1
    assert 1.6 < (tall / wide).max() < 2.1


def test_light_and_contrast_change_by_at_most_the_set_share() -> None:
    image = np.full((100, 8, 8, 3), 60, dtype=np.uint8)
    image[:, :4] = 100

    lit = augment(image, KEYS, 0, 0, replace(NOTHING, brightness=0.5)).astype(int)
    contrasted = augment(image, KEYS, 0, 0, replace(NOTHING, contrast=0.5)).astype(int)

    assert (np.abs(lit[:, 0, 0, 0] / 100 - lit[:, 7, 7, 0] / 60) < 0.02).all()
    assert 50 <= lit[:, 0].min() < 60
    assert 140 < lit[:, 0].max() <= 150
    assert (np.abs(contrasted.mean(axis=(1, 2, 3)) - 80) <= 0.5).all()
    spread = (contrasted[:, 0, 0, 0] - contrasted[:, 7, 7, 0]) / 40
    assert 0.45 < spread.min() < 0.6
    assert 1.4 < spread.max() < 1.55


def test_saturation_moves_colours_to_and_from_their_gray_and_hue_turns_them_and_leaves_gray_alone() -> None:
    image = np.zeros((100, 2, 1, 3), dtype=np.uint8)
    image[:, 0], image[:, 1] = (150, 90, 60), 77
    gray = 0.299 * 150 + 0.587 * 90 + 0.114 * 60

    saturated = augment(image, KEYS, 0, 0, replace(NOTHING, saturation=0.5)).astype(int)
    turned = augment(image, KEYS, 0, 0, replace(NOTHING, hue=0.5)).astype(int)

    assert (saturated[:, 1] == 77).all()
    assert (turned[:, 1] == 77).all()
    assert (np.abs(saturated[:, 0, 0] @ [0.299, 0.587, 0.114] - gray) < 1).all()
    assert 0.45 < ((saturated[:, 0, 0, 0] - gray) / (150 - gray)).min() < 0.6
    assert (np.abs(turned[:, 0, 0].sum(axis=1) - 300) <= 2).all()
    assert set(turned[:, 0, 0].argmax(axis=1)) == {0, 1, 2}


@pytest.mark.parametrize(
    "settings",
    [
        *({"crop_scale": 0.5}, {"crop_ratio": 1.5}, {"brightness": 0.3}, {"contrast": 0.3}, {"saturation": 0.3}),
        *({"hue": 0.2}, {"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}),
    ],
)
def test_each_change_is_a_function_of_seed_epoch_and_image(settings: dict[str, Any]) -> None:
    params = replace(NOTHING, **settings)
    colours = np.concatenate([IMAGES, 255 - IMAGES, IMAGES // 2], axis=-1)

    def result(images: Pixels, keys: UInt64Array, seed: int = 7, epoch: int = 3) -> Pixels:
        changed = augment(images, keys, seed, epoch, params)
        if not (params.mixup or params.cutmix):
            return changed
        return mix(changed, colours[partners(keys, 100, seed, epoch)], keys, seed, epoch, params)[0]

    together = result(colours, KEYS)

    alone = np.concatenate([result(colours[i : i + 1], KEYS[i : i + 1]) for i in range(100)])
    assert (together == alone).all()
    assert (together != result(colours, KEYS, seed=8)).any()
    assert (together != result(colours, KEYS, epoch=4)).any()
    assert (together != colours).any()


def test_mixup_blends_two_images_and_cutmix_puts_a_rectangle_of_one_into_the_other() -> None:
    white, black = np.full((100, 16, 16, 1), 200, dtype=np.uint8), np.zeros((100, 16, 16, 1), dtype=np.uint8)

    blended, blend = mix(white, black, KEYS, 0, 0, replace(NOTHING, mixup=1.0))
    cut, area = mix(white, black, KEYS, 0, 0, replace(NOTHING, cutmix=1.0))
    both, _ = mix(white, black, KEYS, 0, 0, replace(NOTHING, mixup=1.0, cutmix=1.0))

    assert (np.abs(blended - 200 * blend[:, None, None, None]) <= 0.5).all()
    assert 0.3 < blend.mean() < 0.7
    assert set(np.unique(cut)) == {0, 200}
    assert np.allclose((cut == 200).mean(axis=(1, 2, 3)), area)
    holes = [np.argwhere(image[..., 0] == 0) for image in cut if (image == 0).any()]
    assert all(len(hole) == np.prod(np.ptp(hole, axis=0) + 1) for hole in holes)  # rectangles
    assert 30 < sum(len(np.unique(image)) == 1 and image.max() < 200 for image in both) < 70
    assert (white == 200).all()


def test_the_partners_of_an_image_change_from_epoch_to_epoch_and_come_from_all_of_the_split() -> None:
    chosen = [partners(KEYS, 1000, 0, epoch) for epoch in range(20)]

    assert len(np.unique(chosen)) > 700
    assert min(map(min, chosen)) >= 0
    assert max(map(max, chosen)) < 1000
