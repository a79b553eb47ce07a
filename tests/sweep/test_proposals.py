"""Trials are proposed from the results before them alone, and settings are weighed by what they changed."""

from dataclasses import replace

from twinrun.sweep.plan import Plan
from twinrun.sweep.proposals import Result, importances, propose

PLAN = Plan(
    space={"train.learning_rate": {"from": 1e-4, "to": 0.1, "scale": "log"}, "train.optimizer": ["sgd", "adamw"]},
    trials=20, width=4, seed=0, metric="val_accuracy", rungs=[], keep=0.5, seeds=0,
)  # fmt: skip


def results(best: float, count: int = 16) -> list[Result]:
    """Trials that are the better the nearer their learning rate is to `best`."""
    rates = [1e-4 * 1000 ** (number / (count - 1)) for number in range(count)]
    return [
        Result(
            {"train.learning_rate": rate, "train.optimizer": ("sgd", "adamw")[number % 2]},
            "finished",
            {1: 1 / (1 + abs(rate - best) / best)},
        )
        for number, rate in enumerate(rates)
    ]


def test_proposals_follow_from_seed_generation_and_results_and_lie_in_the_space() -> None:
    past = results(0.01)

    proposed = propose(PLAN, past, 4, 5)

    assert proposed == propose(PLAN, past, 4, 5)
    others = (propose(PLAN, past, 5, 5), propose(replace(PLAN, seed=1), past, 4, 5), propose(PLAN, results(1e-4), 4, 5))
    assert proposed not in others
    for values in proposed:
        assert list(values) == list(PLAN.space)
        assert 1e-4 <= float(str(values["train.learning_rate"])) <= 0.1
        assert values["train.optimizer"] in ("sgd", "adamw")


def test_a_setting_that_decides_the_metric_weighs_more_than_one_that_does_not() -> None:
    past = results(0.01)

    weighed = importances(PLAN, [each.values for each in past], [each.last or 0 for each in past])

    assert [row.name for row in weighed] == ["train.learning_rate", "train.optimizer"]
    assert weighed[0].low <= weighed[0].mean <= weighed[0].high
    assert weighed[0].mean > 0.7


def test_few_trials_and_equal_ones_weigh_nothing() -> None:
    past = results(0.01)

    assert importances(PLAN, [each.values for each in past[:3]], [0.1, 0.2, 0.3]) == []
    assert importances(PLAN, [each.values for each in past], [0.5] * len(past)) == []


def test_the_last_score_is_that_of_the_last_epoch_that_was_judged() -> None:
    assert Result({}, "stopped", {3: 0.5, 1: 0.9}).last == 0.5
    assert Result({}, "failed").last is None
