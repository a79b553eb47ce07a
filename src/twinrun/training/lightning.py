"""Lightning without what it does not need: `from twinrun.training.lightning import pl`.

Lightning imports torchmetrics, which imports SciPy's signal processing, matplotlib and torchvision for metrics of
sound and pictures wherever they are installed. None of those is computed here, and they are a third of the time that
importing Lightning takes, in every training process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from lightning_utilities.core import imports

from twinrun.training.launch import launch

_UNUSED = frozenset({"scipy", "matplotlib", "torchvision"})


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


launch()  # Lightning reads the variables of launchers when it is imported

with _as_if_not_installed(_UNUSED):
    import pytorch_lightning as pl

__all__ = ["pl"]
