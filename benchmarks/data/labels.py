"""How many planted label errors are found: Twinrun beside cleanlab, on Fashion-MNIST, MNIST and TrashNet.

5% of the labels are made wrong, either into any other label or into the one that the image's label is most often taken
for. Three ways to look for them:

    Twinrun                      as `validate` does: its patch features, 5 folds, cleanlab's filter, by self-confidence
    cleanlab, normalized margin  on the same probabilities, the other ranking that cleanlab offers
    cleanlab, defaults           CleanLearning() with a plain logistic regression on pixels, as its documentation shows

cleanlab's default ranking on the same probabilities is not listed: it is Twinrun's. All ways get the same images: of
the 60,000 training images of Fashion-MNIST and of MNIST 10,000 drawn by a fixed seed, for the time that three ways
take on all of them twice; and TrashNet's 2,527 photos, as the pack at 64 pixels has them.

`precision at k` is that of the k most suspicious, k as many as were planted; it is blank where a way ranks fewer, as
Twinrun, which ranks what it flags, may. `precision` is that of what was flagged, blank where nothing was.
"""

import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twinrun.core.arrays import IntArray, Pixels
from twinrun.core.cores import available_cores
from twinrun.dataset.pack import creating_pack, open_pack
from twinrun.ingest.folders import list_trashnet
from twinrun.ingest.known_sets import list_idx
from twinrun.ingest.listing import Arrays
from twinrun.ingest.packing import Shape, fill_pack
from twinrun.validate.searches.label_errors import find_label_errors, out_of_fold

_WRONG = 0.05
_FOLDS = 5
_IMAGES = 10_000
_QUICK_IMAGES = 3_000
_QUICK_PHOTOS = 600
_BUDGET_S = 3600.0

Labels = NDArray[np.str_]


@dataclass(frozen=True)
class _Found:
    """Rows by suspicion, the most suspicious first; those flagged; seconds it took."""

    ranked: IntArray
    flagged: IntArray
    seconds: float


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each data set in `data`, way of planting and of looking; `quick` takes 3,000 images and 600 photos."""
    most = _QUICK_IMAGES if quick else _IMAGES
    rows = []
    for name, (images, labels) in {
        "Fashion-MNIST": _training_images("fashion-mnist", data, most),
        "MNIST": _training_images("mnist", data, most),
        "TrashNet": _photos(data, _QUICK_PHOTOS if quick else None),
    }.items():
        names, codes = np.unique(labels, return_inverse=True)
        for planted, given in (
            ("any other label", _flipped(codes, None)),
            ("most confused label", _flipped(codes, _most_confused(images, codes))),
        ):
            for way, found in _ways(images, names[given], given).items():
                rows.append({"data set": name, "planted": planted, "way": way, **_scored(found, given != codes)})
    return rows


def _training_images(name: Literal["mnist", "fashion-mnist"], data: Path, most: int) -> tuple[Pixels, Labels]:
    listing = list_idx(name, data / name, may_download=False)
    assert isinstance(listing.content, Arrays)
    rows = _drawn([row for row, item in enumerate(listing.items) if item.split == "train"], most)
    return listing.content.pixels[rows], np.array([listing.items[row].label for row in rows], dtype=str)


def _photos(data: Path, most: int | None) -> tuple[Pixels, Labels]:
    listing, shape = list_trashnet(data / "trashnet"), Shape((64, 64), "rgb", "pad", "bilinear", 10**8)
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder, "images.npy")
        with creating_pack(pack, (len(listing.items), *shape.of_image)) as temp:
            fill_pack(listing, shape, temp, available_cores())
        images = np.array(open_pack(pack))
    rows = _drawn(list(range(len(images))), most or len(images))
    return images[rows], np.array([listing.items[row].label for row in rows], dtype=str)


def _drawn(rows: list[int], most: int) -> list[int]:
    drawn: list[int] = np.sort(np.random.default_rng(1).choice(rows, min(most, len(rows)), replace=False)).tolist()
    return drawn


def _flipped(codes: IntArray, into: IntArray | None) -> IntArray:
    """5% of the labels made into others, by chance or into those that `into` names for each label."""
    generator = np.random.default_rng(0)
    wrong = generator.choice(len(codes), round(len(codes) * _WRONG), replace=False)
    given = codes.copy()
    labels = int(codes.max()) + 1
    given[wrong] = (
        (codes[wrong] + generator.integers(1, labels, len(wrong))) % labels if into is None else into[codes[wrong]]
    )
    return given


def _most_confused(images: Pixels, codes: IntArray) -> IntArray:
    """For each label, the other one that the published images of it are most often taken for."""
    taken_for = out_of_fold(images, np.arange(len(codes)), codes, folds=_FOLDS, budget_s=_BUDGET_S, seed=0)
    counts = np.zeros((taken_for.shape[1],) * 2, np.int64)
    np.add.at(counts, (codes, taken_for.argmax(axis=1)), 1)
    np.fill_diagonal(counts, -1)
    most: IntArray = counts.argmax(axis=1)
    return most


def _ways(images: Pixels, labels: Labels, given: IntArray) -> dict[str, _Found]:
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
    """Precision among the first k, where so many are ranked; precision and recall of what was flagged."""
    k, flagged = int(wrong.sum()), len(found.flagged)
    hits = int(wrong[found.flagged].sum())
    return {
        "images": len(wrong),
        "wrong": k,
        "precision at k": float(wrong[found.ranked[:k]].mean()) if len(found.ranked) >= k else None,
        "flagged": flagged,
        "precision": hits / flagged if flagged else None,
        "recall": hits / k,
        "seconds": found.seconds,
    }
