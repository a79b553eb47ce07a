"""From uint8 images to probabilities, the same to the bit on every call. Knows no labels and no files."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinrun.models.bundle import Bundle

_CHUNK_IMAGES = 256
_CHUNK_PIXELS = 256 * 64 * 64


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map uint8 images of shape (N, H, W, C) to float32 of shape (N, C, H, W), channels last in memory.

    `mean` and `std` have shape (C, 1, 1), as shares of 255.
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean * 255).div_(std * 255)


def channel_tensor(values: tuple[float, ...], device: torch.device | str = "cpu") -> Tensor:
    """One value for each channel as a float32 tensor of shape (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def chunk_slices(images: int, size_px: int) -> list[slice]:
    """Cut `images` images into parts for one forward pass each: 256 images, fewer of more than 64 x 64 pixels.

    A function of the arguments alone, since sums within a pass may depend on its size.
    """
    chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_PIXELS // size_px**2))
    return [slice(start, min(start + chunk, images)) for start in range(0, images, chunk)]


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probabilities(
    bundle: Bundle, images: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Class probabilities, float64 of shape (N, classes), of `images[rows]`, or of all images.

    `images` is uint8 of shape (M, H, W, C) and may be memory-mapped: one chunk of it is read at a time. On the CPU each
    chunk is computed by one thread, several chunks at once, so that the result does not depend on the machine's cores.
    """
    chosen = np.arange(len(images)) if rows is None else rows
    mean, std = channel_tensor(bundle.preprocessing.mean), channel_tensor(bundle.preprocessing.std)

    def predict_chunk(part: slice) -> NDArray[np.float64]:
        pixels = torch.from_numpy(np.ascontiguousarray(images[chosen[part]]))
        with torch.inference_mode():
            logits = bundle.network(normalised(pixels, mean, std))
            return np.asarray(logits.double().softmax(dim=1).numpy())

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            chunks = list(pool.map(predict_chunk, chunk_slices(len(chosen), images.shape[1])))
    finally:
        torch.set_num_threads(threads_before)
    return np.concatenate(chunks) if chunks else np.empty((0, len(bundle.classes)))
