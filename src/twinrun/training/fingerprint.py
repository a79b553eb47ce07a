"""The fingerprint: a sha256 of all that decides the weights. Two trainings with the same one are twins."""

import hashlib
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twinrun.base.files import canonical_json, file_sha256
from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import SPLITS, Manifest

LOCK = Path("requirements.lock")

_PACKAGE = Path(__file__).parent.parent
_DECIDING_CODE = (
    "core/keyed.py",
    "core/networks.py",
    "core/params.py",
    "dataset/manifest.py",
    "dataset/pack.py",
    "models/architectures.py",
    "models/bundle.py",
    "models/own.py",
    "models/predict.py",
    "models/pretrained.py",
    "models/published.py",
    "training/*.py",
)
_STAGE = Path("pipeline/train.py")
_DECIDING_PACKAGES = (
    "numpy",
    "pytorch-lightning",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)
_NOT_DECIDING = ("threads", "devices", "accelerator")


def fingerprint_parts(
    params: TrainParams, preparation: dict[str, Any], pack: Path, manifest: Manifest, numerics: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides the weights, by part: code, params, data, environment, numerics. All values are JSON.

    `preparation` is how images were prepared, which the model remembers; `numerics` comes from `describe_numerics`.
    Threads, processes and the folder are not among the parts: they change no weights.
    """
    settings = {name: value for name, value in asdict(params).items() if name not in _NOT_DECIDING}
    return {
        "code": code_hashes(),
        "params": {**settings, "preparation": preparation},
        "data": {"pack": file_sha256(pack), "manifest": _manifest_hash(manifest)},
        "environment": installed_environment(),
        "numerics": numerics,
    }


def code_hashes() -> dict[str, str | None]:
    """Sha256 of each file of code that decides weights; None for a stage's file that is not here."""
    return {
        **{path: file_sha256(_PACKAGE / path) for path in _deciding_files()},
        _STAGE.as_posix(): file_sha256(_STAGE) if _STAGE.exists() else None,
    }


def installed_environment() -> dict[str, Any]:
    """The hash of requirements.lock, and the versions of the packages that decide weights."""
    return {
        "lock": file_sha256(LOCK) if LOCK.exists() else None,
        "packages": {name: version(name) for name in _DECIDING_PACKAGES},
    }


def fingerprint(parts: dict[str, Any]) -> str:
    """Sha256 of the parts as canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def _deciding_files() -> list[str]:
    return sorted(
        file.relative_to(_PACKAGE).as_posix() for pattern in _DECIDING_CODE for file in _PACKAGE.glob(pattern)
    )


def _manifest_hash(manifest: Manifest) -> str:
    """Hash of the usable images with their labels and splits. Dropped images and the reasons do not change it."""
    splits = {}
    for name in SPLITS:
        split = manifest.split(name)
        splits[name] = [split.rows.tolist(), split.ids, split.targets.tolist(), split.units]
    return hashlib.sha256(canonical_json({"classes": manifest.classes, "splits": splits})).hexdigest()
