"""From uint8 images to probabilities, the same to the bit whatever other images are in the call."""

import copy
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twinrun.core.cores import available_cores
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
        logits = of_this_thread(bundle.network)(normalised(torch.from_numpy(filled), mean, std))
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
    passes = list(single_threads().map(lambda part: pass_probabilities(bundle, images[part]), parts))
    return np.concatenate(passes) if passes else np.empty((0, len(bundle.classes)))


def of_this_thread(network: nn.Module) -> nn.Module:
    """A copy of the network for the calling thread alone, the same one at each call.

    A network may keep tensors on itself from one layer to another, where another thread would put its own.
    """
    copies = vars(network).get("_twinrun_copies")
    if not isinstance(copies, _Copies) or copies.network is not network:
        copies = vars(network)["_twinrun_copies"] = _Copies(network)
    return copies.of_this_thread()


class _Copies:
    """Those of a network, by thread. The network itself has them: a copy may refer to it, and both go together.

    A copy of the network, and a file of it, have none of them.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._by_thread: dict[int, nn.Module] = {}
        self._lock = threading.Lock()

    def of_this_thread(self) -> nn.Module:
        thread = threading.get_ident()
        with self._lock:
            if thread not in self._by_thread:
                for ended in self._by_thread.keys() - {each.ident for each in threading.enumerate()}:
                    del self._by_thread[ended]
                self._by_thread[thread] = with_same_tensors(self.network)
            return self._by_thread[thread]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()  # read by pickle and copy alike


def with_same_tensors(network: nn.Module) -> nn.Module:
    """A copy of the network with its hooks, which has the same parameters and buffers, not copies of them."""
    kept = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers(), *kept)})


def single_threads() -> ThreadPoolExecutor:
    """A thread for each core, in each of which PyTorch computes with one thread; the same ones for the whole process.

    PyTorch's number of threads is that of each thread. These keep theirs, and nothing is changed for others, so that
    what else a process computes is as fast as ever while it serves. Whoever leaves the results of `map` cancels what
    has not begun.
    """
    with _pools_lock:
        return _pools.get(os.getpid()) or _new_pool()


def _new_pool() -> ThreadPoolExecutor:
    before, cores = torch.get_num_threads(), available_cores()
    pool = ThreadPoolExecutor(cores, "twinrun", initializer=_use_one_thread)
    everyone = threading.Barrier(cores + 1)
    for _ in range(cores):
        pool.submit(everyone.wait)
    everyone.wait()
    torch.set_num_threads(before)  # the first threads' number is that of threads to come, too
    _pools[os.getpid()] = pool
    return pool


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # at its first use a thread takes over the number of the process: now, while that is 1


_pools_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}  # by process: the threads of a parent are not there in its child
