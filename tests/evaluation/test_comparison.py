"""The paired tests against scipy, published numbers and simulations with fixed seeds; and what alignment refuses."""

from dataclasses import replace

import numpy as np
import pytest
from clock import takes_at_most
from scipy.stats import binom, binomtest, norm

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.evaluation.comparison import (
    Contender,
    adjusted_interval,
    align,
    best,
    bootstrap_interval,
    class_differences,
    difference,
    equivalence,
    flips,
    holm,
    non_inferiority,
    permutation_test,
    seed_churn,
    slices,
)
from twinrun.evaluation.comparison_page import Beside, Comparison, page
from twinrun.evaluation.predictions import Predictions

CLASSES = ("can", "glass", "paper", "plastic")


def changes(broken: int, fixed: int, images: int) -> FloatArray:
    """Correctness of a second model less that of a first."""
    return np.concatenate([-np.ones(broken), np.ones(fixed), np.zeros(images - broken - fixed)])


def predictions(targets: IntArray, correct: IntArray) -> Predictions:
    """A model that classifies the images correctly where `correct` is 1, and as the next class where it is 0."""
    said = np.where(correct == 1, targets, (targets + 1) % len(CLASSES))
    probabilities = np.full((len(targets), len(CLASSES)), 0.1)
    probabilities[np.arange(len(targets)), said] = 0.7
    return Predictions([f"{at}" for at in range(len(targets))], targets, probabilities, CLASSES)


@pytest.mark.parametrize(("broken", "fixed"), [(0, 0), (0, 5), (1, 5), (12, 29), (29, 12), (40, 40), (3, 300)])
def test_with_one_seed_the_test_is_mcnemars(broken: int, fixed: int) -> None:
    exact, mid = permutation_test(changes(broken, fixed, 400))

    n = broken + fixed
    assert exact == pytest.approx(binomtest(broken, n, 0.5).pvalue if n else 1.0, abs=1e-12)
    lower = min(broken, fixed)
    in_half = 2 * binom.cdf(lower, n, 0.5) - binom.pmf(lower, n, 0.5) if broken != fixed else None
    if in_half is not None:
        assert mid == pytest.approx(in_half, abs=1e-12)


def test_pairs_show_what_two_independent_samples_would_not() -> None:
    # 143 and 160 of 220 images, of which 12 are correct with the first model alone and 29 with the second alone.
    pooled = (143 + 160) / 440
    unpaired = 2 * norm.sf((17 / 220) / np.sqrt(2 * pooled * (1 - pooled) / 220))
    assert unpaired == pytest.approx(0.080, abs=0.0005)

    _, mid = permutation_test(changes(12, 29, 220))

    assert mid == pytest.approx(0.008, abs=0.0005)


def test_with_several_seeds_the_distribution_is_that_of_all_swaps() -> None:
    change = np.array([1, 1 / 3, -2 / 3, 1 / 3, 0, 1, 2 / 3])
    nonzero = change[change != 0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(nonzero))).reshape(len(nonzero), -1)
    sums = np.abs((signs * np.abs(nonzero)[:, None]).sum(axis=0))

    exact, mid = permutation_test(change)

    observed = abs(change.sum())
    assert exact == pytest.approx((sums >= observed - 1e-9).mean())
    assert mid == pytest.approx((sums > observed + 1e-9).mean() + (np.abs(sums - observed) < 1e-9).mean() / 2)


