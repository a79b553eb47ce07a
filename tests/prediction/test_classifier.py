"""Any number of images goes through a model, in order, with the pixels of a few of them in memory."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from twinrun.base.errors import DecodeError
from twinrun.core.arrays import Pixels
from twinrun.core.cores import available_cores
from twinrun.models.architectures import build_network
from twinrun.models.bundle import Bundle, Preprocessing
from twinrun.models.predict import probabilities
from twinrun.prediction.classifier import ImageClassifier
from twinrun.prediction.inputs import images_in

PREPARATION = Preprocessing(
    size_px=(16, 16), channels="gray", fit="pad", resample="bilinear", max_pixels=1000, mean=(0.3,), std=(0.2,)
)


@pytest.fixture
def bundle() -> Bundle:
    network = build_network("lenet5", channels=1, size_px=(16, 16), classes=3, seed=5).eval()
    return Bundle(
        network=network, architecture="lenet5", classes=("a", "b", "c"), preprocessing=PREPARATION, weights_hash=""
    )


def _image(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (16, 16, 1), dtype=np.uint8)


def test_answers_keep_the_order_and_few_images_are_in_memory_at_a_time(bundle: Bundle) -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def forget() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def read(number: int) -> Pixels:
        nonlocal alive, most
        if number % 7 == 3:
            raise DecodeError(f"number {number}")
        pixels = _image(number)
        weakref.finalize(pixels, forget)
        with lock:
            alive += 1
            most = max(most, alive)
        return pixels

    answers = list(ImageClassifier(bundle).answers(range(2000), read))

    wanted = probabilities(bundle, np.stack([_image(number) for number in range(2000)]))
    assert most <= 2 * 16 * available_cores()
    assert [answer.error for answer in answers[:5]] == [None, None, None, "number 3", None]
    for number, answer in enumerate(answers):
        assert (answer.probabilities is None) == (number % 7 == 3)
        assert answer.probabilities is None or np.array_equal(answer.probabilities, wanted[number])


def test_a_failure_ends_the_work_and_is_not_hidden(bundle: Bundle) -> None:
    seen: list[int] = []

    def read(number: int) -> Pixels:
        seen.append(number)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(ImageClassifier(bundle).answers(range(100_000), read))

    assert len(seen) < 50_000


def test_threads_that_answer_compute_with_one_and_change_nothing_for_others(bundle: Bundle) -> None:
    before, size = torch.get_num_threads(), bundle.preprocessing.size_px
    inside: set[int] = set()
    outside: set[int] = set()
    torch.set_num_threads(3)

    def read(_: int) -> Pixels:
        inside.add(torch.get_num_threads())
        with ThreadPoolExecutor(1) as other:
            outside.add(other.submit(torch.get_num_threads).result())
        return np.zeros((*size, len(bundle.preprocessing.mean)), np.uint8)

    answers = list(ImageClassifier(bundle).answers(range(40), read))
    after = torch.get_num_threads()
    torch.set_num_threads(before)

    assert len(answers) == 40
    assert (inside, outside, after) == ({1}, {3}, 3)


def test_an_image_for_which_the_network_gives_no_numbers_gets_no_label(bundle: Bundle) -> None:
    with torch.no_grad():
        list(bundle.network.parameters())[-1][0] = torch.inf

    (answer,) = ImageClassifier(bundle).answers([0], _image)

    assert answer.probabilities is None
    assert answer.error == "the outputs of the model for this image are infinite or not numbers"


def test_a_limit_of_the_model_names_no_setting(bundle: Bundle, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    classifier = ImageClassifier(bundle)

    (answer,) = classifier.answers([tmp_path / "large.png"], classifier.read)

    assert answer.error == "claims 100 x 100 pixels, and at most 1,000 in all are decoded"


def test_each_pixel_of_a_long_list_is_looked_at_by_its_type_alone() -> None:
    class Level(int):
        looked_at = 0

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            Level.looked_at += 1
            return Level

    (image,) = images_in([[Level(7)] * 30] * 20, paths=False)

    assert isinstance(image, np.ndarray)
    assert image.shape == (20, 30)
    assert Level.looked_at < 20  # of 600 pixels in 20 rows
