"""What is known of networks without importing them is what they are."""

import pytest

from twinrun.base.errors import ModelError
from twinrun.core.networks import timm_names, torchvision_names, unfit_size, unknown_network
from twinrun.models.architectures import build_network


def test_the_names_read_from_the_sources_are_those_of_the_libraries() -> None:
    import timm
    import torchvision

    assert list(torchvision_names()) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert list(timm_names()) == sorted(timm.list_models())


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "vit_b_16", "timm/resnet18", "timm/resnet18.a1_in1k"])
def test_a_network_of_each_library_is_known(name: str) -> None:
    assert unknown_network(name) is None


@pytest.mark.parametrize("name", ["resnet\n18", "timm/a\x1b[2J", "networks/a\nb.py:build"])
def test_a_name_that_would_break_a_line_is_shown_on_one(name: str) -> None:
    assert unknown_network(name) == f"{name!r} is not the name of a network"


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        *(("lenet5", 16), ("airbench94", 9), ("alexnet", 63), ("squeezenet1_0", 21), ("squeezenet1_1", 17)),
        *(("googlenet", 15), ("vgg11", 32)),
    ],
)
def test_the_smallest_size_that_is_accepted_is_the_smallest_that_the_network_takes(name: str, smallest: int) -> None:
    assert unfit_size(name, (smallest - 1, smallest)) is not None
    with pytest.raises(ModelError):
        build_network(name, channels=3, size_px=(smallest - 1, smallest - 1), classes=2, seed=0)

    assert unfit_size(name, (smallest, smallest)) is None
    build_network(name, channels=3, size_px=(smallest, smallest), classes=2, seed=0)


@pytest.mark.parametrize("name", ["mlp", "resnet9", "resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_networks_without_a_smallest_size_take_the_smallest_image(name: str) -> None:
    assert unfit_size(name, (8, 8)) is None

    build_network(name, channels=3, size_px=(8, 8), classes=2, seed=0)
