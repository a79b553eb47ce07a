"""Changes to training images, on batches of uint8, from (seed, epoch, image id) alone. Pure: no state, no files.

Crop, rotate, recolour, shift, mirror and erase, each drawn for each image by itself, and mix it with another image of
the split: what an image becomes depends neither on the batch that it is in nor on the thread that does the work.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.keyed import UInt64Array, keyed_uniform
from twinrun.core.params import AugmentParams

if TYPE_CHECKING:
    from torch import Tensor

_SHIFT_X, _SHIFT_Y, _FLIP, _ROTATE, _ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_X, _ERASE_Y = range(16, 25)
_CROP_AREA, _CROP_ASPECT, _CROP_X, _CROP_Y, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(25, 33)
_PARTNER, _MIX_KIND, _MIX_SHARE, _MIX_X, _MIX_Y = range(33, 38)
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's gray


@dataclass(frozen=True)
class Recolouring:
    """For each of N images factors `light` and `contrast` (N,), and what RGB is multiplied with, `matrix` (N, 3, 3)."""

    light: FloatArray
    contrast: FloatArray
    matrix: FloatArray | None


@dataclass(frozen=True)
class Changes:
    """What was drawn for each of N images, in the order in which it is done; None for what the settings leave out.

    `warp` (N, 2, 3) are matrices as affine_grid takes them; `shift` (N, 2) are whole pixels to the right and down, and
    `mirror` (N,) says which images are mirrored; `holes` (N, 4) are the top, bottom, left and right of what is erased.
    """

    warp: FloatArray | None = None
    colours: Recolouring | None = None
    shift: IntArray | None = None
    mirror: NDArray[np.bool_] | None = None
    holes: IntArray | None = None


def augment(images: Pixels, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams) -> Pixels:
    """Return a changed copy of `images`, uint8 of shape (N, H, W, C); `keys` are the images' ids, shape (N,)."""
    changes = draw_changes(keys, seed, epoch, params, (images.shape[1], images.shape[2]))
    changed = images
    if changes.warp is not None:
        changed = _warped(changed, changes.warp)
    if changes.colours is not None:
        changed = _recoloured(changed, changes.colours)
    if changes.shift is not None and changes.mirror is not None:
        changed = _shifted(changed, changes.shift, changes.mirror, params.shift_border)
    if changes.holes is not None:
        changed = images.copy() if changed is images else changed
        for image, (top, bottom, left, right) in zip(changed, changes.holes.tolist(), strict=True):
            image[top:bottom, left:right] = 0
    return changed


def draw_changes(keys: UInt64Array, seed: int, epoch: int, params: AugmentParams, size: tuple[int, int]) -> Changes:
    """Draw the changes of images of `size` (height, width).

    A crop keeps a share of the area from crop_scale to 1, its sides stretched by up to crop_ratio, and is resized to
    the whole (bilinear). Light, contrast (about the mean gray) and saturation are multiplied by 1 - x to 1 + x; hue
    turns about the gray axis. Erasing follows Zhong et al., "Random Erasing Data Augmentation", 2017: a rectangle of 2
    to 33% of the area with an aspect of 0.3 to 3.3, here filled with zeros.
    """

    def draw(stream: int) -> FloatArray:
        return keyed_uniform(seed, stream, epoch, keys)

    warp = colours = shift = mirror = holes = None
    if params.rotate_deg or params.crop_scale < 1 or params.crop_ratio > 1:
        angles = (2 * draw(_ROTATE) - 1) * np.deg2rad(params.rotate_deg)
        area = 1 - (1 - params.crop_scale) * draw(_CROP_AREA)
        aspect = np.exp(np.log(params.crop_ratio) * (2 * draw(_CROP_ASPECT) - 1))
        wide, tall = np.minimum(1.0, np.sqrt(area * aspect)), np.minimum(1.0, np.sqrt(area / aspect))
        left, top = (2 * draw(_CROP_X) - 1) * (1 - wide), (2 * draw(_CROP_Y) - 1) * (1 - tall)
        warp = _warp_matrices(angles, (wide, tall), (left, top), size)
    if params.brightness or params.contrast or params.saturation or params.hue:
        light, contrast, saturation = (
            1 + largest * (2 * draw(stream) - 1)
            for largest, stream in (
                (params.brightness, _BRIGHTNESS),
                (params.contrast, _CONTRAST),
                (params.saturation, _SATURATION),
            )
        )
        turns = 2 * np.pi * params.hue * (2 * draw(_HUE) - 1)
        is_coloured = params.saturation or params.hue
        colours = Recolouring(light, contrast, _colour_matrices(saturation, turns) if is_coloured else None)
    if params.shift_px or params.flip:
        span = 2 * params.shift_px + 1
        shift = np.stack([np.floor(draw(s) * span).astype(int) - params.shift_px for s in (_SHIFT_X, _SHIFT_Y)], axis=1)
        mirror = (draw(_FLIP) < 0.5) & params.flip
        if params.flip_in_turn:
            mirror = (keyed_uniform(seed, _FLIP, 0, keys) < 0.5) ^ (epoch % 2 == 1)
    if params.erase:
        chosen = draw(_ERASE) < params.erase
        area, aspect = 0.02 + 0.31 * draw(_ERASE_AREA), np.exp(np.log(3.3) * (2 * draw(_ERASE_ASPECT) - 1))
        holes = _holes(chosen, area, aspect, (draw(_ERASE_X), draw(_ERASE_Y)), size)
    return Changes(warp, colours, shift, mirror, holes)


