"""Changes to training images, on batches of uint8, from (seed, epoch, image id) alone. Pure: no state, no files.

Shift, mirror, rotate and erase, each drawn for each image by itself: what an image becomes depends neither on the batch
that it is in nor on the thread that does the work.
"""

import numpy as np
from numpy.typing import NDArray

from twinrun.core.arrays import FloatArray, Pixels
from twinrun.core.keyed import UInt64Array, keyed_uniform
from twinrun.core.params import AugmentParams

_SHIFT_X, _SHIFT_Y, _FLIP, _ROTATE, _ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_X, _ERASE_Y = range(16, 25)


def augment(images: Pixels, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams) -> Pixels:
    """Return a changed copy of `images`, uint8 of shape (N, H, W, C); `keys` are the images' ids, shape (N,).

    Erasing follows Zhong et al., "Random Erasing Data Augmentation", 2017: a rectangle of 2 to 33% of the area with an
    aspect of 0.3 to 3.3, here filled with zeros.
    """

    def draw(stream: int) -> FloatArray:
        return keyed_uniform(seed, stream, epoch, keys)

    changed = images
    if params.rotate_deg:
        changed = _rotated(changed, (2 * draw(_ROTATE) - 1) * np.deg2rad(params.rotate_deg))
    if params.shift_px or params.flip:
        span = 2 * params.shift_px + 1
        shift_x, shift_y = (np.floor(draw(s) * span).astype(int) - params.shift_px for s in (_SHIFT_X, _SHIFT_Y))
        mirror = (draw(_FLIP) < 0.5) & params.flip
        changed = _shifted(changed, shift_x, shift_y, mirror)
    if params.erase:
        if changed is images:
            changed = images.copy()
        chosen = draw(_ERASE) < params.erase
        area, aspect = 0.02 + 0.31 * draw(_ERASE_AREA), np.exp(np.log(3.3) * (2 * draw(_ERASE_ASPECT) - 1))
        _erase(changed, chosen, area, aspect, draw(_ERASE_X), draw(_ERASE_Y))
    return changed


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


def _rotated(images: Pixels, angles: FloatArray) -> Pixels:
    """Rotate each image about its centre by its angle in radians: bilinear, zeros outside."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    height, width = images.shape[1:3]
    cos, sin = np.cos(angles), np.sin(angles)
    zero = np.zeros_like(angles)
    # affine_grid works in units of half a side, so that a rotation of an oblong image needs the ratio of its sides.
    matrices = np.stack(
        [np.stack([cos, -sin * height / width, zero], 1), np.stack([sin * width / height, cos, zero], 1)], 1
    )
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
