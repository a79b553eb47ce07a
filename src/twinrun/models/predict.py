"""From uint8 images to probabilities, the same to the bit on every call. Knows no labels and no files."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinrun.models.bundle import Bundle

CHUNK = 256  # images in one forward pass; fixed, since sums within a pass may depend on its size


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map uint8 images of shape (N, H, W, C) to float32 of shape (N, C, H, W), channels last in memory.

    `mean` and `std` have shape (C, 1, 1), as shares of 255.
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean * 255).div_(std * 255)


def channel_tensor(values: tuple[float, ...], device: torch.device | str = "cpu") -> Tensor:
    """One value for each channel as a float32 tensor of shape (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def probabilities(
    bundle: Bundle, images: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Class probabilities, float64 of shape (N, classes), of `images[rows]`, or of all images.

    `images` is uint8 of shape (M, H, W, C) and may be memory-mapped: 256 images are read at a time. On the CPU each
    chunk is computed by one thread, several chunks at once, so that the result does not depend on the machine's cores.
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    chosen = np.arange(len(images)) if rows is None else rows
    mean, std = channel_tensor(bundle.preprocessing.mean), channel_tensor(bundle.preprocessing.std)

    def predict_chunk(start: int) -> NDArray[np.float64]:
        pixels = torch.from_numpy(np.ascontiguousarray(images[chosen[start : start + CHUNK]]))
        with torch.inference_mode():
            logits = bundle.network(normalised(pixels, mean, std))
            return np.asarray(logits.double().softmax(dim=1).numpy())

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            chunks = list(pool.map(predict_chunk, range(0, len(chosen), CHUNK)))
    finally:
        torch.set_num_threads(threads_before)
    return np.concatenate(chunks) if chunks else np.empty((0, len(bundle.classes)))
