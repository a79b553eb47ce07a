"""Splits by hash, and what identical pixels do to them."""

import hashlib
from collections import Counter

from twinrun.data.leaks import distinct_per_key, leaked
from twinrun.data.manifest import SplitName
from twinrun.data.splits import assign_splits

FRACTIONS: dict[SplitName, float] = {"train": 0.7, "val": 0.2, "test": 0.1}
HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]


def test_where_nothing_is_published_shares_are_met_in_every_label_alike() -> None:
    splits = assign_splits([None] * 20_000, HASHES, FRACTIONS, seed=0)

    for label in range(4):
        counts = Counter(splits[label::4])
        for name, fraction in FRACTIONS.items():
            assert abs(counts[name] / 5000 - fraction) < 0.02


def test_a_published_test_split_stands_and_val_is_carved_out_of_train() -> None:
    published: list[str | None] = ["train"] * 15_000 + ["test"] * 5_000

    splits = assign_splits(published, HASHES, FRACTIONS, seed=0)

    assert set(splits[15_000:]) == {"test"}
    counts = Counter(splits[:15_000])
    assert set(counts) == {"train", "val"}
    assert abs(counts["val"] / 15_000 - 0.2 / 0.9) < 0.01


def test_a_source_that_publishes_all_three_keeps_them_and_gives_train_the_rest() -> None:
    published = ["train", "val", "test", None]

    assert assign_splits(published, HASHES[:4], FRACTIONS, seed=0) == ["train", "val", "test", "train"]


def test_a_list_of_test_images_alone_leaves_no_other_image_in_test() -> None:
    published = ["test"] * 100 + [None] * 19_900

    splits = assign_splits(published, HASHES, FRACTIONS, seed=0)

    assert set(splits[:100]) == {"test"}
    assert set(splits[100:]) == {"train", "val"}


def test_an_image_goes_where_its_pixels_and_the_seed_say_whatever_the_others_are() -> None:
    whole = assign_splits([None] * 20_000, HASHES, FRACTIONS, seed=0)
    part = assign_splits([None] * 100, HASHES[5000:5100], FRACTIONS, seed=0)
    other = assign_splits([None] * 20_000, HASHES, FRACTIONS, seed=1)

    assert part == whole[5000:5100]
    assert other != whole
    assert len(set(assign_splits([None] * 2, [HASHES[7]] * 2, FRACTIONS, seed=3))) == 1


def test_an_image_without_pixels_gets_no_split() -> None:
    assert assign_splits([None, "test"], [None, None], FRACTIONS, seed=0) == [None, "test"]


def test_leaks_are_found_in_all_splits_but_the_last_each_with_the_first_of_that() -> None:
    pixels = ["a", "a", "a", "b", "b", None, "c", "a"]
    splits = ["train", "val", "test", "train", "train", "train", "val", "test"]

    assert leaked(pixels, splits) == {0: 2, 1: 2}
    assert distinct_per_key(pixels, splits) == [3, 3, 3, 1, 1, 0, 1, 3]


def test_an_image_without_a_split_follows_the_last_split_that_was_published_for_its_key() -> None:
    published = ["train", "val", "test", None, None, None, None]
    keys = ["group:a", "group:b", "group:b", "group:b", "group:a", "group:c", None]

    assert assign_splits(published, keys, FRACTIONS, seed=0) == [*published[:3], "test", "train", "train", None]


def test_a_key_that_is_published_in_train_alone_stays_together_where_val_is_carved_out_of_it() -> None:
    keys: list[str | None] = [f"group:{number % 100}" for number in range(400)]
    published: list[str | None] = [("train", None)[number // 100 % 2] for number in range(400)]

    splits = assign_splits([*published, "test"], [*keys, "group:7"], FRACTIONS, seed=0)[:400]

    followed = [number for number in range(400) if number % 100 == 7]
    assert [splits[number] for number in followed if published[number] is None] == ["test", "test"]
    others = [number for number in range(400) if number % 100 != 7]
    assert {splits[number] for number in others} == {"train", "val"}
    assert all(splits[number] == splits[number % 100] for number in others)
