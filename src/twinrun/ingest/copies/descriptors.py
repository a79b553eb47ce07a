"""Short descriptions of pictures in which near duplicates lie near one another.

A description is the low-frequency cosine spectrum of the gray picture without its mean, scaled to unit length, seen
through a metric that is learned from the data: what cropping, resizing and blurring change counts little, what tells
images apart counts much (linear discriminant analysis, Fisher 1936).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from twinrun.core.arrays import Float32Array, Int32Array, Pixels, Size
from twinrun.core.framing import Box, upright_boxes
from twinrun.ingest.copies.alignment import bases, spectrum

Boxes = npt.NDArray[np.int32]  # (N, 4), each a Box

_SIDE_PX = 32
_ORDER = 8
_DIMENSIONS = 24
_SEED = 1
_MOVES = 8
_SHIFT = 0.05
_STRETCH = 0.075
_BLUR = 0.5
_NOISE = 0.01
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_INNER = 0.8  # a frame, or a strip that came into view as the picture was moved, mostly lies outside
_SCALES = (1.0, 0.87)  # of two pictures the one that shows more is seen through the smaller window
_OFFSETS = (0.0, -0.04, 0.04, -0.08, 0.08)

VIEWS = np.array(
    [
        (_INNER * scale, (1 - _INNER * scale) / 2 + down, _INNER * scale, (1 - _INNER * scale) / 2 + across)
        for scale in _SCALES
        for down in _OFFSETS
        for across in _OFFSETS
    ],
    np.float32,
)
"""Windows (height, top, width, left) in shares of the sides: the inner part of a picture first, then others about it.

