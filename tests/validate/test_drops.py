"""What policies take out of the data, in which order, and what a person's approval keeps."""

from dataclasses import replace
from typing import Any

import pytest

from twinrun.core.params import ValidateParams
from twinrun.dataset.pairs import NearPair
from twinrun.project.presets import preset_params
from twinrun.validate.drops import drop_broken, drop_copies, drop_unfit
from twinrun.validate.findings import Drop


def policies(**settings: Any) -> ValidateParams:
    kept = dict.fromkeys(("on_leak", "on_near_leak", "on_contradiction", "on_duplicate", "on_size", "on_mode"), "warn")
    return replace(preset_params("folder").validate, **{**kept, **settings})


def facts(*rows: tuple[str, str, str], **columns: list[Any]) -> dict[str, list[Any]]:
    """Rows of pixels, label and split."""
    return {
        "path": [f"{number}.png" for number in range(len(rows))],
        "pixels_sha256": [pixels for pixels, _, _ in rows],
        "label": [label for _, label, _ in rows],
        "split": [split for _, _, split in rows],
        "group": [None] * len(rows),
        **columns,
    }


def dropped(drops: list[Drop | None]) -> dict[int, str]:
    return {row: drop.reason for row, drop in enumerate(drops) if drop is not None}


def copies(table: dict[str, list[Any]], *pairs: NearPair, approved: tuple[int, ...] = (), **settings: Any) -> Any:
    nothing: list[Drop | None] = [None] * len(table["path"])
    return dropped(drop_copies(table, list(pairs), nothing, frozenset(approved), policies(**settings)))


LEAK = facts(("a", "cat", "train"), ("a", "cat", "test"), ("b", "cat", "train"))


def test_a_leak_goes_from_the_earlier_split_and_only_where_the_policy_says_so() -> None:
    assert copies(LEAK, on_leak="drop") == {0: "leak: of 1.png"}
    assert copies(LEAK) == {}


def test_what_a_person_approved_stays() -> None:
    assert copies(LEAK, on_leak="drop", approved=(0,)) == {}
    assert copies(LEAK, on_leak="drop", approved=(2,)) == {0: "leak: of 1.png"}


def test_no_duplicate_is_left_where_a_person_approved_the_one_that_stays() -> None:
    table = facts(("a", "cat", "train"), ("b", "cat", "train"), ("a", "cat", "train"))
    near = NearPair(0, 1, 0.02, "mirrored")

    assert copies(table, near, approved=(0,), on_duplicate="drop") == {
        1: "duplicate: of 0.png (mirrored, distance 0.020)",
        2: "duplicate: of 0.png",
    }


def test_identical_images_under_two_labels_go_on_both_sides_and_leave_no_leak() -> None:
    table = facts(("a", "cat", "train"), ("a", "dog", "test"), ("b", "cat", "train"))

    assert copies(table, on_contradiction="drop", on_leak="drop") == {
        0: "conflicting labels: of 1.png, label dog",
        1: "conflicting labels: of 0.png, label cat",
    }


def test_where_conflicting_labels_stop_no_other_policy_hides_them() -> None:
    table = facts(("a", "cat", "train"), ("a", "dog", "test"))

    assert copies(table, on_contradiction="stop", on_leak="drop", on_duplicate="drop") == {}
    assert copies(table, on_contradiction="warn", on_leak="drop") == {0: "leak: of 1.png"}


def test_a_near_leak_takes_every_image_with_the_pixels_of_the_one_that_was_compared() -> None:
    table = facts(("a", "cat", "train"), ("a", "cat", "train"), ("b", "cat", "test"), ("c", "cat", "train"))

    found = copies(table, NearPair(0, 2, 0.02, "mirrored"), on_near_leak="drop")

    assert found == dict.fromkeys((0, 1), "near leak: of 2.png (mirrored, distance 0.020)")


def test_the_first_of_some_duplicates_stays() -> None:
    table = facts(("a", "cat", "train"), ("a", "cat", "train"), ("b", "cat", "train"), ("a", "cat", "train"))

    assert copies(table, on_duplicate="drop") == {1: "duplicate: of 0.png", 3: "duplicate: of 0.png"}


def test_of_identical_images_of_one_label_and_split_the_one_not_named_as_a_copy_stays() -> None:
    names = {"path": ["IMG (1).png", "IMG.png", "small.png"]}
    one_label = facts(("a", "cat", "train"), ("a", "cat", "train"), ("b", "cat", "train"), **names)
    two_labels = facts(("a", "cat", "train"), ("a", "dog", "train"), ("b", "cat", "train"), **names)
    two_splits = facts(("a", "cat", "test"), ("a", "cat", "train"), ("b", "cat", "train"), **names)

    assert copies(one_label, NearPair(0, 2, 0.02, "mirrored"), on_duplicate="drop") == {
        0: "duplicate: of IMG.png",
        2: "duplicate: of IMG.png (mirrored, distance 0.020)",
    }
    assert copies(two_labels, on_duplicate="drop") == {1: "duplicate: of IMG (1).png"}
    assert copies(two_splits, on_leak="drop", on_duplicate="drop") == {1: "leak: of IMG (1).png"}


def test_a_group_that_reaches_a_later_split_leaves_the_earlier_one() -> None:
    table = facts(("a", "cat", "train"), ("b", "cat", "test"), ("c", "cat", "train"), group=["g", "g", "h"])

    assert copies(table, on_leak="drop") == {0: 'leak: group "g" is in a later split, 1.png'}


def test_a_row_keeps_the_reason_for_which_it_was_dropped_first() -> None:
    before: list[Drop | None] = [Drop("decision"), None, None]

    after = drop_copies(LEAK, [], before, frozenset(), policies(on_leak="drop"))

    assert dropped(after) == {0: "decision"}


@pytest.mark.parametrize(("policy", "expected"), [("stop", {}), ("drop", {1: "unreadable: truncated"})])
def test_unreadable_images_go_unless_they_stop_the_pipeline(policy: str, expected: dict[int, str]) -> None:
    table = {"error": [None, "truncated"]}

    assert dropped(drop_broken(table, [None, None], policies(on_broken=policy))) == expected


def test_sizes_outside_both_limits_and_other_modes_go_where_the_policies_say_so() -> None:
    table: dict[str, list[Any]] = {
        "width": [8, 7, 900, None],
        "height": [900, 20, 901, None],
        "mode": ["RGB", "RGB", "L", None],
    }
    limits = {"min_side_px": 8, "max_side_px": 900, "modes": ["RGB"]}

    sizes = drop_unfit(table, [None] * 4, policies(on_size="drop", **limits))
    both = drop_unfit(table, [None] * 4, policies(on_size="drop", on_mode="drop", **limits))
    modes = drop_unfit(table, [None] * 4, policies(on_mode="drop", **limits))

    assert dropped(sizes) == {1: "size: 7 x 20 pixels", 2: "size: 900 x 901 pixels"} == dropped(both)
    assert dropped(modes) == {2: "mode: L"}
