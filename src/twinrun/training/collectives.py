"""What the training processes exchange: the results of shards, in their order."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def process_count() -> int:
    """Number of training processes; 1 where training is not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share_of(shards: int) -> range:
    """The shards that this process computes: a run of neighbours, which over all processes covers each shard once."""
    if process_count() == 1:
        return range(shards)
    rank, world = dist.get_rank(), dist.get_world_size()
    return range(shards * rank // world, shards * (rank + 1) // world)


def gather_objects(mine: tuple[str, int]) -> list[tuple[str, int]]:
    """What each process says, in the order of the processes."""
    if process_count() == 1:
        return [mine]
    everybody: list[tuple[str, int] | None] = [None] * process_count()
    dist.all_gather_object(everybody, mine)
    return [said for said in everybody if said is not None]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all; called by every process, or by one alone."""
    if process_count() == 1:
        return make()
    made = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made, src=0)
    return cast(T, made[0])


def is_any(flag: bool) -> bool:
    """Whether the flag is set in at least one process."""
    if process_count() == 1:
        return flag
    flags = torch.tensor([int(flag)], device=_exchange_device())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def gather_shards(mine: list[list[Tensor]], shards: int) -> list[list[Tensor]]:
    """The tensors of all shards, in order, given those of this process's share.

    Every shard has the same list of shapes and types; the bytes arrive as they were sent.
    """
    world = process_count()
    if world == 1:
        return mine
    template = _agreed_template(mine, shards)
    sizes = [_byte_size(shape, dtype) for shape, dtype in template]
    slots = -(-shards // world)
    device = _exchange_device()
    outgoing = torch.zeros(slots, sum(sizes), dtype=torch.uint8, device=device)
    for slot, tensors in enumerate(mine):
        parts = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        outgoing[slot] = torch.cat([part.to(device) for part in parts])
    incoming = [torch.empty_like(outgoing) for _ in range(world)]
    dist.all_gather(incoming, outgoing)
    counts = [shards * (rank + 1) // world - shards * rank // world for rank in range(world)]
    return [
        [
            part.clone().view(dtype).reshape(shape)
            for part, (shape, dtype) in zip(torch.split(incoming[rank][slot], sizes), template, strict=True)
        ]
        for rank in range(world)
        for slot in range(counts[rank])
    ]


_Template = list[tuple[tuple[int, ...], torch.dtype]]


def _agreed_template(mine: list[list[Tensor]], shards: int) -> _Template:
    """Shapes and types of one shard's tensors; a process without a shard learns them from the first that has one."""
    own: _Template | None = [(tuple(t.shape), t.dtype) for t in mine[0]] if mine else None
    if own and shards >= process_count():
        return own
    known: list[_Template | None] = [None] * process_count()
    dist.all_gather_object(known, own)
    return next(template for template in known if template is not None)


def _byte_size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _exchange_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
