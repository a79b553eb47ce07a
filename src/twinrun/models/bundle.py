"""A model on disk: weights.safetensors, model.json and a manifest with the sha256 of both.

The hashes are checked before anything is parsed, and no pickle is written or read. Knows nothing of how the weights
were found.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twinrun.errors import BundleError, ModelError
from twinrun.models.architectures import build_network
from twinrun.publish import folder_faults, replacing_folder, write_json

WEIGHTS = "weights.safetensors"
MODEL = "model.json"
_FORMAT = 2
_READABLE_FORMATS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image before the network sees it: decode, fit into a frame, normalise.

    `size_px` is (height, width). `mean` and `std` are those of the training pixels, one for each channel, as shares of
    255.
    """

    size_px: tuple[int, int]
    channels: Literal["gray", "rgb"]
    fit: Literal["pad", "crop"]
    resample: Literal["bilinear", "bicubic"]
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A network in evaluation mode with all that is needed to use it."""

    network: nn.Module
    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    weights_hash: str


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 over the tensors in the order of their names: name, dtype, shape and bytes of each; hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_bundle(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    architecture: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
) -> str:
    """Publish a bundle at `folder`, in place of what was there, and return its weights hash."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = weights_hash(contiguous)
    description = {
        "format": _FORMAT,
        "architecture": architecture,
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "weights_hash": digest,
    }
    with replacing_folder(folder) as temp:
        save_file(contiguous, temp / WEIGHTS)  # no metadata: its keys would be written in random order
        write_json(description, temp / MODEL)
    return digest


def load_bundle(folder: Path) -> Bundle:
    """Check and load a bundle. Raises BundleError, naming the file, where a byte is not what was written."""
    from safetensors.torch import load

    faults = folder_faults(folder)
    if faults:
        raise BundleError(
            f"The model in {folder} is not the one that was written:\n"
            + "".join(f"  {fault}\n" for fault in faults)
            + "It was not loaded. Train again (dvc repro -f train) or restore it (dvc checkout --force train)."
        )
    try:
        description: dict[str, Any] = json.loads((folder / MODEL).read_bytes())
        if description["format"] not in _READABLE_FORMATS:
            raise ValueError(f"format {description['format']}, and this version reads formats up to {_FORMAT}")
        preprocessing = _preprocessing(description)
        classes = tuple(description["classes"])
        network = build_network(
            description["architecture"],
            channels=len(preprocessing.mean),
            size_px=preprocessing.size_px,
            classes=len(classes),
            seed=0,
        )
        tensors = load((folder / WEIGHTS).read_bytes())
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, ModelError) as error:
        raise BundleError(f"The model in {folder} cannot be used by this version of Twinrun: {error}") from error
    return Bundle(
        network=network.eval().to(memory_format=torch.channels_last),
        architecture=description["architecture"],
        classes=classes,
        preprocessing=preprocessing,
        weights_hash=weights_hash(tensors),
    )


def _preprocessing(description: dict[str, Any]) -> Preprocessing:
    settings = dict(description["preprocessing"])
    if description["format"] == 1:  # squares alone, resized bilinearly
        settings |= {"size_px": [settings["size_px"]] * 2, "resample": "bilinear"}
    return Preprocessing(**settings | {name: tuple(settings[name]) for name in ("size_px", "mean", "std")})
