"""Images divided into folds."""

from collections import Counter

import numpy as np
import pytest

from twinrun.base.errors import DataError
from twinrun.dataset.manifest import Manifest, Split
from twinrun.training.folds import Labels, without_fold


def _labels(images: int = 120, in_unit: int = 3) -> Labels:
    """Images of four classes, so many in each unit."""
    ids = [f"{image:04d}" for image in range(images)]
    return Labels(ids, np.arange(images) // in_unit % 4, [f"unit {image // in_unit}" for image in range(images)])


def test_folds_are_stratified_keep_units_together_and_do_not_depend_on_the_order() -> None:
    labels = _labels()
    shuffled = np.random.default_rng(0).permutation(len(labels.ids))

    folds = labels.folds(5, seed=1)
    of_shuffled = labels.take(shuffled).folds(5, seed=1)

    assert set(Counter(zip(folds.tolist(), labels.targets.tolist(), strict=True)).values()) == {6}
    assert len(set(zip(labels.units, folds.tolist(), strict=True))) == len(set(labels.units))
    assert of_shuffled.tolist() == folds[shuffled].tolist()
    assert labels.folds(5, seed=2).tolist() != folds.tolist()


def test_the_images_left_out_are_those_to_test_on_and_the_rest_stays_what_it_is() -> None:
    labels = _labels(12)
    parts = [labels.take(np.arange(start, stop)) for start, stop in ((0, 6), (6, 9), (9, 12))]
    splits = [Split(np.array([int(i) for i in part.ids]), part.ids, part.targets, part.units) for part in parts]
    manifest = Manifest(("a", "b", "c", "d"), dict(zip(("train", "val", "test"), splits, strict=True)))
    left_out = np.isin(np.arange(12), [0, 8])

    one = without_fold(manifest, left_out)

    assert {name: split.rows.tolist() for name, split in one.splits.items()} == {
        "train": [1, 2, 3, 4, 5, 9, 10, 11],
        "val": [6, 7],
        "test": [0, 8],
    }
    with pytest.raises(DataError, match=r"holds all images of val[\s\S]*Set fewer folds"):
        without_fold(manifest, np.isin(np.arange(12), [6, 7, 8]))
