"""What differs between two runs, and the verdict that follows from it."""

import copy
from typing import Any

import pyarrow as pa
import pytest

from twinrun.training.fingerprint import installed_environment
from twinrun.twins.difference import (
    Differences,
    MetricPair,
    class_changes,
    compare_cards,
    compare_images,
    compare_metrics,
    compare_predictions,
    is_deciding,
)
from twinrun.twins.verdict import judge

CARD: dict[str, Any] = {
    "weights_hash": "ab",
    "commit": "c0ffee",
    "diff": "",
    "params": {"train": {"epochs": 3, "learning_rate": 0.003}},
    "fingerprint_parts": {
        "code": {"training/fit.py": "1" * 64},
        "params": {"epochs": 3, "preparation": {"fit": "pad", "mean": [0.3]}},
        "data": {"pack": "2" * 64, "manifest": "3" * 64},
        "environment": {"packages": {"torch": "2.15.0", "numpy": "2.4.6"}},
        "numerics": {"device": "cpu", "instructions": "AVX512"},
    },
    "environment": {"python": "3.11.7", "lock_sha256": "4" * 64},
    "hardware": {"cpu": "a processor", "cpu_flags": ["avx512f"], "cores_usable": 2, "gpus": []},
}


def changed(**parts: Any) -> dict[str, Any]:
    card = copy.deepcopy(CARD)
    for name, value in parts.items():
        *folders, last = name.split("__")
        place = card
        for folder in folders:
            place = place[folder]
        place[last] = value
    return card


def test_equal_cards_differ_in_nothing() -> None:
    found = compare_cards(CARD, copy.deepcopy(CARD))

    assert not any(found.changes.values())
    assert found.first_cause() is None


@pytest.mark.parametrize(
    ("cause", "card"),
    [
        ("code", changed(fingerprint_parts__code={"training/fit.py": "9" * 64})),
        ("params", changed(fingerprint_parts__params__epochs=4)),
        ("data", changed(fingerprint_parts__data__pack="9" * 64)),
        ("environment", changed(fingerprint_parts__environment__packages={"torch": "2.14.1", "numpy": "2.4.6"})),
        ("hardware", changed(fingerprint_parts__numerics__instructions="AVX2")),
        ("hardware", changed(hardware__cpu_flags=["avx2"])),
    ],
)
def test_the_cause_is_the_part_that_differs(cause: str, card: dict[str, Any]) -> None:
    assert compare_cards(CARD, card).first_cause() == cause


OWN = {"model": "networks/mine.py:build", "pretrained": "data/pretrained/mine.safetensors"}


@pytest.mark.parametrize(
    ("part", "cause", "name"),
    [
        ("network", "code", "networks/mine.py"),
        ("pretrained", "data", "pretrained weights data/pretrained/mine.safetensors of networks/mine.py:build"),
    ],
)
def test_an_own_network_and_pretrained_weights_of_other_content_are_a_cause(part: str, cause: str, name: str) -> None:
    before, after, renamed = (
        changed(**{"fingerprint_parts__params": settings, f"fingerprint_parts__{part}": {"sha256": digit * 64}})
        for digit, settings in (("1", OWN), ("2", OWN), ("2", dict.fromkeys(OWN, "other")))
    )

    found = compare_cards(before, after)

    assert found.first_cause() == cause
    assert [(change.name, change.before, change.after) for change in found.changes[cause]] == [
        (name, "1" * 12, "2" * 12)
    ]
    assert {kind for kind, changes in compare_cards(before, renamed).deciding.items() if changes} == {"params"}


def test_every_package_of_the_fingerprint_is_a_cause() -> None:
    assert [name for name in installed_environment()["packages"] if not is_deciding(name)] == []


def test_the_first_cause_is_named_where_several_differ() -> None:
    card = changed(fingerprint_parts__data__pack="9" * 64, fingerprint_parts__numerics__instructions="AVX2")

    verdict = judge("ab", "cd", compare_cards(CARD, card), [])

    assert verdict.tag == "different: data"
    assert verdict.exit_code == 4


def test_what_changes_no_weights_is_no_cause() -> None:
    card = changed(hardware__cores_usable=8, environment__lock_sha256="9" * 64)
    packages = ({"torch": "2.15.0", "pytest": "8"}, {"torch": "2.15.0", "pytest": "9"})

    found = compare_cards(CARD, card, packages)

    assert [change.name for change in found.changes["environment"]] == ["requirements.lock", "pytest"]
    assert found.first_cause() is None
    assert judge("ab", "cd", found, []).cause == "unknown"


