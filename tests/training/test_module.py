"""The optimizers of a training, and the steps that its loop takes at once."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from twinrun.core.params import load_params
from twinrun.dataset.manifest import Split
from twinrun.training.fit import in_shards
from twinrun.training.module import Classifier, SplitImages, build_optimizer
from twinrun.training.processes import cluster
from twinrun.training.shards import Numerics


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


def test_several_steps_at_once_are_those_of_the_epoch_and_each_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    count, batch = 150, 10
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    split = Split(np.arange(count), [f"{number:016x}" for number in range(count)], np.arange(count) % 10)
    data, params = SplitImages(images, split, 10), load_params().train
    params = replace(params, model="mlp", batch_size=batch, epochs=1, shards=1, threads=1, ema_decay=None)
    weights, groups = [], []

    for at_most in (32, 4):
        monkeypatch.setattr("twinrun.training.module._GROUPS", at_most)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        told: list[int] = []
        with in_shards(network, data, params, Numerics(torch.device("cpu"), None, (0.5,), (0.25,))) as sharded:
            module = Classifier(sharded, data, data, params)
            module.after_step = lambda told=told, module=module: told.append(module.steps_done)  # type: ignore[misc]
            groups.append(len(module.train_dataloader()))
            pl.Trainer(
                accelerator="cpu",
                plugins=[cluster()],
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
                num_sanity_val_steps=0,
            ).fit(module)
        assert told == list(range(1, count // batch + 1))
        weights.append([tensor.clone() for tensor in network.state_dict().values()])

    assert groups == [15, 5]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
