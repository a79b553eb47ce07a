"""Labels that are probably wrong, found on scikit-learn's handwritten digits."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from twinrun.core.arrays import Pixels
from twinrun.ingest.known_sets import list_digits
from twinrun.ingest.listing import Arrays
from twinrun.validate.searches.label_errors import LabelSearch, find_label_errors


@pytest.fixture(scope="module")
def digits() -> tuple[Pixels, list[str]]:
    """The first 900 digits, 8 x 8, and their labels."""
    listing = list_digits()
    assert isinstance(listing.content, Arrays)
    return listing.content.pixels[:900], [str(item.label) for item in listing.items][:900]


def flipped(labels: Sequence[str], every: int) -> tuple[list[str], set[int]]:
    """Every so-many-th label made into that of the next digit, and where."""
    wrong = set(range(0, len(labels), every))
    return [str((int(label) + 1) % 10) if row in wrong else label for row, label in enumerate(labels)], wrong


def searched(images: Pixels, labels: Sequence[str], folds: int = 4, budget_s: float = 300) -> LabelSearch:
    return find_label_errors(images, range(len(labels)), labels, folds=folds, budget_s=budget_s, seed=0)


def test_wrong_labels_come_first_and_the_right_ones_are_suggested(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits
    given, wrong = flipped(labels, every=20)

    found = searched(images, given)

    assert found.finished
    assert found.accuracy > 0.85
    first = found.issues[: len(wrong)]
    assert len(wrong & {issue.row for issue in first}) >= 0.8 * len(wrong)
    assert sum(issue.suggested == labels[issue.row] for issue in first) >= 0.75 * len(wrong)
    assert all(issue.given == given[issue.row] != issue.suggested for issue in found.issues)
    confidences = [issue.confidence for issue in found.issues]
    assert confidences == sorted(confidences)
    assert 0 <= confidences[0] <= confidences[-1] <= 1


def test_right_labels_are_left_in_peace(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits

    found = searched(images, labels)

    assert found.accuracy > 0.9
    assert len(found.issues) < 0.04 * len(labels)


def test_labels_that_the_model_cannot_tell_are_not_doubted(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits
    by_chance = [label if row % 2 else str(row // 2 % 10) for row, label in enumerate(labels)]

    found = searched(images, by_chance)
    told = searched(images, flipped(labels, every=10)[0])

    assert found.finished
    assert 0.3 < found.accuracy < 0.7
    assert found.issues == []
    assert (
        found.unjudged == f"The quick model agrees with only {found.accuracy:.0%} of the labels, too few to doubt any"
    )
    assert told.issues
    assert told.unjudged is None


def test_rows_of_issues_are_those_of_the_pack(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits
    given, wrong = flipped(labels[:600], every=20)
    rows = [2 * place + 7 for place in range(600)]
    pack = np.zeros((1300, 8, 8, 1), np.uint8)
    pack[rows] = images[:600]

    found = find_label_errors(pack, rows, given, folds=4, budget_s=300, seed=0)

    planted = {rows[place] for place in wrong}
    assert len(planted & {issue.row for issue in found.issues[: len(planted)]}) >= 0.85 * len(planted)


_ASK = """
import numpy as np, sys
from twinrun.validate.searches import label_errors
from twinrun.ingest.known_sets import list_digits
label_errors.available_cores = lambda: int(sys.argv[1])
listing = list_digits()
labels = [str(item.label) for item in listing.items][:500]
labels[::20] = reversed(labels[::20])
print(label_errors.find_label_errors(
    listing.content.pixels, range(len(labels)), labels, folds=3, budget_s=300, seed=1))
"""


def test_the_number_of_threads_changes_nothing() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", _ASK, str(threads)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(blas), "OMP_NUM_THREADS": str(blas)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads, blas in ((1, 1), (3, 4))
    ]

    assert "LabelIssue" in said[0]
    assert said[0] == said[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_few_images_of_a_label_more_folds_than_that_and_single_labels_do_no_harm(channels: int) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 60, (43, 48, 48, channels), dtype=np.uint8)
    images[:20, 10:20] += 150
    images[20:40, :, 10:20] += 150
    labels = ["lying"] * 20 + ["standing"] * 20 + ["neither"] * 2 + ["alone"]
    labels[3] = "standing"

    found = searched(images, labels, folds=5)

    assert found.finished
    assert {issue.given for issue in found.issues} <= {"lying", "standing", "neither"}
    assert (3, "standing", "lying") in {(issue.row, issue.given, issue.suggested) for issue in found.issues}


def test_with_fewer_than_two_labels_there_is_nothing_to_find(digits: tuple[Pixels, list[str]]) -> None:
    images, _ = digits
    nothing = LabelSearch([], 0.0, finished=True, unjudged="Fewer than two classes have two images or more")

    assert searched(images[:3], ["a", "b", "c"]) == nothing
    assert searched(images[:9], ["a"] * 9) == nothing
    assert searched(images[:0], []) == nothing


def test_blank_images_are_searched_like_any(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits
    blank = np.zeros_like(images[:60])

    found = searched(blank, labels[:60])

    assert found.finished


def test_a_budget_that_will_not_do_ends_without_issues(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits

    found = searched(images, labels, budget_s=0.01)

    assert found == LabelSearch(
        [], 0.0, finished=False, unjudged="The search for wrong labels does not finish within 0.01 s"
    )


def test_progress_grows_to_the_end(digits: tuple[Pixels, list[str]]) -> None:
    images, labels = digits
    told: list[float] = []

    find_label_errors(images, range(300), labels[:300], folds=3, budget_s=300, seed=0, progress=told.append)

    assert told == sorted(told)
    assert told[0] > 0
    assert told[-1] == 1


def test_the_search_learns_from_colour_images_without_a_copy_of_every_patch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1500, 32, 32, 3)).astype(np.uint8)

    tracemalloc.start()
    try:
        searched(images, ["cat", "dog"] * 750, budget_s=1e-3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 400e6


def test_large_images_are_shrunk_a_few_at_a_time() -> None:
    images = np.zeros((300, 240, 320, 3), np.uint8)

    tracemalloc.start()
    try:
        searched(images, ["a", "b"] * 150, folds=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 0.5 * images.nbytes * 9  # all of them, and as floats, and these with the axes in another order
