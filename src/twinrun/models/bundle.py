"""A model on disk: weights.safetensors, model.json and a manifest with the sha256 of both.

No pickle is written or read; `stored.py` reads and checks the files. How weights are found is decided elsewhere.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import get_ident
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from twinrun.base.errors import BundleError
from twinrun.base.files import replacing_folder, write_json
from twinrun.base.printing import one_line
from twinrun.models.architectures import build_network, in_channels_last
from twinrun.models.stored import FORMAT, MODEL, SOURCE, WEIGHTS, StoredModel, StoredPreprocessing, read_stored
from twinrun.models.views import with_views

TRUSTED = "TWINRUN_TRUST_NETWORK"
_LONGEST_REASON = 500
_SMALL_NETWORK = 10_000_000  # weights
_MOST_TIMES = 4  # as many weights as stored: layers are replaced while it is built, and "pruned" networks begin whole


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image before the network sees it: decode, fit into a frame, normalise.

    `size_px` is (height, width). `mean` and `std` are those of the training pixels, one for each channel, as shares of
    255. The answer for an image is the mean over views of it where `test_flip` or `test_shift_px` say so.
    """

    size_px: tuple[int, int]
    channels: Literal["gray", "rgb"]
    fit: Literal["pad", "crop"]
    resample: Literal["bilinear", "bicubic"]
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: Literal["file", "data"] | int = "file"
    ground: Literal["white", "gray", "black"] = "white"
    bands: tuple[int, ...] | None = None
    test_flip: bool = False
    test_shift_px: int = 0


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
    source: bytes | None = None,
) -> str:
    """Publish a bundle at `folder`, in place of what was there, and return its weights hash.

    That of a network in a file of the project holds its `source`: the content of the file that was trained.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = weights_hash(contiguous)
    description = {
        "format": FORMAT,
        "architecture": architecture,
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "weights_hash": digest,
    }
    if source is not None:
        description["source_sha256"] = hashlib.sha256(source).hexdigest()
    with replacing_folder(folder) as temp:
        if source is not None:
            (temp / SOURCE).write_bytes(source)
        save_file(contiguous, temp / WEIGHTS)  # no metadata: its keys would be written in random order
        write_json(description, temp / MODEL)
    return digest


def load_bundle(folder: Path, *, trust: bool = False) -> Bundle:
    """Check and load a bundle.

    One that holds source code is loaded where the project has that file too, apart from the bundle, or a person agreed:
    by `trust`, or by its sha256 in TWINRUN_TRUST_NETWORK. Raises BundleError, naming the file, where a byte is not what
    was written, the files do not describe a model, or no one consented.
    """
    from safetensors.torch import load

    stored = read_stored(folder, "loaded")
    model = stored.model
    source = stored.files.get(SOURCE)
    if source is not None and not trust:
        _require_consent(folder, model.architecture, source)
    try:
        return bundle_of(model, load(stored.files[WEIGHTS]), source)
    except Exception as error:  # the file says what is built, so that anything may go wrong inside the libraries
        raise BundleError(
            f"The model in {folder} cannot be used by this version of Twinrun: {_first_lines(error)}"
        ) from error


def bundle_of(model: StoredModel, tensors: Mapping[str, Tensor], source: bytes | None = None) -> Bundle:
    """A bundle of a description, its tensors and, for a network of a file, that file.

    Counts of batches may be missing: no answer depends on them. Any error of the libraries is raised as it is.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    with _no_more_weights_than(_MOST_TIMES * stored + _SMALL_NETWORK) if source is None else nullcontext():
        network = build_network(
            model.architecture,
            channels=len(model.preprocessing.mean),
            size_px=(model.preprocessing.size_px[0], model.preprocessing.size_px[1]),
            classes=len(model.classes),
            seed=0,
            source=source,
        )
    counts = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(counts | dict(tensors))
    preprocessing = _preprocessing(model.preprocessing)
    return Bundle(
        network=with_views(
            in_channels_last(network.eval()),
            flip=preprocessing.test_flip,
            shift_px=preprocessing.test_shift_px,
        ),
        architecture=model.architecture,
        classes=tuple(model.classes),
        preprocessing=preprocessing,
        weights_hash=model.weights_hash,
    )


@contextmanager
def _no_more_weights_than(most: int) -> Iterator[None]:
    """Raise BundleError as soon as a network that this thread builds has more weights, before they take memory.

    A few bytes of a file can name a network of gigabytes.
    """
    thread, weights = get_ident(), 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal weights
        if get_ident() == thread and parameter is not None:
            weights += parameter.numel()
            if weights > most:
                raise BundleError("the network that it names has far more weights than the file")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _require_consent(folder: Path, architecture: str, source: bytes) -> None:
    digest = hashlib.sha256(source).hexdigest()
    file = Path(architecture.partition(":")[0])
    # A bundle that was unpacked into networks/ can name its own file, or that of another bundle.
    is_of_project = file.is_file() and not file.with_name(MODEL).exists() and file.read_bytes() == source
    if is_of_project or os.environ.get(TRUSTED) == digest:
        return
    raise BundleError(
        f"The model in {folder} holds the source code of its network, which would run on this machine, and the project "
        f"has no {file} of its own with that code. It was not loaded. Read {folder / SOURCE}; if you trust it, add "
        f"--trust to `twinrun predict`, or set {TRUSTED}={digest}"
    )


def _preprocessing(stored: StoredPreprocessing) -> Preprocessing:
    values = stored.model_dump()
    return Preprocessing(**values | {name: tuple(value) for name, value in values.items() if isinstance(value, list)})


def _first_lines(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it is larger than the memory of this machine"
    text = one_line(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
