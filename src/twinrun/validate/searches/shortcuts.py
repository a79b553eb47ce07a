"""Can a small tree predict the label from facts that should not depend on it? Pure.

A network learns whatever separates the labels: the camera, the file's size, a hospital's mark in a corner (Geirhos
et al., "Shortcut learning in deep neural networks", 2020; Lapuschkin et al., "Unmasking Clever Hans predictors", 2019).
A decision tree on such facts, trained on four fifths of the images and tested on the rest, shows how well they predict
the label. Some of that is natural: cardboard is brown, and a one takes less ink than an eight.

Each group of facts gets two scores: the balanced accuracy over all labels, and that of the one label that is predicted
best ("this label or another", chance 0.5). A mark on the images of one label in ten moves the first only from 0.1 to
0.2, but the second to 1.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.framing import upright_boxes
from twinrun.core.keyed import keyed_order, keyed_seed

_GROUPS: dict[str, tuple[str, ...]] = {
    "width and height": ("width", "height", "aspect"),
    "format and mode": ("format", "mode"),
    "mean colour": ("red", "green", "blue"),
    "brightness and contrast": ("brightness", "contrast"),
    "file size": ("file_bytes",),
    "camera": ("camera",),
}
_CORNERS = "corners"
_CATEGORIES = ("format", "mode", "camera")
_MOST_CATEGORIES = 32
_FOLDS = 5
_MOST_IMAGES = 10_000
_MOST_LABELS = 200  # a tree's time grows with images times labels
_FEWEST_PER_LABEL = 50
_LEAVES_PER_LABEL = 4
_DRAWS = 4000
_DOUBT = 0.05
_CORNER_SHARES = {"corner": 1 / 8, "tip": 1 / 16}  # of each side; a small mark is lost in the mean of a large part
_VALUES_AT_ONCE = 12_600_000  # 4,096 images of 32 x 32 in colour


@dataclass(frozen=True)
class Shortcut:
    """How well a small tree predicts labels from the `facts` of a group, on images that it was not trained on.

    Accuracies are balanced, in [0, 1]; `low` to `high` is a 95% interval. With `label` None all labels are predicted,
    and `chance` is 1 / labels. Otherwise it is "this label or another", with chance 0.5, for the label that is
    predicted best, and the interval allows for that choice.
    """

    name: str
    balanced_accuracy: float
    low: float
    high: float
    chance: float
    facts: tuple[str, ...]
    label: str | None = None


def find_shortcuts(facts: Mapping[str, Sequence[Any]], labels: Sequence[str], *, seed: int) -> list[Shortcut]:
    """For each group of facts, and for all of them together: how well they predict the labels.

    `facts` are columns of equal length, one entry for each image, null where unknown (which a tree may use too). Those
    of table.py and of `corner_colours` are used, and `aspect` is computed from width and height. A group with a single
    value is skipped. Labels that only one image has are left out; with fewer than two labels the result is empty. Of a
    large set at most 10,000 images are used, evenly from the 200 labels with the most images. The same for the same
    seed.
    """
    rows, classes = _chosen(labels, seed)
    if len(set(classes.tolist())) < 2:
        return []
    names = {int(code): labels[row] for code, row in zip(classes, rows, strict=True)}
    groups = {
        group: columns
        for group, wanted in _wanted(facts).items()
        if (columns := {fact: column for fact in wanted if (column := _column(facts, fact, rows)) is not None})
    }
    if len(groups) > 1:
        groups["all"] = {fact: column for columns in groups.values() for fact, column in columns.items()}
    folds = _folds(classes, seed)
    shortcuts: list[Shortcut] = []
    for group, columns in groups.items():
        predicted = _predicted(np.hstack(list(columns.values())), classes, folds, keyed_seed(seed) % 2**32)
        shortcuts += _scored(group, tuple(columns), classes, predicted, names, seed)
    return shortcuts


def corner_colours(
    images: Pixels, widths: Sequence[int | None], heights: Sequence[int | None]
) -> dict[str, list[float | None]]:
    """Mean red, green and blue, in [0, 1], of the corners of each of (N, H, W, C): `corner_top_left_red` and so on.

    A corner is an eighth of each side; its tip, as in `tip_top_left_red`, is a sixteenth. The black bars that
    `fit: pad` adds to an image whose sides, in pixels, were `widths` and `heights` are not part of its corners; where
    the sides are unknown, the colours are null.
    """
    count, channels = len(images), images.shape[3]
    places = [
        f"{part}_{down}_{across}"
        for part in _CORNER_SHARES
        for down in ("top", "bottom")
        for across in ("left", "right")
    ]
    corners = np.full((count, len(places), channels), np.nan)
    shapes = np.array([(w or 0, h or 0) for w, h in zip(widths, heights, strict=True)], dtype=np.int64).reshape(-1, 2)
    for shape in np.unique(shapes, axis=0).tolist():
        if min(shape) > 0:
            rows = np.flatnonzero((shapes == shape).all(axis=1))
            at_once = max(1, _VALUES_AT_ONCE // images[0].size)
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                corners[some] = _corners(np.asarray(images[some]), *shape)
    colours = np.repeat(corners, 3, axis=2) if channels == 1 else corners
    return {
        f"{place}_{colour}": [None if np.isnan(value) else float(value) for value in colours[:, i, j]]
        for i, place in enumerate(places)
        for j, colour in enumerate(("red", "green", "blue"))
    }


def _corners(images: Pixels, width: int, height: int) -> FloatArray:
    """Mean colours (n, 8, C) of corners and tips of images that all were `width` x `height` before."""
    frame = images.shape[1], images.shape[2]
    colours = np.empty((len(images), 4 * len(_CORNER_SHARES), images.shape[3]))
    open_rows = np.ones(len(images), dtype=bool)
    # An EXIF orientation swaps the sides; cropped images fill the frame.
    for top, left, down, across in (*upright_boxes(height, width, frame), (0, 0, *frame)):
        box = slice(top, top + down), slice(left, left + across)
        outside = np.ones(frame, dtype=bool)
        outside[box] = False
        fits = open_rows & ~images[:, outside].any(axis=(1, 2))
        open_rows &= ~fits
        content = images[fits][:, *box]
        parts = [part for share in _CORNER_SHARES.values() for part in _corners_of(content, share)]
        colours[fits] = np.stack([part.mean(axis=(1, 2)) for part in parts], axis=1) / 255
    return colours


def _corners_of(content: Pixels, share: float) -> list[Pixels]:
    down, across = (max(1, round(content.shape[axis] * share)) for axis in (1, 2))
    halves = [content[:, :down], content[:, -down:]]
    return [half[:, :, edge] for half in halves for edge in (slice(None, across), slice(-across, None))]


def _wanted(facts: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    corners = tuple(name for name in facts if name.partition("_")[0] in _CORNER_SHARES)
    return {**_GROUPS, **({_CORNERS: corners} if corners else {})}


def _chosen(labels: Sequence[str], seed: int) -> tuple[IntArray, IntArray]:
    """The rows to use, and the number of the label of each: evenly from all labels, up to a total."""
    _, codes, counts = np.unique(np.array(labels, dtype=str), return_inverse=True, return_counts=True)
    largest = np.sort(np.argsort(-counts, kind="stable")[:_MOST_LABELS])
    most = max(_FEWEST_PER_LABEL, _MOST_IMAGES // max(1, len(largest)))
    order = keyed_order(np.arange(len(codes), dtype=np.uint64), seed)
    kept = [rows[:most] for code in largest if len(rows := order[codes[order] == code]) > 1]
    rows = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
    return rows, codes[rows].astype(np.int64)


def _folds(classes: IntArray, seed: int) -> IntArray:
    """A fold for each image, every label spread over the folds as evenly as possible."""
    folds = np.empty(len(classes), np.int64)
    order = keyed_order(np.arange(len(classes), dtype=np.uint64), seed, 1)
    by_class = order[np.argsort(classes[order], kind="stable")]
    folds[by_class] = np.arange(len(classes)) % _FOLDS
    return folds


def _column(facts: Mapping[str, Sequence[Any]], fact: str, rows: IntArray) -> FloatArray | None:
    """The fact of `rows` as numbers (n, k), nan for null, categories one-hot encoded; None if it never varies."""
    if fact == "aspect":
        width, height = _column(facts, "width", rows), _column(facts, "height", rows)
        return None if width is None or height is None else width / height
    if fact not in facts:
        return None
    values = [facts[fact][row] for row in rows.tolist()]
    if len(set(values)) < 2:
        return None
    if fact not in _CATEGORIES:
        return np.array(values, dtype=np.float64)[:, None]
    known = [value for value, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], str(item[0])))]
    return np.array([[value == one for one in known[:_MOST_CATEGORIES]] for value in values], dtype=np.float64)


def _predicted(values: FloatArray, classes: IntArray, folds: IntArray, seed: int) -> IntArray:
    """The prediction for each image of `values` (n, facts) by a tree that was trained on the other folds."""
    from sklearn.tree import DecisionTreeClassifier

    leaves = _LEAVES_PER_LABEL * len(np.unique(classes))
    predicted = np.empty_like(classes)
    for fold in np.unique(folds):
        tree = DecisionTreeClassifier(
            max_leaf_nodes=leaves, min_samples_leaf=2, class_weight="balanced", random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # labels of two images each are none too many
            tree.fit(values[folds != fold], classes[folds != fold])
        predicted[folds == fold] = tree.predict(values[folds == fold])
    return predicted


def _scored(
    group: str, facts: tuple[str, ...], classes: IntArray, predicted: IntArray, names: dict[int, str], seed: int
) -> list[Shortcut]:
    """The balanced accuracy over all labels and, if there are more than two, that of the label predicted best."""
    codes = np.array(sorted(names))
    right = np.array([((classes == code) & (predicted == code)).sum() for code in codes])
    wrong = np.array([((classes == code) & (predicted != code)).sum() for code in codes])
    taken = np.array([((classes != code) & (predicted == code)).sum() for code in codes])
    left = len(classes) - right - wrong - taken
    recall, specificity = right / (right + wrong), left / (left + taken)

    generator = np.random.default_rng(keyed_seed(seed, 2))
    drawn_recall = _drawn(generator, right, wrong)
    low, high = _interval(drawn_recall.mean(axis=1), _DOUBT, value := float(recall.mean()))
    shortcuts = [Shortcut(group, value, low, high, 1 / len(codes), facts)]
    if len(codes) > 2:
        best = int(np.argmax(recall + specificity))
        drawn = (drawn_recall[:, best] + _drawn(generator, left, taken)[:, best]) / 2
        value = float(recall[best] + specificity[best]) / 2
        low, high = _interval(drawn, _DOUBT / len(codes), value)
        shortcuts.append(Shortcut(group, value, low, high, 0.5, facts, names[int(codes[best])]))
    return shortcuts


def _drawn(generator: np.random.Generator, hits: IntArray, misses: IntArray) -> FloatArray:
    """Samples (draws, labels) from Jeffreys' posterior of a rate, given hits and misses."""
    return generator.beta(hits + 0.5, misses + 0.5, size=(_DRAWS, len(hits)))


def _interval(draws: FloatArray, doubt: float, value: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [doubt / 2, 1 - doubt / 2])
    return min(float(low), value), max(float(high), value)
