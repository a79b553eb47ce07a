"""Augmentation in torch operations, for images in the memory of a GPU: the same integers as `augment`.

The random numbers, a few for each image, are drawn on the CPU (`augment.draw_changes`); this module changes the pixels.
It uses only floating-point operations that every device rounds alike. Where the CPU rounds a multiplication and an
addition once, as in bilinear sampling and resizing, they are computed in float64 and rounded once.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.keyed import UInt64Array
from twinrun.core.params import AugmentParams
from twinrun.training.augment import LUMA, Changes, Recolouring, draw_changes, draw_mixture, sampling_places


def fits(device: torch.device, needed: int) -> bool:
    """Whether a split of `needed` bytes is kept on `device`: a GPU, if it takes at most half of the free memory."""
    return device.type == "cuda" and 2 * needed <= torch.cuda.mem_get_info(device)[0]


def copied(images: Pixels, rows: IntArray, device: torch.device) -> Tensor:
    """These rows of images, uint8 (N, H, W, C), on `device`; copied in parts, to save memory on the CPU."""
    copy = torch.empty((len(rows), *images.shape[1:]), dtype=torch.uint8, device=device)
    for part in range(0, len(rows), 1024):
        copy[part : part + 1024] = torch.from_numpy(images[rows[part : part + 1024]])
    return copy


def augment(images: Tensor, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams) -> Tensor:
    """As `augment.augment`, with a tensor in place of an array."""
    changes = draw_changes(keys, seed, epoch, params, (images.shape[1], images.shape[2]))
    changed = images
    if changes.warp is not None:
        changed = _warped(changed, _like(images, changes.warp))
    if changes.colours is not None:
        changed = _recoloured(changed, changes.colours)
    if changes.shift is not None:
        changed = _shifted(changed, changes, params.shift_border)
    if changes.holes is not None:
        changed = torch.where(_inside(images, changes.holes), torch.zeros_like(changed), changed)
    return changed


def mix(
    images: Tensor, others: Tensor, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams
) -> tuple[Tensor, FloatArray]:
    """As `augment.mix`, with tensors in place of arrays."""
    mixture = draw_mixture(keys, seed, epoch, params, (images.shape[1], images.shape[2]))
    own = _like(images, mixture.share)[:, None, None, None].float()
    blended = (images * own + others * (1 - own)).round_().to(torch.uint8)
    cut = torch.where(_inside(images, mixture.holes), others, images)
    cuts = torch.from_numpy(mixture.cuts).to(images.device)[:, None, None, None]
    return torch.where(cuts, cut, blended), mixture.share


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """As `augment.resized`, with a tensor in place of an array."""
    height, width = images.shape[1:3]
    if (height, width) == size:
        return images
    across = _weighted(images.permute(0, 3, 1, 2).float(), width, size[1])
    small = _weighted(across.transpose(2, 3), height, size[0]).transpose(2, 3)
    return small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _weighted(pixels: Tensor, length: int, shorter: int) -> Tensor:
    """Shrink the last dimension of pixels (N, C, H, W), each sum in the order of its taps.

    After the first tap a processor takes four at a time while there are four, and rounds their products; a product of
    the remaining ones is added without rounding.
    """
    indices, weights, in_fours = (each.to(pixels.device) for each in _taps(length, shorter))
    total = pixels[..., indices[0]] * weights[0]
    for index, weight, in_four in zip(indices[1:], weights[1:], in_fours[1:], strict=True):
        taken = pixels[..., index]
        total = torch.where(in_four, total + taken * weight, _multiplied_and_added(taken, weight, total))
    return total


@cache
def _taps(length: int, shorter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels make up each of the `shorter` ones, with which weights, and which are of a four; (taps, shorter).

    The weights are what PyTorch gives for images that are 1 in one place and 0 elsewhere.
    """
    lines = interpolate(
        torch.eye(length)[:, None, None, :], (1, shorter), mode="bilinear", align_corners=False, antialias=True
    )[:, 0, 0]
    counts, first = (lines != 0).sum(dim=0), (lines != 0).int().argmax(dim=0)
    taps = torch.arange(int(counts.max()))[:, None]
    indices = first + taps
    weights = lines.gather(0, indices.clamp(max=length - 1)) * (indices < length)
    return indices.clamp(max=length - 1), weights, (taps - 1) // 4 < (counts - 1) // 4


