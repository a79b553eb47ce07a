"""Is a mark that betrays a label found? Planted on one label after another, on TrashNet, Fashion-MNIST and MNIST.

Marks are a coloured corner, 64 and 32 pixels wide on 1,500 of TrashNet's photos of 512 x 384, seen in a pack of 64
pixels, and a white one, 3 and 2 pixels wide, on 10,000 images of each of the others, 28 x 28 in a pack of 32, all drawn
by a fixed seed; or all the images of the label are darkened by 30%. `labels` says how many labels the images have, of
which one is marked: all that the data set has, or two, neighbours by name, which a property of images as cleanlab
looks at tells best.

    Twinrun      a finding is a group of facts from which a small tree gets further from chance to certainty than the
                 data set's preset allows; it is right unless it names another label (of two it names neither)
    cleanlab     Datalab's check `spurious_correlations` at its default threshold: a finding is one of CleanVision's
                 seven properties of an image whose score is below 0.3; it names no label, so that any is right

`recall` is the share of labels whose mark led to a right finding that is not there without it; `false alarms` counts
sets of images with any other finding, and so does the row without a mark. `share` is Twinrun's, the largest without a
mark and the smallest with one; `score` is cleanlab's, the lowest without and the highest with one. That score is 1 less
the accuracy of one property as a predictor of the label among all, as shipped in 2.9.0 (the share of the most common
label that it means to divide by is taken to be that label's number over the images), so that a mark on one label of six
or ten can hardly bring it below 0.3, and of two labels any property that is right on more than 70% does.

Datalab reads images from a data set of the package `datasets` alone, which is not among the locked ones. So CleanVision
gets the images from a class with the two methods of such a data set that it calls, and `SpuriousCorrelations`, which
Datalab calls next, gets its scores. Scores and facts are of single images (TrashNet's all have one size, as have
the others'), and so are computed once for each mark and put together for each label.
"""

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinrun.core.arrays import IntArray, Pixels
from twinrun.core.cores import available_cores
from twinrun.decoding.decode import Channels, fit_image
from twinrun.ingest.facts import Facts, measured
from twinrun.ingest.folders import list_trashnet
from twinrun.ingest.known_sets import list_idx
from twinrun.ingest.listing import Arrays, Files
from twinrun.project.presets import preset_params
from twinrun.validate.searches.shortcuts import corner_colours, find_shortcuts
from twinrun.validate.subject import share_of_way

if TYPE_CHECKING:
    import pandas as pd

_RED = (220, 30, 30)
_WHITE = (255,)
_DARKER = 0.7
_PHOTOS = 1_500
_IMAGES = 10_000
_QUICK = 1_000
_QUICK_PHOTOS = 300
_FACTS = (
    "width", "height", "mode", "format", "file_bytes", "brightness", "contrast", "red", "green", "blue",
)  # fmt: skip

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class _Images:
    """Image files `<row><suffix>` in `folder`, with one mark on all of them; small, as CleanVision copies it a lot."""

    folder: Path
    suffix: str
    channels: Channels
    count: int
    corner_px: int = 0
    gain: float = 1.0

    features: ClassVar = ("image",)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Image.Image]:
        pixels = self.pixels(row)
        return {"image": Image.fromarray(pixels[:, :, 0] if self.channels == "gray" else pixels)}

    def path(self, row: int) -> Path:
        return self.folder / f"{row}{self.suffix}"

    def pixels(self, row: int) -> Pixels:
        """Marked pixels (H, W, C)."""
        with Image.open(self.path(row)) as image:
            pixels = np.array(image.convert("L" if self.channels == "gray" else "RGB"))
        pixels = np.rint(pixels.reshape(*pixels.shape[:2], -1) * self.gain).astype(np.uint8)
        pixels[: self.corner_px, : self.corner_px] = _WHITE if self.channels == "gray" else _RED
        return pixels


@dataclass(frozen=True)
class _Set:
    """A data set: its images without a mark, the label of each, how wide a pack and which corners it is tried with."""

    name: str
    preset: str
    images: _Images
    labels: NDArray[np.str_]
    pack_px: int
    corners_px: tuple[int, ...]


@dataclass(frozen=True)
class _Seen:
    """What the two tools measure of the same images, facts with colours of corners, and scores; and the seconds."""

    facts: Columns
    scores: "pd.DataFrame"
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Question:
    """The rows of the images that are looked at, and the label among them that is marked, None for none."""

    rows: IntArray
    marked: str | None


@dataclass(frozen=True)
class _Answer:
    """What a tool finds, by name of a label or of a property, and its number that is nearest to a finding."""

    found: frozenset[str]
    nearest: float


