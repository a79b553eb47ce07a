"""Networks by name, with the right input channels and number of classes.

`mlp`, `lenet5`, `resnet9` and `airbench94` are written here; every classification network of torchvision goes by its
own name, and every network of timm by timm/NAME. A+B is two networks that share a head.
"""

import copy
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from twinrun.base.errors import ModelError
from twinrun.core.networks import (
    BESIDE,
    RESNET9_WIDTH,
    TIMM,
    Size,
    is_own_file,
    resnet9_width,
    side_by_side,
    unknown_network,
)
from twinrun.models.own import build_from_source, explained, is_of_memory, own_source
from twinrun.models.stored import TORCH_TYPES

_ROUNDING = 1e-4  # by which equal logits may differ, as a share of the largest: sums depend on the size of a pass


def find_head(network: nn.Module, classes: int) -> tuple[str, nn.Linear] | None:
    """The linear layer that gives the logits, with its path in the network; None where the network ends otherwise."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear and linear[-1][1].out_features == classes else None


def ends_in_head(network: nn.Module, channels: int, size_px: Size, classes: int) -> bool:
    """Whether the logits are what a linear layer gives, and nothing is done to them after it.

    The layer must have a bias and be given one vector for each image.
    """
    head = find_head(network, classes)
    if head is None or head[1].bias is None:
        return False
    seen: list[tuple[torch.Size, Tensor]] = []
    hook = head[1].register_forward_hook(lambda _, given, output: seen.append((given[0].shape, output.clone())))
    try:
        with _seeded(0), torch.no_grad(), _evaluating(network):
            logits = network(torch.randn(1, channels, *size_px))
    finally:
        hook.remove()
    return len(seen) == 1 and seen[0][0] == (1, head[1].in_features) and torch.equal(seen[0][1], logits)


def without_head(network: nn.Module, classes: int) -> int:
    """Take the head off, in place, so that the network gives what its head was given; returns how many features.

    Raises ValueError where it does not end in a linear layer for `classes`.
    """
    head = find_head(network, classes)
    if head is None:
        raise ValueError("the network does not end in a linear layer")
    parent, _, child = head[0].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return head[1].in_features


def build_network(
    name: str, *, channels: int, size_px: Size, classes: int, seed: int, source: bytes | None = None
) -> nn.Module:
    """Build a network whose initial weights are a function of `seed`.

    It takes float tensors of shape (N, channels, H, W), where `size_px` is (H, W), and gives logits of shape
    (N, classes). A network in a file of the project is built from `source`, its content, or else from the file. Raises
    ModelError for an unknown name, with the nearest known ones, and for a size that the network cannot take.
    """
    if problem := unknown_network(name):
        raise ModelError(f"params.yaml: train.model: {problem}.")
    height, width = size_px
    with _seeded(seed):
        try:
            with _memory_explained(name, size_px):
                if is_own_file(name):
                    network = build_from_source(name, source or own_source(name), channels, size_px, classes)
                else:
                    network = _build(name, channels, size_px, classes)
                _check_size(network, name, channels, size_px, classes)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise ModelError(
                f"{name} cannot take images of {width} x {height} pixels ({_first_line(error)}). "
                "Set ingest.size_px in params.yaml to a larger size (most networks of torchvision are made for 224), "
                "or choose another train.model."
            ) from error
    return network


def in_channels_last(network: nn.Module) -> nn.Module:
    """The network, its filters of images in the layout in which they are fastest; others have no such layout."""
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.to(tensor.device, memory_format=torch.channels_last)
    return network


def require_size(network: nn.Module, name: str, channels: int, size_px: Size, classes: int) -> None:
    """Raise ModelError where the network cannot take the smaller images that a training begins with."""
    try:
        with _memory_explained(name, size_px):
            _check_size(network, name, channels, size_px, classes)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise ModelError(
            f"{name} cannot take images of {size_px[1]} x {size_px[0]} pixels, with which a training would begin "
            f"({_first_line(error)}). Raise train.start_size in params.yaml, or set it to 1.0."
        ) from error


def require_storable(network: nn.Module, name: str) -> None:
    """Raise ModelError where the state of the network cannot be stored in a bundle."""
    for place, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            problem = f"is a {type(value).__name__} and not a tensor"
        elif str(value.dtype) not in TORCH_TYPES:
            problem = f"has the type {value.dtype}, which a model cannot hold"
        elif not value.isfinite().all():
            problem = "holds NaN or infinity"
        else:
            continue
        raise ModelError(
            f"{place} of {name} {problem} (params.yaml: train.model), so the trained model could not be loaded. Leave "
            "what is not trained out of the state, with register_buffer(..., persistent=False); if it comes from "
            "pretrained weights, name others (train.pretrained)."
        )


def require_trainable(network: nn.Module, name: str, channels: int, size_px: Size, classes: int) -> None:
    """Raise ModelError where a training of the network would fail, or where its result would lack a part.

    A copy of the network computes two images in training mode, twice, and their gradients. Of the tensors that this
    changes, training keeps those of batch normalisation alone.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(f"{name} has no weights that can be trained (params.yaml: train.model).")
    try:
        with _memory_explained(name, size_px):
            copied = copy.deepcopy(network).train()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} cannot be copied, and each shard of a batch is computed by a copy: {_first_line(error)} "
            "(params.yaml: train.model). Compute tensors from parameters in forward(), and keep what cannot be copied "
            "out of the network."
        ) from error
    before = {place: value.clone() for place, value in copied.state_dict().items()}
    with _seeded(0):
        images, unused = torch.randn(2, channels, *size_px), _other_random_states()
        drawn = torch.get_rng_state()
        try:
            with _memory_explained(name, size_px):
                logits = _outputs(copied, name, images.clone())
                _require_logits(name, logits, 2, classes)
                _require_gradient(logits, copied, network, name)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            raise ModelError(
                f"{name} cannot be trained on images of {size_px[1]} x {size_px[0]} pixels ({_first_line(error)}). "
                "Choose another train.model in params.yaml."
            ) from error
        if _other_random_states() != unused:
            raise ModelError(
                f"{name} draws random numbers from Python's or NumPy's generator in training, so that a second "
                "training would give other weights (params.yaml: train.model). Draw them with nn.Dropout."
            )
        norms = tuple(f"{place}." for place, module in copied.named_modules() if isinstance(module, _BatchNorm))
        if changed := _changed(before, copied.state_dict(), norms):
            raise ModelError(
                f"{changed} of {name} is changed by a pass in training mode, and training keeps such changes of batch "
                "normalisation alone: the trained model would lack it. Choose another train.model in params.yaml; in a "
                "network of your own, use batch, group or layer normalisation."
            )
        copied.load_state_dict(before)
        torch.set_rng_state(drawn)
        if not _are_alike(logits, _outputs(copied, name, images.clone())):
            raise ModelError(
                f"{name} gives other logits when it sees the same images again in training mode: it keeps a count, a "
                "mean or a random generator between passes, which is not in its state_dict(). A training that goes on "
                "after an interruption would give other weights (params.yaml: train.model). Compute the logits from "
                "the images and the weights alone, and draw random numbers with nn.Dropout."
            )


