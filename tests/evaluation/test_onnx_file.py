"""A network written as ONNX: one file, any number of images, and the same answers as PyTorch's."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from twinrun.core.arrays import Pixels
from twinrun.evaluation.gate import judge_onnx
from twinrun.evaluation.onnx_file import onnx_file, onnx_logits
from twinrun.evaluation.predictions import Predictions
from twinrun.models.architectures import build_network
from twinrun.models.bundle import Bundle, Preprocessing
from twinrun.models.predict import probabilities
from twinrun.models.views import with_views

PRESETS = [
    ("mlp", 1),
    ("lenet5", 1),
    ("resnet9", 3),
    ("airbench94", 3),
    ("resnet18", 3),
    ("timm/tf_efficientnet_lite0", 3),
]
SIDE = 32


@pytest.mark.parametrize(("name", "channels"), PRESETS)
def test_the_networks_of_the_presets_answer_the_same_in_onnx_whatever_the_batch(name: str, channels: int) -> None:
    bundle = _bundle(name, channels)
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, channels), dtype=np.uint8)

    file = onnx_file(bundle)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    together = session.run(["logits"], {"images": images})[0]
    alone = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in images])
    assert judge_onnx(onnx_logits(file, images, np.arange(16)), _predictions(bundle, images)).passed
    assert together.tobytes() == alone.tobytes()
    kept = {tensor.raw_data for tensor in onnx.load_from_string(file).graph.initializer}
    assert all(tensor.detach().numpy().tobytes() in kept for tensor in bundle.network.parameters())
    assert session.get_modelmeta().custom_metadata_map["weights_hash"] == bundle.weights_hash
    if name in ("mlp", "lenet5"):
        assert [output.name for output in session.get_outputs()] == ["logits"]
        return
    logits, features = session.run(["logits", "features"], {"images": images})
    pooled = features.max(axis=(2, 3)) if name in ("resnet9", "airbench94") else features.mean(axis=(2, 3))
    head = [module for module in bundle.network.modules() if isinstance(module, torch.nn.Linear)][-1]
    expected = head(torch.from_numpy(pooled)).detach().numpy()
    if name not in ("resnet9", "airbench94"):  # which take maxima
        maps = session.run(["maps"], {"images": images})[0]
        averaged = maps.mean(axis=(2, 3)) + head.bias.detach().numpy()
        np.testing.assert_allclose(averaged, logits, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(logits).max())


class Pooled(nn.Module):
    """A convolution whose 8 x 16 x 16 maps are pooled in some way, and given to one or two linear layers."""

    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor], features: int, *, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.pool, self.twice = nn.Conv2d(3, 8, 3, 2, 1), pool, twice
        self.first, self.second = nn.Linear(features, 6), nn.Linear(8, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        logits: torch.Tensor = self.first(self.pool(maps))
        return logits + self.second(maps.amax((2, 3))) if self.twice else logits


@pytest.mark.parametrize(
    "network",
    [
        Pooled(lambda maps: maps.mean(1).flatten(1), 256),
        Pooled(lambda maps: maps.permute(0, 2, 3, 1).mean((1, 2)), 8),
        Pooled(lambda maps: maps.mean((2, 3)), 8, twice=True),
    ],
    ids=["over channels", "channels last", "two heads"],
)
def test_a_network_that_pools_otherwise_has_no_class_maps_and_the_same_answers(network: nn.Module) -> None:
    bundle = replace(_bundle("lenet5", 3), network=network.eval())
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)

    file = onnx_file(bundle)

    outputs = [output.name for output in onnxruntime.InferenceSession(file).get_outputs()]
    assert outputs == ["logits"]
    assert judge_onnx(onnx_logits(file, images, np.arange(16)), _predictions(bundle, images)).passed


def test_the_mean_over_several_views_is_the_same_in_onnx() -> None:
    plain = _bundle("lenet5", 1)
    bundle = replace(plain, network=with_views(plain.network, flip=True, shift_px=2))
    images = np.random.default_rng(0).integers(0, 256, (16, SIDE, SIDE, 1), dtype=np.uint8)

    gate = judge_onnx(onnx_logits(onnx_file(bundle), images, np.arange(16)), _predictions(bundle, images))

    assert gate.passed, gate.sentence


def test_other_weights_are_refused_with_the_difference() -> None:
    bundle, other = _bundle("lenet5", 1, seed=0), _bundle("lenet5", 1, seed=1)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 1), dtype=np.uint8)

    gate = judge_onnx(onnx_logits(onnx_file(other), images, np.arange(20)), _predictions(bundle, images))

    assert not gate.passed
    assert gate.value is not None
    assert gate.value > 1e-4
    assert "labels differ" in gate.sentence


def _bundle(name: str, channels: int, seed: int = 0) -> Bundle:
    network = build_network(name, channels=channels, size_px=(SIDE, SIDE), classes=6, seed=seed).eval()
    preprocessing = Preprocessing(
        size_px=(SIDE, SIDE),
        channels="gray" if channels == 1 else "rgb",
        fit="pad",
        resample="bilinear",
        max_pixels=10**6,
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
    )
    return Bundle(
        network=network,
        architecture=name,
        classes=tuple("abcdef"),
        preprocessing=preprocessing,
        weights_hash=f"{seed:064x}",
    )


def _predictions(bundle: Bundle, images: Pixels) -> Predictions:
    return Predictions(
        ids=[str(at) for at in range(len(images))],
        targets=np.zeros(len(images), np.int64),
        probabilities=probabilities(bundle, images),
        classes=bundle.classes,
    )
