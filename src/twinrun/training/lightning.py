"""Lightning without what it does not need: `from twinrun.training.lightning import pl`.

Lightning imports torchmetrics, which imports SciPy's signal processing, matplotlib, torchvision and transformers for
metrics of sound, pictures and texts wherever they are installed. It also imports the compiler of PyTorch, and with it
SymPy and Triton, to recognise compiled networks. Neither is used here. The first takes a third of the time of importing
Lightning, and more where more is installed. The second takes half of the time in which a training process starts.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from lightning_utilities.core import imports

from twinrun.training.launch import launch

_USED = frozenset({"torch", "torchmetrics", "numpy", "rich", "psutil", "tqdm"})
_COMPILER = "torch._dynamo"


@contextmanager
def _as_if_alone() -> Iterator[None]:
    """Report optional packages as missing during an import, and truly after it.

    One that were imported now would find the stand-in of the compiler, and may fail.
    """
    is_met, is_there, importing = imports.RequirementCache.__bool__, imports.package_available, True

    def met(self: imports.RequirementCache) -> bool:
        return re.split(r"[^\w-]", self.requirement or self.module or "")[0] in _USED and is_met(self)

    def there(package: str) -> bool:  # which modules that are imported now keep
        return not (importing and package not in _USED) and bool(is_there(package))

    with (
        mock.patch.object(imports.RequirementCache, "__bool__", met),
        mock.patch.object(imports, "package_available", there),
    ):
        yield
    importing = False


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

with _as_if_alone(), _without_compiler():
    import pytorch_lightning as pl

__all__ = ["pl"]
