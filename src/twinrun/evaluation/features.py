"""What a network sees: the maps of one image after every convolution, activation and pooling.

Module hooks say where in the network we are; a function mode sees the operations themselves, since many networks of
torchvision call activation and pooling as functions, which no module hook meets.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

KINDS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose2d"), "convolution"),
    **dict.fromkeys(
        (
            "relu",
            "hardtanh",
            "leaky_relu",
            "elu",
            "gelu",
            "silu",
            "mish",
            "hardswish",
            "hardsigmoid",
            "sigmoid",
            "tanh",
        ),
        "activation",
    ),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool2d"), "pooling"),
}


@dataclass(frozen=True)
class FeatureMaps:
    """One operation's output for one image: float32 of shape (maps, height, width), (units, 1, 1) for a vector."""

    layer: str
    kind: str
    operation: str
    maps: npt.NDArray[np.float32]

    @property
    def is_vector(self) -> bool:
        """Whether the output has no height and width left."""
        return self.maps.shape[1:] == (1, 1)


def feature_maps(network: nn.Module, image: Tensor) -> list[FeatureMaps]:
    """Run one image, a float tensor of shape (1, C, H, W), through a network in evaluation mode and keep what it does.

    Outputs come in the order of computation. Computed by one thread, so that the numbers do not depend on the cores.
    """
    recorder = _Recorder(image.shape[2] / image.shape[3])
    hooks = list(naming_hooks(network, recorder.path))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), recorder:
            network(image)
    finally:
        torch.set_num_threads(threads_before)
        for hook in hooks:
            hook.remove()
    return recorder.seen


def spread(seen: list[FeatureMaps], limit: int) -> list[FeatureMaps]:
    """At most `limit` of the outputs, evenly spaced; where there are too many, those in which a shape can be seen."""
    shapely = [maps for maps in seen if min(maps.maps.shape[1:]) >= 4]
    chosen = seen if len(seen) <= limit or not shapely else shapely
    if len(chosen) <= limit:
        return chosen
    return [chosen[at] for at in np.linspace(0, len(chosen) - 1, limit).round().astype(int)]


def liveliest(maps: npt.NDArray[np.float32], limit: int) -> npt.NDArray[np.int64]:
    """Indices of the `limit` maps (maps, height, width) that vary most over the image, in the network's order."""
    order = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:limit]
    return np.sort(order)


class _Recorder(TorchFunctionMode):
    """Sees every call of a torch function; the end of `path` is the module that makes it."""

    def __init__(self, aspect: float) -> None:
        super().__init__()
        self.aspect = aspect
        self.path: list[str] = [""]
        self.seen: list[FeatureMaps] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        operation = getattr(function, "__name__", "").strip("_")
        kind = KINDS.get(operation)
        # An image has its maps, tokens or units beside the batch: less is a parameter, such as a gate, or one number.
        if kind is not None and isinstance(output, Tensor) and 2 <= output.ndim <= 4:
            # A copy: the next operation may work in place.
            maps = as_maps(output, self.aspect).float().cpu().numpy().copy()
            self.seen.append(FeatureMaps(self.path[-1], kind, operation, maps))
        return output


def naming_hooks(network: nn.Module, path: list[str]) -> Iterator[RemovableHandle]:
    def leave(*_: object) -> None:
        path.pop()

    for name, module in network.named_modules():
        yield module.register_forward_pre_hook(lambda *_, name=name: path.append(name))
        yield module.register_forward_hook(leave, always_call=True)


def as_maps(output: Tensor, aspect: float) -> Tensor:
    """Shape a batch of one as (maps, height, width), on whichever side of height and width the channels are.

    Height and width are the neighbouring sides whose ratio is nearest to the `aspect` of the image.
    """
    one = output[0]
    if one.ndim == 1:
        return one[:, None, None]
    if one.ndim == 2:  # tokens of a transformer: a square of patches, perhaps after a class token
        side = math.isqrt(len(one))
        patches = one[len(one) - side**2 :]
        return patches.T.reshape(-1, side, side)
    first, second = (abs(math.log(one.shape[at] / one.shape[at + 1] / aspect)) for at in (0, 1))
    return one.permute(2, 0, 1) if first < second else one
