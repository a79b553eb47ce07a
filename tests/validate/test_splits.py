"""Stratified splits: quotas, units that stay together, published and fixed splits."""

import hashlib
import random
from collections import Counter
from typing import Any

import pytest

from twinrun.dataset.manifest import SPLITS, SplitName
from twinrun.validate.searches.leaks import distinct_per_key, leaked
from twinrun.validate.splits import assign_splits, split_keys

FRACTIONS: dict[SplitName, float] = {"train": 0.7, "val": 0.15, "test": 0.15}
HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]


def _of_sizes(sizes: list[int]) -> list[str]:
    """A label for each image: as many images of each class as `sizes` say."""
    return [f"class {number}" for number, size in enumerate(sizes) for _ in range(size)]


def _drawn(labels: list[str], keys: list[str] | None = None, seed: int = 0) -> list[SplitName | None]:
    keys = keys or HASHES[: len(labels)]
    return assign_splits([None] * len(labels), keys, labels, FRACTIONS, seed)


def _excess(counts: Counter[SplitName | None], images: int) -> float:
    """The most that a split is away from its quota, images."""
    return max(abs(counts[name] - images * share) for name, share in FRACTIONS.items())


def test_fifty_images_of_each_of_three_classes_are_split_evenly() -> None:
    labels = _of_sizes([50, 50, 50])

    splits = _drawn(labels)

    by_class = [Counter(splits[start : start + 50]) for start in (0, 50, 100)]
    assert all((counts["train"], counts["val"] + counts["test"]) == (35, 15) for counts in by_class)
    assert all(counts["val"] in (7, 8) for counts in by_class)
    assert sorted(Counter(splits).values()) == [22, 23, 105]


def test_twenty_random_class_sizes_are_split_within_one_image_of_each_quota_by_class_and_overall() -> None:
    for seed in range(8):
        sizes = random.Random(seed).choices(range(14, 300), k=20)
        labels = _of_sizes(sizes)

        splits = _drawn(labels, seed=seed)

        counts = Counter(zip(labels, splits, strict=True))
        for number, size in enumerate(sizes):
            of_class = Counter[SplitName | None]({name: counts[f"class {number}", name] for name in SPLITS})
            assert _excess(of_class, size) <= 1
        assert _excess(Counter(splits), len(labels)) <= 1


def test_small_classes_are_split_within_one_image_and_from_ten_images_on_have_some_of_each_split() -> None:
    for size in range(1, 40):
        splits = _drawn(_of_sizes([size] * 7))

        for start in range(0, 7 * size, size):
            counts = Counter(splits[start : start + size])
            assert _excess(counts, size) <= 1
            assert size < 10 or len(counts) == 3
            assert size < 12 or min(counts.values()) >= 2


def test_groups_of_random_sizes_stay_together_within_one_group_of_each_quota() -> None:
    for seed in range(8):
        rng = random.Random(seed)
        labels = _of_sizes(rng.choices(range(40, 200), k=20))
        groups: list[str | None] = []
        for number, label in enumerate(labels):
            joins = groups and labels[number - 1] == label and rng.random() < 0.8
            groups.append(groups[-1] if joins else f"group {number}")
        keys = split_keys(HASHES[: len(labels)], groups, [])

        splits = assign_splits([None] * len(labels), keys, labels, FRACTIONS, seed)

        assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
        for label in set(labels):
            rows = [row for row, own in enumerate(labels) if own == label]
            largest = max(Counter(groups[row] for row in rows).values())
            assert _excess(Counter(splits[row] for row in rows), len(rows)) <= largest


@pytest.mark.parametrize("clips", [4, 5, 6, 12])
def test_few_clips_of_a_class_reach_every_split(clips: int) -> None:
    labels = _of_sizes([20 * clips] * 3)
    keys = split_keys(HASHES[: len(labels)], [f"clip {row // 20}" for row in range(len(labels))], [])

    splits = assign_splits([None] * len(labels), keys, labels, FRACTIONS, 0)

    counts = Counter(zip(labels, splits, strict=True))
    assert all(counts[label, name] >= 20 for label in set(labels) for name in SPLITS)
    assert all(
        abs(counts[label, name] - 20 * clips * FRACTIONS[name]) <= 20 for label in set(labels) for name in SPLITS
    )


