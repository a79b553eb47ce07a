"""The gate on labels that should survive a small change of the images."""

from dataclasses import replace

import numpy as np
import pytest

from twinrun.evaluation.gate import judge_agreement
from twinrun.evaluation.predictions import Predictions
from twinrun.project.presets import preset_params


def tried(images: int, groups: int | None = None) -> Predictions:
    """The answers to so many images, of which an equal number is in each of `groups`."""
    ids = [str(number) for number in range(images)]
    units = None if groups is None else [str(number % groups) for number in range(images)]
    return Predictions(ids, np.zeros(images, np.int64), np.ones((images, 1)), ("a",), units=units)


@pytest.mark.parametrize(
    ("kept", "images", "passed"),
    [(7, 9, True), (3, 9, False), (156, 200, True), (140, 200, False), (200, 200, True)],
)
def test_few_images_refuse_a_model_only_where_its_loss_is_large(kept: int, images: int, passed: bool) -> None:
    gates = replace(preset_params("digits").register.gates, min_agreement=0.8)

    (gate,) = judge_agreement({"shift": kept / images}, tried(images), gates, "")

    assert gate.passed is passed
    assert f"of {images} test images keep their label" in gate.sentence


def test_an_agreement_that_is_not_known_is_neither_passed_nor_refused() -> None:
    gates = replace(preset_params("digits").register.gates, min_agreement=0.8)

    (gate,) = judge_agreement({"shift": None}, tried(9), gates, "the images are not here")

    assert (gate.passed, gate.sentence) == (None, "the images are not here")


@pytest.mark.parametrize(("groups", "passed"), [(200, False), (9, True), (3, True)])
def test_images_of_one_group_count_once(groups: int, passed: bool) -> None:
    gates = replace(preset_params("digits").register.gates, min_agreement=0.8)

    (gate,) = judge_agreement({"shift": 0.7}, tried(200, groups), gates, "")

    assert gate.passed is passed
    assert ("in 9 groups" in gate.sentence) is (groups == 9)