def _multiplied_and_added(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c, float32, in one rounding."""
    return (a.double() * b.double() + c.double()).float()


def _warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Warp bilinearly, with zeros outside, in the order in which grid_sample computes on a CPU."""
    count, height, width, channels = images.shape
    places = [
        _multiplied_and_added(place + 1, torch.tensor(length / 2), torch.tensor(-0.5))
        for place, length in zip(sampling_places(matrices, (height, width)), (width, height), strict=True)
    ]
    left, top = (place.floor() for place in places)
    to_right, to_bottom = places[0] - left, places[1] - top
    to_left, to_top = 1 - to_right, 1 - to_bottom
    pixels = images.reshape(count, height * width, channels)
    total: Tensor | None = None
    for down, right, weight in (
        (0, 0, to_top * to_left),
        (0, 1, to_top * to_right),
        (1, 0, to_bottom * to_left),
        (1, 1, to_bottom * to_right),
    ):
        row, column = (top + down).long(), (left + right).long()
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        values = _taken(pixels, index) * is_inside[..., None]
        weight = weight[..., None]
        total = values * weight if total is None else _multiplied_and_added(values, weight, total)
    assert total is not None
    return total.round_().clamp_(0, 255).to(torch.uint8)


def _taken(pixels: Tensor, index: Tensor) -> Tensor:
    """The pixels (N, H * W, C) at `index` (N, H, W), as (N, H, W, C)."""
    count, height, width = index.shape
    flat = index.reshape(count, -1, 1).expand(-1, -1, pixels.shape[2])
    return pixels.gather(1, flat).reshape(count, height, width, -1)


def _recoloured(images: Tensor, colours: Recolouring) -> Tensor:
    _, height, width, channels = images.shape
    sums = [images[..., c].sum(dim=(1, 2), dtype=torch.int64).double() for c in range(channels)]
    if channels == 3:
        weighted = [total * luma for total, luma in zip(sums, LUMA.tolist(), strict=True)]
        sums = [weighted[0] + weighted[1] + weighted[2]]
    gain, share = colours.light * colours.contrast, (1 - colours.contrast) * colours.light
    offset = (_like(images, share) * (sums[0] / (height * width))).float()[:, None, None]
    if colours.matrix is None:
        gains = _like(images, gain).float()[:, None, None, None]
        return (images * gains + offset[..., None]).round_().clamp_(0, 255).to(torch.uint8)
    matrix = _like(images, gain[:, None, None] * colours.matrix).float()[..., None, None]
    red, green, blue = (images[..., c].float() for c in range(3))
    planes = [red * r + green * g + blue * b + offset for r, g, b in (matrix[:, c].unbind(1) for c in range(3))]
    return torch.stack(planes, dim=-1).round_().clamp_(0, 255).to(torch.uint8)


def _shifted(images: Tensor, changes: Changes, border: str) -> Tensor:
    assert changes.shift is not None
    assert changes.mirror is not None
    count, height, width, channels = images.shape
    shift = torch.from_numpy(changes.shift).to(images.device)
    mirror = torch.from_numpy(changes.mirror).to(images.device)[:, None]
    row = torch.arange(height, device=images.device) - shift[:, 1:]
    column = torch.arange(width, device=images.device) - shift[:, :1]
    is_inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    if border == "mirror":
        row, column = (n - 1 - (n - 1 - at.abs()).abs() for at, n in ((row, height), (column, width)))
        is_inside = torch.ones_like(is_inside)
    column = torch.where(mirror, width - 1 - column, column)
    index = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
    return _taken(images.reshape(count, height * width, channels), index) * is_inside[..., None]


def _inside(images: Tensor, holes: IntArray) -> Tensor:
    """Which pixels lie in the rectangle of their image; (N, H, W, 1)."""
    height, width = images.shape[1:3]
    top, bottom, left, right = torch.from_numpy(holes).to(images.device)[:, :, None].unbind(1)
    row, column = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _like(images: Tensor, values: FloatArray) -> Tensor:
    """The values, float64, on the images' device."""
    return torch.from_numpy(values).to(images.device)