The mirror image of each is among them.
"""


def content_boxes(images: Pixels, sizes: Sequence[tuple[int | None, int | None]]) -> Boxes | None:
    """Where each of `images` (N, H, W, C) shows what had `sizes`, width and height, before padding.

    A picture that was turned upright has them swapped; one whose bars are not black was not padded. Null where none
    was.
    """
    frame = images.shape[1], images.shape[2]
    boxes = np.tile(np.array([0, 0, *frame], np.int32), (len(images), 1))
    padded = False
    for row, (width, height) in enumerate(sizes):
        if width and height and not _fills(height, width, frame):
            for box in upright_boxes(height, width, frame):
                if not _outside(images[row], box).any():
                    boxes[row], padded = box, True
                    break
    return boxes if padded else None


def gray_pictures(images: Pixels, rows: Int32Array, boxes: Boxes | None) -> Float32Array:
    """The content of `rows` of `images` (N, H, W, C) as gray pictures (n, h, w) of one size, at most 32 x 32 pixels."""
    _, height, width, _ = images.shape
    if boxes is None and max(height, width) <= _SIDE_PX:
        return _gray(images[rows])
    whole = np.array([[0, 0, height, width]], np.int32)
    kinds, kind = np.unique(
        boxes[rows] if boxes is not None else whole.repeat(len(rows), 0), axis=0, return_inverse=True
    )
    pictures = np.empty((len(rows), _SIDE_PX, _SIDE_PX), np.float32)
    for index, (top, left, inner_height, inner_width) in enumerate(kinds.tolist()):
        places = np.flatnonzero(kind.reshape(-1) == index)
        content = _gray(images[rows[places], top : top + inner_height, left : left + inner_width])
        pictures[places] = _area(inner_height) @ content @ _area(inner_width).T
    return pictures


def learned_metric(pictures: Float32Array) -> Float32Array:
    """The projection (63, 24) in which a small change of `pictures` (n, h, w) has about unit length, best first.

    The changes are windows drawn at random about the inner part, and a blur.
    """
    from scipy.linalg import eigh

    plain = _spectra(pictures, VIEWS[0])
    random = np.random.default_rng(_SEED)
    k = np.arange(_ORDER) / _ORDER
    blurred = _unit((plain * (1 - _BLUR / 2 * (k[:, None] ** 2 + k**2).reshape(-1)[1:])).astype(np.float32))
    changes = [2 * (blurred - plain)]
    for _ in range(_MOVES):
        side = _INNER * np.exp(random.uniform(-_STRETCH, _STRETCH, 2))
        start = (1 - side) / 2 + random.uniform(-_SHIFT, _SHIFT, 2)
        window = np.array([side[0], start[0], side[1], start[1]], np.float32)
        changes.append(_spectra(pictures, window) - plain)
    within = sum(change.T.astype(np.float64) @ change for change in changes) / (len(pictures) * len(changes))
    centred = (plain - plain.mean(axis=0)).astype(np.float64)
    _, directions = eigh(centred.T @ centred / len(pictures), within + _NOISE**2 * np.eye(plain.shape[1]))
    return np.ascontiguousarray(directions[:, ::-1][:, :_DIMENSIONS].astype(np.float32))


def descriptors(
    pictures: Float32Array, metric: Float32Array, views: Float32Array | None = None
) -> tuple[Float32Array, Float32Array]:
    """Descriptors (n, views, 24) of `pictures` (n, h, w) seen through `views`, and contrasts (n,) in gray levels.

    Without `views` those are VIEWS, and then VIEWS of the mirrored picture.
    """
    if views is not None:
        return _projected(_seen(pictures, views), metric)
    signs = np.tile(np.where(np.arange(_ORDER) % 2, -1, 1), _ORDER)[1:, None].astype(np.float32)
    both = np.concatenate([metric, metric * signs], axis=1)  # a mirrored picture has the same spectra but for signs
    projected, contrasts = _projected(_seen(pictures, VIEWS), both)
    plain, mirrored = projected[:, :, : metric.shape[1]], projected[:, _mirrored_views(), metric.shape[1] :]
    return np.concatenate([plain, mirrored], axis=1), contrasts


def _projected(spectra: Float32Array, metric: Float32Array) -> tuple[Float32Array, Float32Array]:
    """`spectra` (n, views, 63), each scaled to unit length, seen through `metric`; and the lengths of the first."""
    lengths = np.sqrt(np.einsum("nvk,nvk->nv", spectra, spectra))
    flat = spectra.reshape(-1, spectra.shape[2]) @ metric
    scaled = flat.reshape(*lengths.shape, -1) / np.maximum(lengths, 1e-6)[:, :, None]
    return np.asarray(scaled), lengths[:, 0]


def _mirrored_views() -> Int32Array:
    """For each of VIEWS the one that shows of a picture what it shows of the mirrored picture."""
    left = 1 - VIEWS[:, 2] - VIEWS[:, 3]
    mirrored = np.concatenate([VIEWS[:, :3], left[:, None]], axis=1)
    return np.asarray(np.abs(mirrored[:, None] - VIEWS[None]).sum(axis=2).argmin(axis=1), np.int32)


def _seen(pictures: Float32Array, windows: Float32Array) -> Float32Array:
    """Spectra without means (n, windows, 63): windows of one height share few sides, each transformed once."""
    parts = np.empty((len(pictures), len(windows), _ORDER * _ORDER - 1), np.float32)
    for height in np.unique(windows[:, 0]):
        of_height = np.flatnonzero(windows[:, 0] == height)
        rows, row = np.unique(windows[of_height, :2], axis=0, return_inverse=True)
        columns, column = np.unique(windows[of_height, 2:], axis=0, return_inverse=True)
        vertical = bases(pictures.shape[1], _ORDER, rows).reshape(-1, pictures.shape[1])
        horizontal = bases(pictures.shape[2], _ORDER, columns).reshape(-1, pictures.shape[2])
        blocks = vertical @ (pictures @ horizontal.T)
        for window, down, across in zip(of_height, row.reshape(-1), column.reshape(-1), strict=True):
            block = blocks[:, down * _ORDER :, across * _ORDER :][:, :_ORDER, :_ORDER]
            parts[:, window] = block.reshape(len(pictures), -1)[:, 1:]
    return parts


def _spectra(pictures: Float32Array, window: Float32Array) -> Float32Array:
    return _unit(spectrum(pictures, _ORDER, window[None]).reshape(len(pictures), -1)[:, 1:])


def _unit(vectors: Float32Array) -> Float32Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6))


def _fills(height: int, width: int, frame: Size) -> bool:
    """Whether an image has the aspect of the frame both as stored and turned upright, so that nothing was padded."""
    return height * frame[1] == width * frame[0] and width * frame[1] == height * frame[0]


def _outside(image: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    beyond = image.copy()
    beyond[top : top + height, left : left + width] = 0
    return beyond


def _gray(pixels: Pixels) -> Float32Array:
    return pixels[..., 0].astype(np.float32) if pixels.shape[-1] == 1 else np.asarray(pixels.astype(np.float32) @ _LUMA)


def _area(pixels: int) -> Float32Array:
    """Averages of `pixels` over 32 equal parts of their length: (32, pixels)."""
    edges = np.arange(_SIDE_PX + 1) * (pixels / _SIDE_PX)
    places = np.arange(pixels)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    shares: Float32Array = (np.maximum(covered, 0) * (_SIDE_PX / pixels)).astype(np.float32)
    return shares
