"""What a network with pretrained weights is before its first step."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model, get_model_weights

from twinrun.base.errors import ModelError
from twinrun.core.networks import torchvision_names
from twinrun.models.architectures import build_network, find_head
from twinrun.models.pretrained import Pretrained, load_pretrained, start_from


def _started(seed: int) -> torch.nn.Module:
    def build(seed: int) -> torch.nn.Module:
        return build_network("timm/tf_efficientnet_lite0", channels=3, size_px=(32, 32), classes=6, seed=seed)

    network = build(seed)
    start_from(network, [Pretrained(build(7).state_dict(), "0" * 64, None, None)], classes=6)
    return network.eval()


def test_a_fresh_head_finds_all_classes_about_equally_probable_and_is_drawn_from_the_seed() -> None:
    one, again, other = (_started(seed) for seed in (1, 1, 2))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    heads = [find_head(network, 6) for network in (one, again, other)]
    first, second, third = (head[1].weight for head in heads if head is not None)

    assert (one(images).softmax(dim=1) - 1 / 6).abs().max() < 0.01
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(one.get_parameter("conv_stem.weight"), other.get_parameter("conv_stem.weight"))


def _from_file(model: str, tensors: Mapping[str, object], folder: Path) -> torch.nn.Module:
    """The network for five classes, started from a file that holds the tensors."""
    torch.save(tensors, folder / "weights.pth")
    network = build_network(model, channels=3, size_px=(64, 64), classes=5, seed=0)
    start_from(network, load_pretrained(str(folder / "weights.pth"), model), classes=5)
    return network


@pytest.mark.parametrize(
    ("model", "deeper"), [("resnet18", "resnet34"), ("efficientnet_b0", "efficientnet_b1"), ("swin_t", "swin_s")]
)
def test_weights_of_a_deeper_network_whose_first_layers_fit_are_refused(
    model: str, deeper: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="of a network with more layers"):
        _from_file(model, get_model(deeper).state_dict(), tmp_path)


def test_a_file_that_holds_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    torch.save(get_model("resnet18"), tmp_path / "whole.pth")

    with pytest.raises(ModelError, match="a PyTorch file that holds tensors alone") as refused:
        load_pretrained(str(tmp_path / "whole.pth"), "resnet18")

    assert "only load" not in str(refused.value)


def test_weights_with_outputs_for_training_alone_and_without_counts_are_taken(tmp_path: Path) -> None:
    published = get_model("googlenet", aux_logits=True, init_weights=False).state_dict()
    given = {name: tensor for name, tensor in published.items() if not name.endswith("num_batches_tracked")}

    network = _from_file("googlenet", given, tmp_path)

    assert "aux1.fc1.weight" in given
    assert torch.equal(
        network.get_parameter("inception5b.branch1.conv.weight"), given["inception5b.branch1.conv.weight"]
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda name, tensor: (name, (tensor * 100).to(torch.int8)), "missing or have another shape or type"),
        (lambda name, tensor: (name.replace("layer", "stage"), tensor), "the weights have conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_names_that_they_have(
    changed: Callable[[str, Tensor], tuple[str, Tensor]], message: str, tmp_path: Path
) -> None:
    tensors = dict(changed(*each) for each in get_model("resnet18").state_dict().items())

    with pytest.raises(ModelError, match=message):
        _from_file("resnet18", tensors, tmp_path)


@pytest.mark.parametrize("place", ["state_dict", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.backbone."])
def test_weights_of_a_network_that_others_wrapped_are_found_in_what_their_scripts_write(
    prefix: str, place: str, tmp_path: Path
) -> None:
    given = get_model("resnet18").state_dict()
    wrapped = {"criterion.weight": torch.ones(3), **{f"{prefix}{name}": tensor for name, tensor in given.items()}}

    network = _from_file("resnet18", {place: wrapped, "epoch": torch.tensor(3)}, tmp_path)

    assert torch.equal(network.get_parameter("layer4.1.conv2.weight"), given["layer4.1.conv2.weight"])


def test_weights_of_two_networks_of_which_either_fits_are_refused_and_a_part_of_another_shape_is_passed_over(
    tmp_path: Path,
) -> None:
    given = get_model("resnet18").state_dict()
    smaller = {f"first.{name}": tensor[:1] if tensor.ndim else tensor for name, tensor in given.items()}
    second = {f"second.{name}": tensor for name, tensor in given.items()}

    network = _from_file("resnet18", {**smaller, **second}, tmp_path)
    with pytest.raises(ModelError, match=r"hold 2 networks that fit: second\., third\."):
        _from_file("resnet18", {**second, **{f"third.{name}": tensor for name, tensor in given.items()}}, tmp_path)

    assert torch.equal(network.get_parameter("layer1.0.conv1.weight"), given["layer1.0.conv1.weight"])


def test_weights_of_a_deeper_network_that_others_wrapped_are_refused(tmp_path: Path) -> None:
    given = {f"module.{name}": tensor for name, tensor in get_model("resnet34").state_dict().items()}

    with pytest.raises(ModelError, match="of a network with more layers"):
        _from_file("resnet18", given, tmp_path)


def test_a_network_that_ends_in_a_convolution_starts_from_its_weights_but_for_that(tmp_path: Path) -> None:
    given = get_model("squeezenet1_1").state_dict()

    network = _from_file("squeezenet1_1", given, tmp_path)

    assert torch.equal(network.get_parameter("features.0.weight"), given["features.0.weight"])
    assert network.get_parameter("classifier.1.weight").shape[0] == 5


def test_a_file_of_densenet_may_have_the_names_of_the_published_one(tmp_path: Path) -> None:
    given = get_model("densenet121").state_dict()
    older = {re.sub(r"(layer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): tensor for name, tensor in given.items()}

    network = _from_file("densenet121", older, tmp_path)

    name = "features.denseblock1.denselayer1.conv2.weight"
    assert name not in older
    assert torch.equal(network.get_parameter(name), given[name])


def test_every_network_of_torchvision_gets_images_normalised_as_its_weights_expect(
    tmp_path: Path,
) -> None:
    torch.save({"any": torch.zeros(1)}, tmp_path / "weights.pth")
    others = set()

    for name in torchvision_names():
        (given,) = load_pretrained(str(tmp_path / "weights.pth"), name)
        expected = get_model_weights(name).DEFAULT.transforms()
        if (given.mean, given.std) != (tuple(expected.mean), tuple(expected.std)):
            others.add(name)

    assert others == {"googlenet", "inception_v3"}  # which turn these into means and deviations of 0.5 by themselves
