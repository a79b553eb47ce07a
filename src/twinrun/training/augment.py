"""Changes to training images, on batches of uint8, from (seed, epoch, image id) alone. Pure: no state, no files.

Crop, rotate, recolour, shift, mirror and erase, each drawn for each image by itself, and mix it with another image of
the split: what an image becomes depends neither on the batch that it is in nor on the thread that does the work.
"""

import numpy as np
from numpy.typing import NDArray

from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.keyed import UInt64Array, keyed_uniform
from twinrun.core.params import AugmentParams

_SHIFT_X, _SHIFT_Y, _FLIP, _ROTATE, _ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_X, _ERASE_Y = range(16, 25)
_CROP_AREA, _CROP_ASPECT, _CROP_X, _CROP_Y, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(25, 33)
_PARTNER, _MIX_KIND, _MIX_SHARE, _MIX_X, _MIX_Y = range(33, 38)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in Pillow's gray


def augment(images: Pixels, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams) -> Pixels:
    """Return a changed copy of `images`, uint8 of shape (N, H, W, C); `keys` are the images' ids, shape (N,).

    A crop keeps a share of the area from crop_scale to 1, its sides stretched by up to crop_ratio, and is resized to
    the whole (bilinear). Light, contrast (about the mean gray) and saturation are multiplied by 1 - x to 1 + x; hue
    turns about the gray axis. Erasing follows Zhong et al., "Random Erasing Data Augmentation", 2017: a rectangle of 2
    to 33% of the area with an aspect of 0.3 to 3.3, here filled with zeros.
    """

    def draw(stream: int) -> FloatArray:
        return keyed_uniform(seed, stream, epoch, keys)

    changed = images
    if params.rotate_deg or params.crop_scale < 1 or params.crop_ratio > 1:
        angles = (2 * draw(_ROTATE) - 1) * np.deg2rad(params.rotate_deg)
        area = 1 - (1 - params.crop_scale) * draw(_CROP_AREA)
        aspect = np.exp(np.log(params.crop_ratio) * (2 * draw(_CROP_ASPECT) - 1))
        wide, tall = np.minimum(1.0, np.sqrt(area * aspect)), np.minimum(1.0, np.sqrt(area / aspect))
        left, top = (2 * draw(_CROP_X) - 1) * (1 - wide), (2 * draw(_CROP_Y) - 1) * (1 - tall)
        changed = _warped(changed, angles, (wide, tall), (left, top))
    if params.brightness or params.contrast or params.saturation or params.hue:
        light, contrast, saturation = (
            1 + largest * (2 * draw(stream) - 1)
            for largest, stream in (
                (params.brightness, _BRIGHTNESS),
                (params.contrast, _CONTRAST),
                (params.saturation, _SATURATION),
            )
        )
        changed = _recoloured(changed, light, contrast, saturation, 2 * np.pi * params.hue * (2 * draw(_HUE) - 1))
    if params.shift_px or params.flip:
        span = 2 * params.shift_px + 1
        shift_x, shift_y = (np.floor(draw(s) * span).astype(int) - params.shift_px for s in (_SHIFT_X, _SHIFT_Y))
        mirror = (draw(_FLIP) < 0.5) & params.flip
        if params.flip_in_turn:
            mirror = (keyed_uniform(seed, _FLIP, 0, keys) < 0.5) ^ (epoch % 2 == 1)
        changed = _shifted(changed, shift_x, shift_y, mirror)
    if params.erase:
        if changed is images:
            changed = images.copy()
        chosen = draw(_ERASE) < params.erase
        area, aspect = 0.02 + 0.31 * draw(_ERASE_AREA), np.exp(np.log(3.3) * (2 * draw(_ERASE_ASPECT) - 1))
        _erase(changed, chosen, area, aspect, draw(_ERASE_X), draw(_ERASE_Y))
    return changed


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


def mix(
    images: Pixels, others: Pixels, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams
) -> tuple[Pixels, FloatArray]:
    """Mix images with their partners, both uint8 (N, H, W, C): the mixtures, and each image's share of its own, (N,).

    Mixup is the weighted mean (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018). Cutmix puts a
    rectangle of the other in (Yun et al., "CutMix", 2019), and the share is that of the area. With both, each takes
    half of the images.
    """
    from scipy.special import betaincinv

    cuts = keyed_uniform(seed, _MIX_KIND, epoch, keys) < (0.5 if params.mixup else 1.0)
    cuts &= params.cutmix > 0
    alpha = np.where(cuts, params.cutmix, params.mixup)
    share: FloatArray = betaincinv(alpha, alpha, keyed_uniform(seed, _MIX_SHARE, epoch, keys))
    x, y = (keyed_uniform(seed, stream, epoch, keys) for stream in (_MIX_X, _MIX_Y))
    mixed = images.copy()
    for i in range(len(images)):
        if cuts[i]:
            share[i] = _cut(mixed[i], others[i], *(float(draw[i]) for draw in (share, x, y)))
        else:
            own = np.float32(share[i])
            mixed[i] = np.rint(images[i] * own + others[i] * (1 - own))
    return mixed, share


