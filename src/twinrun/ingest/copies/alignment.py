"""How alike two pictures are once one is laid over the other as well as it can be.

A picture is described by its low-frequency cosine coefficients inside a window, so that cropping, shifting and resizing
are windows and never a new picture; see Lucas and Kanade, "An iterative image registration technique", IJCAI 1981.
"""

from dataclasses import dataclass

import numpy as np

from twinrun.core.arrays import Float32Array

_LARGEST_STEP = 0.05
_SIDES = (0.55, 1.1)
_CORNERS = (-0.15, 0.45)
_RIDGE = np.float32(1e-5)


@dataclass(frozen=True)
class Alignment:
    """How P pictures lie best over P others."""

    distance: (
        Float32Array  # (P,), in [0, 1]: the share of the other's contrast that stays unexplained, root mean square
    )
    windows: Float32Array  # (P, 4): height, top, width, left of what is seen of each, as shares of its sides


def spectrum(pictures: Float32Array, order: int, windows: Float32Array) -> Float32Array:
    """Cosine coefficients (P, order, order) of gray `pictures` (P, H, W) inside `windows` (P or 1, 4).

    Coefficient (0, 0) is the mean; the sum of squares of the others tends to the variance as `order` grows.
    """
    rows, columns = bases(pictures.shape[1], order, windows[:, :2]), bases(pictures.shape[2], order, windows[:, 2:])
    return np.asarray(rows @ pictures @ columns.transpose(0, 2, 1))


def align(pictures: Float32Array, targets: Float32Array, windows: Float32Array, steps: int) -> Alignment:
    """Lay `pictures` (P, H, W) over those with spectra `targets` (P, order, order), starting from `windows` (P, 4).

    Height, width and place of the window, gain, offset and blur are free: `steps` of Gauss-Newton, the best counts.
    """
    count, order = len(pictures), targets.shape[1]
    wanted = targets.reshape(count, -1)[:, 1:]
    norm = np.maximum(np.linalg.norm(wanted, axis=1), 1e-6)
    blur = _squared_frequencies(order)[1:]
    best, best_windows = np.full(count, np.inf, np.float32), windows.copy()
    for _ in range(steps):
        seen = _with_slopes(pictures, order, windows)[:, 1:]
        model = np.concatenate([seen, seen[:, :, :1] * blur[None, :, None]], axis=2)
        scale = np.maximum(np.linalg.norm(model, axis=1, keepdims=True), 1e-6)
        model /= scale
        fit = _least_squares(model, wanted)
        distance = np.linalg.norm(wanted - (model @ fit[:, :, None])[:, :, 0], axis=1) / norm
        fit /= scale[:, 0]
        better = (distance < best) & (fit[:, 0] > 0)
        best[better], best_windows[better] = distance[better], windows[better]
        windows = _moved(windows, fit)
    return Alignment(np.minimum(best, 1), best_windows)


def swapped(windows: Float32Array, seen: Float32Array) -> Float32Array:
    """The windows (P, 4) of other pictures that show what `seen` (4,) shows of those seen through `windows` (P, 4).

    Where one picture seen through its window looks like the other seen through `seen`, this is the way back.
    """
    scale = seen[0::2] / windows[:, 0::2]
    back = np.empty_like(windows)
    back[:, 0::2] = seen[0::2] * scale
    back[:, 1::2] = seen[1::2] + (seen[1::2] - windows[:, 1::2]) * scale
    return _within_reach(back)


def _moved(windows: Float32Array, fit: Float32Array) -> Float32Array:
    """The windows one step further: `fit` (P, 6) holds a gain and what the gain times a step in each direction is."""
    gain = fit[:, :1]
    steps = np.divide(fit[:, 1:5], gain, out=np.zeros_like(windows), where=gain > 1e-9)
    return _within_reach(windows + np.clip(steps, -_LARGEST_STEP, _LARGEST_STEP))


def _within_reach(windows: Float32Array) -> Float32Array:
    within = windows.copy()
    within[:, 0::2] = np.clip(windows[:, 0::2], *_SIDES)
    within[:, 1::2] = np.clip(windows[:, 1::2], *_CORNERS)
    return within


