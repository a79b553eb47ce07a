"""What a small tree tells of the label from facts alone."""

import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinrun.core.arrays import Pixels
from twinrun.decoding.decode import fit_image
from twinrun.validate.searches.shortcuts import Shortcut, corner_colours, find_shortcuts

LABELS = ["glass", "metal", "paper", "trash"] * 60


def noise(seed: int, count: int = 240) -> list[float]:
    """Values that have nothing to do with the labels."""
    values: list[float] = np.random.default_rng(seed).normal(0.5, 0.1, count).tolist()
    return values


def found(facts: Mapping[str, Sequence[Any]], labels: Sequence[str] = LABELS) -> dict[tuple[str, str | None], Shortcut]:
    return {(shortcut.name, shortcut.label): shortcut for shortcut in find_shortcuts(facts, labels, seed=0)}


def test_sizes_that_belong_to_labels_give_all_of_them_away() -> None:
    widths = {"glass": 640, "metal": 641, "paper": 1024, "trash": 300}
    facts: dict[str, list[Any]] = {
        "width": [widths[label] for label in LABELS],
        "height": [480] * 240,
        "brightness": noise(1),
    }

    shortcut = found(facts)["width and height", None]

    assert shortcut.balanced_accuracy == 1
    assert shortcut.low > 0.95
    assert shortcut.high == 1
    assert shortcut.chance == 0.25
    assert set(shortcut.facts) == {"width"}


def test_a_camera_that_took_one_label_alone_is_named_with_that_label() -> None:
    facts: dict[str, list[Any]] = {
        "camera": ["Nikon D90" if label == "metal" else None for label in LABELS],
        "file_bytes": noise(1),
    }

    shortcuts = found(facts)

    assert shortcuts["camera", "metal"].balanced_accuracy == 1
    assert shortcuts["all", "metal"].balanced_accuracy > 0.95
    assert shortcuts["camera", None].balanced_accuracy < 0.6


def test_facts_that_know_nothing_have_chance_within_their_interval() -> None:
    for seed in range(5):
        facts: dict[str, list[Any]] = {
            "brightness": noise(seed),
            "contrast": noise(seed + 100),
            "red": noise(seed + 200),
        }

        for shortcut in find_shortcuts(facts, LABELS, seed=seed):
            assert shortcut.low <= shortcut.chance + 0.02
            assert shortcut.low <= shortcut.balanced_accuracy <= shortcut.high


def test_groups_that_never_vary_or_are_not_there_are_passed_over() -> None:
    facts: dict[str, list[Any]] = {
        "width": [640] * 240,
        "height": [480] * 240,
        "format": ["JPEG"] * 240,
        "camera": [None] * 240,
    }

    assert find_shortcuts(facts, LABELS, seed=0) == []
    assert {name for name, _ in found({**facts, "brightness": noise(1)})} == {"brightness and contrast"}


def test_unknown_facts_labels_of_few_images_and_single_labels_do_no_harm() -> None:
    labels = ["many"] * 30 + ["few"] * 3 + ["alone"]
    facts: dict[str, list[Any]] = {
        "width": [100] * 30 + [200, 200, None] + [300],
        "height": [100] * 34,
        "mode": [None] * 33 + ["RGB"],
    }

    shortcuts = found(facts, labels)

    assert shortcuts["width and height", None].chance == 0.5
    assert shortcuts["width and height", None].balanced_accuracy > 0.8
    assert find_shortcuts(facts, ["one"] * 34, seed=0) == []
    assert find_shortcuts({"width": []}, [], seed=0) == []


def test_as_many_labels_as_there_are_pairs_of_images_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    labels = [f"{number // 2}" for number in range(120)]

    assert found({"width": [*range(120)], "height": [100] * 120}, labels)
    assert [str(warning.message) for warning in recwarn] == []