def require_same_answers(
    network: nn.Module, rebuilt: nn.Module, name: str, channels: int, size_px: Size, classes: int
) -> None:
    """Raise ModelError where the stored network would give other answers, or an image others beside another image.

    `rebuilt` is the network built again, from another seed: whoever loads a model builds it and puts the tensors in.
    """
    try:
        rebuilt.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"{name} has other weights each time it is built ({_first_line(error)}), so the trained model could not be "
            "loaded (params.yaml: train.model). Draw no sizes at random."
        ) from error
    with _seeded(0):
        images = torch.randn(2, channels, *size_px)
    together, alone = _answers(network, name, images), [_answers(network, name, image[None]) for image in images]
    if not _are_alike(together, _answers(rebuilt, name, images)):
        raise ModelError(
            f"{name} has tensors or layers that are drawn at random and are not in its state_dict(), so the trained "
            "model would give other answers once it is loaded (params.yaml: train.model). Keep tensors with "
            "self.register_buffer(NAME, TENSOR), and layers in nn.ModuleList or nn.ModuleDict."
        )
    _require_logits(name, together, 2, classes)
    if not _are_alike(together, torch.cat(alone)):
        raise ModelError(
            f"{name} gives an image other logits beside another image than alone, in evaluation mode (params.yaml: "
            "train.model), so an answer would depend on the images that happen to be in the same call. Compute no "
            "means over the batch there: leave out track_running_stats=False, or use group or layer normalisation."
        )