def _least_squares(model: Float32Array, wanted: Float32Array) -> Float32Array:
    """For each of P, the c (P, M) for which model (P, D, M) c is nearest to wanted (P, D)."""
    turned = model.transpose(0, 2, 1)
    normal = turned @ model + _RIDGE * np.eye(model.shape[2], dtype=np.float32)
    return np.asarray(np.linalg.solve(normal, turned @ wanted[:, :, None])[:, :, 0])


def _with_slopes(pictures: Float32Array, order: int, windows: Float32Array) -> Float32Array:
    """Spectra and their derivatives by height, top, width, left of the window: (P, order * order, 5)."""
    rows, row_slopes = _bases_and_slopes(pictures.shape[1], order, windows[:, :2])
    columns, column_slopes = _bases_and_slopes(pictures.shape[2], order, windows[:, 2:])
    across = pictures @ np.concatenate([columns, *column_slopes], axis=1).transpose(0, 2, 1)
    plain = np.ascontiguousarray(across[:, :, :order])
    seen = rows @ across
    parts = [
        seen[:, :, :order],
        row_slopes[0] @ plain,
        row_slopes[1] @ plain,
        seen[:, :, order : 2 * order],
        seen[:, :, 2 * order :],
    ]
    return np.stack([part.reshape(len(pictures), -1) for part in parts], axis=2)


def _squared_frequencies(order: int) -> Float32Array:
    k = np.arange(order, dtype=np.float32) / order
    return np.asarray((k[:, None] ** 2 + k[None] ** 2).reshape(-1))


def bases(pixels: int, order: int, windows: Float32Array) -> Float32Array:
    """Integrals of the cosines of a window over each pixel: (P, order, pixels) for `windows` (P, 2), side and start."""
    inside, weight = _edges(pixels, order, windows)[1:]
    return _integrals(inside, _waves(inside, order)[1]) * weight


def _bases_and_slopes(
    pixels: int, order: int, windows: Float32Array
) -> tuple[Float32Array, tuple[Float32Array, Float32Array]]:
    """`bases` and their derivatives by side and by start of the window."""
    raw, inside, weight = _edges(pixels, order, windows)
    cosines, sines = _waves(inside, order)
    cosines *= ((raw > 0) & (raw < 1)) / -windows[:, :1, None]
    by_side, by_start = np.diff(cosines * raw, axis=2) * weight, np.diff(cosines, axis=2) * weight
    return _integrals(inside, sines) * weight, (by_side, by_start)


def _edges(pixels: int, order: int, windows: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Edges of the pixels (P, 1, pixels + 1) in units of the window, as they are and within it; weights by order."""
    edges = np.arange(pixels + 1, dtype=np.float32) / np.float32(pixels)
    raw = ((edges[None] - windows[:, 1:]) / windows[:, :1])[:, None]
    weight = np.full((1, order, 1), 2**0.5, np.float32)
    weight[:, 0] = 1
    return raw, np.clip(raw, 0, 1), weight


def _waves(inside: Float32Array, order: int) -> tuple[Float32Array, Float32Array]:
    """cos and sin of pi k `inside` (P, 1, E) for k below `order`, (P, order, E) each, by the angles' sum."""
    cosines, sines = (np.empty((len(inside), order, inside.shape[2]), np.float32) for _ in range(2))
    cosines[:, 0], sines[:, 0] = 1, 0
    angle = np.float32(np.pi) * inside[:, 0]
    cosine, sine = np.cos(angle), np.sin(angle)
    for k in range(1, order):
        cosines[:, k] = cosines[:, k - 1] * cosine - sines[:, k - 1] * sine
        sines[:, k] = sines[:, k - 1] * cosine + cosines[:, k - 1] * sine
    return cosines, sines


def _integrals(inside: Float32Array, sines: Float32Array) -> Float32Array:
    """Of each cosine from edge to edge."""
    primitives = sines / (np.float32(np.pi) * np.maximum(np.arange(sines.shape[1], dtype=np.float32), 1))[:, None]
    primitives[:, 0] = inside[:, 0]
    return np.diff(primitives, axis=2)
