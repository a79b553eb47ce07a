"""The page that explains a model's scores to a person: one offline HTML file and its pictures. Computes no score."""

import base64
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinrun.base.files import replacing_folder
from twinrun.base.printing import percent
from twinrun.evaluation.beside import Beside
from twinrun.evaluation.conformal import AnswerScores
from twinrun.evaluation.features import FeatureMaps, spread
from twinrun.evaluation.headline import Headline
from twinrun.evaluation.history import History
from twinrun.evaluation.metrics import ClassScores, Scores, calibration_bins, confusion_matrix, vary_little
from twinrun.evaluation.pictures import (
    DPI,
    confusion_picture,
    curves_picture,
    features_picture,
    mistakes_picture,
    reliability_picture,
    risk_picture,
)
from twinrun.evaluation.predictions import Confusion, Mistake, confusions
from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("report.html")
_LAYERS_SHOWN = 20
_PAIRS_SHOWN = 10
_WIDE_POINTS = 10  # an interval of this width or more gets a sentence


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the page says about the model itself; `bytes` is the size of its bundle on disk."""

    architecture: str
    weights_hash: str
    parameters: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image (H, W, C), the feature maps that the network computed of it, and its probabilities (C,)."""

    image: npt.NDArray[np.uint8]
    seen: list[FeatureMaps]
    probabilities: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """The mistakes to show, with their images (N, H, W, C) and their files' paths inside the source."""

    mistakes: list[Mistake]
    images: npt.NDArray[np.uint8]
    paths: list[str]


def write_report(
    folder: Path,
    *,
    model: Model,
    headline: Headline,
    beside: Beside,
    history: History,
    mistakes: Mistakes,
    example: Example,
    bins: int,
    samples: int,
    answers: AnswerScores | None = None,
    network: str | None = None,
) -> None:
    """Publish `folder` with index.html, which holds its pictures, and each picture as a PNG of its own.

    `network` is a page that follows the example through the network; it becomes network.html. `bins` and `samples` are
    those that the scores were computed with; `answers` scores the answers that a server would give.
    """
    predictions, scores = headline.predictions, headline.scores
    matrix = confusion_matrix(predictions.targets, predictions.predicted, len(predictions.classes))
    pairs = confusions(matrix, predictions.classes, _PAIRS_SHOWN)
    order = np.argsort(-example.probabilities, kind="stable")
    answer = [(predictions.classes[i], float(example.probabilities[i])) for i in order[:5]]
    shown = spread(example.seen, _LAYERS_SHOWN)
    pictures = {
        "confusion.png": confusion_picture(matrix, predictions.classes),
        "reliability.png": reliability_picture(
            calibration_bins(predictions.targets, predictions.probabilities, bins), scores.calibration_error
        ),
        "features.png": features_picture(example.image, shown, answer),
    }
    epochs = len(history.epoch)
    if epochs > 1:
        pictures["learning_curves.png"] = curves_picture(history)
    if mistakes.mistakes:
        pictures["mistakes.png"] = mistakes_picture(mistakes.images, mistakes.mistakes)
    if answers is not None:
        pictures["risk.png"] = risk_picture(answers.risk)
    values = {
        "answers": None if answers is None else _answers(answers),
        "title": f"{model.architecture}: {percent(scores.accuracy)} of {_counted(headline)}",
        "kind": f"{model.architecture} · {len(predictions.classes)} classes"
        + (f" · {epochs} epochs" if epochs > 1 else ""),
        "several_epochs": epochs > 1,
        "verdict": verdict(headline),
        "findings": [*findings(headline, pairs), *beside.sentences(headline.test.accuracy)],
        "out_of_fold": headline.source == "cross-validation",
        "numbers": _numbers(model, scores),
        "samples": samples,
        "vary_little": vary_little(predictions.predicted == predictions.targets, predictions.groups),
        "per_class": _per_class(scores),
        "confusions": [(pair.actual, pair.predicted, f"{pair.images:,}", f"{pair.of:,}") for pair in pairs],
        "wrong": int((predictions.predicted != predictions.targets).sum()),
        "mistakes": [
            (path, one.actual, one.predicted, f"{one.probability:.3f}")
            for path, one in zip(mistakes.paths, mistakes.mistakes, strict=True)
        ],
        "network": network is not None,
        "layers_shown": len(shown),
        "layers_seen": len(example.seen),
        "weights_hash": model.weights_hash,
    }
    page = _page(values, pictures)
    with replacing_folder(folder) as temp:
        for name, picture in pictures.items():
            (temp / name).write_bytes(picture)
        (temp / "index.html").write_text(page, encoding="utf-8")
        if network is not None:
            (temp / "network.html").write_text(network, encoding="utf-8")