def resized(images: Pixels, size: tuple[int, int]) -> Pixels:
    """Images, uint8 (N, H, W, C), shrunk to `size` (height, width), each output pixel the mean of what it covers."""
    import torch
    from torch.nn.functional import interpolate

    if images.shape[1:3] == size:
        return images
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    small = interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
    return np.asarray(small.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy(), np.uint8)


def partners(keys: UInt64Array, images: int, seed: int, epoch: int) -> IntArray:
    """Which of the `images` of a split each image is mixed with in `epoch`; shape (N,)."""
    return np.floor(keyed_uniform(seed, _PARTNER, epoch, keys) * images).astype(np.int64)


@dataclass(frozen=True)
class Mixture:
    """How each of N images is mixed: its `share` (N,) of the result.

    Where `cuts` (N,) is set, `holes` (N, 4) are the top, bottom, left and right of what its partner covers, and the
    weighted mean is taken elsewhere.
    """

    share: FloatArray
    cuts: NDArray[np.bool_]
    holes: IntArray


def mix(
    images: Pixels, others: Pixels, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams
) -> tuple[Pixels, FloatArray]:
    """Mix images with their partners, both uint8 (N, H, W, C): the mixtures, and each image's own share of it, (N,)."""
    mixture = draw_mixture(keys, seed, epoch, params, (images.shape[1], images.shape[2]))
    mixed = images.copy()
    for i, (top, bottom, left, right) in enumerate(mixture.holes.tolist()):
        if mixture.cuts[i]:
            mixed[i, top:bottom, left:right] = others[i, top:bottom, left:right]
        else:
            own = np.float32(mixture.share[i])
            mixed[i] = np.rint(images[i] * own + others[i] * (1 - own))
    return mixed, mixture.share


def draw_mixture(keys: UInt64Array, seed: int, epoch: int, params: AugmentParams, size: tuple[int, int]) -> Mixture:
    """Draw how images of `size` (height, width) are mixed with their partners.

    Mixup is the weighted mean (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018). Cutmix puts a
    rectangle of the other in (Yun et al., "CutMix", 2019), and the share is that of the area. With both, each takes
    half of the images.
    """
    from scipy.special import betaincinv

    height, width = size
    cuts = keyed_uniform(seed, _MIX_KIND, epoch, keys) < (0.5 if params.mixup else 1.0)
    cuts &= params.cutmix > 0
    alpha = np.where(cuts, params.cutmix, params.mixup)
    share: FloatArray = betaincinv(alpha, alpha, keyed_uniform(seed, _MIX_SHARE, epoch, keys))
    x, y = (keyed_uniform(seed, stream, epoch, keys) for stream in (_MIX_X, _MIX_Y))
    half = np.sqrt(1 - share) / 2
    edges = [(middle + side * half, length) for middle, length in ((y, height), (x, width)) for side in (-1, 1)]
    holes = np.stack([np.rint(np.clip(at, 0, 1) * length).astype(np.int64) for at, length in edges], axis=1)
    covered = (holes[:, 1] - holes[:, 0]) * (holes[:, 3] - holes[:, 2]) / (height * width)
    return Mixture(np.where(cuts, 1 - covered, share), cuts, holes)


def _recoloured(images: Pixels, colours: Recolouring) -> Pixels:
    """Written out and not as a matrix product, whose last bits depend on the library."""
    changed = np.empty_like(images)
    levels = np.arange(256, dtype=np.float32)
    gains, shares = colours.light * colours.contrast, (1 - colours.contrast) * colours.light
    for i, image in enumerate(images):
        sums = image.reshape(len(image), -1).sum(axis=0, dtype=np.int64)  # both axes at once: 15 times as long
        sums = sums.reshape(-1, image.shape[2]).sum(axis=0)
        gray = float((sums * LUMA).sum() if len(sums) == 3 else sums[0]) / (image.shape[0] * image.shape[1])
        gain, offset = gains[i], np.float32(shares[i] * gray)
        if colours.matrix is None:
            changed[i] = np.rint(levels * np.float32(gain) + offset).clip(0, 255).astype(np.uint8)[image]
            continue
        matrix = (gain * colours.matrix[i]).astype(np.float32)
        planes = [image[..., c].astype(np.float32) for c in range(3)]
        for c, (red, green, blue) in enumerate(matrix):
            plane = planes[0] * red + planes[1] * green + planes[2] * blue + offset
            changed[i, ..., c] = np.rint(plane).clip(0, 255)
    return changed


