"""Stage `ingest` on pictures of many formats, and a model that sees the same pixels in them."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import Project
from image_files import HEIC, chunk, encoded, exif, png, tiff
from PIL import Image

from twinrun.models.architectures import build_network
from twinrun.models.bundle import Bundle, Preprocessing
from twinrun.prediction.classifier import ImageClassifier
from twinrun.prediction.inputs import images_in

SCENE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
GRAY = SCENE[:, :, 0]
DEEP = SCENE.astype(np.uint16) * 257
ICON = np.zeros((64, 64, 4), np.uint8)
ICON[..., :3], ICON[20:40, 20:40, 3] = 255, 255
FILES = {
    "color/planes.tif": tiff(np.moveaxis(DEEP, 2, 0), photometric="rgb", planarconfig="separate"),
    "color/sixteen.png": png(DEEP, 16),
    "color/turned.png": png(SCENE, before=chunk(b"eXIf", exif(6)[6:])),
    "color/photo.heic": HEIC,
    "color/photo.avif": encoded(Image.fromarray(SCENE), "AVIF"),
    "color/sign.ppm": encoded(Image.fromarray(SCENE), "PPM"),
    "gray/inverse.tif": tiff(65535 - DEEP[:, :, 0], photometric="miniswhite", compression="lzw"),
    "gray/sign.pgm": encoded(Image.fromarray(GRAY), "PPM"),
    "icons/icon.png": png(ICON),
    "icons/drawing.psd": b"8BPS" + bytes(20),
}

Write = Callable[[dict[str, bytes]], Project]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def write(project: Project) -> Write:
    def written(files: dict[str, bytes]) -> Project:
        for name, data in files.items():
            path = project.folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return project.set(ingest__source="folder", ingest__path="images", ingest__size_px=64, ingest__channels="rgb")

    return written


def classifier(preprocessing: Preprocessing) -> ImageClassifier:
    network = build_network("lenet5", channels=3, size_px=(64, 64), classes=2, seed=5).eval()
    return ImageClassifier(
        Bundle(network=network, architecture="lenet5", classes=("a", "b"), preprocessing=preprocessing, weights_hash="")
    )


PREPROCESSING = Preprocessing(
    size_px=(64, 64),
    channels="rgb",
    fit="pad",
    resample="bilinear",
    max_pixels=10**6,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


def test_the_same_bytes_give_ingest_and_a_model_the_same_pixels_in_every_format(write: Write) -> None:
    project = write(FILES)

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert "1 image has transparent parts, which become white (ingest.ground). White all over: " in ran.said
    assert "icons/icon.png. Try ingest.ground: gray or black." in ran.said
    rows, pack, model = project.table(), project.pack(), classifier(PREPROCESSING)
    assert {row["path"]: row["error"] for row in rows if row["error"]} == {
        "icons/drawing.psd": "is a Photoshop file named .psd"
    }
    for row, pixels in zip(rows, pack, strict=True):
        if row["error"]:
            continue
        data = FILES[row["path"]]
        for given in (project.folder / "images" / row["path"], data, base64.b64encode(data).decode()):
            (image,) = images_in([given], paths=True)
            assert np.array_equal(model.read(image), pixels), (row["path"], type(given))
    assert np.array_equal(pack[[row["path"] for row in rows].index("color/planes.tif")], SCENE)


def test_12_bits_in_16_are_noticed_and_a_setting_makes_them_bright_for_ingest_and_the_model(write: Write) -> None:
    narrow = SCENE.astype(np.uint16) * 16 + 15
    files = {
        "color/narrow.png": png(narrow, 16),
        "color/narrow.tif": tiff(narrow, photometric="rgb"),
        "icons/icon.png": png(ICON),
    }
    project = write({**files, "icons/whole.png": png(DEEP, 16)})
    dark = project.run("ingest")
    (project.folder / "images/icons/whole.png").unlink()

    bright = project.set(ingest__depth=12, ingest__ground="black").run("ingest")

    assert dark.code == bright.code == 0, dark.said + bright.said
    assert "2 of 3 images with more than 8 bits need 12 of 16 bits at most, and are nearly black" in dark.said
    assert "ingest.depth: 12" in dark.said
    assert "ingest.depth" not in bright.said
    assert "Try ingest.ground" not in bright.said
    pack = project.pack()
    assert np.abs(pack[0].astype(int) - SCENE).max() <= 1
    assert np.array_equal(pack[2], np.where(ICON[..., 3:] > 0, ICON[..., :3], 0))
    model = classifier(replace(PREPROCESSING, depth=12, ground="black"))
    for pixels, data in zip(pack, files.values(), strict=True):
        assert np.array_equal(model.read(data), pixels)


def test_arrays_of_one_set_have_one_range_where_a_setting_names_it(write: Write) -> None:
    values = {"dark": GRAY.astype(np.int32) // 2, "bright": GRAY.astype(np.int32) * 4}
    alpha = np.full((64, 64, 4), 1000)
    alpha[..., :3] = values["bright"][..., None]
    project = write({f"a/{name}.npy": npy(array) for name, array in values.items()} | {"b/alpha.npy": npy(alpha)})

    ran = project.set(ingest__depth=10).run("ingest")

    assert ran.code == 0, ran.said
    assert [row["error"] for row in project.table()] == [None] * 3
    bright, dark, clear = project.pack().astype(int)
    assert np.abs(bright[..., 0] - GRAY).max() <= 1
    assert np.abs(dark[..., 0] - GRAY / 8).max() <= 1
    assert np.array_equal(clear, bright)


def test_the_range_of_an_array_is_its_own_where_a_setting_says_so(write: Write) -> None:
    project = write({"a/whole.npy": npy(GRAY.astype(np.int64) // 2), "b/share.npy": npy(GRAY / 510)})

    assert project.set(ingest__depth="data").run("ingest").code == 0

    assert [(image.min(), image.max()) for image in project.pack()] == [(0, 255), (0, 255)]


def test_a_wrong_setting_for_depth_ground_or_bands_is_named(project: Project) -> None:
    ran = project.set(ingest__depth="12 bits", ingest__ground="green", ingest__bands=[4, 3]).run("ingest")

    assert ran.code == 1
    assert "ingest.depth: must be" in ran.said
    assert "ingest.ground: must be one of 'white', 'gray' or 'black', got 'green'" in ran.said
    assert "ingest.bands: must name one band or three, such as [4, 3, 2], got [4, 3]" in ran.said


def test_a_pickle_in_an_array_is_not_opened(write: Write, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([print]), allow_pickle=True)
    project = write({"a/objects.npy": (tmp_path / "objects.npy").read_bytes(), "b/photo.png": png(SCENE)})

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert str(project.table()[0]["error"]).startswith("is a NumPy array of object")
