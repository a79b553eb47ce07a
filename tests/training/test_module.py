"""The optimizers of a training."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from twinrun.core.params import load_params
from twinrun.training.module import build_optimizer


@pytest.mark.parametrize(
    ("name", "of_pytorch", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
def test_an_optimizer_steps_and_restores_its_state_as_that_of_pytorch_does(
    name: Any, of_pytorch: type[torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    params = replace(load_params().train, optimizer=name, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    network = nn.Linear(4, 3)
    twin = copy.deepcopy(network)
    ours = build_optimizer(network, params)
    theirs = of_pytorch(twin.parameters(), lr=0.1, weight_decay=0.0, fused=True, **settings)  # type: ignore[call-arg]

    for step in range(4):
        if step == 2:
            restored = build_optimizer(network, params)
            restored.load_state_dict(ours.state_dict())
            ours = restored
        for model, optimizer in ((network, ours), (twin, theirs)):
            optimizer.zero_grad()
            model(torch.ones(2, 4) * step).square().sum().backward()
            optimizer.step()

    assert torch.equal(network.weight, twin.weight)
    assert torch.equal(network.bias, twin.bias)