def _colour_matrices(saturation: FloatArray, angles: FloatArray) -> FloatArray:
    """What RGB is multiplied with, (N, 3, 3): a turn about the gray axis after a blend with the pixel's gray."""
    cos, sin = np.cos(angles), np.sin(angles) / np.sqrt(3)
    even = (1 - cos) / 3
    rows = (
        (cos + even, even - sin, even + sin),
        (even + sin, cos + even, even - sin),
        (even - sin, even + sin, cos + even),
    )
    turns = np.stack([np.stack(row, axis=1) for row in rows], axis=1)
    blend = saturation[:, None, None]
    matrices: FloatArray = blend * turns + (1 - blend) * LUMA
    return matrices


def _shifted(images: Pixels, shift: IntArray, mirror: NDArray[np.bool_], border: str) -> Pixels:
    """Mirror the chosen images, and move each by whole pixels; what comes in is the image mirrored, or zeros."""
    height, width = images.shape[1:3]
    moved = np.zeros_like(images)
    for source, target, (dx, dy), flip in zip(images, moved, shift.tolist(), mirror.tolist(), strict=True):
        view = source[:, ::-1] if flip else source
        if border == "mirror":
            target[:] = view[_mirrored(np.arange(height) - dy, height)][:, _mirrored(np.arange(width) - dx, width)]
            continue
        target[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = view[
            max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return moved


def _mirrored(places: IntArray, length: int) -> IntArray:
    """Places along a side of `length` pixels, those beyond it mirrored at its first and last pixel."""
    inside: IntArray = length - 1 - np.abs(length - 1 - np.abs(places))
    return inside


def _warp_matrices(
    angles: FloatArray,
    sides: tuple[FloatArray, FloatArray],
    centre: tuple[FloatArray, FloatArray],
    size: tuple[int, int],
) -> FloatArray:
    """Matrices (N, 2, 3) that rotate each image about its centre by its angle in radians and crop it.

    `sides` are the crop's width and height as shares of the image's, `centre` is its middle, x and y, -1 to 1.
    """
    height, width = size
    cos, sin = np.cos(angles), np.sin(angles)
    # affine_grid works in units of half a side, so that a rotation of an oblong image needs the ratio of its sides.
    rows = ((cos, -sin * height / width), (sin * width / height, cos))
    return np.stack([np.stack([x * sides[0], y * sides[1], x * centre[0] + y * centre[1]], 1) for x, y in rows], 1)


def _warped(images: Pixels, matrices: FloatArray) -> Pixels:
    """Take each pixel from where its matrix points: bilinear, zeros outside."""
    import torch
    from torch.nn.functional import grid_sample

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    grid = torch.stack(sampling_places(torch.from_numpy(matrices), (images.shape[1], images.shape[2])), dim=-1)
    turned = grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    rounded = turned.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return np.asarray(rounded.numpy(), dtype=np.uint8)


def sampling_places(matrices: "Tensor", size: tuple[int, int]) -> "tuple[Tensor, Tensor]":
    """Where each pixel of an image of `size` (H, W) is taken from, across and down: float32 (N, H, W).

    The image spans -1 to 1. It is what affine_grid computes of `matrices` (N, 2, 3), but affine_grid multiplies
    matrices, which processors round differently. Here, apart from linspace, are single operations, which all processors
    and GPUs round alike.
    """
    import torch

    height, width = size
    # Computed on the processor, whose linspace is that of affine_grid.
    x, y = ((torch.linspace(-1, 1, side) * (side - 1) / side).to(matrices.device) for side in (width, height))
    x, y = x[None, None, :], y[None, :, None]
    across, down = (a * x + b * y + c for a, b, c in matrices.float().permute(1, 2, 0)[..., None, None])
    return across, down


def _holes(
    chosen: NDArray[np.bool_],
    area: FloatArray,
    aspect: FloatArray,
    place: tuple[FloatArray, FloatArray],
    size: tuple[int, int],
) -> IntArray:
    """The top, bottom, left and right (N, 4) of the rectangle that is erased; empty where none was `chosen`."""
    height, width = size
    tall = np.clip(np.rint(np.sqrt(area * height * width * aspect)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area * height * width / aspect)), 1, width)
    left, top = np.floor(place[0] * (width - wide + 1)), np.floor(place[1] * (height - tall + 1))
    holes = np.stack([top, top + tall, left, left + wide], axis=1).astype(np.int64)
    return holes * chosen[:, None]