def verdict(headline: Headline) -> str:
    """The result in one sentence."""
    scores = headline.scores
    low, high = scores.intervals["accuracy"]
    if headline.source == "cross-validation":
        return (
            f"{percent(scores.accuracy)} of {_counted(headline)} are classified correctly "
            f"(95% interval {percent(low, '')} to {percent(high)}; {headline.folds} folds)."
        )
    return (
        f"{percent(scores.accuracy)} of {_counted(headline)} are classified correctly "
        f"(95% interval {percent(low, '')} to {percent(high)})."
    )


def why_out_of_fold(headline: Headline) -> str:
    """Why the headline is from cross-validation, in one sentence; empty where it is not."""
    if headline.source == "test":
        return ""
    return (
        f"The test split has {f'only {_images(headline.fewest)}' if headline.fewest else 'no images'} of "
        f"“{headline.scarcest}”, fewer than evaluate.cross_validate_below = {headline.wanted}."
    )


def findings(headline: Headline, pairs: Sequence[Confusion]) -> list[str]:
    """Sentences on the test split, guessing, the weakest class, the commonest confusion and the confidence."""
    predictions, scores = headline.predictions, headline.scores
    counts = np.bincount(predictions.targets)
    common = predictions.classes[int(counts.argmax())]
    sentences = [*_of_the_test_split(headline)]
    sentences.append(
        f"Always guessing “{common}”, the commonest class, would be right for {percent(counts.max() / scores.images)}."
    )
    weakest = min(
        (name for name in scores.per_class if scores.per_class[name].images), key=lambda name: _recall(scores, name)
    )
    if _recall(scores, weakest) < 1:
        sentences.append(
            f"The weakest class is “{weakest}”: {percent(_recall(scores, weakest))} of its "
            f"{_images(scores.per_class[weakest].images)} are classified correctly."
        )
    else:
        sentences.append(
            f"No image is classified wrongly. With only {_images(scores.images)} the error rate may still be up to "
            f"{percent(1 - scores.intervals['accuracy'][0])} (Wilson's 95% interval)."
        )
    if pairs:
        first = pairs[0]
        part = f"{first.images} of {_images(first.of)} of “{first.actual}”"
        sentences.append(f"The commonest confusion: {part} are classified as “{first.predicted}”.")
    excess = float(predictions.probabilities.max(axis=1).mean()) - scores.accuracy
    if abs(excess) < 0.005:
        sentences.append("The model's mean confidence equals its accuracy.")
    else:
        sentences.append(
            f"The model is {'overconfident' if excess > 0 else 'underconfident'}: its mean confidence is "
            f"{100 * abs(excess):.1f} percentage points {'above' if excess > 0 else 'below'} its accuracy."
        )
    return sentences


def _of_the_test_split(headline: Headline) -> Iterator[str]:
    """The accuracy on the test split where the headline is from cross-validation, and the width of a wide interval."""
    low, high = headline.test.intervals["accuracy"]
    if headline.source == "cross-validation":
        yield (
            f"{why_out_of_fold(headline)} So each image was scored by a model that was trained without it. The model "
            f"of this page was trained on the train split. Of {_images(headline.test.images, 'test ')} it classifies "
            f"{percent(headline.test.accuracy)} correctly (95% interval {percent(low, '')} to {percent(high)})."
        )
    elif headline.out_of_fold is not None:
        scores = headline.out_of_fold
        below, above = scores.intervals["accuracy"]
        yield (
            f"In cross-validation, {percent(scores.accuracy)} of {_images(scores.images)} are classified correctly by "
            f"models that were trained without them (95% interval {percent(below, '')} to {percent(above)}; "
            f"{headline.folds} folds)."
        )
    points = round(100 * (high - low))
    if points >= _WIDE_POINTS:
        yield f"{_images(headline.test.images, 'test ')}: the 95% interval is {points} points wide."