def test_the_same_seed_gives_the_same_result_and_so_does_a_set_with_more_images_than_are_looked_at() -> None:
    labels = ["a", "b"] * 20_000
    facts: dict[str, list[Any]] = {
        "file_bytes": [len(label) + value for label, value in zip(labels, noise(0, 40_000), strict=True)]
    }

    assert find_shortcuts(facts, labels, seed=3) == find_shortcuts(facts, labels, seed=3)


def test_with_many_labels_a_mark_of_a_common_one_is_found_and_the_rarest_are_left_out() -> None:
    # 800 labels of 8 images, and one of 40 whose camera tells it apart
    labels = [f"plant {i % 800}" for i in range(6400)] + ["weed"] * 40
    facts: dict[str, list[Any]] = {"camera": ["Canon"] * 6400 + ["Nikon"] * 40, "brightness": noise(1, 6440)}

    shortcuts = found(facts, labels)

    assert shortcuts["camera", "weed"].balanced_accuracy > 0.95
    assert shortcuts["camera", None].chance == 1 / 200


def squares(sizes: Sequence[tuple[int, int]]) -> Pixels:
    """Gray images (H, W, 3) of these widths and heights with a red top left and a blue bottom right, padded."""
    images = []
    for width, height in sizes:
        image = np.full((height, width, 3), 128, np.uint8)
        image[: height // 4, : width // 4] = (255, 0, 0)
        image[-(height // 4) :, -(width // 4) :] = (0, 0, 255)
        images.append(fit_image(image, (64, 64), "pad", "bilinear"))
    return np.stack(images)


@pytest.mark.parametrize("turned", [False, True], ids=["as stored", "turned by EXIF"])
def test_corners_are_those_of_the_picture_and_not_of_its_black_bars(turned: bool) -> None:
    sizes = [(512, 384), (384, 512), (333, 200), (64, 64)]
    stored = [(height, width) for width, height in sizes] if turned else sizes

    corners = corner_colours(squares(sizes), [width for width, _ in stored], [height for _, height in stored])

    assert corners["corner_top_left_red"] == pytest.approx([1] * 4, abs=0.05)
    assert corners["corner_top_left_blue"] == pytest.approx([0] * 4, abs=0.05)
    assert corners["corner_bottom_right_blue"] == pytest.approx([1] * 4, abs=0.05)
    assert corners["corner_top_right_green"] == pytest.approx([0.5] * 4, abs=0.05)


def test_images_that_fill_the_square_have_their_corners_at_its_edges_and_broken_ones_have_none() -> None:
    photo = np.asarray(Image.linear_gradient("L").resize((48, 32)))[:, :, None] // 2 + 100
    cropped = np.stack([fit_image(photo, (32, 32), "crop", "bilinear"), np.zeros((32, 32, 1), np.uint8)])

    corners = corner_colours(cropped, [48, None], [32, None])

    assert len(corners) == 24
    assert corners["corner_top_left_red"] == corners["corner_top_left_blue"]
    top, bottom = corners["corner_top_left_red"], corners["corner_bottom_left_red"]
    assert top == [pytest.approx(cropped[0, :4, :4].mean() / 255), None]
    assert corners["tip_top_left_red"] == [pytest.approx(cropped[0, :2, :2].mean() / 255), None]
    assert bottom == [pytest.approx(cropped[0, -4:, :4].mean() / 255), None]


@pytest.mark.parametrize("mark_px", [2, 3])
def test_a_mark_in_the_corner_of_one_label_is_found(mark_px: int) -> None:
    images = np.random.default_rng(0).integers(60, 200, (240, 32, 32, 3), dtype=np.uint8)
    images[1::4, :mark_px, -mark_px:] = (255, 0, 0)
    sides = [32] * 240

    shortcut = found(corner_colours(images, sides, sides))["corners", "metal"]

    assert shortcut.balanced_accuracy == 1
    assert shortcut.chance == 0.5


def test_few_of_many_large_images_are_in_memory_while_corners_are_measured() -> None:
    images = np.zeros((300, 240, 320, 3), np.uint8)

    tracemalloc.start()
    try:
        corner_colours(images, [640] * 300, [480] * 300)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 0.75 * images.nbytes
