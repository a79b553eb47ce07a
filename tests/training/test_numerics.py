"""What is measured of the pixels that a network trains on, and what of the machine decides its weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from twinrun.base.errors import TrainingError
from twinrun.core.params import load_params
from twinrun.dataset.manifest import Split
from twinrun.training.numerics import describe_numerics, pixel_statistics, resolve_numerics


def test_mean_and_deviation_are_those_of_the_given_rows_by_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 5, 3), dtype=np.uint8)
    rows = np.arange(0, 2500, 2)

    mean, deviation = pixel_statistics(images, rows)

    chosen = images[rows] / 255
    assert mean == pytest.approx(chosen.mean(axis=(0, 1, 2)))
    assert deviation == pytest.approx(chosen.std(axis=(0, 1, 2)))
    assert pixel_statistics(images, rows[::-1].copy()) == (mean, deviation)


def test_a_channel_without_contrast_can_be_divided_by() -> None:
    images = np.full((4, 2, 2, 1), 7, np.uint8)

    mean, deviation = pixel_statistics(images, np.arange(4))

    assert mean == pytest.approx((7 / 255,))
    assert deviation == (1.0,)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_that_was_asked_for_is_part_of_what_decides_weights(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    params = replace(load_params().train, accelerator="cpu", precision=precision)
    train = Split(np.arange(2), ["a", "b"], np.zeros(2, np.int64))

    numerics = resolve_numerics(params, np.zeros((2, 2, 2, 1), np.uint8), train)

    assert numerics.autocast is (torch.bfloat16 if precision == "bf16" else None)
    described = describe_numerics(numerics)
    assert (described["device"], described["precision"]) == ("cpu", precision)
    assert described["switches"]["OPENBLAS_CORETYPE"] == "Haswell"
    assert not [name for name in described["processor"] if name.startswith("num_")]


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    params = replace(load_params().train, accelerator="gpu", devices=2)

    with pytest.raises(TrainingError, match=r"2 training processes[\s\S]*PyTorch finds 1"):
        resolve_numerics(params, np.zeros((1, 2, 2, 1), np.uint8), Split(np.arange(1), ["a"], np.zeros(1, np.int64)))
