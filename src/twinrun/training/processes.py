"""Several training processes: how Lightning starts them without touching gradients."""

from typing import Any

import torch
from torch import nn

from twinrun.core.params import TrainParams
from twinrun.training.launch import launch
from twinrun.training.lightning import pl


class ShardStrategy(pl.strategies.DDPStrategy):
    """Lightning's processes and rendezvous, without the wrapper that averages gradients: the shards are added by us."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def _setup_model(self, model: nn.Module) -> Any:
        return model


def build_strategy(params: TrainParams, device: torch.device) -> pl.strategies.Strategy:
    """One process on one device, or as many as `train.devices` or torchrun ask for."""
    if local_process_count(params) * node_count() == 1:
        return pl.strategies.SingleDeviceStrategy(device=device)
    return ShardStrategy(process_group_backend="nccl" if device.type == "cuda" else "gloo")


def local_process_count(params: TrainParams) -> int:
    """Number of training processes on this machine: as many as torchrun started, or `train.devices`."""
    return launch().local_processes or params.devices


def node_count() -> int:
    """Number of machines that torchrun brought together, or 1."""
    return launch().machines


def join_others() -> None:
    """Meet the processes that torchrun started; those that Lightning starts meet later, and read the same disk."""
    if launch().launcher == "torchrun" and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """Number of this process among the training processes, from 0; the first one writes the files."""
    return launch().rank


def cluster() -> Any:
    """Where Lightning learns of the other processes; given, since it would otherwise believe any batch system."""
    # Imported late, since Lightning is to be imported by twinrun.training.lightning alone.
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return TorchElasticEnvironment() if launch().launcher == "torchrun" else LightningEnvironment()
