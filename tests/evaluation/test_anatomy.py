"""`twinrun explain`: a page whose numbers are the network's own, for networks of every build."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from twinrun.cli import main as cli
from twinrun.evaluation.anatomy import Anatomy, agreement, anatomy, occlusion, unpacked
from twinrun.models.architectures import build_network
from twinrun.models.bundle import Bundle, Preprocessing, load_bundle, save_bundle
from twinrun.models.predict import probabilities

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = Path(__file__).parents[1] / "serving/axe.min.js"
BUNDLE = "data/out/train/bundle"
Floats = NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with 40 digits, a lenet5 with the weights as they begin, and the first digit as 0.png."""
    from sklearn.datasets import load_digits

    from twinrun.base.files import write_table
    from twinrun.dataset.manifest import write_manifest
    from twinrun.dataset.table import table_schema

    folder = tmp_path_factory.mktemp("explained")
    digits, out = load_digits(), folder / "data/out"
    pack = np.stack([_enlarged(image) for image in digits.images[:40]])
    ids, labels = [f"{row:016x}" for row in range(40)], [str(label) for label in digits.target[:40]]
    (out / "ingest").mkdir(parents=True)
    np.save(out / "ingest/images.npy", pack)
    known = {"id": ids, "path": [f"digits/{row}" for row in range(40)], "label": labels}
    columns = [pa.array(known.get(field.name, [None] * 40), field.type) for field in table_schema()]
    write_table(pa.Table.from_arrays(columns, schema=table_schema()), out / "ingest/table.parquet")
    splits = ["train"] * 30 + ["val"] * 10
    write_manifest(out / "validate/manifest.parquet", ids=ids, labels=labels, splits=splits, dropped=[None] * 40)
    save_bundle(
        folder / BUNDLE,
        build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=0).state_dict(),
        architecture="lenet5",
        classes=tuple("0123456789"),
        preprocessing=_preprocessing(32, "gray"),
    )
    Image.fromarray(pack[0, :, :, 0]).save(folder / "0.png")
    return folder


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    """The page of the first digit, by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        _twinrun(patch, "explain", "0.png", "--model", BUNDLE, "--out", "page.html")
        _twinrun(patch, "predict", "0.png", "--model", BUNDLE, "--out", "predicted.csv", "--top", "10")
    return (project / "page.html").read_text(encoding="utf-8")


def test_the_page_holds_the_probabilities_of_predict_and_is_one_small_file(project: Path, page: str) -> None:
    data = _data(page)

    with (project / "predicted.csv").open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    places = [""] + [f"_{number}" for number in range(2, 11)]
    predicted = {row[f"label{place}"]: float(row[f"probability{place}"]) for place in places}
    assert dict(zip(data["classes"], data["probabilities"], strict=True)) == predicted
    logits = unpacked(data["logits"]).astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert shares.tolist() == pytest.approx(data["probabilities"], abs=1e-12)
    assert len(page) <= 400_000
    assert re.findall(r"""(?:src|href)=["'](?!data:)|url\(|https?://""", page) == []


def test_every_step_of_lenet5_is_computed_again_from_the_numbers_on_the_page(page: str) -> None:
    data = _data(page)

    assert [step["kind"] for step in data["steps"]] == [
        *("convolution", "activation", "pooling") * 2,
        *("flatten", *("fully connected", "activation") * 2, "fully connected"),
    ]
    assert all(step["linked"] for step in data["steps"][1:])
    _compute_again(data)


def test_similar_training_images_begin_with_the_image_itself(page: str) -> None:
    first, *others = _data(page)["neighbours"]

    assert (first["name"], first["label"]) == ("digits/0 (this image)", "0")
    assert first["similarity"] == pytest.approx(1, abs=1e-6)
    assert len(others) == 5
    assert all(other["similarity"] <= first["similarity"] for other in others)


