"""The learning rate is a function of the step."""

from dataclasses import replace
from typing import Any

import pytest

from twinrun.core.params import TrainParams, load_params
from twinrun.training.schedule import learning_rate

PARAMS = replace(load_params().train, epochs=10, learning_rate=0.1, warmup_epochs=2.0, schedule="cosine")


def rates(params: TrainParams) -> list[float]:
    return [learning_rate(step, 5, params) for step in range(50)]


def test_it_rises_over_the_warm_up_and_has_its_peak_right_after() -> None:
    values = rates(PARAMS)

    assert values[:10] == sorted(values[:10])
    assert values[0] > 0
    assert max(values) == values[10] == pytest.approx(0.1)


@pytest.mark.parametrize(("schedule", "half_way", "last"), [("cosine", 0.05, 0.0002), ("linear", 0.05, 0.0025)])
def test_it_falls_by_a_half_cosine_or_a_line(schedule: Any, half_way: float, last: float) -> None:
    values = rates(replace(PARAMS, schedule=schedule))

    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[30] == pytest.approx(half_way)
    assert values[-1] == pytest.approx(last, rel=0.3)


def test_it_stays_where_it_is_constant() -> None:
    assert set(rates(replace(PARAMS, schedule="constant", warmup_epochs=0.0))) == {0.1}


def test_a_warm_up_longer_than_the_training_ends_below_the_peak_and_not_in_an_error() -> None:
    values = rates(replace(PARAMS, warmup_epochs=100.0))

    assert values == sorted(values)
