"""Muon for the matrices and filters of a network, AdamW for the rest, as one optimizer with one learning rate.

`torch.optim.Muon` takes matrices alone, so a filter (outputs, inputs, height, width) is given to it as a matrix
(outputs, the rest) that shares its memory. Its steps are as long as AdamW's ("match_rms_adamw"), so that both share the
learning rate. Keller Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from typing import Any

import torch
from torch import Tensor

_MOMENTUM = "momentum_buffer"


class FilterMuon(torch.optim.Optimizer):
    """Groups with `muon: True` are Muon's, the others AdamW's; each has `lr` and `weight_decay`."""

    def __init__(self, groups: list[dict[str, Any]], *, learning_rate: float, momentum: float) -> None:
        super().__init__(groups, {"lr": learning_rate})
        filters: list[Tensor] = [p for group in self._of(muon=True) for p in group["params"]]
        self._matrices = {p: _as_matrix(p, channels_last=_is_channels_last(p)) for p in filters}
        self._muon: torch.optim.Optimizer | None = None
        if self._matrices:
            of_muon = [
                self._inner(group, [self._matrices[p] for p in group["params"]]) for group in self._of(muon=True)
            ]
            self._muon = torch.optim.Muon(of_muon, momentum=momentum, adjust_lr_fn="match_rms_adamw")
        of_adamw = [self._inner(group, group["params"]) for group in self._of(muon=False)]
        self._adamw = torch.optim.AdamW(of_adamw, betas=(momentum, 0.999), fused=True) if of_adamw else None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both, by the gradients and the groups' learning rates as they are now."""
        loss = None if closure is None else closure()
        for inner, muon in ((self._muon, True), (self._adamw, False)):
            if inner is None:
                continue
            for own, of_inner in zip(self._of(muon=muon), inner.param_groups, strict=True):
                of_inner["lr"] = own["lr"]
            for parameter, matrix in self._matrices.items() if muon else ():
                grad = parameter.grad
                matrix.grad = None if grad is None else _as_matrix(grad, channels_last=_is_channels_last(parameter))
            inner.step()
            for parameter in (p for group in self._of(muon=muon) for p in group["params"]):
                self.state[parameter] = inner.state[self._matrices[parameter] if muon else parameter]
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of both; step counts move to the device of the parameters, where AdamW needs them."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state.update({name: value.to(parameter.device) for name, value in state.items()})
            if parameter in self._matrices and self._muon is not None:
                self._muon.state[self._matrices[parameter]] = state
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
