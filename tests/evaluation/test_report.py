"""The page and its pictures for unusual models: many classes, odd names, one epoch, one image."""

import html
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinrun.evaluation.beside import Beside
from twinrun.evaluation.features import FeatureMaps
from twinrun.evaluation.headline import choose_headline
from twinrun.evaluation.history import History
from twinrun.evaluation.metrics import Scores, score
from twinrun.evaluation.pictures import confusion_picture, mistakes_picture
from twinrun.evaluation.predictions import Mistake, Predictions, mistakes
from twinrun.evaluation.report import Example, Mistakes, Model, write_report


def write(folder: Path, targets: list[int], said: list[int], classes: tuple[str, ...]) -> str:
    """Publish the report of a model that says `said`, and return its page."""
    probabilities = np.full((len(said), len(classes)), 0.2 / len(classes))
    probabilities[np.arange(len(said)), said] += 0.8
    predictions = Predictions([str(i) for i in range(len(said))], np.array(targets), probabilities, classes)
    worst = mistakes(predictions, 12)
    image = np.zeros((8, 8, 1), np.uint8)
    write_report(
        folder,
        model=Model(architecture="lenet5", weights_hash="ab" * 32, parameters=1234, bytes=5678),
        headline=choose_headline(predictions, None, 0, _scored),
        beside=Beside(),
        history=History(epoch=[1], train_loss=[2.0], val_loss=[1.5], val_accuracy=[0.5], learning_rate=[0.0]),
        mistakes=Mistakes(
            mistakes=worst,
            images=np.stack([image] * max(len(worst), 1)),
            paths=[f"<b>/{one.position}.png" for one in worst],
        ),
        example=Example(
            image=image,
            seen=[FeatureMaps("0", "convolution", "conv2d", np.zeros((3, 6, 6), np.float32))],
            probabilities=probabilities[0],
        ),
        bins=15,
        samples=100,
    )
    return (folder / "index.html").read_text()


def _scored(predictions: Predictions) -> Scores:
    return score(predictions.targets, predictions.probabilities, predictions.classes, bins=15, samples=100, seed=0)


def test_class_names_and_paths_are_text_on_the_page_and_not_markup(tmp_path: Path) -> None:
    page = write(tmp_path / "report", [0, 1, 1, 0], [0, 1, 0, 1], ("<script>alert(1)</script>", "$\\frac{bad & math$"))

    assert "<script>" not in page
    assert html.escape("<script>alert(1)</script>") in page
    assert "&lt;b&gt;/2.png" in page


def test_the_page_opens_with_accuracy_interval_weakest_class_and_commonest_confusion(tmp_path: Path) -> None:
    page = write(tmp_path / "report", [0] * 50 + [1] * 50, [0] * 50 + [1] * 40 + [0] * 10, ("cat", "dog"))

    opening = " ".join(page[: page.index("<dl")].split())
    assert "90.0% of 100 test images are classified correctly (95% interval 8" in opening
    assert "The weakest class is “dog”: 80.0% of its 50 images" in opening
    assert "10 of 50 images of “dog” are classified as “cat”" in opening
    assert re.search(r"100 test images: the 95% interval is 1[0-3] points wide", opening)


def test_without_mistakes_the_page_says_how_much_that_may_still_hide(tmp_path: Path) -> None:
    page = write(tmp_path / "report", [0, 1] * 50, [0, 1] * 50, ("cat", "dog"))

    assert "the error rate may still be up to 3.7% (Wilson" in page


def test_99_996_per_cent_is_not_called_100(tmp_path: Path) -> None:
    targets = [0, 1] * 12_500

    page = write(tmp_path / "report", targets, [1, *targets[1:]], ("cat", "dog"))

    assert "99.99% of 25,000 test images" in page


def test_the_page_of_one_image_is_made_too(tmp_path: Path) -> None:
    assert "0.0% of 1 test image" in write(tmp_path / "report", [0], [1], ("cat", "dog"))


@pytest.mark.parametrize("classes", [2, 10, 100, 400])
def test_a_confusion_matrix_of_any_size_is_a_small_png_that_fits_a_screen(classes: int) -> None:
    matrix = np.eye(classes, dtype=np.int64) * 30
    matrix[0, 1] = 1

    picture = confusion_picture(matrix, tuple(f"a rather long name of class {index}" for index in range(classes)))

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    assert max(image.size) < 2400
    assert len(picture) < 200_000
    reddest = np.asarray(image).astype(int)
    assert (reddest[..., 0] - reddest[..., 2]).max() > 20  # the one mistake can be seen


def test_names_in_a_script_that_the_font_lacks_are_drawn_without_a_warning() -> None:
    names = ("\u65e5\u672c", "\u0645\u0631\u062d\u0628\u0627")

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        confusion_picture(np.eye(2, dtype=np.int64), names)
        mistakes_picture(np.zeros((1, 8, 8, 1), np.uint8), [Mistake(0, *names, 0.9)])

    assert [str(warning.message) for warning in seen] == []


def test_colour_photos_larger_than_a_tile_are_drawn_in_their_colours() -> None:
    photo = np.zeros((1, 300, 300, 3), np.uint8)
    photo[..., 1] = 200

    picture = mistakes_picture(photo, [Mistake(0, "glass", "metal", 0.999)])

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    assert (np.abs(pixels.astype(int) - [0, 200, 0]).max(axis=2) < 5).mean() > 0.3


def test_a_class_without_test_images_is_listed_last_and_without_shares(tmp_path: Path) -> None:
    page = write(tmp_path / "report", [0, 0, 2, 2], [0, 0, 2, 0], ("cat", "dog", "newt"))

    rows = re.findall(r'<tr><td class="text">(\w+)</td><td>(\d+)</td><td>(.*?)</td><td class="(.*?)">(.*?)</td>', page)
    assert [row[:2] for row in rows] == [("newt", "2"), ("cat", "2"), ("dog", "0")]
    assert rows[0][3:] == ("weak", "50.0%")
    assert rows[2][2:] == ("", "", "")