def _answers(network: nn.Module, name: str, images: Tensor) -> Any:
    """What a network gives for images in evaluation mode."""
    with torch.no_grad(), _evaluating(network):
        return _outputs(network, name, images.clone())


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode; then each of its modules is as it was: some may have their own mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _are_alike(logits: Tensor, others: Tensor) -> bool:
    """Whether two computations of the same logits differ by no more than rounding."""
    logits, others = logits.detach().float(), others.detach().float()
    largest = float(logits.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(logits, others, rtol=0, atol=_ROUNDING * largest, equal_nan=True)


def _require_gradient(logits: Tensor, copied: nn.Module, network: nn.Module, name: str) -> None:
    """Raise what PyTorch raises where it cannot compute a gradient of the logits of `copied`, a copy of `network`.

    ModelError where no weight has one that training can use, or a weight of `network` has one.
    """
    if not logits.requires_grad:
        raise ModelError(
            f"{name} gives logits that depend on none of its weights, as far as PyTorch can see (params.yaml: "
            "train.model). Leave torch.no_grad(), detach() and .data out of forward()."
        )
    weights = [parameter for each in (copied, network) for parameter in each.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(logits.float().sum(), weights, allow_unused=True)
    if any(gradient is not None for gradient in gradients[len(weights) // 2 :]):
        raise ModelError(
            f"A copy of {name} computes with layers of the network that it was copied from, as a lambda that was "
            "written in __init__() does, so that dropout and batch normalisation in them would not be trained "
            "(params.yaml: train.model). Write it as a method."
        )
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise ModelError(f"{name} has a sparse gradient (params.yaml: train.model). Set sparse=False in its layers.")


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor], norms: tuple[str, ...]) -> str | None:
    """The first name of a tensor that was changed and does not begin with one of `norms`."""
    return next(
        (name for name in before if not name.startswith(norms) and not torch.equal(before[name], after[name])), None
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed`, with any of the generators that a network may draw from; then they go on as before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _memory_explained(name: str, size_px: Size) -> Iterator[None]:
    """Turn a lack of memory into a ModelError that says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_of_memory(error):
            raise
        raise ModelError(
            f"There is too little memory for {name} on images of {size_px[1]} x {size_px[0]} pixels "
            f"({_first_line(error)}). Close other programs, or choose a smaller train.model or ingest.size_px in "
            "params.yaml."
        ) from error


def _other_random_states() -> str:
    """The states of Python's and NumPy's generators, to be compared."""
    return repr((random.getstate(), np.random.get_state(legacy=False)))


def _build(name: str, channels: int, size_px: Size, classes: int) -> nn.Module:
    match name:
        case "mlp":
            return _mlp(channels, size_px, classes)
        case "lenet5":
            return _lenet5(channels, size_px, classes)
        case "airbench94":
            return Airbench94(channels, classes)
    if (width := resnet9_width(name)) is not None:
        return ResNet9(channels, classes, width)
    if BESIDE in name:
        networks = {part: _build(part, channels, size_px, classes) for part in side_by_side(name)}
        if without := [part for part, network in networks.items() if find_head(network, classes) is None]:
            raise ModelError(
                f"{without[0]} does not end in a linear layer, so it cannot stand beside another network (params.yaml: "
                "train.model). Name other networks."
            )
        return SideBySide(list(networks.values()), channels, classes)
    if name.startswith(TIMM):
        return _from_timm(name.removeprefix(TIMM), channels, size_px, classes)
    return _from_torchvision(name, channels, size_px, classes)


def _mlp(channels: int, size_px: Size, classes: int) -> nn.Module:
    """Two hidden layers of 256 and 128 units: the baseline that convolutions are compared with."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * math.prod(size_px), 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def _lenet5(channels: int, size_px: Size, classes: int) -> nn.Module:
    """LeNet-5 of LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.

    With ReLU, max pooling and a linear output in place of tanh, trained subsampling and radial basis functions.
    """
    height, width = (((side - 4) // 2 - 4) // 2 for side in size_px)
    if min(height, width) < 1:
        raise ValueError("two 5 x 5 convolutions with pooling need at least 16 pixels on each side")
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * height * width, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


class ResNet9(nn.Module):
    """A residual network of nine layers, after David Page, "How to train your ResNet", 2018: small and fast."""

    def __init__(self, channels: int, classes: int, width: int = RESNET9_WIDTH) -> None:
        """`width` filters in the first convolution, eight times as many in the last."""
        super().__init__()
        self.stem = _conv_block(channels, width)
        self.layer1 = _conv_block(width, 2 * width, pool=True)
        self.residual1 = nn.Sequential(_conv_block(2 * width, 2 * width), _conv_block(2 * width, 2 * width))
        self.layer2 = _conv_block(2 * width, 4 * width, pool=True)
        self.layer3 = _conv_block(4 * width, 8 * width, pool=True)
        self.residual3 = nn.Sequential(_conv_block(8 * width, 8 * width), _conv_block(8 * width, 8 * width))
        self.classifier = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer1(self.stem(images))
        features = features + self.residual1(features)
        features = self.layer3(self.layer2(features))
        features = features + self.residual3(features)
        return cast(Tensor, self.classifier(features.amax(dim=(2, 3))))


class Airbench94(nn.Module):
    """The network of airbench94, a small and fast one for images of 32 pixels.

    Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024. Its normalisation follows the pooling, so
    that it sees a quarter of the pixels, and has no scale of its own; its first convolution is made to be whitened
    (`train.whiten`).
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        whitened = 2 * 4 * channels  # both signs of each direction of a patch of 2 x 2 pixels
        self.whitening = nn.Conv2d(channels, whitened, 2)
        self.group1 = _pooled_group(whitened, 64)
        self.group2 = _pooled_group(64, 256)
        self.group3 = _pooled_group(256, 256)
        self.head = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = nn.functional.gelu(self.whitening(images))
        features = self.group3(self.group2(self.group1(features))) / 9
        return cast(Tensor, self.head(features.amax(dim=(2, 3))))


class SideBySide(nn.Module):
    """Networks that look at the same image, and a linear head on the features of all of them, one after the other.

    `scale` and `shift` (networks, channels, 1, 1) turn images that are normalised for the first network into those
    that each expects.
    """

    def __init__(self, networks: list[nn.Module], channels: int, classes: int) -> None:
        """The networks give `classes` logits each; raises ValueError where one does not end in a linear layer."""
        super().__init__()
        features = [without_head(network, classes) for network in networks]
        self.backbones = nn.ModuleList(networks)
        self.register_buffer("scale", torch.ones(len(networks), channels, 1, 1))
        self.register_buffer("shift", torch.zeros(len(networks), channels, 1, 1))
        self.head = nn.Linear(sum(features), classes)

    def expect(self, normalisations: "list[tuple[tuple[float, ...], tuple[float, ...]]]") -> None:
        """Give each network images with a mean and deviation of its own, each (channels,), as shares of 255."""
        means, deviations = (torch.tensor([each[k] for each in normalisations]) for k in (0, 1))
        self.get_buffer("scale")[:, :, 0, 0] = deviations[0] / deviations
        self.get_buffer("shift")[:, :, 0, 0] = (means[0] - means) / deviations

    def forward(self, images: Tensor) -> Tensor:
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        features = [backbone(images * scale[i] + shift[i]).flatten(1) for i, backbone in enumerate(self.backbones)]
        return cast(Tensor, self.head(torch.cat(features, dim=1)))


def _conv_block(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def _pooled_group(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for of, pool in ((inputs, True), (outputs, False)):
        norm = nn.BatchNorm2d(outputs, momentum=0.4)
        norm.weight.requires_grad_(False)
        convolution = nn.Conv2d(of, outputs, 3, padding=1, bias=False)
        layers += [convolution, *([nn.MaxPool2d(2)] if pool else []), norm, nn.GELU()]
    return nn.Sequential(*layers)


def _from_torchvision(name: str, channels: int, size_px: Size, classes: int) -> nn.Module:
    import torchvision

    settings: dict[str, object] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        settings |= {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        if size_px[0] != size_px[1]:
            raise ValueError("a vision transformer of torchvision takes squares")
        settings["image_size"] = size_px[0]
    elif name.startswith("maxvit"):
        settings["input_size"] = size_px
    network: nn.Module = torchvision.models.get_model(name, **settings)
    return network if channels == 3 else _with_input_channels(network, channels)


def _from_timm(name: str, channels: int, size_px: Size, classes: int) -> nn.Module:
    import timm

    settings: dict[str, object] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ModelError(
            f"timm has no {name}: {error} (params.yaml: train.model). Leave out what follows the point, or name "
            "weights that timm lists: timm.list_pretrained()."
        ) from None
    if config is not None and config.fixed_input_size:
        settings["img_size"] = size_px
    return cast(nn.Module, timm.create_model(name, **settings))


def _with_input_channels(network: nn.Module, channels: int) -> nn.Module:
    """Replace the first convolution by one that takes `channels` and is otherwise the same."""
    path, first = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, child = path.rpartition(".")
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        cast("tuple[int, int]", first.kernel_size),
        cast("tuple[int, int]", first.stride),
        cast("tuple[int, int]", first.padding),
        cast("tuple[int, int]", first.dilation),
        first.groups,
        first.bias is not None,
    )
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    if replacement.bias is not None:
        nn.init.zeros_(replacement.bias)
    setattr(network.get_submodule(parent), child, replacement)
    return network


def _check_size(network: nn.Module, name: str, channels: int, size_px: Size, classes: int) -> None:
    """Run one image through; raises what the network raises for a size that it cannot take."""
    _require_logits(name, _answers(network, name, torch.zeros(1, channels, *size_px)), 1, classes)


def _outputs(network: nn.Module, name: str, images: Tensor) -> Any:
    """What the network gives for images; raises ModelError, with the line, where a file of the project raises."""
    channels, height, width = images.shape[1:]
    given = f". It was given images of {width} x {height} pixels with {channels} channel{'' if channels == 1 else 's'}."
    with explained(name, given) if is_own_file(name) else nullcontext():
        return network(images)


def _require_logits(name: str, logits: object, images: int, classes: int) -> None:
    if isinstance(logits, Tensor) and logits.shape == (images, classes):
        return
    shape = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise ModelError(
        f"{name} gives {shape} for {images} image{'' if images == 1 else 's'} (params.yaml: train.model). It should "
        f"give logits, a tensor of shape ({images}, {classes}): one number for each class."
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
