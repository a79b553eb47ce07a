"""Depthwise convolutions in bfloat16 with gradients that are fast on a CPU.

In a depthwise convolution each channel has a filter of its own, as in MobileNet and EfficientNet. PyTorch's gradients
of it in bfloat16 leave the fast kernels where a filter moves by more than one pixel, or is larger than 3 x 3: so an
EfficientNet-Lite0 spent three quarters of its time there. Here the gradient of the input is a convolution, as the
forward pass is, with mirrored filters and zeros between the pixels that were passed over (Dumoulin and Visin, "A guide
to convolution arithmetic for deep learning", 2016), and that of a large filter is computed in float32.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

_SMALL_FILTER = 9  # weights; the library's gradient of so small a filter is fast in bfloat16


def has_depthwise(network: nn.Module) -> bool:
    """Whether a network has a depthwise convolution of images."""
    return any(
        isinstance(module, nn.Conv2d) and _is_depthwise(module.groups, module.weight) for module in network.modules()
    )


class FastDepthwise(TorchFunctionMode):
    """While it is entered, depthwise convolutions in this thread compute in bfloat16 and have fast gradients."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is conv2d and not kwargs and len(args) == _ARGUMENTS:
            images, weight, bias, stride, padding, dilation, groups = args
            if _is_depthwise(groups, weight) and not isinstance(padding, str):
                settings = _pair(stride), _pair(padding), _pair(dilation)
                if all(d * (k - 1) >= p for p, d, k in zip(*settings[1:], weight.shape[2:], strict=True)):
                    images, weight = images.to(torch.bfloat16), weight.to(torch.bfloat16)
                    features = cast(Tensor, _Depthwise.apply(images, weight, *settings))
                    return features if bias is None else features + bias.to(torch.bfloat16)[:, None, None]
        return func(*args, **(kwargs or {}))


_ARGUMENTS = 7


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.settings = stride, padding, dilation
        return conv2d(images, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        images, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.settings
        (of_output,) = gradients
        of_images = of_weight = None
        if ctx.needs_input_grad[0]:
            of_images = _of_images(of_output, images, weight, stride, padding, dilation)
        if ctx.needs_input_grad[1]:
            precise = torch.float32 if weight[0, 0].numel() > _SMALL_FILTER else torch.bfloat16
            inputs = (tensor.to(precise) for tensor in (of_output, images, weight))
            settings = None, stride, padding, dilation, False, (0, 0), len(weight), (False, True, False)
            of_weight = torch.ops.aten.convolution_backward(*inputs, *settings)[1].to(weight.dtype)
        return of_images, of_weight, None, None, None


def _of_images(of_output: Tensor, images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    spread = of_output
    if tuple(stride) != (1, 1):
        height, width = (n + 2 * p - r for n, p, r in zip(images.shape[2:], padding, reach, strict=True))
        shape = len(images), height, width, len(weight)
        spread = of_output.new_zeros(shape).permute(0, 3, 1, 2)
        spread[:, :, :: stride[0], :: stride[1]] = of_output
    margin = [r - p for r, p in zip(reach, padding, strict=True)]
    return conv2d(spread, weight.flip(2, 3), None, 1, margin, dilation, len(weight))


def _is_depthwise(groups: int, weight: Tensor) -> bool:
    return groups > 1 and groups == len(weight) and weight.shape[1] == 1


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
