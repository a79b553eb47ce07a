"""Image classification pipelines whose every training run can be run again and gives the same weights.

The names below are for programs. They are imported when they are first used, so that `import twinrun` takes no time.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinrun.cli.chosen_model import load
    from twinrun.cli.folder_check import check_folder
    from twinrun.models.bundle import load_bundle
    from twinrun.models.predict import probabilities
    from twinrun.twins.twin import reproduce

    __version__: str

__all__ = ["__version__", "check_folder", "load", "load_bundle", "probabilities", "reproduce"]

_PLACES = {
    "check_folder": "twinrun.cli.folder_check",
    "load": "twinrun.cli.chosen_model",
    "load_bundle": "twinrun.models.bundle",
    "probabilities": "twinrun.models.predict",
    "reproduce": "twinrun.twins.twin",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("twinrun")
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'twinrun' has no attribute {name!r}")
