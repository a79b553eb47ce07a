"""Our bootstrap and calibration error against independent implementations, and what the scores refuse."""

import warnings
from typing import Any

import numpy as np
import pytest
from clock import takes_at_most
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.evaluation.metrics import (
    HEADLINES,
    calibration_bins,
    calibration_error,
    confusion_matrix,
    intervals,
    score,
)


def answers(images: int, classes: int, skill: float, seed: int = 0) -> tuple[IntArray, FloatArray]:
    """Targets and probabilities of a pretended model; the larger `skill`, the better it is."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), targets] += skill
    odds = np.exp(logits)
    return targets, odds / odds.sum(axis=1, keepdims=True)


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(classes))


def test_every_interval_is_that_of_scikit_learn_on_the_same_resamples() -> None:
    targets, probabilities = answers(images=80, classes=5, skill=1.0)
    random = np.random.default_rng(3)
    drawn = random.integers(0, 80, size=(200, 80))

    found = intervals(targets, probabilities, bins=10, samples=200, seed=3)

    def spread(values: list[float]) -> tuple[Any, Any]:
        low, high = np.quantile(values, [0.025, 0.975])
        return pytest.approx(low), pytest.approx(high)

    predicted = probabilities.argmax(axis=1)
    assert found["accuracy"] == spread([np.mean(predicted[rows] == targets[rows]) for rows in drawn])
    assert found["log_loss"] == spread([log_loss(targets[r], probabilities[r], labels=range(5)) for r in drawn])
    assert found["balanced_accuracy"] == spread([balanced_accuracy_score(targets[r], predicted[r]) for r in drawn])
    errors = [calibration_error(targets[r], probabilities[r], 10) for r in drawn]
    f1 = [f1_score(targets[r], predicted[r], average="macro") for r in drawn]
    whole = calibration_error(targets, probabilities, 10), f1_score(targets, predicted, average="macro")
    for name, resampled, value in zip(("calibration_error", "macro_f1"), (errors, f1), whole, strict=True):
        assert found[name] == spread(list(resampled - np.mean(resampled) + value))


def test_each_number_lies_in_its_interval_also_where_many_classes_have_few_images() -> None:
    targets, chosen = np.repeat(np.arange(500), 3), np.random.default_rng(0).integers(0, 500, 1500)
    predicted = np.where(np.arange(1500) % 4 == 0, targets, chosen)
    probabilities = np.eye(500)[predicted] * 0.5 + 0.001

    scores = score(targets, probabilities, names(500), bins=15, samples=200, seed=0)

    for name, (low, high) in scores.intervals.items():
        assert low < scores.headlines()[name] < high


def test_an_interval_covers_the_true_accuracy_about_95_times_in_100() -> None:
    random = np.random.default_rng(1)
    covered = []
    for seed in range(200):
        right = random.random(400) < 0.85
        probabilities = np.where(right[:, None], [0.8, 0.2], [0.3, 0.7])
        low, high = intervals(np.zeros(400, np.int64), probabilities, bins=10, samples=300, seed=seed)["accuracy"]
        covered.append(low <= 0.85 <= high)

    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("each", [1, 8])
def test_an_interval_covers_the_true_accuracy_where_few_images_or_groups_are_wrong(each: int) -> None:
    random, covered = np.random.default_rng(1), []
    groups = np.arange(150).repeat(each)
    for seed in range(200):
        right = (random.random(150) < 0.975)[groups]
        probabilities = np.where(right[:, None], [0.8, 0.2], [0.3, 0.7])
        found = intervals(
            np.zeros(len(groups), np.int64), probabilities, bins=10, samples=100, seed=seed, groups=groups
        )
        covered.append(found["accuracy"][0] <= 0.975 <= found["accuracy"][1])

    assert np.mean(covered) >= 0.93


def test_copies_of_images_that_are_one_group_do_not_narrow_an_interval() -> None:
    targets, probabilities = answers(images=120, classes=5, skill=1.0)
    group = np.arange(120).repeat(4)
    settings: dict[str, Any] = {"bins": 15, "samples": 300, "seed": 3}

    single = intervals(targets, probabilities, **settings)
    together = intervals(targets[group], probabilities[group], groups=group, **settings)
    alone = intervals(targets[group], probabilities[group], **settings)
    all_right = intervals(targets[group], np.eye(5)[targets[group]], groups=group, **settings)

    for name in HEADLINES:
        np.testing.assert_allclose(together[name], single[name], atol=1e-9)
    assert np.ptp(alone["accuracy"]) < 0.7 * np.ptp(together["accuracy"])
    assert all_right["accuracy"] == intervals(targets, np.eye(5)[targets], **settings)["accuracy"]


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_few_groups_give_wide_intervals_however_many_images_they_hold(groups: int) -> None:
    random, covered = np.random.default_rng(0), 0
    group = np.arange(groups).repeat(60)
    for _ in range(100):
        is_right = random.random(len(group)) < random.beta(16, 4, groups)[group]  # 0.8 on average
        probabilities = np.eye(2)[(~is_right).astype(int)] * 0.8 + 0.1
        low, high = intervals(np.zeros(len(group), int), probabilities, bins=15, samples=100, seed=0, groups=group)[
            "accuracy"
        ]
        covered += low <= 0.8 <= high

    assert covered >= 93


def test_the_calibration_error_is_that_of_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    targets, probabilities = answers(images=500, classes=7, skill=2.0)

    theirs = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(targets), num_classes=7, n_bins=15, norm="l1"
    )

    assert calibration_error(targets, probabilities, 15) == pytest.approx(float(theirs), abs=1e-6)


def test_a_model_that_is_sure_and_right_is_calibrated_and_one_that_is_sure_and_wrong_is_not() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]]

    assert calibration_error(np.array([0, 1, 2, 0]), sure, 15) == 0
    assert calibration_error(np.array([1, 2, 0, 1]), sure, 15) == 1


def test_the_bins_of_the_diagram_average_to_the_calibration_error() -> None:
    targets, probabilities = answers(images=500, classes=7, skill=2.0)

    bins = calibration_bins(targets, probabilities, 15)

    filled = bins.images > 0
    gaps = np.abs(bins.accuracy - bins.confidence)[filled]
    assert gaps @ bins.images[filled] / 500 == pytest.approx(calibration_error(targets, probabilities, 15))


def test_a_thousand_resamples_of_ten_thousand_images_take_seconds() -> None:
    targets, probabilities = answers(images=10_000, classes=100, skill=4.0)
    intervals(targets[:100], probabilities[:100], bins=15, samples=100, seed=0)

    with takes_at_most(4):
        intervals(targets, probabilities, bins=15, samples=1000, seed=0)


def test_the_seed_and_nothing_else_decides_the_intervals() -> None:
    targets, probabilities = answers(images=300, classes=4, skill=1.0)

    first = intervals(targets, probabilities, bins=15, samples=200, seed=7)
    again = intervals(targets, probabilities, bins=15, samples=200, seed=7)
    other = intervals(targets, probabilities, bins=15, samples=200, seed=8)

    assert first == again
    assert all(first[name] != other[name] for name in HEADLINES if name != "accuracy")


def test_a_class_without_images_counts_in_no_mean_and_has_zeros_of_its_own() -> None:
    targets = np.array([0, 0, 1, 1])
    probabilities = np.eye(3)[[0, 1, 1, 1]] * 0.9 + 0.1 / 3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(targets, probabilities, names(3), bins=15, samples=100, seed=0)

    assert scores.balanced_accuracy == pytest.approx((0.5 + 1.0) / 2)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores.per_class["class 2"].images == 0
    assert scores.per_class["class 2"].recall == 0


@pytest.mark.parametrize(("shift", "low", "high"), [(0, 0.851, 1.0), (1, 0.0, 0.149)], ids=["all", "none"])
def test_where_all_images_or_none_are_right_the_interval_is_wilsons_and_has_a_width(
    shift: int, low: float, high: float
) -> None:
    targets = np.arange(22) % 2
    probabilities = np.eye(2)[(targets + shift) % 2] * 0.8 + 0.1

    found = intervals(targets, probabilities, bins=15, samples=100, seed=0)

    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[name] == pytest.approx((low, high), abs=5e-4)
    assert found["log_loss"][1] > 0.1


def test_a_certain_mistake_gives_a_large_and_finite_log_loss() -> None:
    scores = score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), names(2), bins=15, samples=100, seed=0)

    assert 10 < scores.log_loss < 20


def test_the_confusion_matrix_has_actual_classes_in_rows() -> None:
    assert confusion_matrix(np.array([0, 0, 1]), np.array([1, 0, 1]), 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("targets", "probabilities", "said"),
    [
        ([], np.zeros((0, 2)), "no images to score"),
        ([0, 1], np.full((2, 3), 1 / 3), "need \\(2, 2\\)"),
        ([0, 2], np.full((2, 2), 0.5), "there are 2 classes"),
        ([0, -1], np.full((2, 2), 0.5), "there are 2 classes"),
        ([0, 1], np.array([[0.5, 0.5], [np.nan, 0.5]]), "1 of 2 images are not numbers between 0 and 1"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(targets: list[int], probabilities: FloatArray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        score(np.array(targets, np.int64), probabilities, names(2), bins=15, samples=100, seed=0)