@pytest.mark.parametrize(("accuracy", "word", "exit_code"), [(0.93, "equivalent", 3), (0.80, "different", 4)])
def test_on_another_processor_the_metrics_decide_whether_a_twin_is_equivalent(
    accuracy: float, word: str, exit_code: int
) -> None:
    found = compare_cards(CARD, changed(fingerprint_parts__numerics__instructions="AVX2"))
    metrics = compare_metrics({"accuracy": 0.92, "intervals": {"accuracy": [0.9, 0.95]}}, {"accuracy": accuracy})

    verdict = judge("ab", "cd", found, metrics)

    assert (verdict.word, verdict.cause, verdict.exit_code) == (word, "hardware", exit_code)


def test_without_intervals_no_twin_is_equivalent() -> None:
    found = compare_cards(CARD, changed(fingerprint_parts__numerics__instructions="AVX2"))

    verdict = judge("ab", "cd", found, [MetricPair("accuracy", 0.9, 0.9, None, None)])

    assert verdict.tag == "different: hardware"


def test_the_same_weights_are_identical_whatever_differs() -> None:
    verdict = judge("ab", "ab", compare_cards(CARD, changed(commit="decade")), [])

    assert (verdict.tag, verdict.exit_code) == ("identical", 0)
    assert judge("ab", "ab", Differences(), []).word == "identical"


def test_images_are_told_apart_by_what_happened_to_them() -> None:
    before = _images(a=("cat", "1"), b=("cat", "2"), c=("dog", "3"), d=("dog", "4"))
    after = _images(a=("cat", "1"), b=("dog", "2"), c=("dog", "9"), e=("dog", "5"))

    found = {change.path: change.description for change in compare_images(before, after)}

    assert found == {
        "b.png": "relabelled from 'cat' to 'dog'",
        "c.png": "its pixels changed",
        "d.png": "removed",
        "e.png": "added",
    }


def test_a_renamed_image_is_one_change_and_a_renamed_class_one_sentence() -> None:
    before = _images(a=("metal", "1"), b=("metal", "2"), c=("paper", "3"), d=("paper", "4"), e=("glass", "5"))
    after = _images(f=("metall", "1"), g=("metall", "2"), c=("paper", "3"), h=("wood", "9"))

    images = [str(change) for change in compare_images(before, after)]
    classes = class_changes(before.to_pydict(), after.to_pydict())

    assert images[:2] == ["a.png: renamed to f.png", "b.png: renamed to g.png"]
    assert images[2:] == ["d.png: removed", "e.png: removed", "h.png: added"]
    assert classes == [
        'Class "glass" is gone (1 image).',
        'Class "metal" is renamed to "metall" (2 identical images).',
        'Class "wood" is new (1 image).',
        "2 earlier images are gone.",
    ]


def test_an_image_that_moved_to_another_split_or_that_a_person_relabelled_is_named() -> None:
    images = _images(a=("cat", "1"), b=("dog", "2"))
    manifests = [
        pa.table(
            {
                "id": ["a", "b"],
                "label": ["cat", label],
                "split": ["train", split],
                "dropped": pa.array([None, None], pa.string()),
            }
        )
        for label, split in (("dog", "train"), ("dog", "test"), ("cat", "train"))
    ]

    (moved,) = compare_images(images, images, manifests[0], manifests[1])
    (decided,) = compare_images(images, images, manifests[0], manifests[2])

    assert str(moved) == "b.png (train): used for train, now for test"
    assert str(decided) == "b.png (train): relabelled from 'dog' to 'cat'"


def test_predictions_that_changed_are_listed_the_surest_first() -> None:
    before = _predictions(a=("cat", 0.9), b=("cat", 0.6), c=("dog", 0.7))
    after = _predictions(a=("dog", 0.6), b=("dog", 0.8), c=("dog", 0.9))

    changed_images, both = compare_predictions(before, after)

    assert [(each.id, each.before, each.after) for each in changed_images] == [("b", "cat", "dog"), ("a", "cat", "dog")]
    assert both == 3


def _images(**facts: tuple[str, str]) -> pa.Table:
    return pa.table(
        {
            "id": list(facts),
            "path": [f"{name}.png" for name in facts],
            "label": [label for label, _ in facts.values()],
            "bytes_sha256": [pixels for _, pixels in facts.values()],
            "pixels_sha256": [pixels for _, pixels in facts.values()],
            "error": pa.array([None] * len(facts), pa.string()),
        }
    )


def _predictions(**said: tuple[str, float]) -> pa.Table:
    return pa.table(
        {
            "id": list(said),
            "label": ["cat"] * len(said),
            "predicted": [name for name, _ in said.values()],
            "probabilities": [[p, 1 - p] for _, p in said.values()],
        }
    )
