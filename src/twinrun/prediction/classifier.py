"""From images as people have them to probabilities, for `twinrun predict` and MLflow, the same as in `evaluate`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError
from twinrun.core.arrays import Pixels
from twinrun.decoding.decode import fit_image
from twinrun.decoding.samples import sample_rules
from twinrun.models.bundle import Bundle
from twinrun.models.predict import pass_probabilities, pass_size, single_threads
from twinrun.prediction.inputs import Given, read_image

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """Probabilities (C,) of the classes for one image, or why there are none."""

    probabilities: npt.NDArray[np.float64] | None
    error: str | None = None


class ImageClassifier:
    """A bundle that answers for images as people have them."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def read(self, image: Given) -> Pixels:
        """The image as the network takes it, uint8 (H, W, C). Raises DecodeError with the reason."""
        settings = self.bundle.preprocessing
        pixels = read_image(image, settings.channels, settings.max_pixels, sample_rules(settings))
        return fit_image(pixels, settings.size_px, settings.fit, settings.resample)

    def answers(self, images: Sequence[T], read: Callable[[T], Pixels]) -> Iterator[Answer]:
        """An answer for each of `images`, in order, as they are ready; `read` is called by several threads at once.

        At any time each thread holds the pixels of one pass and no more. What `read` raises as a DataError becomes the
        answer.
        """
        settings = self.bundle.preprocessing
        size = pass_size(np.empty((0, *settings.size_px, len(settings.mean)), np.uint8))
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        for answers in single_threads().map(lambda part: self._answers(part, read), parts):
            yield from answers

    def _answers(self, images: Sequence[T], read: Callable[[T], Pixels]) -> list[Answer]:
        pixels: list[Pixels] = []
        answers: list[Answer | None] = []
        for image in images:
            try:
                pixels.append(read(image))
                answers.append(None)
            except DataError as error:
                answers.append(Answer(None, _without_setting(str(error))))
        shares = iter(pass_probabilities(self.bundle, np.stack(pixels)) if pixels else ())
        return [answer or _answer(next(shares)) for answer in answers]


def _answer(shares: npt.NDArray[np.float64]) -> Answer:
    if np.isfinite(shares).all():
        return Answer(shares)
    return Answer(None, "the outputs of the model for this image are infinite or not numbers")


def _without_setting(reason: str) -> str:
    """The limits of a finished model are its own; no params.yaml changes them."""
    return re.sub(r" \(params\.yaml: [\w.]+\)", "", reason)
