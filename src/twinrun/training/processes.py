"""Several training processes: how Lightning starts them without touching gradients. Knows no network."""

import os
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn

from twinrun.params import TrainParams


class ShardStrategy(DDPStrategy):
    """Lightning's processes and rendezvous, without the wrapper that averages gradients: the shards are added by us."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def _setup_model(self, model: nn.Module) -> Any:
        return model


def build_strategy(params: TrainParams, device: torch.device) -> Strategy:
    """One process on one device, or as many as `train.devices` or torchrun ask for."""
    if params.devices == 1 and world_size() == 1:
        return SingleDeviceStrategy(device=device)
    return ShardStrategy(process_group_backend="nccl" if device.type == "cuda" else "gloo")


def world_size() -> int:
    """Number of processes that torchrun started, or 1."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process among the training processes, from 0; the first one writes the files."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
