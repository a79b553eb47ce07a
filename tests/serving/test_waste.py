"""The waste model that comes with the package: its weights are those of its card, and it needs no training."""

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.numpy_helper import to_array
from sklearn.datasets import load_digits, load_sample_images

from twinrun.base.errors import BundleError
from twinrun.base.files import read_json
from twinrun.cli.chosen_model import loaded
from twinrun.models.architectures import build_network, find_head
from twinrun.models.bundle import weights_hash
from twinrun.models.pretrained import load_pretrained, start_from
from twinrun.serving import waste
from twinrun.serving.engine import Engine
from twinrun.serving.rules import read_regions
from twinrun.serving.waste import FOLDER, NAME, waste_engine, waste_onnx

PHOTOS = Path(os.environ.get("TWINRUN_TEST_DATA", "")) / "trashnet"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return waste_engine()


def test_the_head_on_the_backbone_of_the_environment_has_the_weights_hash_of_the_card(engine: Engine) -> None:
    card = read_json(FOLDER / "card.json")
    setting, name = card["params"]["train"]["pretrained"], card["params"]["train"]["model"]
    network = build_network(name, channels=3, size_px=(240, 320), classes=6, seed=0)
    head = {tensor.name: to_array(tensor) for tensor in onnx.load_from_string(waste_onnx()).graph.initializer}

    start_from(network, load_pretrained(setting, name), classes=6)
    found = find_head(network, 6)
    assert found is not None
    path, linear = found
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(head[f"network.{path}.weight"]))
        linear.bias.copy_(torch.tensor(head[f"network.{path}.bias"]))

    assert weights_hash(network.state_dict()) == card["weights_hash"] == engine.model.weights_hash
    assert engine.calibration is not None
    assert "/" not in str(card["untracked_taken"])


def test_explain_gets_the_model_with_the_weights_of_the_card(engine: Engine) -> None:
    with loaded(NAME, trust=False) as model:
        network = model.bundle.network

    assert weights_hash(network.state_dict()) == engine.model.weights_hash
    assert model.name == engine.reference


def test_it_sorts_every_class_in_each_of_the_example_regions(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert all(region.covers(engine.model.classes) for region in read_regions(engine.model.classes))


def test_a_changed_backbone_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waste, "BACKBONE_SHA256", hashlib.sha256(b"").hexdigest())

    with pytest.raises(BundleError, match="Install the package again: pip install --force-reinstall"):
        waste_onnx()


def test_noise_flat_areas_digits_and_scenes_are_answered_with_i_dont_know(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    digits = [(digit * 15.9).astype(np.uint8).repeat(20, 0).repeat(20, 1) for digit in load_digits().images[:4]]
    noise = [rng.integers(0, 256, (120, 160, 3), dtype=np.uint8) for _ in range(4)]
    flat = [np.full((120, 160, 3), value, np.uint8) for value in (0, 90, 255)]

    kinds = [engine.classify(image).kind for image in (*digits, *noise, *flat, *load_sample_images().images)]

    assert kinds == ["unknown"] * len(kinds)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="TWINRUN_TEST_DATA names no folder with trashnet/")
def test_test_photos_of_trashnet_get_their_label_in_the_answer(engine: Engine) -> None:
    lines = (PHOTOS / "one-indexed-files-notrash_test.txt").read_text().splitlines()[:40]
    names = [line.split()[0] for line in lines]

    answers = [
        engine.classify((PHOTOS / "dataset-resized" / name.rstrip("0123456789.jpg") / name).read_bytes())
        for name in names
    ]

    right = sum(name.startswith(answer.labels) for name, answer in zip(names, answers, strict=True))
    assert right >= 36
    assert sum(len(answer.labels) == 1 for answer in answers) >= 25
