"""The gradients of depthwise convolutions in bfloat16 are the library's, up to rounding, whatever moves and pads."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from twinrun.models.architectures import build_network
from twinrun.training.depthwise import FastDepthwise, has_depthwise

_CHANNELS = 8
_ROUNDING = 2**-7  # two roundings to bfloat16, relative to the largest value


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((16, 12), 3, 1, 1, 1),
        ((17, 12), 3, 2, 1, 1),
        ((16, 13), 5, 2, 2, 1),
        ((16, 12), 5, 1, 2, 1),
        ((16, 12), 3, 2, 0, 1),
        ((16, 12), 3, 1, 2, 2),
        ((9, 10), 3, 3, 1, 1),
        ((9, 10), 3, (2, 1), (1, 0), 1),
        ((9, 10), 1, 2, 0, 1),
    ],
)
def test_gradients_are_those_of_float32(
    size: tuple[int, int],
    kernel: int,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int,
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(4, _CHANNELS, *size), torch.randn(_CHANNELS, 1, kernel, kernel), torch.randn(_CHANNELS)]
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False), FastDepthwise():
        fast = _with_gradients(inputs, stride, padding, dilation)
    precise = _with_gradients(inputs, stride, padding, dilation)
    assert "_Depthwise" in str(_graph(fast[0]))

    for ours, right in zip(fast, precise, strict=True):
        assert (ours.float() - right).abs().max() <= _ROUNDING * right.abs().max()


def test_networks_with_depthwise_convolutions_are_known() -> None:
    def has(name: str) -> bool:
        return has_depthwise(build_network(name, channels=3, size_px=(64, 64), classes=2, seed=0))

    assert has("mobilenet_v3_small")
    assert not has("resnet18")
    assert not has_depthwise(nn.Conv2d(4, 8, 3, groups=2))


def _with_gradients(inputs: list[Tensor], stride: object, padding: object, dilation: int) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = conv2d(*leaves, stride, padding, dilation, _CHANNELS)  # type: ignore[call-overload]
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), leaves)]


def _graph(output: Tensor) -> list[str]:
    """The names of the two operations that gave the output last."""
    assert output.grad_fn is not None
    return [output.grad_fn.name(), *(before.name() for before, _ in output.grad_fn.next_functions if before)]
