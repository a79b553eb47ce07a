"""Which predictions give a model's headline: those on the test split or, where that is too small, those out of fold.

Out of fold, each image of the train, val and test splits was scored by a model that was trained without it. Stage
`train` writes these predictions where that is cheap; a table without rows means that there are none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from twinrun.base.errors import DataError
from twinrun.dataset.manifest import Manifest
from twinrun.evaluation.metrics import Scores
from twinrun.evaluation.predictions import Predictions, read_scores, require_same_classes

Source = Literal["test", "cross-validation"]


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of every usable image, each by a model of one of `folds` folds that had not seen it."""

    predictions: Predictions
    folds: int


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The predictions that stand for a model, their scores, and beside them the scores on the test split.

    `scarcest` is the class with the fewest test images, `fewest` their number, and `wanted` the number from which the
    test split is the source. `out_of_fold` are the scores over `folds` folds, where there are any.
    """

    source: Source
    predictions: Predictions
    scores: Scores
    test: Scores
    scarcest: str
    fewest: int
    wanted: int
    folds: int = 0
    out_of_fold: Scores | None = None

    def shown(self) -> dict[str, float]:
        """The numbers that `dvc metrics` prints; of the test split only where the headline is not of it."""
        beside = {} if self.source == "test" else {"test_accuracy": self.test.accuracy}
        return {**self.scores.shown(), **beside}

    def values(self) -> dict[str, Any]:
        """What metrics.json says of the scores: the headline first, then the rest as plain values.

        `score_sets` has the numbers of both sets.
        """
        details = self.scores.details()
        details["intervals"]["test_accuracy"] = list(self.test.intervals["accuracy"])
        sets: dict[Source, Scores] = {"test": self.test}
        if self.out_of_fold is not None:
            sets["cross-validation"] = self.out_of_fold
        return {
            **self.scores.headlines(),
            "accuracy_from": self.source,
            "test_accuracy": self.test.accuracy,
            "images": self.scores.images,
            **details,
            "score_sets": [
                {"from": name, "images": scores.images, **scores.headlines(), "intervals": _lists(scores)}
                for name, scores in sets.items()
            ],
        }


def choose_headline(
    test: Predictions, out_of_fold: OutOfFold | None, cross_validate_below: int, score: Callable[[Predictions], Scores]
) -> Headline:
    """The headline: out of fold, where there are such predictions and a class has too few test images.

    Too few are fewer than `cross_validate_below`, and none counts as 0.
    """
    images = np.bincount(test.targets, minlength=len(test.classes))
    scarcest, fewest = test.classes[int(images.argmin())], int(images.min())
    of_test = score(test)
    of_folds = None if out_of_fold is None else score(out_of_fold.predictions)
    is_small = fewest < cross_validate_below
    return Headline(
        source="cross-validation" if of_folds is not None and is_small else "test",
        predictions=out_of_fold.predictions if out_of_fold is not None and is_small else test,
        scores=of_folds if of_folds is not None and is_small else of_test,
        test=of_test,
        scarcest=scarcest,
        fewest=fewest,
        wanted=cross_validate_below,
        folds=0 if out_of_fold is None else out_of_fold.folds,
        out_of_fold=of_folds,
    )


def read_out_of_fold(path: Path, manifest: Manifest) -> OutOfFold | None:
    """Read what stage `train` predicted out of fold; None where it did not.

    Raises DataError where the table is damaged, or where it is not of the manifest's images and classes.
    """
    again = "Create it again: dvc repro -f train"
    try:
        table, classes, probabilities = read_scores(path, again)
    except FileNotFoundError:
        return None
    if not len(table):
        return None
    if table["fold"].null_count:
        raise DataError(f"{path} lacks the column fold, or values of it. {again}")
    require_same_classes(classes, manifest.classes)
    ids = table["id"].to_pylist()
    splits = manifest.splits.values()
    targets = {name: target for split in splits for name, target in zip(split.ids, split.targets.tolist(), strict=True)}
    units = {name: unit for split in splits for name, unit in zip(split.ids, split.units or split.ids, strict=True)}
    if sorted(ids) != sorted(targets) or [classes[targets[name]] for name in ids] != table["label"].to_pylist():
        raise DataError(f"{path} is of other images or labels than the manifest. {again}")
    return OutOfFold(
        Predictions(
            ids=ids,
            targets=np.array([targets[name] for name in ids], np.int64),
            probabilities=probabilities,
            classes=classes,
            units=[units[name] for name in ids],
        ),
        folds=len(set(table["fold"].to_pylist())),
    )


def _lists(scores: Scores) -> dict[str, list[float]]:
    return {name: list(ends) for name, ends in scores.intervals.items()}
