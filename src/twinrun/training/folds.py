"""Dividing images into folds: stratified, and images of a unit (a group, near duplicates) together. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.core.keyed import id_keys, keyed_bits
from twinrun.dataset.manifest import SPLITS, Manifest, Split

_FOLDS = 2  # the stream of draws that divides images into folds


@dataclass(frozen=True)
class OutOfFold:
    """Probabilities (N, C) of images, each by a model that saw nothing of its fold, and so nothing of its unit."""

    ids: list[str]
    targets: IntArray
    probabilities: FloatArray
    fold: IntArray


@dataclass(frozen=True)
class Labels:
    """Images by id, with their class (N,) and the unit that each belongs to."""

    ids: list[str]
    targets: IntArray
    units: list[str]

    @classmethod
    def of(cls, *splits: Split) -> "Labels":
        """The images of splits, one after the other."""
        return cls(
            [image_id for split in splits for image_id in split.ids],
            np.concatenate([split.targets for split in splits]),
            [unit for split in splits for unit in split.units or split.ids],
        )

    @classmethod
    def of_all(cls, manifest: Manifest) -> "Labels":
        """The images of train, val and test, one after the other."""
        return cls.of(*(manifest.split(name) for name in SPLITS))

    def take(self, chosen: IntArray) -> "Labels":
        """Those at the places `chosen`."""
        return Labels([self.ids[i] for i in chosen], self.targets[chosen], [self.units[i] for i in chosen])

    def order(self, seed: int) -> IntArray:
        """The images by a draw for each unit: those of a unit stand together."""
        first: dict[str, str] = {}
        for image_id, unit in sorted(zip(self.ids, self.units, strict=True)):
            first.setdefault(unit, image_id)
        draws = keyed_bits(seed, _FOLDS, id_keys([first[unit] for unit in self.units]))
        return np.lexsort((id_keys(self.ids), draws)).astype(np.int64)

    def folds(self, count: int, seed: int) -> IntArray:
        """The fold of each image, from 0: stratified, and the same for all images of a unit.

        In the order of their draws, units go where there are fewest images of their classes, then fewest images.
        """
        members: dict[str, list[int]] = {}
        for i in self.order(seed).tolist():
            members.setdefault(self.units[i], []).append(i)
        of_class = np.zeros((int(self.targets.max()) + 1, count), np.int64)
        fold = np.zeros(len(self.ids), np.int64)
        for images in sorted(members.values(), key=len, reverse=True):  # large units first, or they find no room
            targets = self.targets[images]
            place = min(range(count), key=lambda k: (of_class[targets, k].sum(), of_class[:, k].sum(), k))
            fold[images] = place
            np.add.at(of_class[:, place], targets, 1)
        return fold


def without_fold(manifest: Manifest, is_left_out: NDArray[np.bool_]) -> Manifest:
    """A manifest whose test images are those left out, of all images of train, val and test, one after the other.

    Those of val stay what they are, since they choose the epoch, and all others are trained on. Raises DataError where
    no image of val, or none to train on, is left.
    """
    parts = [manifest.split(name) for name in SPLITS]
    rows, labels = np.concatenate([part.rows for part in parts]), Labels.of(*parts)
    is_of_val = np.repeat([False, True, False], [len(part) for part in parts])
    split: dict[str, Split] = {}
    for name, chosen in (
        ("train", ~is_left_out & ~is_of_val),
        ("val", ~is_left_out & is_of_val),
        ("test", is_left_out),
    ):
        places = np.flatnonzero(chosen)
        places = places[np.argsort(rows[places], kind="stable")]
        taken = labels.take(places)
        split[name] = Split(rows[places], taken.ids, taken.targets, taken.units)
    if empty := next((name for name in ("train", "val") if not len(split[name])), None):
        raise DataError(
            f"One of the folds of params.yaml: train.folds holds all images of {empty} (or all those that belong "
            "together with them), so that none is left for the network of that fold. Set fewer folds, or give "
            f"{empty} a larger share (validate.fractions)."
        )
    return Manifest(manifest.classes, {name: split[name] for name in SPLITS})


def joined_rows(splits: Sequence[Split]) -> IntArray:
    """Rows of the pack of the images of splits, one after the other."""
    return np.concatenate([split.rows for split in splits])
