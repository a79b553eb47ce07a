"""What an image becomes depends on (seed, epoch, image id), not on its company."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from twinrun.core.keyed import id_keys
from twinrun.core.params import AugmentParams
from twinrun.training.augment import augment

NOTHING = AugmentParams(shift_px=0, flip=False, rotate_deg=0.0, erase=0.0)
EVERYTHING = AugmentParams(shift_px=2, flip=True, rotate_deg=15.0, erase=0.5)
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
