"""The gradient of a batch, bit for bit the same for any number of threads and processes.

On a CPU the gradient of a convolution's weights changes with the number of threads that compute it, and no setting of
PyTorch changes that. So a batch is cut into K shards, fixed by the settings. Each is computed forward and backward by
one thread, and the K gradients are added in a fixed binary tree:

    shard 0 ─┐
    shard 1 ─┴─┐            A pool of P threads takes the shards in any order, and each process computes some of them.
    shard 2 ─┐ ├─ gradient  The tree is the same, so the sum is the same, bit for bit.
    shard 3 ─┴─┘

Batch normalisation uses the statistics of its shard ("ghost batch normalisation", Hoffer et al., 2017), and running
statistics are the mean over the shards, added in the same tree. Dropout is drawn from (seed, step, shard).

The K replicas of the network share its Parameter objects and own their buffers. `torch.func.functional_call` would swap
the tensors of one module in place, which is not thread-safe.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from twinrun.core.cores import available_cores
from twinrun.core.keyed import keyed_seed
from twinrun.models.own import explained
from twinrun.models.predict import channel_tensor, normalised, of_this_thread
from twinrun.training import collectives
from twinrun.training.batches import shard_slices
from twinrun.training.depthwise import FastDepthwise, has_depthwise

_DROPOUT = 2  # the stream of draws that decides dropout

R = TypeVar("R")
LoadImages = Callable[[slice], tuple[Tensor, Tensor]]
"""Given a part of the batch, its images, uint8 (n, H, W, C), and its targets; called from many threads.

