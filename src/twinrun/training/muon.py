"""Muon for the matrices and filters of a network, AdamW for the rest, as one optimizer with one learning rate.

`torch.optim.Muon` takes matrices alone, so a filter (outputs, inputs, height, width) is given to it as a matrix
(outputs, the rest) that shares its memory. Its steps are as long as AdamW's ("match_rms_adamw"), so that both share the
learning rate. Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = "momentum_buffer"


def map_here(work: Callable[[int], None], numbers: Sequence[int]) -> None:
    """Call `work` with each of the numbers, one after another, in this thread."""
    for number in numbers:
        work(number)


class FilterMuon(torch.optim.Optimizer):
    """Groups with `muon: True` are Muon's, the others AdamW's; each has `lr` and `weight_decay`."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        learning_rate: float,
        momentum: float,
        share_out: Callable[[Callable[[int], None], Sequence[int]], object] = map_here,
    ) -> None:
        """`share_out` calls a function with each of several numbers, as threads do: each filter's step is one call."""
        super().__init__(groups, {"lr": learning_rate})
        self._share_out = share_out
        self._matrices: dict[Tensor, Tensor] = {}
        self._muons: dict[Tensor, torch.optim.Optimizer] = {}
        for group in self._of(muon=True):
            for filters in group["params"]:
                matrix = self._matrices[filters] = _as_matrix(filters, channels_last=_is_channels_last(filters))
                of_muon = [self._inner(group, [matrix])]
                self._muons[filters] = torch.optim.Muon(of_muon, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        of_adamw = [self._inner(group, group["params"]) for group in self._of(muon=False)]
        self._adamw = torch.optim.AdamW(of_adamw, betas=(momentum, 0.999), fused=True) if of_adamw else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both, by the gradients and the groups' learning rates as they are now."""
        loss = None if closure is None else closure()
        for group in self._of(muon=True):
            for filters in group["params"]:
                grad = filters.grad
                self._matrices[filters].grad = (
                    None if grad is None else _as_matrix(grad, channels_last=_is_channels_last(filters))
                )
                self._muons[filters].param_groups[0]["lr"] = group["lr"]
        muons = list(self._muons.values())
        self._share_out(lambda k: muons[k].step(), range(len(muons)))
        for filters, muon in self._muons.items():
            self.state[filters] = muon.state[self._matrices[filters]]
        if self._adamw is not None:
            for own, of_inner in zip(self._of(muon=False), self._adamw.param_groups, strict=True):
                of_inner["lr"] = own["lr"]
            self._adamw.step()
            for parameter in (p for group in self._of(muon=False) for p in group["params"]):
                self.state[parameter] = self._adamw.state[parameter]
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of both; step counts move to the device of the parameters, where AdamW needs them."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state.update({name: value.to(parameter.device) for name, value in state.items()})
            if parameter in self._muons:
                self._muons[parameter].state[self._matrices[parameter]] = state
            elif self._adamw is not None:
                self._adamw.state[parameter] = state

    def _of(self, *, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    @staticmethod
    def _inner(group: dict[str, Any], parameters: list[Any]) -> dict[str, Any]:
        return {"params": parameters, "weight_decay": group["weight_decay"], "lr": group["lr"]}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _as_matrix(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """(outputs, the rest), in the order in which a parameter of that layout lies in memory, which its matrix shares."""
    return (tensor.detach().permute(0, 2, 3, 1) if channels_last else tensor.detach()).flatten(1)
