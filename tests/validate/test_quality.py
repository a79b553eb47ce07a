"""What is said of an image's quality, told from its facts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from twinrun.core.arrays import Pixels
from twinrun.ingest.facts import Facts, measured, measured_stack
from twinrun.validate.searches.quality import QualityIssue, find_quality_issues

COLUMNS = (
    "width", "height", "brightness", "contrast", "sharpness", "entropy", "gray_p5", "gray_p95", "red", "green", "blue",
)  # fmt: skip


def photos(count: int) -> list[Pixels]:
    """Large pieces of two photos, 96 x 96, each from another place."""
    pieces = []
    for number in range(count):
        photo = Image.fromarray(load_sample_images().images[number % 2])
        left, top = (number * 31) % (photo.width - 400), (number * 7) % (photo.height - 400)
        pieces.append(np.asarray(photo.crop((left, top, left + 400, top + 400)).resize((96, 96))))
    return pieces


def columns(images: Sequence[Pixels]) -> dict[str, list[Any]]:
    """The facts of images as columns."""
    rows = [measured(Facts(1, None, width=image.shape[1], height=image.shape[0]), image) for image in images]
    return {name: [getattr(row, name) for row in rows] for name in COLUMNS}


def names_by_row(issues: list[QualityIssue]) -> dict[int, set[str]]:
    return {row: {issue.name for issue in issues if issue.row == row} for row in {issue.row for issue in issues}}


def test_each_kind_of_flaw_is_found_among_photos_and_the_photos_are_left_in_peace() -> None:
    images = photos(60)
    images[3] = (images[3] * 0.15).astype(np.uint8)
    images[7] = (250 + images[7] / 51).astype(np.uint8)
    images[11] = np.asarray(Image.fromarray(images[11]).filter(ImageFilter.GaussianBlur(12)))
    images[15] = np.full((96, 96, 3), (90, 120, 60), np.uint8)
    images[19] = np.repeat(images[19].mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    images[23] = np.asarray(Image.fromarray(images[23]).resize((960, 960)))
    images[27] = np.asarray(Image.fromarray(images[27]).crop((0, 0, 96, 20)))

    found = names_by_row(find_quality_issues(columns(images)))

    assert "dark" in found.pop(3)
    assert "bright" in found.pop(7)
    assert found.pop(11) == {"blurred"}
    assert found.pop(15) == {"low information"}
    assert found.pop(19) == {"gray"}
    assert "odd size" in found.pop(23)
    assert found.pop(27) == {"odd size", "odd aspect"}
    assert not found


def test_a_set_that_is_dark_and_plain_by_nature_is_not_flagged_but_its_blank_image_is() -> None:
    strokes = np.zeros((200, 28, 28, 1), np.uint8)
    for number in range(200):
        strokes[number, 4:24, 8 + number % 12 : 11 + number % 12] = 255 - number % 40
    strokes[50] = 0
    facts = measured_stack([Facts(784, None, width=28, height=28)] * 200, strokes)

    issues = find_quality_issues({name: [getattr(fact, name) for fact in facts] for name in COLUMNS})

    assert {issue.row for issue in issues} == {50}
    assert {issue.name for issue in issues} == {"dark", "low information"}


def test_one_other_size_in_a_set_of_one_size_is_odd_and_a_spread_of_sizes_is_not() -> None:
    one = {"width": [640] * 50 + [320], "height": [480] * 51}
    spread = {"width": list(range(400, 700, 10)), "height": [480] * 30}

    assert [(issue.name, issue.row) for issue in find_quality_issues(one)] == [("odd size", 50)]
    assert find_quality_issues(spread) == []


def test_the_worst_of_a_kind_comes_first() -> None:
    facts = {"gray_p95": [0.9] * 20 + [0.2, 0.1, 0.3], "brightness": [0.5] * 20 + [0.1, 0.05, 0.15]}
    facts["contrast"] = [0.2] * 20 + [0.04] * 3

    rows = [issue.row for issue in find_quality_issues(facts) if issue.name == "dark"]

    assert rows == [21, 20, 22]


def test_colour_among_gray_is_not_a_flaw() -> None:
    facts = {"red": [0.5] * 19 + [0.6], "green": [0.5] * 20, "blue": [0.5] * 20}

    assert find_quality_issues(facts) == []


def test_broken_images_without_facts_and_missing_columns_are_passed_over() -> None:
    facts = columns(photos(20))
    for values in facts.values():
        values[4] = None
    partial = {name: facts[name] for name in ("width", "height", "entropy")}
    empty: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    assert find_quality_issues(facts) == []
    assert find_quality_issues(partial) == []
    assert find_quality_issues(empty) == []
    assert find_quality_issues({name: [None] * 12 for name in COLUMNS}) == []