def _cut(image: Pixels, other: Pixels, share: float, x: float, y: float) -> float:
    """Put a rectangle of `other` into `image`, in place; returns the share of the area that is left."""
    height, width = image.shape[:2]
    half = float(np.sqrt(1 - share)) / 2
    top, bottom = (round(min(max(y + side, 0), 1) * height) for side in (-half, half))
    left, right = (round(min(max(x + side, 0), 1) * width) for side in (-half, half))
    image[top:bottom, left:right] = other[top:bottom, left:right]
    covered: float = (bottom - top) * (right - left) / (height * width)
    return 1 - covered


def _recoloured(
    images: Pixels, light: FloatArray, contrast: FloatArray, saturation: FloatArray, angles: FloatArray
) -> Pixels:
    """Change light, contrast and saturation by factors and turn the hue by angles in radians, one of each an image.

    Written out and not as a matrix product, whose last bits depend on the library.
    """
    changed = np.empty_like(images)
    levels = np.arange(256, dtype=np.float32)
    for i, image in enumerate(images):
        sums = image.reshape(len(image), -1).sum(axis=0, dtype=np.int64)  # both axes at once: 15 times as long
        sums = sums.reshape(-1, image.shape[2]).sum(axis=0)
        gray = float((sums * _LUMA).sum() if len(sums) == 3 else sums[0]) / (image.shape[0] * image.shape[1])
        gain, offset = light[i] * contrast[i], (1 - contrast[i]) * light[i] * gray
        if saturation[i] == 1 and angles[i] == 0:
            changed[i] = np.rint(levels * np.float32(gain) + np.float32(offset)).clip(0, 255).astype(np.uint8)[image]
            continue
        matrix = (gain * _colour_matrix(saturation[i], angles[i])).astype(np.float32)
        planes = [image[..., c].astype(np.float32) for c in range(3)]
        for c, (red, green, blue) in enumerate(matrix):
            plane = planes[0] * red + planes[1] * green + planes[2] * blue + np.float32(offset)
            changed[i, ..., c] = np.rint(plane).clip(0, 255)
    return changed


def _colour_matrix(saturation: float, angle: float) -> FloatArray:
    """What RGB is multiplied with, (3, 3): a rotation about the gray axis after a blend with the pixel's gray."""
    cos, sin = np.cos(angle), np.sin(angle) / np.sqrt(3)
    even = (1 - cos) / 3
    turn = np.array(
        [
            [cos + even, even - sin, even + sin],
            [even + sin, cos + even, even - sin],
            [even - sin, even + sin, cos + even],
        ]
    )
    return saturation * turn + (1 - saturation) * _LUMA


def _shifted(
    images: Pixels, shift_x: NDArray[np.int64], shift_y: NDArray[np.int64], mirror: NDArray[np.bool_]
) -> Pixels:
    """Move each image by whole pixels, filling with zeros, and mirror the chosen ones."""
    height, width = images.shape[1:3]
    moved = np.zeros_like(images)
    for source, target, dx, dy, flip in zip(
        images, moved, shift_x.tolist(), shift_y.tolist(), mirror.tolist(), strict=True
    ):
        view = source[:, ::-1] if flip else source
        target[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = view[
            max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
        ]
    return moved


def _warped(
    images: Pixels, angles: FloatArray, sides: tuple[FloatArray, FloatArray], centre: tuple[FloatArray, FloatArray]
) -> Pixels:
    """Rotate each image about its centre by its angle in radians and crop it: bilinear, zeros outside.

    `sides` are the crop's width and height as shares of the image's, `centre` is its middle, x and y, -1 to 1.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    height, width = images.shape[1:3]
    cos, sin = np.cos(angles), np.sin(angles)
    # affine_grid works in units of half a side, so that a rotation of an oblong image needs the ratio of its sides.
    rows = ((cos, -sin * height / width), (sin * width / height, cos))
    matrices = np.stack([np.stack([x * sides[0], y * sides[1], x * centre[0] + y * centre[1]], 1) for x, y in rows], 1)
    grid = affine_grid(torch.from_numpy(matrices).float(), list(pixels.shape), align_corners=False)
    turned = grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    rounded = turned.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return np.asarray(rounded.numpy(), dtype=np.uint8)


def _erase(
    images: Pixels, chosen: NDArray[np.bool_], area: FloatArray, aspect: FloatArray, x: FloatArray, y: FloatArray
) -> None:
    height, width = images.shape[1:3]
    for i in np.flatnonzero(chosen):
        size = area[i] * height * width
        tall = min(height, max(1, round(float(np.sqrt(size * aspect[i])))))
        wide = min(width, max(1, round(float(np.sqrt(size / aspect[i])))))
        top, left = int(y[i] * (height - tall + 1)), int(x[i] * (width - wide + 1))
        images[i, top : top + tall, left : left + wide] = 0
