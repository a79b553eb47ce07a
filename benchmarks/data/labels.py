"""How many planted label errors are found: Twinrun beside cleanlab, on Fashion-MNIST's training images.

5 % of the labels are made wrong, either into any other label or into the one that the image's label is most often taken
for. Three ways to look for them:

    Twinrun                      as `validate` does: its patch features, 5 folds, cleanlab's filter, by self-confidence
    cleanlab, normalized margin  on the same probabilities, the other ranking that cleanlab offers
    cleanlab, defaults           CleanLearning() with a plain logistic regression on pixels, as its documentation shows

cleanlab's default ranking on the same probabilities is not listed: it is Twinrun's.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinrun.data.arrays import list_idx
from twinrun.data.label_errors import find_label_errors, out_of_fold
from twinrun.data.listing import Arrays

_WRONG = 0.05
_FOLDS = 5
_QUICK_IMAGES = 6_000
_BUDGET_S = 3600.0

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    """Rows by suspicion, the most suspicious first; those flagged; seconds it took."""

    ranked: Ints
    flagged: Ints
    seconds: float


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each way of planting and of looking; `data` holds fashion-mnist/, `quick` takes 6,000 images."""
    images, labels = _training_images(data / "fashion-mnist", _QUICK_IMAGES if quick else None)
    names, codes = np.unique(labels, return_inverse=True)
    rows = []
    for planted, given in (
        ("any other label", _flipped(codes, None)),
        ("most confused label", _flipped(codes, _most_confused(images, codes))),
    ):
        for way, found in _ways(images, names[given], given).items():
            rows.append({"planted": planted, "way": way, **_scored(found, given != codes)})
    return rows


def _training_images(folder: Path, most: int | None) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    listing = list_idx("fashion-mnist", folder, may_download=False)
    assert isinstance(listing.content, Arrays)
    rows = [row for row, item in enumerate(listing.items) if item.split == "train"][:most]
    return listing.content.pixels[rows], np.array([listing.items[row].label for row in rows], dtype=str)


def _flipped(codes: Ints, into: Ints | None) -> Ints:
    """5 % of the labels made into others, by chance or into those that `into` names for each label."""
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(codes), round(len(codes) * _WRONG), replace=False)
    given = codes.copy()
    labels = int(codes.max()) + 1
    given[wrong] = (
        (codes[wrong] + generator.integers(1, labels, len(wrong))) % labels if into is None else into[codes[wrong]]
    )
    return given


def _most_confused(images: NDArray[np.uint8], codes: Ints) -> Ints:
    """For each label, the other one that the published images of it are most often taken for."""
    taken_for = out_of_fold(images, np.arange(len(codes)), codes, folds=_FOLDS, budget_s=_BUDGET_S, seed=0)
    counts = np.zeros((taken_for.shape[1],) * 2, np.int64)
    np.add.at(counts, (codes, taken_for.argmax(axis=1)), 1)
    np.fill_diagonal(counts, -1)
    most: Ints = counts.argmax(axis=1)
    return most


def _ways(images: NDArray[np.uint8], labels: NDArray[np.str_], given: Ints) -> dict[str, _Found]:
    from cleanlab.classification import CleanLearning
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression

    ways = {}
    started = time.perf_counter()
    search = find_label_errors(images, range(len(labels)), labels.tolist(), folds=_FOLDS, budget_s=_BUDGET_S, seed=0)
    issues = np.array([issue.row for issue in search.issues], dtype=np.int64)
    ways["Twinrun"] = _Found(issues, issues, time.perf_counter() - started)

    started = time.perf_counter()
    same = out_of_fold(images, np.arange(len(given)), given, folds=_FOLDS, budget_s=_BUDGET_S, seed=0)
    scores = get_label_quality_scores(given, same, method="normalized_margin")
    flagged = np.flatnonzero(find_label_issues(given, same, filter_by="low_normalized_margin"))
    ways["cleanlab, normalized margin"] = _Found(np.argsort(scores), flagged, time.perf_counter() - started)

    started = time.perf_counter()
    pixels = images.reshape(len(images), -1) / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 iterations, scikit-learn's default, do not let it converge
        table = CleanLearning(LogisticRegression()).find_label_issues(pixels, given)
    flagged = np.flatnonzero(table["is_label_issue"].to_numpy())
    ranked = np.argsort(table["label_quality"].to_numpy())
    ways["cleanlab, defaults"] = _Found(ranked, flagged, time.perf_counter() - started)
    return ways


def _scored(found: _Found, wrong: NDArray[np.bool_]) -> dict[str, Any]:
    """Precision among the first k, k as many as were planted; precision and recall of what was flagged."""
    planted = int(wrong.sum())
    hits = int(wrong[found.flagged].sum())
    return {
        "images": len(wrong),
        "wrong": planted,
        "precision_at_k": float(wrong[found.ranked[:planted]].sum() / planted),
        "flagged": len(found.flagged),
        "precision": hits / max(1, len(found.flagged)),
        "recall": hits / planted,
        "seconds": found.seconds,
    }