def test_covering_a_part_is_what_the_model_answers_for_the_covered_image(project: Path) -> None:
    bundle = load_bundle(project / BUNDLE)
    pixels = np.asarray(Image.open(project / "0.png"))[..., None]

    found = occlusion(bundle, pixels)

    top, left = 4 * found["cell"], 7 * found["cell"]
    covered = pixels.copy()
    covered[top : top + found["patch"], left : left + found["patch"]] = round(0.3 * 255)
    shares = probabilities(bundle, np.stack([pixels, covered]))
    best = int(shares[0].argmax())
    assert found["label"] == bundle.classes[best]
    assert found["before"] == shares[0, best]
    assert found["probability"][4][7] == pytest.approx(shares[1, best], abs=1e-6)
    odds = np.log(shares[:, best] / (1 - shares[:, best]))
    assert found["drop"][4][7] == pytest.approx(odds[0] - odds[1], abs=1e-3)
    assert agreement(np.kron(np.array(found["drop"]), np.ones((3, 3)))[:32, :32], found, (32, 32)) > 0.7  # type: ignore[operator]


# The maps of each network: exact, by its gradient, or none. Random weights, in evaluation mode, on a small image.
@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("mlp", 16, None),
        ("resnet9", 32, "exact"),
        ("airbench94", 32, "exact"),
        ("resnet18", 64, "exact"),
        ("alexnet", 64, "gradient"),
        ("squeezenet1_1", 64, "exact"),
        ("densenet121", 64, "exact"),
        ("googlenet", 64, "exact"),
        ("mobilenet_v3_small", 64, "gradient"),
        ("shufflenet_v2_x0_5", 64, "exact"),
        ("efficientnet_b0", 64, "exact"),
        ("regnet_y_400mf", 64, "exact"),
        ("mnasnet0_5", 64, "exact"),
    ],
)
def test_networks_of_all_builds_are_shown_with_their_own_numbers(name: str, size: int, maps: str | None) -> None:
    bundle = _bundle(name, size)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)

    found = anatomy(bundle, pixels)

    data, kinds = found.data, [step["kind"] for step in found.data["steps"]]
    assert found.probabilities.tolist() == probabilities(bundle, pixels[None])[0].tolist()
    assert (data["maps"] or {"kind": None})["kind"] == maps
    assert kinds[0] == ("convolution" if maps else "flatten")
    assert kinds[-1] == ("pooling" if name.startswith("squeezenet") else "fully connected")
    _compute_again(data)
    _check_maps(found)


def test_a_transformer_gets_a_map_from_the_last_patches_that_its_answer_depends_on() -> None:
    bundle = _bundle("timm/vit_tiny_patch16_224", 64)
    torch.nn.init.normal_(bundle.network.head.weight)  # type: ignore[union-attr,arg-type]

    found = anatomy(bundle, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

    assert found.data["maps"]["kind"] == "gradient"
    assert unpacked(found.data["maps"]["maps"]).shape == (3, 4, 4)


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / "broken.png").write_bytes(b"no image")

    code = _twinrun(monkeypatch, "explain", "broken.png", "--model", BUNDLE, "--out", "never.html")

    assert code == 1
    assert "broken.png" in capsys.readouterr().err
    assert not (project / "never.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium here; Debian has it: apt-get install chromium")
def test_the_page_shows_in_a_browser_how_a_chosen_number_comes_about(project: Path, page: str) -> None:
    from playwright.sync_api import sync_playwright

    data, problems, asked = _data(page), [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 320, "height": 700}, color_scheme="dark")
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto((project / "page.html").as_uri())
        shown.wait_for_selector("body[data-ready]")
        width = shown.evaluate("document.documentElement.scrollWidth")
        chosen = []
        for section in shown.locator("section[data-kind=convolution]").all():
            section.locator("button.map").nth(2).click()
            section.locator("canvas[tabindex]").focus()
            for key in ("ArrowUp", "ArrowLeft", "ArrowLeft"):
                shown.keyboard.press(key)
            values = [float(str(each.get_attribute("data-value"))) for each in section.locator(".equation b").all()]
            chosen.append((section.locator("[data-place]").get_attribute("data-place"), values))
        sums = float(shown.get_attribute("#softmax table", "data-sum") or 0)
        if AXE.is_file():  # from `make axe`
            shown.evaluate(AXE.read_text(encoding="utf-8"))
            for scheme in ("light", "dark"):
                shown.emulate_media(color_scheme=scheme)
                found = shown.evaluate("async () => (await axe.run()).violations")
                problems += [f"{scheme}: {each['id']}" for each in found if each["impact"] in ("serious", "critical")]
        browser.close()

    assert problems == []
    assert len(asked) == 1
    assert width == 320
    assert sums == pytest.approx(1, abs=1e-12)
    for step, (place, (total, bias, value)) in zip((data["steps"][0], data["steps"][3]), chosen, strict=True):
        across = step["to"][1] // 2
        assert place == f"2,{across - 1},{across - 2}"
        assert total + bias == pytest.approx(value, abs=1e-5)
        assert value == unpacked(data["arrays"][step["output"]])[2, across - 1, across - 2]