def _page(values: dict[str, Any], pictures: dict[str, bytes]) -> str:
    """Fill the template; pictures go into the page, so that it can be mailed as one file."""
    inline = {
        name: {
            "source": f"data:image/png;base64,{base64.b64encode(picture).decode()}",
            "width": round(struct.unpack(">I", picture[16:20])[0] * 96 / DPI),
        }
        for name, picture in pictures.items()
    }
    return fill_page(_TEMPLATE, **values, pictures=inline)


def _numbers(model: Model, scores: Scores) -> list[dict[str, str]]:
    headlines: list[tuple[str, str, Callable[[float], str]]] = [
        ("accuracy", "Accuracy", percent),
        ("balanced_accuracy", "Balanced accuracy", percent),
        ("macro_f1", "Macro F1", percent),
        ("log_loss", "Log loss, nats", _decimal),
        ("calibration_error", "Calibration error", _decimal),
    ]
    numbers = []
    for name, title, written in headlines:
        low, high = scores.intervals[name]
        detail = f"{written(low)} to {written(high)}"
        numbers.append({"name": title, "value": written(scores.headlines()[name]), "detail": detail})
    size = f"{model.bytes / 1e6:.1f} MB" if model.bytes >= 1e5 else f"{model.bytes / 1e3:.1f} kB"
    numbers.append({"name": "Parameters", "value": f"{model.parameters:,}", "detail": f"{size} on disk"})
    return numbers


def _per_class(scores: Scores) -> list[dict[str, Any]]:
    """The classes, the weakest recall first; those without images, of which nothing is known, last."""
    names = sorted(scores.per_class, key=lambda name: (not scores.per_class[name].images, _recall(scores, name)))

    def row(name: str, one: ClassScores) -> dict[str, Any]:
        shares = {"precision": one.precision, "recall": one.recall, "f1": one.f1}
        return {
            "name": name,
            "images": f"{one.images:,}",
            "weak": one.images > 0 and one.recall < scores.balanced_accuracy - 0.05,
            **{share: percent(value) if one.images else "" for share, value in shares.items()},
        }

    return [row(name, scores.per_class[name]) for name in names]


def _answers(answers: AnswerScores) -> dict[str, Any]:
    """The section on served answers, as text."""
    right = "" if answers.single_accuracy is None else f", and {percent(answers.single_accuracy)} of these are right"
    shared = [one.label for one in answers.coverage if not one.of_its_own]
    below = [one.label for one in answers.coverage if one.interval[1] < 1 - answers.alpha]
    return {
        "promise": f"{100 * (1 - answers.alpha):g}%",
        "sentence": f"{percent(answers.single)} of the test images get one label{right}; {percent(answers.choice)} "
        f"get two or three to choose from, and {percent(answers.unknown)} are answered with “I don't know”.",
        "shared": ", ".join(f"“{name}”" for name in shared),
        "below": ", ".join(f"“{name}”" for name in below),
        "coverage": [
            (
                one.label,
                f"{one.images:,}",
                percent(one.share),
                f"{percent(one.interval[0], '')} to {percent(one.interval[1])}",
            )
            for one in answers.coverage
        ],
    }


def _recall(scores: Scores, name: str) -> float:
    return scores.per_class[name].recall


def _images(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}image{'' if count == 1 else 's'}"


def _counted(headline: Headline) -> str:
    """The images that were scored, as in "252 test images"."""
    if headline.source == "test":
        return _images(headline.scores.images, "test ")
    return f"{_images(headline.scores.images)} out of fold"


def _decimal(value: float) -> str:
    return f"{value:.3f}"
