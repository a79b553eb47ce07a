"""Networks by name take the images there are and give the classes there are."""

import pytest
import torch

from twinrun.base.errors import ModelError
from twinrun.models.architectures import build_network, ends_in_head, require_same_answers
from twinrun.models.bundle import weights_hash

SMALL = [
    "mlp",
    "lenet5",
    "resnet9",
    "resnet9_w8",
    "airbench94",
    "resnet18",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_the_channels_and_gives_the_classes_that_are_asked_for(name: str, channels: int) -> None:
    network = build_network(name, channels=channels, size_px=(64, 64), classes=7, seed=0).eval()

    assert network(torch.zeros(2, channels, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", [*SMALL, "swin_t"])
def test_a_network_takes_oblong_images(name: str) -> None:
    network = build_network(name, channels=3, size_px=(48, 80), classes=7, seed=0).eval()

    assert network(torch.zeros(2, 3, 48, 80)).shape == (2, 7)


def test_the_width_of_a_resnet9_is_that_of_its_name() -> None:
    def parameters(name: str) -> int:
        network = build_network(name, channels=1, size_px=(32, 32), classes=10, seed=0)
        return sum(parameter.numel() for parameter in network.parameters())

    assert parameters("resnet9_w64") == parameters("resnet9")
    assert parameters("resnet9_w7") == 79_621
    with pytest.raises(ModelError, match=r'no network is called "resnet9_w0"; did you mean resnet9'):
        parameters("resnet9_w0")


def test_a_network_that_takes_squares_alone_says_so() -> None:
    with pytest.raises(ModelError, match=r"vit_b_16 cannot take images of 320 x 224 pixels \(.*takes squares\)"):
        build_network("vit_b_16", channels=3, size_px=(224, 320), classes=7, seed=0)


def test_googlenet_gives_logits_and_not_its_auxiliary_outputs() -> None:
    network = build_network("googlenet", channels=1, size_px=(64, 64), classes=3, seed=0).train()

    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3)


def test_first_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    def first_weights(seed: int) -> str:
        network = build_network("resnet9", channels=3, size_px=(32, 32), classes=10, seed=seed)
        return weights_hash(network.state_dict())

    before = torch.get_rng_state()

    assert first_weights(1) == first_weights(1)
    assert first_weights(1) != first_weights(2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_that_is_too_large_for_the_memory_says_so() -> None:
    with pytest.raises(ModelError, match=r"There is too little memory for mlp on images of 2000000 x 2000000 pixels"):
        build_network("mlp", channels=1, size_px=(2_000_000, 2_000_000), classes=10, seed=0)


def test_an_unknown_name_is_refused_with_the_nearest_or_examples() -> None:
    with pytest.raises(ModelError, match=r'no network is called "resnet81"; did you mean .*resnet18'):
        build_network("resnet81", channels=3, size_px=(32, 32), classes=10, seed=0)
    with pytest.raises(ModelError, match=r'no network is called "xyz"; some are mlp, lenet5, .*and all of torchvision'):
        build_network("xyz", channels=3, size_px=(32, 32), classes=10, seed=0)


@pytest.mark.parametrize(("name", "size_px"), [("alexnet", 32), ("lenet5", 12), ("vit_b_16", 30)])
def test_images_that_are_too_small_are_refused_with_the_setting_to_change(name: str, size_px: int) -> None:
    with pytest.raises(ModelError, match=r"(?s)cannot take images of .*ingest.size_px"):
        build_network(name, channels=1, size_px=(size_px, size_px), classes=10, seed=0)


@pytest.mark.parametrize(
    "full", ["raise torch.OutOfMemoryError('full')", "torch.nn.Linear(10**8, 10**8)"], ids=["GPU", "processor"]
)
def test_a_lack_of_memory_is_not_taken_for_images_that_are_too_small(full: str) -> None:
    source = f"import torch\ndef build(channels, size_px, classes):\n    {full}\n".encode()

    with pytest.raises(ModelError, match=r"There is too little memory for networks/mine\.py:build") as raised:
        build_network("networks/mine.py:build", channels=1, size_px=(8, 8), classes=10, seed=0, source=source)
    assert "larger size" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("squeezenet1_1+resnet18", "squeezenet1_1 does not end in a linear layer, so it cannot stand beside another"),
        ("timm/resnet18.nonsense", r"timm has no resnet18\.nonsense: Invalid pretrained tag .*Leave out what follows"),
    ],
)
def test_a_name_that_names_no_network_as_a_whole_is_not_blamed_on_the_size_of_images(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_network(name, channels=3, size_px=(64, 64), classes=10, seed=0)


def test_a_layer_keeps_the_mode_in_which_a_network_was_built_when_it_is_tried() -> None:
    source = b"""
from torch import nn
def build(channels, size_px, classes):
    return nn.Sequential(nn.BatchNorm2d(channels).eval(), nn.Flatten(), nn.Linear(64 * channels, classes))
"""
    name = "networks/mine.py:build"
    network, rebuilt = (
        build_network(name, channels=1, size_px=(8, 8), classes=2, seed=seed, source=source) for seed in (0, 1)
    )

    require_same_answers(network, rebuilt, name, 1, (8, 8), 2)

    assert ends_in_head(network, 1, (8, 8), 2)
    assert [module.training for module in network.modules()] == [True, False, True, True]