def _enlarged(image: Floats) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((32, 32)))[..., None]


def _preprocessing(size: int, channels: Any) -> Preprocessing:
    count = 1 if channels == "gray" else 3
    return Preprocessing(
        size_px=(size, size),
        channels=channels,
        fit="pad",
        resample="bilinear",
        max_pixels=10**6,
        mean=(0.3, 0.4, 0.5)[:count],
        std=(0.3, 0.2, 0.2)[:count],
    )


def _bundle(name: str, size: int) -> Bundle:
    network = build_network(name, channels=3, size_px=(size, size), classes=6, seed=0).eval()
    return Bundle(
        network=network.to(memory_format=torch.channels_last),
        architecture=name,
        classes=tuple("abcdef"),
        preprocessing=_preprocessing(size, "rgb"),
        weights_hash="0" * 64,
    )


def _twinrun(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    patch.setattr(sys, "argv", ["twinrun", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _data(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def _check_maps(found: Anatomy) -> None:
    """An exact map adds up to the logit, but for the bias; any map has a value for some place."""
    maps = found.data["maps"]
    if maps is None:
        return
    values, logits = unpacked(maps["maps"]).astype(np.float64), unpacked(found.data["logits"])
    assert values.any()
    if maps["kind"] == "exact":
        sums = values.sum(axis=(1, 2)) + maps["bias"]
        assert np.abs(sums - logits[maps["classes"]]).max() <= 1e-4 * max(1, np.abs(logits).max())


def _compute_again(data: dict[str, Any]) -> None:
    """Compute what each step shows from what it is given, as a reader of the page can, and compare."""
    height, width, channels = data["image"]["shape"]
    pixels = np.frombuffer(_bytes(data["image"]["data"]), np.uint8).reshape(height, width, channels)
    levels = unpacked(data["levels"])
    image = np.stack([levels[channel][pixels[:, :, channel]] for channel in range(channels)])
    arrays = [*map(unpacked, data["arrays"]), image]  # the last is also number -1

    def array(step: dict[str, Any], name: str) -> torch.Tensor | None:
        return None if step[name] is None else torch.from_numpy(arrays[step[name]].astype(np.float64))

    for step in data["steps"]:
        given, shown = array(step, "input"), array(step, "output")
        for expected, wanted in _expected(step, given, shown, lambda name, step=step: array(step, name)):
            scale = max(1.0, float(wanted.abs().max()))
            assert float((expected - wanted).abs().max()) <= 1e-5 * scale, step


def _expected(step: dict[str, Any], given: Any, shown: Any, array: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    functions = torch.nn.functional
    match step["kind"]:
        case "convolution":
            weight, bias = array("weight"), array("bias")
            for at, first in enumerate(step["first"]):
                window = given[None, first : first + weight.shape[1]]
                added = None if bias is None else bias[at : at + 1]
                sizes = {name: step[name] for name in ("stride", "padding", "dilation")}
                yield functions.conv2d(window, weight[at : at + 1], added, **sizes)[0, 0], shown[at]
        case "normalisation":
            names = ("mean", "variance", "weight", "bias")
            mean, variance, weight, bias = (array(name)[:, None, None] for name in names)
            yield (given - mean) / (variance + step["eps"]).sqrt() * weight + bias, shown
        case "addition":
            yield given + array("other"), shown
        case "pooling" if "kernel" in step and step["largest"]:
            kernel, stride, padding = step["kernel"], step["stride"], step["padding"]
            pooled = [functions.max_pool2d(given, kernel, stride, padding, ceil_mode=ceil) for ceil in (False, True)]
            yield next(each for each in pooled if each.shape == shown.shape), shown
        case "pooling":
            whole = given.amax((1, 2)) if step["largest"] else given.mean((1, 2))
            if shown.numel() == len(given):
                yield whole, shown.reshape(-1)
        case "activation" if step["operation"] == "relu":
            yield given.relu(), shown
        case "flatten":
            yield given.flatten(), shown
        case "fully connected":
            yield array("weight") @ given + array("bias"), shown[step["shown"]]


def _bytes(text: str) -> bytes:
    from base64 import b64decode

    return b64decode(text)
