"""First weights by a recipe: a first convolution that whitens patches of the training images, identity filters.

Both from Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024; whitening after David Page.
"""

import numpy as np
import torch
from torch import nn

from twinrun.base.errors import ModelError
from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.params import TrainParams
from twinrun.training.shards import Numerics

_MOST_IMAGES = 5000
_SMALLEST = 5e-4  # added to variances of normalised patches


def set_first_weights(
    network: nn.Module, params: TrainParams, images: Pixels, rows: IntArray, numerics: Numerics
) -> None:
    """Give the network the first weights that `train.identity` and `train.whiten` ask for, in place.

    `images` are uint8 (N, H, W, C), of which `rows` are trained on. Raises ModelError where there is no convolution to
    whiten, or none that can hand its inputs on.
    """
    if params.identity:
        _set_identity(network)
    if params.whiten:
        _whiten(network, images, rows, numerics)


def _whiten(network: nn.Module, images: Pixels, rows: IntArray, numerics: Numerics) -> None:
    """Set filters of the first convolution to the directions of its patches, scaled to variance 1, and keep them so.

    The first 5,000 images count. Of each direction there are two filters, of both signs; filters that are left over
    stay as they were drawn. A bias is 0 and stays so: then nothing is passed back through the layer after it.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.groups != 1:
        raise ModelError(
            "The network has no plain convolution that could be whitened (params.yaml: train.whiten). Set it to false, "
            "or train.model: resnet9."
        )
    height, width = (int(side) for side in first.kernel_size)
    directions = _directions(images[np.sort(rows)[:_MOST_IMAGES]], (height, width), numerics)
    both = np.concatenate([directions, -directions])[: first.out_channels]
    with torch.no_grad():
        filters = torch.from_numpy(both).reshape(len(both), height, width, -1).permute(0, 3, 1, 2)
        first.weight[: len(both)] = filters.to(first.weight)
        if first.bias is not None:
            nn.init.zeros_(first.bias)
    first.requires_grad_(False)


def _set_identity(network: nn.Module) -> None:
    """Have every plain convolution but the first begin by handing its inputs on, in the first of its outputs."""
    later = [module for module in network.modules() if isinstance(module, nn.Conv2d)][1:]
    plain = [module for module in later if module.groups == 1]
    if not plain:
        raise ModelError(
            "After its first convolution the network has none that could hand its inputs on (params.yaml: "
            "train.identity). Set it to false, or train.model: resnet9."
        )
    with torch.no_grad():
        for module in plain:
            nn.init.dirac_(module.weight[: module.weight.shape[1]])


def _directions(images: Pixels, patch: tuple[int, int], numerics: Numerics) -> FloatArray:
    """Eigenvectors (D, D) of the patches' covariance, largest variance first, over the root of the variance.

    In float64 by one thread; of the two signs of a vector the one that makes its largest component positive.
    """
    from threadpoolctl import threadpool_limits

    values = (images.astype(np.float64) / 255 - np.array(numerics.mean)) / np.array(numerics.std)
    with threadpool_limits(1):
        total, patches = 0.0, 0
        for image in values:
            seen = np.lib.stride_tricks.sliding_window_view(image, patch, axis=(0, 1))  # (h, w, C, ph, pw)
            flat = seen.transpose(0, 1, 3, 4, 2).reshape(-1, patch[0] * patch[1] * image.shape[2])
            total = total + flat.T @ flat
            patches += len(flat)
        variances, vectors = np.linalg.eigh(total / patches)
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(vectors))] < 0, -1, 1)
    scaled: FloatArray = (vectors / np.sqrt(np.maximum(variances, 0) + _SMALLEST)).T[::-1].copy()
    return scaled