Ask = Callable[[_Set, _Seen, _Seen, _Question], _Answer]


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each data set in `data`, number of labels and mark.

    `quick` takes 1,000 images and 300 photos, of which some labels have too few for Twinrun to be sure of anything.
    """
    rows: list[dict[str, Any]] = []
    for source in (_trashnet, _fashion_mnist, _mnist):
        with tempfile.TemporaryDirectory() as folder:
            rows += _tried(source(data, Path(folder), quick))
    return rows


def _trashnet(data: Path, folder: Path, quick: bool) -> _Set:
    listing = list_trashnet(data / "trashnet")
    assert isinstance(listing.content, Files)
    rows = _drawn(len(listing.items), _QUICK_PHOTOS if quick else _PHOTOS)
    for number, row in enumerate(rows):
        (folder / f"{number}.jpg").symlink_to(listing.content.paths[row].resolve())
    labels = np.array([listing.items[row].label for row in rows], dtype=str)
    return _Set("TrashNet", "trashnet", _Images(folder, ".jpg", "rgb", len(rows)), labels, 64, (64, 32))


def _fashion_mnist(data: Path, folder: Path, quick: bool) -> _Set:
    return _idx("Fashion-MNIST", "fashion-mnist", data, folder, quick)


def _mnist(data: Path, folder: Path, quick: bool) -> _Set:
    return _idx("MNIST", "mnist", data, folder, quick)


def _idx(name: str, source: Literal["mnist", "fashion-mnist"], data: Path, folder: Path, quick: bool) -> _Set:
    listing = list_idx(source, data / source, may_download=False)
    assert isinstance(listing.content, Arrays)
    rows = _drawn(len(listing.items), _QUICK if quick else _IMAGES)
    for number, row in enumerate(rows):
        Image.fromarray(listing.content.pixels[row, :, :, 0]).save(folder / f"{number}.png", compress_level=1)
    labels = np.array([listing.items[row].label for row in rows], dtype=str)
    return _Set(name, source, _Images(folder, ".png", "gray", len(rows)), labels, 32, (3, 2))


def _drawn(count: int, most: int) -> list[int]:
    drawn: list[int] = np.sort(np.random.default_rng(0).choice(count, min(most, count), replace=False)).tolist()
    return drawn


def _tried(of: _Set) -> list[dict[str, Any]]:
    marked = {f"corner, {px} px": replace(of.images, corner_px=px) for px in of.corners_px}
    marked["30% darker"] = replace(of.images, gain=_DARKER)
    plain = _seen(of.images, of.pack_px)
    seen = {mark: _seen(images, of.pack_px) for mark, images in marked.items()}
    names = sorted(set(of.labels.tolist()))
    pairs = [np.flatnonzero(np.isin(of.labels, [name, names[i - 1]])) for i, name in enumerate(names)]
    rows = []
    for labels, sets in ((len(names), [np.arange(len(of.labels))]), (2, pairs)):
        head = {"data set": of.name, "labels": labels}
        clean = {tool: _asked(tool, of, plain, plain, [_Question(each, None) for each in sets]) for tool in _TOOLS}
        rows.append({**head, "mark": "none", "sets": len(sets), **_unmarked(clean)})
        sets_by_label = sets if len(sets) > 1 else sets * len(names)
        questions = [_Question(each, name) for each, name in zip(sets_by_label, names, strict=True)]
        for mark, what in seen.items():
            asked = {tool: _asked(tool, of, plain, what, questions) for tool in _TOOLS}
            rows.append({**head, "mark": mark, "sets": len(questions), **_marked(asked, clean, questions, names)})
    return rows


def _asked(
    tool: str, of: _Set, plain: _Seen, marked: _Seen, questions: Sequence[_Question]
) -> tuple[list[_Answer], float]:
    """Answers of a tool, and seconds with its measuring of the images."""
    started = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        answers = list(pool.map(lambda question: _TOOLS[tool](of, plain, marked, question), questions))
    return answers, time.perf_counter() - started + marked.seconds[tool]


def _unmarked(clean: Mapping[str, tuple[list[_Answer], float]]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for tool, (answers, seconds) in clean.items():
        alarms = sum(bool(answer.found) for answer in answers)
        cells |= _cells(tool, None, alarms, [answer.nearest for answer in answers], seconds, nearest=True)
    return cells


def _marked(
    asked: Mapping[str, tuple[list[_Answer], float]],
    clean: Mapping[str, tuple[list[_Answer], float]],
    questions: Sequence[_Question],
    names: Sequence[str],
) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for tool, (answers, seconds) in asked.items():
        before = clean[tool][0] if len(clean[tool][0]) > 1 else clean[tool][0] * len(answers)
        hits = alarms = 0
        for answer, old, question in zip(answers, before, questions, strict=True):
            others = set(names) - {question.marked}
            hits += bool(answer.found - old.found - others)
            alarms += bool(answer.found & (old.found | others))
        nearest = [answer.nearest for answer in answers]
        cells |= _cells(tool, hits / len(answers), alarms, nearest, seconds, nearest=False)
    return cells


def _cells(
    tool: str, recall: float | None, alarms: int, numbers: Sequence[float], seconds: float, *, nearest: bool
) -> dict[str, Any]:
    """Columns of a tool; of its `numbers` the one that is nearest to a finding, or the one that is furthest from it."""
    if tool == "Twinrun":
        number = {"share": max(numbers) if nearest else min(numbers)}
        return {"recall": recall, "false alarms": alarms, **number, "seconds": seconds}
    number = {"score cleanlab": min(numbers) if nearest else max(numbers)}
    return {"recall cleanlab": recall, "false alarms cleanlab": alarms, **number, "seconds cleanlab": seconds}


def _twinrun(of: _Set, plain: _Seen, marked: _Seen, question: _Question) -> _Answer:
    here = of.labels[question.rows] == (question.marked or "")
    facts = {
        name: [marked.facts[name][row] if mark else column[row] for row, mark in zip(question.rows, here, strict=True)]
        for name, column in plain.facts.items()
    }
    shortcuts = find_shortcuts(facts, of.labels[question.rows].tolist(), seed=0)
    most = preset_params(of.preset).validate.max_shortcut
    found = frozenset(one.label or "" for one in shortcuts if share_of_way(one) > most)
    right = [share_of_way(one) for one in shortcuts if question.marked is None or one.label in (question.marked, None)]
    return _Answer(found, max(right, default=0.0))


def _cleanlab(of: _Set, plain: _Seen, marked: _Seen, question: _Question) -> _Answer:
    from cleanlab.datalab.internal.adapter.constants import SPURIOUS_CORRELATION_ISSUE
    from cleanlab.datalab.internal.spurious_correlation import SpuriousCorrelations

    labels = of.labels[question.rows]
    here = labels == (question.marked or "")
    scores = plain.scores.iloc[question.rows].copy()
    scores[here] = marked.scores.loc[scores.index[here], scores.columns]
    threshold = SPURIOUS_CORRELATION_ISSUE["spurious_correlations"]["threshold"]
    codes = np.unique(labels, return_inverse=True)[1]
    table = SpuriousCorrelations(data=scores, labels=codes).calculate_correlations()
    found = frozenset(table["property"][table["score"] < threshold].tolist())
    return _Answer(found, float(table["score"].min()))


_TOOLS: dict[str, Ask] = {"Twinrun": _twinrun, "cleanlab": _cleanlab}


def _seen(images: _Images, pack_px: int) -> _Seen:
    started = time.perf_counter()
    facts = _measured(images, pack_px)
    between = time.perf_counter()
    scores = _cleanvision(images)
    return _Seen(facts, scores, {"Twinrun": between - started, "cleanlab": time.perf_counter() - between})


def _measured(images: _Images, pack_px: int) -> Columns:
    """Facts as columns, and the colours of corners as a pack of `pack_px` shows them."""

    def measure(row: int) -> tuple[Facts, Pixels]:
        pixels, mode = images.pixels(row), "L" if images.channels == "gray" else "RGB"
        kind = {".jpg": "JPEG", ".png": "PNG"}[images.suffix]
        height, width, _ = pixels.shape
        known = Facts(images.path(row).stat().st_size, None, width=width, height=height, mode=mode, format=kind)
        return measured(known, pixels), fit_image(pixels, (pack_px, pack_px), "pad", "bilinear")

    with ThreadPoolExecutor(available_cores()) as pool:
        rows, pack = zip(*pool.map(measure, range(len(images))), strict=True)
    facts = {name: [getattr(row, name) for row in rows] for name in _FACTS}
    return {**facts, **corner_colours(np.stack(pack), facts["width"], facts["height"])}


def _cleanvision(images: _Images) -> "pd.DataFrame":
    """Scores of Datalab's seven properties, by row."""
    from cleanlab.datalab.internal.adapter.constants import DEFAULT_CLEANVISION_ISSUES
    from cleanvision import Imagelab

    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars
        warnings.simplefilter("ignore")
        lab = Imagelab(hf_dataset=cast("Any", images), image_key="image", verbose=False)
        lab.find_issues(DEFAULT_CLEANVISION_ISSUES, verbose=False)
    return lab.issues.filter(regex="_score$")
