"""What is said of two versions of a data set."""

from typing import Any

import numpy as np
import pytest
from clock import takes_at_most

from twinrun.validate.searches.drift import Drift, find_drift

Columns = dict[str, list[Any]]


def images(count: int, *, seed: int = 0, first: int = 0) -> Columns:
    """Facts of `count` images from one population, named from `first` on."""
    generator = np.random.default_rng(seed)
    labels = [str(label) for label in generator.choice(["glass", "metal", "paper"], count)]
    return {
        "path": [f"{label}/{first + number:06}.png" for number, label in enumerate(labels)],
        "label": labels,
        "pixels_sha256": [f"{first + number:064x}" for number in range(count)],
        "width": [512] * count,
        "mode": generator.choice(["RGB", "L"], count, p=[0.9, 0.1]).tolist(),
        "camera": [None] * count,
        "brightness": generator.normal(0.6, 0.1, count).tolist(),
        "file_bytes": generator.integers(5_000, 50_000, count).tolist(),
    }


def copy(columns: Columns) -> Columns:
    return {name: list(values) for name, values in columns.items()}


def shifted(drift: Drift) -> set[str]:
    return {shift.name for shift in drift.shifts if shift.significant}


def test_a_table_has_not_drifted_from_itself() -> None:
    table = images(500)

    drift = find_drift(table, table, seed=0)

    assert {shift.name for shift in drift.shifts} == {"label", "mode", "brightness", "file_bytes"}
    assert all(shift.value == 0 and shift.p_value == 1 and not shift.significant for shift in drift.shifts)
    assert drift == Drift(drift.shifts, [], [], [], [], [])


@pytest.mark.parametrize("count", [60, 5000])
def test_two_draws_from_one_population_are_no_shift_but_one_in_twenty_times(count: int) -> None:
    alarms = 0
    for seed in range(20):
        drift = find_drift(images(count, seed=seed), images(count, seed=seed + 1000), seed=seed)
        alarms += any(shift.p_value < 0.05 for shift in drift.shifts)

    assert alarms <= 4


def test_darker_images_shift_the_brightness_alone_and_most() -> None:
    before, now = images(2000), images(2000, seed=1)
    now["brightness"] = [value - 0.05 for value in now["brightness"]]

    drift = find_drift(before, now, seed=0)

    assert shifted(drift) == {"brightness"}
    assert drift.shifts[0].name == "brightness"
    assert drift.shifts[0].value > 0.1
    assert drift.shifts[0].p_value < 0.01


def test_a_shift_that_is_no_chance_but_tiny_is_not_significant() -> None:
    before, now = images(30_000), images(30_000, seed=1)
    now["brightness"] = [value - 0.01 for value in now["brightness"]]

    shift = next(shift for shift in find_drift(before, now, seed=0).shifts if shift.name == "brightness")

    assert shift.p_value < 0.01
    assert 0 < shift.value < 0.1
    assert not shift.significant


def test_the_index_is_that_of_the_literature() -> None:
    before, now = images(1000), images(1000)
    before["mode"], now["mode"] = ["RGB"] * 900 + ["L"] * 100, ["RGB"] * 700 + ["L"] * 300

    shift = next(shift for shift in find_drift(before, now, seed=0).shifts if shift.name == "mode")

    assert shift.value == pytest.approx(0.2 * np.log(0.3 / 0.1) - 0.2 * np.log(0.7 / 0.9), rel=0.01)


def test_another_size_and_a_new_camera_and_facts_that_became_unknown_are_shifts() -> None:
    before, now = images(300), images(300, seed=1)
    now["width"] = [512] * 150 + [640] * 150
    now["camera"] = ["Nikon D90"] * 150 + [None] * 150
    now["file_bytes"] = [None] * 100 + now["file_bytes"][100:]

    assert shifted(find_drift(before, now, seed=0)) == {"width", "camera", "file_bytes"}


def test_labels_that_are_new_or_gone_are_named() -> None:
    before, now = images(300), images(300)
    now["label"] = ["plastic" if label == "glass" else label for label in now["label"]]

    drift = find_drift(before, now, seed=0)

    assert (drift.new_labels, drift.vanished_labels) == (["plastic"], ["glass"])
    assert "label" in shifted(drift)


def test_images_that_came_and_went_are_named_and_renamed_ones_are_not() -> None:
    before, now = images(50), images(50)
    now["path"][3] = "elsewhere/renamed.png"
    before = {name: values[:-1] for name, values in before.items()}
    now = {name: values[1:] for name, values in now.items()}

    drift = find_drift(before, now, seed=0)

    assert drift.added == [now["path"][-1]]
    assert drift.removed == [before["path"][0]]
    assert drift.relabelled == []


def test_a_picture_moved_to_another_label_is_relabelled_under_its_new_path() -> None:
    before, now = images(50), images(50)
    now["path"][7], now["label"][7] = "trash/moved.png", "trash"
    now["label"][9] = "trash"

    drift = find_drift(before, now, seed=0)

    assert drift.relabelled == sorted(
        [(now["path"][9], before["label"][9], "trash"), ("trash/moved.png", before["label"][7], "trash")]
    )
    assert drift.added == drift.removed == []


def test_of_two_with_the_same_pixels_under_two_labels_neither_is_taken_for_the_other() -> None:
    before = images(4)
    before["pixels_sha256"][:2] = ["same", "same"]
    before["label"] = ["glass", "metal", "glass", "glass"]
    now = {name: [values[1], values[0], *values[2:]] for name, values in before.items()}
    now["path"] = [f"renamed/{path}" for path in now["path"]]

    drift = find_drift(before, now, seed=0)

    assert (drift.added, drift.removed, drift.relabelled) == ([], [], [])


def test_pixels_replaced_under_the_same_path_are_removed_and_added_and_broken_files_are_known_by_path() -> None:
    before, now = images(10), images(10)
    now["pixels_sha256"][2] = "other"
    before["pixels_sha256"][5] = now["pixels_sha256"][5] = None

    drift = find_drift(before, now, seed=0)

    assert drift.added == drift.removed == [before["path"][2]]


def test_an_empty_table_has_nothing_to_compare_but_its_images() -> None:
    table = images(5)
    empty: dict[str, list[Any]] = {name: [] for name in table}

    drift = find_drift(empty, table, seed=0)

    assert drift.shifts == []
    assert drift.new_labels == sorted(set(table["label"]))
    assert len(drift.added) == 5


def test_seventy_thousand_images_against_as_many_take_seconds_and_give_the_same_twice() -> None:
    before, now = images(70_000), images(70_000, seed=1, first=35_000)

    with takes_at_most(7):
        drift = find_drift(before, now, seed=7)

    assert len(drift.added) == len(drift.removed) == 35_000
    assert drift == find_drift(before, now, seed=7)
