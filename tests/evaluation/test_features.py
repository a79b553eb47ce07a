"""What is recorded on the way through real networks, whether they compute with modules or with functions."""

import numpy as np
import pytest
import torch

from twinrun.evaluation.features import FeatureMaps, feature_maps, liveliest, spread
from twinrun.models.architectures import build_network


def seen_by(name: str, size_px: int = 32) -> list[FeatureMaps]:
    network = build_network(name, channels=1, size_px=(size_px, size_px), classes=10, seed=0).eval()
    image = torch.rand(1, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return feature_maps(network, image)


def test_lenet5_shows_every_convolution_activation_and_pooling_in_order() -> None:
    seen = seen_by("lenet5")

    assert [(maps.kind, maps.maps.shape) for maps in seen] == [
        ("convolution", (6, 28, 28)),
        ("activation", (6, 28, 28)),
        ("pooling", (6, 14, 14)),
        ("convolution", (16, 10, 10)),
        ("activation", (16, 10, 10)),
        ("pooling", (16, 5, 5)),
        ("activation", (120, 1, 1)),
        ("activation", (84, 1, 1)),
    ]


def test_a_convolution_keeps_its_negative_values_although_the_next_activation_works_in_place() -> None:
    convolution, activation = seen_by("squeezenet1_1")[:2]

    assert (convolution.layer, activation.layer) == ("features.0", "features.1")
    assert convolution.maps.min() < 0
    assert activation.maps.min() == 0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("mlp", {"activation"}),
        ("googlenet", {"convolution", "activation", "pooling"}),  # calls activation as a function
        ("mobilenet_v3_small", {"convolution", "activation", "pooling"}),
        ("convnext_tiny", {"convolution", "activation", "pooling"}),  # keeps channels last
        ("vit_b_16", {"convolution", "activation"}),  # keeps tokens
    ],
)
def test_networks_of_all_builds_show_square_maps_or_vectors(name: str, kinds: set[str]) -> None:
    seen = seen_by(name, size_px=64)

    assert {maps.kind for maps in seen} == kinds
    assert all(maps.maps.ndim == 3 and maps.maps.shape[1] == maps.maps.shape[2] for maps in seen)


@pytest.mark.parametrize("name", ["lenet5", "convnext_tiny", "swin_t"])
def test_maps_of_an_oblong_image_have_its_aspect(name: str) -> None:
    network = build_network(name, channels=1, size_px=(64, 128), classes=10, seed=0).eval()

    seen = [maps for maps in feature_maps(network, torch.rand(1, 1, 64, 128)) if not maps.is_vector]

    assert len(seen) > 3
    assert all(maps.maps.shape[2] / maps.maps.shape[1] == pytest.approx(2, rel=0.25) for maps in seen)


def test_looking_changes_neither_the_answer_nor_the_network() -> None:
    network = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=0).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.inference_mode():
        before = network(image)

    feature_maps(network, image)

    with torch.inference_mode():
        assert torch.equal(network(image), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_of_too_many_outputs_the_first_and_last_with_a_shape_are_kept() -> None:
    seen = seen_by("googlenet", size_px=64)

    shown = spread(seen, 10)

    assert len(shown) == 10
    assert shown[0] is seen[0]
    assert all(min(maps.maps.shape[1:]) >= 4 for maps in shown)


def test_the_maps_that_vary_most_are_kept_in_the_order_of_the_network() -> None:
    maps = np.zeros((4, 2, 2), np.float32)
    maps[1, 0, 0], maps[3, 0, 0], maps[2, 0, 0] = 1, 5, 3

    assert liveliest(maps, 2).tolist() == [2, 3]


def test_what_is_computed_of_parameters_alone_is_no_map() -> None:
    class Gated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.each = torch.nn.Conv2d(1, 4, 3), *map(torch.nn.Parameter, torch.zeros(2, 4))
            self.gate = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.conv(images) * torch.sigmoid(self.gate)
            logits: torch.Tensor = maps.mean((2, 3)) * torch.tanh(self.one) + torch.nn.functional.relu(self.each)
            return logits

    seen = feature_maps(Gated().eval(), torch.rand(1, 1, 8, 8))

    assert [(maps.kind, maps.maps.shape) for maps in seen] == [("convolution", (4, 6, 6))]
