"""One optimizer of two: filters by Muon, the rest by AdamW."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twinrun.training.muon import FilterMuon


def parameters(layout: torch.memory_format) -> tuple[nn.Parameter, nn.Parameter]:
    """A filter (4, 3, 2, 2) in that layout, and a bias."""
    torch.manual_seed(0)
    filters = torch.randn(4, 3, 2, 2).contiguous(memory_format=layout)
    return nn.Parameter(filters), nn.Parameter(torch.randn(4))


def optimizer(filters: Tensor, bias: Tensor, decay: float = 0.0) -> FilterMuon:
    groups: list[dict[str, Any]] = [
        {"params": [filters], "muon": True, "weight_decay": decay},
        {"params": [bias], "muon": False, "weight_decay": 0.0},
    ]
    return FilterMuon(groups, learning_rate=0.1, momentum=0.9)


def step(of: FilterMuon, filters: Tensor, bias: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    gradient = torch.randn(4, 3, 2, 2)
    filters.grad = gradient.to(memory_format=torch.channels_last) if _is_last(filters) else gradient
    bias.grad = torch.randn(4)
    of.step()


def _is_last(filters: Tensor) -> bool:
    return filters.is_contiguous(memory_format=torch.channels_last)


def test_a_filter_moves_as_the_matrix_of_its_outputs_and_a_bias_as_adamw_moves_it() -> None:
    filters, bias = parameters(torch.contiguous_format)
    matrix, alone = nn.Parameter(filters.detach().flatten(1).clone()), nn.Parameter(bias.detach().clone())
    muon = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([alone], lr=0.1, weight_decay=0.0, betas=(0.9, 0.999), fused=True)

    both = optimizer(filters, bias)
    for seed in range(3):
        step(both, filters, bias, seed)
        assert filters.grad is not None
        matrix.grad, alone.grad = filters.grad.flatten(1), bias.grad
        muon.step()  # type: ignore[no-untyped-call]
        adamw.step()

    assert torch.equal(filters.flatten(1), matrix)
    assert torch.equal(bias, alone)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_state_that_was_stored_goes_on_to_the_same_weights(layout: torch.memory_format) -> None:
    filters, bias = parameters(layout)
    whole = optimizer(filters, bias, decay=0.01)
    for seed in range(2):
        step(whole, filters, bias, seed)
    stored = io.BytesIO()
    torch.save(whole.state_dict(), stored)
    again, again_bias = (nn.Parameter(each.detach().clone()) for each in (filters, bias))
    step(whole, filters, bias, 2)

    resumed = optimizer(again, again_bias, decay=0.01)
    resumed.load_state_dict(torch.load(io.BytesIO(stored.getvalue())))
    step(resumed, again, again_bias, 2)

    assert torch.equal(again, filters)
    assert torch.equal(again_bias, bias)


def test_a_state_that_was_stored_goes_to_the_device_of_its_parameters_with_its_counts_of_steps() -> None:
    filters, bias = parameters(torch.contiguous_format)
    whole = optimizer(filters, bias)
    step(whole, filters, bias, 0)
    state = whole.state_dict()
    elsewhere = optimizer(nn.Parameter(filters.detach().to("meta")), nn.Parameter(bias.detach().to("meta")))

    elsewhere.load_state_dict(state)

    devices = {name: value.device.type for each in elsewhere.state.values() for name, value in each.items()}
    assert devices == dict.fromkeys(["momentum_buffer", "step", "exp_avg", "exp_avg_sq"], "meta")


def test_the_learning_rate_of_a_step_is_that_of_its_group_at_the_time() -> None:
    filters, bias = parameters(torch.contiguous_format)
    both = optimizer(filters, bias)
    step(both, filters, bias, 0)
    before = [each.detach().clone() for each in (filters, bias)]

    for group in both.param_groups:
        group["lr"] = 0.0
    step(both, filters, bias, 1)

    assert all(torch.equal(now, then) for now, then in zip((filters, bias), before, strict=True))
