"""A head on features: which images make up a fold, and heads that agree with what they are made from."""

import numpy as np
import pytest

from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import Manifest, Split
from twinrun.project.presets import preset_params
from twinrun.training.probe import out_of_fold, train_probe


@pytest.fixture(scope="module")
def params() -> TrainParams:
    return preset_params("photos").train


def _split(count: int, classes: int, first: int = 0, units: list[str] | None = None) -> Split:
    rows = np.arange(first, first + count)
    return Split(rows, [f"{row:016x}" for row in rows], rows % classes, units)


def _features(split: Split, classes: int) -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, 20))
    return (centres[split.targets] + random.normal(scale=0.8, size=(1, len(split), 20))).astype(np.float32)


def test_units_stay_in_one_fold_and_classes_are_spread_evenly(params: TrainParams) -> None:
    train = _split(120, 3, units=[f"clip {row // 6}" for row in range(120)])
    manifest = Manifest(("a", "b", "c"), {"train": train, "val": _split(0, 3), "test": _split(0, 3)})

    scored = out_of_fold(_features(train, 3), manifest, params, threads=2)

    folds_of_unit = {
        unit: {int(f) for u, f in zip(train.units or [], scored.fold, strict=True) if u == unit}
        for unit in train.units or []
    }
    assert {len(folds) for folds in folds_of_unit.values()} == {1}
    counts = np.array([[np.sum((scored.fold == k) & (train.targets == c)) for k in range(5)] for c in range(3)])
    assert counts.min() == counts.max() == 8


def test_scores_out_of_fold_do_not_know_the_labels_of_their_fold(params: TrainParams) -> None:
    noise = np.random.default_rng(3).normal(size=(1, 200, 400)).astype(np.float32)
    manifest = Manifest(("a", "b"), {"train": _split(200, 2), "val": _split(0, 2), "test": _split(0, 2)})

    scored = out_of_fold(noise, manifest, params, threads=1)

    assert abs((scored.probabilities.argmax(axis=1) == scored.targets).mean() - 0.5) < 0.12


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_head_separates_what_can_be_separated(params: TrainParams, classes: int) -> None:
    split = _split(60 * classes, classes)
    features = _features(split, classes)

    probe = train_probe(features, split, classes, params, threads=2)

    _, accuracy = probe.score(features[0], split.targets)
    assert probe.weight.shape == (classes, 20)
    assert accuracy > 0.95
    assert len(probe.tried) > 2


def test_a_class_without_training_images_is_never_predicted(params: TrainParams) -> None:
    split = _split(90, 3)
    features = _features(split, 3)

    probe = train_probe(features, split, 4, params, threads=1)

    assert probe.bias[3] < -100
    assert probe.score(features[0], split.targets)[1] > 0.95
