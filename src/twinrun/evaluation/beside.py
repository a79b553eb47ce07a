"""What stands beside the score of a model: other seeds of its training, its nearest neighbour, it without other views.

Stage `train` writes what they say of the test images; a table without rows means that there is nothing.
"""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from twinrun.base.errors import DataError
from twinrun.base.printing import percent
from twinrun.dataset.manifest import Manifest
from twinrun.evaluation.predictions import read_scores, require_same_classes

_SEED, _NEAREST = "seed ", "nearest neighbour"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Accuracies on the test images: of the training with each seed, of the nearest neighbour on the same features.

    `plain` is that of the model on the images alone, where its answer is the mean over several views of them.
    """

    seeds: tuple[float, ...] = ()
    nearest_neighbour: float | None = None
    plain: float | None = None

    def values(self) -> dict[str, Any]:
        """What metrics.json says of them; only what there is."""
        values: dict[str, Any] = {"nearest_neighbour_accuracy": self.nearest_neighbour, "plain_accuracy": self.plain}
        if self.seeds:
            mean, deviation, low, high = seed_statistics(self.seeds)
            interval = {"low": low, "high": high}
            values["seeds"] = {"accuracies": list(self.seeds), "mean": mean, "sd": deviation, **interval}
        return {name: value for name, value in values.items() if value is not None}

    def shown(self) -> dict[str, float]:
        """The numbers that `dvc metrics` prints."""
        if not self.seeds:
            return {}
        mean, deviation, _, _ = seed_statistics(self.seeds)
        return {"mean_of_seeds": mean, "sd_of_seeds": deviation}

    def sentences(self, accuracy: float) -> list[str]:
        """What a person should know of them, where `accuracy` is the model's own on the test images."""
        said = []
        if self.seeds:
            mean, deviation, low, high = (100 * value for value in seed_statistics(self.seeds))
            said.append(
                f"{len(self.seeds)} trainings that differ in the seed classify {mean:.1f}% of the test images "
                f"correctly on average (standard deviation {deviation:.2f} points, 95% interval of the mean {low:.1f} "
                f"to {high:.1f}%). The model of this page is the one with the median validation accuracy."
            )
        if self.plain is not None:
            said.append(f"On each image alone, without the views of train.test_views, it is {percent(self.plain)}.")
        if self.nearest_neighbour is not None:
            said.append(
                f"The nearest neighbour on the same features, a lower bar that takes no training, classifies "
                f"{percent(self.nearest_neighbour)} of the test images correctly; this model {percent(accuracy)}."
            )
        return said


def seed_statistics(accuracies: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and Student's 95% interval of the mean, of at least two accuracies in [0, 1]."""
    from scipy.stats import t

    values = np.array(accuracies)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / sqrt(len(values))
    return mean, deviation, max(0.0, mean - half), min(1.0, mean + half)


def read_beside(path: Path, manifest: Manifest) -> Beside:
    """Read what stage `train` wrote. Raises DataError where the table is damaged, or of other images or classes."""
    again = "Create it again: dvc repro -f train"
    try:
        table, classes, probabilities = read_scores(path, again)
    except FileNotFoundError:
        return Beside()
    if not len(table):
        return Beside()
    require_same_classes(classes, manifest.classes)
    test = manifest.split("test")
    by, ids = table["by"].to_pylist(), table["id"].to_pylist()
    names = list(dict.fromkeys(by))
    if None in names or ids != test.ids * len(names):
        raise DataError(f"{path} is of other test images than the manifest. {again}")
    right = probabilities.argmax(axis=1).reshape(len(names), -1) == test.targets
    accuracies = dict(zip(names, right.mean(axis=1).tolist(), strict=True))
    return Beside(
        seeds=tuple(value for name, value in accuracies.items() if name.startswith(_SEED)),
        nearest_neighbour=accuracies.get(_NEAREST),
    )