@pytest.mark.parametrize(
    ("groups", "shares"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1]), (10, [7, 2, 1]), (20, [14, 3, 3])]
)
def test_few_groups_that_span_classes_reach_every_split(groups: int, shares: list[int]) -> None:
    labels = ["cat", "dog"] * 10 * groups
    keys = split_keys(HASHES[: len(labels)], [f"camera {row // 20}" for row in range(len(labels))], [])

    splits = assign_splits([None] * len(labels), keys, labels, FRACTIONS, 0)

    found = Counter(splits[20 * group] for group in range(groups))
    assert all(len(set(splits[20 * group : 20 * group + 20])) == 1 for group in range(groups))
    assert found["train"] == shares[0]
    assert sorted([found["val"], found["test"]], reverse=True) == shares[1:]


def test_units_that_span_classes_stay_together_and_leave_single_images_to_fill_the_quotas() -> None:
    labels = ["cat", "dog"] * 100
    copies = [(row, row + 1) for row in range(0, 40, 2)]
    keys = split_keys(HASHES[:200], [None] * 200, copies)

    splits = assign_splits([None] * 200, keys, labels, FRACTIONS, 0)

    assert all(splits[first] == splits[second] for first, second in copies)
    for label in ("cat", "dog"):
        counts = Counter(split for split, own in zip(splits, labels, strict=True) if own == label)
        assert counts == {"train": 70, "val": 15, "test": 15}


def test_neither_order_nor_names_decide_and_the_seed_does() -> None:
    labels = _of_sizes([41, 29, 83])
    groups = [f"group {row // 3}" if row % 2 else None for row in range(len(labels))]
    keys = split_keys(HASHES[: len(labels)], groups, [(0, 5), (50, 51)])
    order = random.Random(1).sample(range(len(labels)), len(labels))
    renamed = split_keys(
        [HASHES[row] for row in order],
        [f"other {groups[row]}" if groups[row] else None for row in order],
        [(order.index(0), order.index(5)), (order.index(50), order.index(51))],
    )

    splits = assign_splits([None] * len(labels), keys, labels, FRACTIONS, 0)
    shuffled = assign_splits([None] * len(labels), renamed, [labels[row] for row in order], FRACTIONS, 0)

    assert shuffled == [splits[row] for row in order]
    assert assign_splits([None] * len(labels), keys, labels, FRACTIONS, 1) != splits


def test_one_more_image_of_a_class_moves_few_others_and_none_of_another_class() -> None:
    labels = _of_sizes([200, 200])
    more = [*labels, "class 1"]

    before, after = _drawn(labels), _drawn(more)

    moved = [row for row in range(400) if before[row] != after[row]]
    assert len(moved) <= 3
    assert all(row >= 200 for row in moved)


def test_a_published_test_split_stands_and_val_is_carved_out_of_train_in_every_class_alike() -> None:
    labels = _of_sizes([100, 200]) + ["class 0"] * 40 + ["class 1"] * 3
    published: list[Any] = ["train"] * 300 + ["test"] * 43

    splits = assign_splits(published, HASHES[:343], labels, {"train": 0.6, "val": 0.2, "test": 0.2}, 0)

    assert set(splits[300:]) == {"test"}
    assert Counter(splits[:100]) == {"train": 75, "val": 25}
    assert Counter(splits[100:300]) == {"train": 150, "val": 50}


def test_a_source_that_publishes_all_three_keeps_them_and_gives_train_the_rest() -> None:
    published: list[Any] = ["train", "val", "test", None]

    assert assign_splits(published, HASHES[:4], ["a"] * 4, FRACTIONS, 0) == ["train", "val", "test", "train"]


def test_a_list_of_test_images_alone_leaves_no_other_image_in_test() -> None:
    published: list[Any] = ["test"] * 100 + [None] * 900

    splits = assign_splits(published, HASHES[:1000], ["a"] * 1000, FRACTIONS, 0)

    assert set(splits[:100]) == {"test"}
    assert set(splits[100:]) == {"train", "val"}