Targets are class indices, int64 (n,), or shares of the classes, float32 (n, C).
"""


@dataclass(frozen=True)
class Numerics:
    """How numbers are computed: the device, the type of matrix products, and the normalisation of pixels."""

    device: torch.device
    autocast: torch.dtype | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class BatchResult:
    """Mean loss and number of right answers of a batch before its step."""

    loss: float
    correct: int


@dataclass
class _ShardResult:
    gradients: list[Tensor]
    statistics: list[Tensor]
    score: Tensor  # float64 (2,): sum of losses, number of right answers

    def tensors(self) -> list[Tensor]:
        return [*self.gradients, *self.statistics, self.score]


class ShardedNetwork:
    """Computes the gradients of a network shard by shard.

    A context manager: while it is entered it owns a pool of threads, and every operation of PyTorch uses one thread.
    """

    def __init__(
        self,
        network: nn.Module,
        numerics: Numerics,
        *,
        shards: int,
        threads: int,
        label_smoothing: float,
        seed: int,
        class_weights: Sequence[float] | None = None,
        keep_batch_norm: bool = False,
        own_file: str | None = None,
    ) -> None:
        """`class_weights` multiply the losses of each class; `keep_batch_norm` keeps batch normalisation untrained.

        `own_file` is the name of a network in a file of the project, whose errors become ModelErrors.
        """
        self.network = network
        self.shards = shards
        self._numerics = numerics
        self._mean = channel_tensor(numerics.mean, numerics.device)
        self._std = channel_tensor(numerics.std, numerics.device)
        self._label_smoothing = label_smoothing
        self._seed = seed
        self._class_weights: Tensor | None = None
        if class_weights is not None:
            self._class_weights = torch.tensor(class_weights, dtype=torch.float32, device=numerics.device)
        on_cpu_in_bfloat16 = numerics.device.type == "cpu" and numerics.autocast is torch.bfloat16
        self._has_slow_depthwise = on_cpu_in_bfloat16 and has_depthwise(network)
        self._norms = _batch_norms(network)
        self._keep_batch_norm = keep_batch_norm
        self._own_file = own_file
        if keep_batch_norm:
            for norm in self._norms:
                norm.requires_grad_(False)
        self._trainable = [p for p in network.parameters() if p.requires_grad]
        self._replicas = [_Replica(network, numerics.device) for _ in range(shards)]
        self.train_only(None)
        # On a GPU the shards run one after the other; on a CPU more threads than shards would idle.
        self._threads = 1 if numerics.device.type == "cuda" else min(threads, shards)
        self._pool = ThreadPoolExecutor(self._threads, "shard", torch.set_num_threads, (1,))

    def __enter__(self) -> "ShardedNetwork":
        self._threads_before = torch.get_num_threads()
        self.use_one_thread()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def use_one_thread(self) -> None:
        """Have every operation of PyTorch in the calling thread use one thread, whatever was set since."""
        torch.set_num_threads(1)

    def train_only(self, parameters: Sequence[nn.Parameter] | None) -> None:
        """Compute the gradients of `parameters` from now on, or of all that can be trained.

        Batch normalisation whose own parameters are not among them normalises with its statistics and keeps them.
        """
        chosen = {id(p) for p in (self._trainable if parameters is None else parameters)}
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        self._parameters = [p for p in self._trainable if p.requires_grad]
        can_be_trained = {id(p) for p in self._trainable}
        updated = []
        for norm in self._norms:
            own = [p for p in norm.parameters(recurse=False) if id(p) in can_be_trained]
            trains = all(p.requires_grad for p in own) and bool(own) if norm.affine else parameters is None
            updated.append(trains and not self._keep_batch_norm)
        norms = [norm for norm, is_updated in zip(self._norms, updated, strict=True) if is_updated]
        self._statistics, self._counters = _batch_statistics(norms), _batch_counters(norms)
        self._deciding_counters = _deciding_counters(norms)
        for replica in self._replicas:
            replica.update_statistics(updated, self._norms)

    def backward(self, load: LoadImages, images: int, step: int) -> BatchResult:
        """Set the gradient of every parameter to that of the mean loss over a batch of `images` images.

        Updates the running statistics of batch normalisation too. `step`, from 0, is part of the key of dropout.
        """
        slices = shard_slices(images, self.shards)
        mine = collectives.share_of(len(slices))
        if self._numerics.device.type == "cuda" and mine:
            load = loaded_at_once(load, slices[mine[0]].start, slices[mine[-1]].stop)
        results = self.map(lambda k: self._shard(load, slices[k], images, step, k), mine)
        gathered = collectives.gather_shards([result.tensors() for result in results], len(slices))
        total = self._tree_sum(gathered)
        count = len(self._parameters)
        for parameter, gradient in zip(self._parameters, total[:count], strict=True):
            parameter.grad = laid_out_like(gradient, parameter)
        with torch.no_grad():
            for statistic, summed in zip(self._statistics, total[count:-1], strict=True):
                statistic.copy_(summed.div_(len(slices)))
            for counter in self._counters:
                counter.add_(1)
        loss, correct = total[-1].tolist()
        return BatchResult(loss / images, int(correct))

    def scores(self, network: nn.Module, load: LoadImages, slices: Sequence[slice]) -> Tensor:
        """Sum of cross-entropy losses and number of right answers for each slice; float64 of shape (slices, 2).

        `network` must be in evaluation mode. Every process computes its share of the slices and gets all results.
        """

        def score(k: int) -> Tensor:
            with torch.inference_mode():
                pixels, targets = self._on_device(*load(slices[k]))
                with self._explained():
                    with self._autocast():
                        logits = of_this_thread(network)(normalised(pixels, self._mean, self._std))
                    return _score(cross_entropy(logits.float(), targets, reduction="sum"), logits, targets)

        results = self.map(score, collectives.share_of(len(slices)))
        gathered = collectives.gather_shards([[result.clone()] for result in results], len(slices))
        return torch.stack([tensors[0] for tensors in gathered]) if gathered else torch.zeros(0, 2)

    def _shard(self, load: LoadImages, part: slice, images: int, step: int, k: int) -> _ShardResult:
        replica = self._replicas[k]
        replica.begin(self._statistics, self._deciding_counters, keyed_seed(self._seed, _DROPOUT, step, k))
        pixels, targets = self._on_device(*load(part))
        with self._explained():
            with self._autocast(), self._fast_depthwise():
                logits = replica.network(normalised(pixels, self._mean, self._std))
            loss = cross_entropy(
                logits.float(),
                targets,
                weight=self._class_weights,
                reduction="sum",
                label_smoothing=self._label_smoothing,
            )
            gradients = torch.autograd.grad(loss / images, self._parameters, allow_unused=True, materialize_grads=True)
        return _ShardResult(
            list(gradients), [s.clone() for s in replica.statistics], _score(loss.detach(), logits.detach(), targets)
        )

    def _tree_sum(self, parts: list[list[Tensor]]) -> list[Tensor]:
        """Add the parts' tensors in a binary tree of fixed shape, in place; each tensor's tree is one thread's work."""

        def add(chunk: slice) -> None:
            stride = 1
            while stride < len(parts):
                for i in range(0, len(parts) - stride, 2 * stride):
                    torch._foreach_add_(parts[i][chunk], parts[i + stride][chunk])
                stride *= 2

        width = -(-len(parts[0]) // self._threads)
        with torch.no_grad():
            self.map(lambda start: add(slice(start, start + width)), range(0, len(parts[0]), width))
        return parts[0]

    def map(self, work: Callable[[int], R], indices: Sequence[int]) -> list[R]:
        """The results of `work` for each index, computed by the threads of the shards; each uses one core."""
        if self._threads == 1:
            return [work(k) for k in indices]
        return list(self._pool.map(work, indices))

    def _on_device(self, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        device = self._numerics.device
        return (pixels, targets) if device.type == "cpu" else (pixels.to(device), targets.to(device))

    def _autocast(self) -> "torch.autocast | nullcontext[None]":
        dtype = self._numerics.autocast
        if dtype is None:
            return nullcontext()
        # Its cache of cast weights is shared between threads and gives nothing here: each weight is used once.
        return torch.autocast(self._numerics.device.type, dtype=dtype, cache_enabled=False)

    def _explained(self) -> AbstractContextManager[None]:
        return nullcontext() if self._own_file is None else explained(self._own_file)

    def _fast_depthwise(self) -> "FastDepthwise | nullcontext[None]":
        return FastDepthwise() if self._has_slow_depthwise else nullcontext()


class KeyedDropout(nn.Module):
    """Dropout whose mask comes from a generator that the shard seeds for each step.

    `mask_dims` leading dimensions have draws of their own and the rest is dropped together: all of them for plain
    dropout, 2 for whole channels, 1 for whole samples, 0 for the whole batch.
    """

    def __init__(self, probability: float, generator: torch.Generator, mask_dims: int | None) -> None:
        super().__init__()
        self.probability = probability
        self._generator = generator
        self._mask_dims = mask_dims

    def forward(self, features: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return features
        kept = 1 - self.probability
        own = features.dim() if self._mask_dims is None else self._mask_dims
        shape = [*features.shape[:own], *[1] * (features.dim() - own)]
        mask = torch.empty(shape, dtype=features.dtype, device=features.device)
        mask.bernoulli_(kept, generator=self._generator)
        return features * (mask.div_(kept) if kept > 0 else mask)


class _Replica:
    """A network that shares the parameters of another, has buffers of its own and draws from a generator of its own."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = copy.deepcopy(network, {id(p): p for p in network.parameters()}).train()
        self._generator = torch.Generator(device)
        _key_dropout(self.network, self._generator)
        self._norms = _batch_norms(self.network)
        self.statistics: list[Tensor] = []
        self._counters: list[Tensor] = []

    def update_statistics(self, updated: Sequence[bool], given: Sequence[_BatchNorm]) -> None:
        """Have the chosen batch normalisations learn; the others normalise with the `given` ones' statistics."""
        for norm, is_updated in zip(self._norms, updated, strict=True):
            norm.training = is_updated
        with torch.no_grad():
            for own, others in zip(_batch_statistics(self._norms), _batch_statistics(given), strict=True):
                own.copy_(others)
        norms = [n for n, is_updated in zip(self._norms, updated, strict=True) if is_updated]
        self.statistics, self._counters = _batch_statistics(norms), _deciding_counters(norms)

    def begin(self, statistics: list[Tensor], counters: list[Tensor], seed: int) -> None:
        self._generator.manual_seed(seed)
        if counters:
            torch._foreach_copy_(self._counters, counters)
        if statistics:
            torch._foreach_copy_(self.statistics, statistics)


def loaded_at_once(load: LoadImages, start: int, stop: int) -> LoadImages:
    """Load these images now, and give parts of them: starting a GPU's kernels takes as long for a few as for many."""
    pixels, targets = load(slice(start, stop))

    def part_of(part: slice) -> tuple[Tensor, Tensor]:
        inner = slice(part.start - start, part.stop - start)
        return pixels[inner], targets[inner]

    return part_of


def laid_out_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The tensor with the strides of its parameter: a fused optimizer walks through both as they lie in memory."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def thread_count(threads: "int | Literal['auto']") -> int:
    """Number of threads that `train.threads` asks for; `auto` is the number of cores that this process may use."""
    return available_cores() if threads == "auto" else threads


def _score(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    labels = targets if targets.dim() == 1 else targets.argmax(dim=1)  # of mixed images the larger share
    correct = (logits.argmax(dim=1) == labels).sum()
    return torch.stack([loss.double(), correct.double()])


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def _batch_statistics(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    return [cast(Tensor, s) for norm in norms for s in (norm.running_mean, norm.running_var)]


def _batch_counters(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    return [cast(Tensor, norm.num_batches_tracked) for norm in norms]


def _deciding_counters(norms: Sequence[_BatchNorm]) -> list[Tensor]:
    """Those of batch normalisation that averages over all batches so far, and so depends on their number."""
    return _batch_counters([norm for norm in norms if norm.momentum is None])


def _key_dropout(network: nn.Module, generator: torch.Generator) -> None:
    """Replace every module that draws at random by one that draws from `generator`."""
    # Networks that have one imported it. For others the import would cost seconds: it brings the compiler of PyTorch.
    stochastic_depth = getattr(sys.modules.get("torchvision.ops.stochastic_depth"), "StochasticDepth", ())

    for parent in list(network.modules()):
        for name, child in parent.named_children():
            match child:
                case nn.Dropout():
                    keyed = KeyedDropout(child.p, generator, None)
                case nn.Dropout1d() | nn.Dropout2d() | nn.Dropout3d():
                    keyed = KeyedDropout(child.p, generator, 2)
                case _ if isinstance(child, stochastic_depth):
                    keyed = KeyedDropout(child.p, generator, 1 if child.mode == "row" else 0)
                case _:
                    continue
            setattr(parent, name, keyed)
