"""From uint8 images to probabilities, the same to the bit whatever else is asked in the same call."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinrun.models.bundle import Bundle

_CHUNK_IMAGES = 256
_CHUNK_PIXELS = 256 * 64 * 64
_PASS_IMAGES = 16
_PASS_PIXELS = 16 * 64 * 64


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map uint8 images of shape (N, H, W, C) to float32 of shape (N, C, H, W), channels last in memory.

    `mean` and `std` have shape (C, 1, 1), as shares of 255.
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean * 255).div_(std * 255)


def channel_tensor(values: tuple[float, ...], device: torch.device | str = "cpu") -> Tensor:
    """One value for each channel as a float32 tensor of shape (C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def chunk_slices(images: int, size: tuple[int, int]) -> list[slice]:
    """Cut `images` images of `size` (H, W) into parts for one forward pass: 256, fewer of more than 64 x 64 pixels.

    A function of the arguments alone, since sums within a pass may depend on its size.
    """
    chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_PIXELS // (size[0] * size[1])))
    return [slice(start, min(start + chunk, images)) for start in range(0, images, chunk)]


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pass_size(images: NDArray[np.uint8]) -> int:
    """Number of images of shape (N, H, W, C) in one forward pass: 16, fewer of more than 64 x 64 pixels, at least 1."""
    height, width = images.shape[1:3]
    return max(1, min(_PASS_IMAGES, _PASS_PIXELS // int(height * width)))


def pass_probabilities(bundle: Bundle, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Class probabilities, float64 (n, classes), of uint8 images (n, H, W, C), at most `pass_size` of them.

    Sums inside a network depend on the size of the pass. So every pass is filled up with black images to the same
    size, and an image gets the same bits alone, in any company and at any place. To be called by one thread of
    `single_threads`.
    """
    filled = np.zeros((pass_size(images), *images.shape[1:]), np.uint8)
    filled[: len(images)] = images
    mean, std = channel_tensor(bundle.preprocessing.mean), channel_tensor(bundle.preprocessing.std)
    with torch.inference_mode():
        logits = bundle.network(normalised(torch.from_numpy(filled), mean, std))
        return np.asarray(logits[: len(images)].double().softmax(dim=1).numpy())


def probabilities(
    bundle: Bundle, images: NDArray[np.uint8], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Class probabilities, float64 of shape (N, classes), of `images[rows]`, or of all images.

    `images` is uint8 of shape (M, H, W, C) and may be memory-mapped: one pass of it is read at a time. On the CPU each
    pass is computed by one thread, several passes at once, so that the result does not depend on the machine's cores.
    """
    chosen = np.arange(len(images)) if rows is None else rows
    size = pass_size(images)
    parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    with single_threads() as pool:
        passes = list(pool.map(lambda part: pass_probabilities(bundle, images[part]), parts))
    return np.concatenate(passes) if passes else np.empty((0, len(bundle.classes)))


@contextmanager
def single_threads() -> Iterator[ThreadPoolExecutor]:
    """A thread for each core, in each of which PyTorch computes with one thread. What waits is dropped on an error."""
    with _one_thread:
        pool = ThreadPoolExecutor(available_cores(), initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


class _OneThread:
    """PyTorch's number of threads is 1 as long as anyone is inside: requests at once must not undo one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = torch.get_num_threads()
                torch.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_num_threads(self._before)


_one_thread = _OneThread()
