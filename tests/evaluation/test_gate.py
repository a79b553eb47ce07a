"""The gates on labels that should survive a change of the images, and on classes that the champion knew better."""

from dataclasses import replace

import numpy as np
import pytest

from twinrun.evaluation.comparison import Contender, align
from twinrun.evaluation.gate import judge_agreement, judge_alone, judge_beside
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


@pytest.mark.parametrize(
    ("model_bytes", "said"),
    [
        (12_345_600_000, "its size is 12,345.6 MB; at most 5 MB"),
        (5_000_400, "its size is 5.0004 MB; at most 5 MB"),
        (1, "its size is 0.0 MB; at most 5 MB"),
    ],
)
def test_a_size_is_written_out_with_as_many_decimals_as_tell_it_from_the_limit(model_bytes: int, said: str) -> None:
    gates = replace(preset_params("digits").register.gates, max_model_mb=5.0)
    classes = [{"label": name, "images": 200} for name in "ab"]
    metrics = {"accuracy": 0.99, "images": 400, "per_class": classes, "model_bytes": model_bytes}

    (size,) = (gate for gate in judge_alone(metrics, 0.5, gates) if gate.name == "size")

    assert size.sentence.startswith(said)


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


def test_of_many_classes_that_are_worse_the_worst_are_named_and_the_rest_counted() -> None:
    targets = np.arange(3000) % 30
    right = np.eye(30)[targets]
    lost = np.eye(30)[np.where(np.arange(3000) < 100 * (targets + 10), (targets + 1) % 30, targets)]
    models = (
        Predictions([*map(str, range(3000))], targets, shares, tuple(f"class {at}" for at in range(30)))
        for shares in (right, lost)
    )
    aligned = align([Contender(name=name, members=(model,)) for name, model in zip("ab", models, strict=True)])

    gate = judge_beside(aligned, "the champion", preset_params("digits").register.gates)[1]

    assert not gate.passed
    assert gate.sentence.startswith('its recall of "class 20" is 0.0%')
    assert gate.sentence.endswith("; and 20 classes more")
    assert len(gate.sentence) < 2000
