"""Lightning without what it does not need: `from twinrun.training.lightning import pl`.

Lightning imports torchmetrics, which imports SciPy's signal processing, matplotlib and torchvision for metrics of
sound and pictures wherever they are installed. It also imports the compiler of PyTorch, and with it SymPy and Triton,
to recognise compiled networks. Neither is used here. The first is a third of the time that importing Lightning takes,
the second half of the time in which a training process starts.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from lightning_utilities.core import imports

from twinrun.training.launch import launch

_UNUSED = frozenset({"scipy", "matplotlib", "torchvision"})
_COMPILER = "torch._dynamo"


@contextmanager
def _as_if_not_installed(packages: frozenset[str]) -> Iterator[None]:
    """Have the switches of torchmetrics' optional parts say no; those who ask after the import hear the truth."""
    is_met, is_there = imports.RequirementCache.__bool__, imports.package_available

    def met(self: imports.RequirementCache) -> bool:
        return (self.requirement or "").partition(">")[0] not in packages and is_met(self)

    def there(package: str) -> bool:
        return package not in packages and bool(is_there(package))

    with (
        mock.patch.object(imports.RequirementCache, "__bool__", met),
        mock.patch.object(imports, "package_available", there),
    ):
        yield


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Have Lightning find a compiler that compiled no network and leaves functions as they are.

    Later imports find the compiler itself; one that was imported before stays.
    """
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = ModuleType(_COMPILER)
    stand_in.OptimizedModule = type("OptimizedModule", (torch.nn.Module,), {})  # type: ignore[attr-defined]
    stand_in.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    sys.modules[_COMPILER] = stand_in
    try:
        yield
    finally:
        del sys.modules[_COMPILER]


launch()  # Lightning reads the variables of launchers when it is imported

with _as_if_not_installed(_UNUSED), _without_compiler():
    import pytorch_lightning as pl

__all__ = ["pl"]