def test_an_image_without_pixels_gets_no_split() -> None:
    assert assign_splits([None, "test"], [None, None], ["a", "a"], FRACTIONS, 0) == [None, "test"]


def test_images_that_are_not_used_count_for_no_quota_and_follow_their_copies() -> None:
    labels = ["a"] * 60
    keys = [*HASHES[:58], HASHES[0], HASHES[59]]
    counted = [row < 50 for row in range(60)]

    splits = assign_splits([None] * 60, keys, labels, FRACTIONS, 0, counted=counted)

    assert Counter(splits[:50])["train"] == 35
    assert splits[58] == splits[0]
    assert splits[59] is None


def test_fixed_images_stay_and_new_ones_fill_the_quotas() -> None:
    labels = _of_sizes([50, 50, 50])
    fixed = _drawn(labels)
    more = labels + ["class 0"] * 10 + ["class 1"] * 20

    splits = assign_splits([None] * 180, HASHES[:180], more, FRACTIONS, 7, fixed=[*fixed, *[None] * 30])

    assert splits[:150] == fixed
    for label, images in (("class 0", 60), ("class 1", 70)):
        counts = Counter(split for split, own in zip(splits, more, strict=True) if own == label)
        assert _excess(counts, images) <= 1


def test_where_a_fixed_split_is_over_full_new_images_go_to_the_others() -> None:
    fixed: list[Any] = ["test"] * 30 + ["train"] * 10 + [None] * 20

    splits = assign_splits([None] * 60, HASHES[:60], ["a"] * 60, FRACTIONS, 0, fixed=fixed)

    assert Counter(splits[40:]) == {"train": 15, "val": 5}


def test_a_new_image_follows_the_fixed_ones_of_its_unit_also_into_train() -> None:
    keys = ["one", "two", "three", "one", "two", "three", "three"]
    fixed: list[SplitName | None] = ["train", "val", "test", None, None, None, None]

    splits = assign_splits([None] * 7, keys, ["a"] * 7, FRACTIONS, 0, fixed=fixed)

    assert splits == ["train", "val", "test", "train", "val", "test", "test"]


def test_an_image_without_a_split_follows_the_last_split_that_was_published_for_its_unit() -> None:
    published: list[Any] = ["train", "val", "test", None, None, None, None]
    keys = ["a", "b", "b", "b", "a", "c", None]

    splits = assign_splits(published, keys, ["x"] * 7, FRACTIONS, 0)

    assert splits == [*published[:3], "test", "train", "train", None]


def test_a_unit_that_is_published_in_train_alone_stays_together_where_val_is_carved_out_of_it() -> None:
    keys: list[str | None] = [f"{number % 100}" for number in range(400)]
    published: list[SplitName | None] = [("train", None)[number // 100 % 2] for number in range(400)]

    splits = assign_splits([*published, "test"], [*keys, "7"], ["x"] * 401, FRACTIONS, 0)[:400]

    followed = [number for number in range(400) if number % 100 == 7]
    assert [splits[number] for number in followed if published[number] is None] == ["test", "test"]
    others = [number for number in range(400) if number % 100 != 7]
    assert {splits[number] for number in others} == {"train", "val"}
    assert all(splits[number] == splits[number % 100] for number in others)


def test_a_unit_has_one_key_whatever_holds_it_together() -> None:
    keys = split_keys(["f", "b", "b", "d", None, "c"], [None, "x", None, "x", "x", None], [(3, 5)])

    assert keys == ["f", "b", "b", "b", None, "b"]


def test_leaks_are_found_in_all_splits_but_the_last_each_with_the_first_of_that() -> None:
    pixels = ["a", "a", "a", "b", "b", None, "c", "a"]
    splits = ["train", "val", "test", "train", "train", "train", "val", "test"]

    assert leaked(pixels, splits) == {0: 2, 1: 2}
    assert distinct_per_key(pixels, splits) == [3, 3, 3, 1, 1, 0, 1, 3]
