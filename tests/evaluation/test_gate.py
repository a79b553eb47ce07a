"""The gate on labels that should survive a small change of the images."""

from dataclasses import replace

import pytest

from twinrun.evaluation.gate import judge_agreement
from twinrun.project.presets import preset_params


@pytest.mark.parametrize(
    ("kept", "images", "passed"),
    [(7, 9, True), (3, 9, False), (156, 200, True), (140, 200, False), (200, 200, True)],
)
def test_few_images_refuse_a_model_only_where_its_loss_is_large(kept: int, images: int, passed: bool) -> None:
    gates = replace(preset_params("digits").register.gates, min_agreement=0.8)

    (gate,) = judge_agreement({"shift": kept / images}, images, gates, "")

    assert gate.passed is passed
    assert f"of {images} test images keep their label" in gate.sentence


def test_an_agreement_that_is_not_known_is_neither_passed_nor_refused() -> None:
    gates = replace(preset_params("digits").register.gates, min_agreement=0.8)

    (gate,) = judge_agreement({"shift": None}, 9, gates, "the images are not here")

    assert (gate.passed, gate.sentence) == (None, "the images are not here")