@pytest.mark.parametrize("changed", [25, 50, 100])
def test_the_chance_of_a_false_rejection_is_near_one_in_twenty(changed: int) -> None:
    # For one number of changed answers the chance jumps with the steps of the distribution: 3 to 6%.
    sizes = []
    for n in range(changed, changed + 20):
        rejected = [permutation_test(changes(broken, n - broken, n))[1] <= 0.05 for broken in range(n // 2 + 1)]
        sizes.append(2 * float(binom.pmf(np.arange(n // 2 + 1), n, 0.5)[rejected].sum()))

    assert 0.035 <= np.mean(sizes) <= 0.055


@pytest.mark.parametrize(("images", "flipping"), [(60, 0.5), (430, 0.08), (10_000, 0.005)])
def test_two_thousand_comparisons_of_equal_models_reject_about_one_in_twenty(images: int, flipping: float) -> None:
    random = np.random.default_rng(0)
    rejected = []
    for _ in range(2000):
        changed = random.binomial(images, flipping)
        broken = random.binomial(changed, 0.5)
        rejected.append(permutation_test(changes(broken, changed - broken, images))[1] <= 0.05)

    assert 0.035 <= np.mean(rejected) <= 0.055


def test_an_equal_model_is_hardly_ever_called_better_or_worse_by_seeds() -> None:
    random = np.random.default_rng(4)
    rejected = []
    for _ in range(400):
        hard = random.random(200) < 0.3  # images that any seed may get wrong
        before, after = (np.where(hard, random.binomial(3, 0.5, 200) / 3, 1.0) for _ in range(2))
        rejected.append(permutation_test(after - before)[1] <= 0.05)

    assert np.mean(rejected) <= 0.075


def test_the_bootstrap_interval_covers_the_truth_and_groups_widen_it() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    covered, widths = [], []
    for trial in range(300):
        change = np.repeat(random.choice(np.array([-1.0, 0.0, 0.0, 0.0, 1.0]), 60), 5)  # a clip changes as a whole
        low, high = bootstrap_interval(change, groups, samples=500, seed=trial)
        alone = bootstrap_interval(change, samples=500, seed=trial)
        covered.append(low <= 0 <= high)
        widths.append((high - low) / (alone[1] - alone[0]))

    assert np.mean(covered) >= 0.92
    assert np.median(widths) == pytest.approx(np.sqrt(5), rel=0.1)


def test_an_equal_model_is_hardly_ever_called_better_or_worse_where_groups_change_as_a_whole() -> None:
    random = np.random.default_rng(5)
    groups = np.repeat(np.arange(30), 10)
    units = [str(group) for group in groups]
    targets = np.repeat(np.arange(30) % 2, 10)
    overall, parts, classes, leaders = [], [], [], []
    for _ in range(200):
        models = [
            replace(predictions(targets, np.repeat(random.random(30) < 0.7, 10).astype(np.int64)), units=units)
            for _ in range(2)
        ]
        aligned = align([Contender(name=name, members=(model,)) for name, model in zip("ab", models, strict=True)])
        overall.append(difference(aligned.correct[0], aligned.correct[1], aligned.groups).mid_p <= 0.05)
        parts.append(slices(aligned, 0, 1, {"half": np.arange(150)})[0].difference.mid_p <= 0.05)
        rows = class_differences(aligned, 0, 1, margin=0.05)
        classes.append(any(row.state == "worse" or row.difference.mid_p <= 0.025 for row in rows))
        leaders.append(best(aligned) is not None)

    assert max(map(np.mean, (overall, parts, classes, leaders))) <= 0.1


def test_groups_whose_changes_cancel_out_change_nothing_and_fewer_groups_show_less() -> None:
    thirds = np.array([1 / 3, 1 / 3, -2 / 3, 0.7, -0.3, -0.4])
    groups = np.array([0, 0, 0, 1, 1, 1])
    clips = np.repeat([-1.0, 1.0, 0.0, 0.0], 25)

    alone = difference(np.zeros(100), clips)
    together = difference(np.zeros(100), clips, np.arange(100) // 5)

    assert permutation_test(thirds, groups) == (1.0, 1.0)
    assert together.shows_from == pytest.approx(np.sqrt(5) * alone.shows_from, rel=0.2)
    assert difference(np.ones(100), np.ones(100), np.arange(100) // 5).shows_from > 0.3


def test_the_interval_does_not_rise_where_fewer_images_are_fixed() -> None:
    fixed = {number: difference(np.zeros(12), changes(0, number, 12)) for number in (9, 10, 11, 12)}

    assert [fixed[number].low for number in fixed] == sorted(one.low for one in fixed.values())
    assert fixed[11].low < 0.6


def test_non_inferiority_at_the_margin_itself_is_claimed_in_one_of_twenty() -> None:
    random = np.random.default_rng(1)
    claims = []
    for _ in range(2000):
        outcome = random.choice(np.array([-1.0, 0.0, 1.0]), 300, p=[0.08, 0.89, 0.03])  # a true loss of 5 points
        claims.append(non_inferiority(outcome, 0.05) <= 0.05)

    assert np.mean(claims) <= 0.06


def test_non_inferiority_at_the_margin_itself_is_claimed_in_one_of_twenty_where_groups_change_as_a_whole() -> None:
    random = np.random.default_rng(1)
    claims = {}
    for name, sizes in (("equal", np.full(40, 50)), ("one large", np.array([1000] + [10] * 100))):
        groups = np.repeat(np.arange(len(sizes)), sizes)
        lost = random.random((1000, len(sizes))) < 0.03  # a true loss of 3 points
        claims[name] = np.mean([non_inferiority(-one[groups].astype(np.float64), 0.03, groups) <= 0.05 for one in lost])

    assert max(claims.values()) <= 0.06, claims


def test_few_images_never_show_equivalence_even_where_no_answer_changed() -> None:
    nothing = np.zeros(22)

    assert equivalence(nothing, 0.02) > 0.05
    assert equivalence(np.zeros(2000), 0.02) < 0.05
    low, high = adjusted_interval(nothing, quantile=1.96)
    assert low < -0.1 < 0.1 < high
    compared = difference(nothing, nothing)
    assert compared.low < -0.1 < 0.1 < compared.high


@pytest.mark.parametrize("after", [0.0, 1.0])
def test_one_image_shows_no_difference_at_all(after: float) -> None:
    found = difference(np.ones(1), np.full(1, after))

    assert found.shows_from == 1
    assert found.mid_p >= 0.5


@pytest.mark.parametrize(("images", "fixed", "low"), [(5, 5, 0.3), (30, 30, 0.9), (3, 1, 0.0)])
def test_a_change_of_few_images_or_of_all_of_them_is_no_certain_difference(images: int, fixed: int, low: float) -> None:
    found = difference(np.zeros(images), np.r_[np.ones(fixed), np.zeros(images - fixed)])

    assert found.low < low
    assert found.low < found.value <= found.high == 1


def test_holms_correction_is_as_published() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_a_model_against_itself_has_no_flips_and_no_difference() -> None:
    targets = np.arange(200) % 4
    model = predictions(targets, (np.arange(200) % 10 > 0).astype(np.int64))
    aligned = align([Contender(name="a", members=(model,)), Contender(name="b", members=(model,))])

    found = difference(aligned.correct[0], aligned.correct[1])

    assert (found.value, found.mid_p) == (0, 1)
    assert -0.02 < found.low == -found.high < 0
    assert flips(aligned, 0, 1).churn == 0
    assert best(aligned) is None


def loss_in_one_class(random: np.random.Generator, images: int) -> tuple[Predictions, Predictions]:
    """A second model that finds 8 points fewer of the first class, and as many images more of the others."""
    targets = np.repeat(np.arange(4), images)
    before = (random.random(len(targets)) < 0.9).astype(np.int64)
    broken = np.where(targets == 0, 0.1, 0.01)  # of those that the first model classifies correctly
    fixed = np.where(targets == 0, 0.1, 0.01 * 9 + 0.8 / 3)  # of the others
    change = random.random(len(targets))
    after = np.where(before == 1, change >= broken, change < fixed)
    return predictions(targets, before), predictions(targets, after.astype(np.int64))


def test_a_loss_of_8_points_in_one_class_is_shown_though_the_accuracy_is_the_same() -> None:
    random = np.random.default_rng(8)
    caught, gap = 0, []
    for _ in range(100):
        before, after = loss_in_one_class(random, images=1000)
        aligned = align([Contender(name="a", members=(before,)), Contender(name="b", members=(after,))])
        caught += class_differences(aligned, 0, 1, margin=0.05)[0].state == "worse"
        gap.append(difference(aligned.correct[0], aligned.correct[1]).value)

    assert abs(np.mean(gap)) < 0.01
    assert caught >= 95


def test_the_page_says_in_its_headline_which_class_is_worse() -> None:
    before, after = loss_in_one_class(np.random.default_rng(8), images=1000)
    aligned = align([Contender(name="a", members=(before,)), Contender(name="b", members=(after,))])

    shown = page(Comparison(aligned=aligned, beside=[Beside()] * 2, kind="test images", margin=0.05), None, aligned.ids)

    assert f"Worse on: {aligned.classes[0]}.</h1>" in "".join(line.strip() for line in shown.splitlines())


def test_no_class_of_an_equal_model_is_called_worse_more_than_once_in_twenty() -> None:
    random = np.random.default_rng(9)
    wrongly = 0
    for _ in range(400):
        targets = np.repeat(np.arange(4), 80)
        before, after = ((random.random(320) < 0.9).astype(np.int64) for _ in range(2))
        aligned = align(
            [Contender(name=name, members=(predictions(targets, c),)) for name, c in (("a", before), ("b", after))]
        )
        wrongly += any(each.state == "worse" for each in class_differences(aligned, 0, 1, margin=0.05))

    assert wrongly / 400 <= 0.065


def test_a_set_of_images_shows_the_difference_that_it_says_four_times_in_five() -> None:
    random = np.random.default_rng(2)
    shown = difference(np.ones(252), 1 + changes(5, 5, 252)).shows_from
    flipping = 12 / 254
    found = []
    for _ in range(2000):
        change = random.choice(
            np.array([-1.0, 0.0, 1.0]), 252, p=[(flipping - shown) / 2, 1 - flipping, (flipping + shown) / 2]
        )
        found.append(permutation_test(change)[1] <= 0.05)

    assert np.mean(found) == pytest.approx(0.8, abs=0.07)


def test_models_are_compared_on_the_images_that_they_share_under_one_label() -> None:
    targets = np.array([0, 1, 2, 3, 0, 1])
    whole = predictions(targets, np.ones(6, np.int64))
    part = Predictions(whole.ids[2:], targets[2:].copy(), whole.probabilities[2:], CLASSES)
    part.targets[0] = 3  # relabelled

    aligned = align([Contender(name="a", members=(whole,)), Contender(name="b", members=(part,))])

    assert aligned.ids == ["3", "4", "5"]
    assert aligned.left_out == {"a": 2, "b": 0}
    assert aligned.relabelled == 1


@pytest.mark.parametrize("kind", ["no image in common", "other classes"])
def test_what_cannot_be_compared_is_refused_with_the_reason(kind: str) -> None:
    targets = np.array([0, 1, 2])
    model = predictions(targets, np.ones(3, np.int64))
    other = (
        Predictions(["x", "y", "z"], targets, model.probabilities, CLASSES)
        if kind == "no image in common"
        else Predictions(model.ids, targets, model.probabilities, ("can", "glass", "paper", "wood"))
    )

    with pytest.raises(DataError, match="no image with the same label" if kind[0] == "n" else "plastic, wood"):
        align([Contender(name="a", members=(model,)), Contender(name="b", members=(other,))])


def test_seeds_are_one_row_and_their_own_churn_stands_beside_it() -> None:
    random = np.random.default_rng(5)
    targets = np.arange(300) % 4
    seeds = tuple(predictions(targets, (random.random(300) < 0.9).astype(np.int64)) for _ in range(3))
    better = predictions(targets, np.ones(300, np.int64))

    aligned = align([Contender(name="a", members=seeds), Contender(name="b", members=(better,))])

    assert len(aligned.correct[0]) == 300
    assert 0.1 < (seed_churn(aligned, 0) or 0) < 0.25
    assert seed_churn(aligned, 1) is None
    assert best(aligned) == 1
    parts = {"first half": np.arange(150), "none": np.zeros(0, np.int64)}
    assert [each.name for each in slices(aligned, 0, 1, parts)] == ["first half"]


def test_twenty_runs_on_ten_thousand_images_take_seconds() -> None:
    random = np.random.default_rng(6)
    targets = np.arange(10_000) % 4
    rows = [
        Contender(name=str(at), members=(predictions(targets, (random.random(10_000) < 0.9).astype(np.int64)),))
        for at in range(20)
    ]

    with takes_at_most(4):
        aligned = align(rows)
        best(aligned)
        for at in range(1, 20):
            difference(aligned.correct[0], aligned.correct[at])
            class_differences(aligned, 0, at, margin=0.05)


def test_the_page_lays_curves_and_calibration_of_all_models_over_one_another_and_marks_none_that_may_be_lucky() -> None:
    random = np.random.default_rng(7)
    targets = np.arange(400) % 4
    rows = [
        Contender(name=f"run {at}", members=(predictions(targets, (random.random(400) < 0.9).astype(np.int64)),))
        for at in range(20)
    ]
    beside = [Beside(latency_ms=1.5, model_bytes=2_000_000, curve=[(0, 0.5), (1, 0.8 + at / 100)]) for at in range(20)]
    beside[3] = Beside(latency_ms=1.5, model_bytes=2_000_000, curve=[(0, 0.99)])  # a dot at the top left
    comparison = Comparison(aligned=align(rows), beside=beside, kind="test images", margin=0.02)

    text = page(comparison, None, comparison.aligned.ids)

    assert text.count("<polyline") == 40
    assert text.count('points="0.0,0.0 0.0,0.0"') == 1
    assert text.count("1.5 ms") == text.count("2.0 MB") == 20
    assert 'class="text best"' not in text
    assert "No model is significantly better than all others" in text
