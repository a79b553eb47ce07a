"""Whether a worker computes what the sweep's driver would: code, lock, data, and a numeric test of one second at most.

The test is a convolution, a batch norm and a linear layer, forward and backward, in the precision of the training, by
one thread. Its bits differ where another processor or library would give other weights.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from twinrun.base.errors import ModelError
from twinrun.base.files import canonical_json, file_sha256
from twinrun.base.paths import expanded
from twinrun.base.printing import one_line
from twinrun.core.keyed import keyed_uniform
from twinrun.core.networks import (
    IMAGENET,
    PACKAGE,
    PACKAGE_MODELS,
    side_by_side,
    unfit_weights,
    weights_side_by_side,
)
from twinrun.core.params import TrainParams, load_params
from twinrun.dataset.manifest import Split
from twinrun.models.pretrained import load_weights
from twinrun.models.published import published_weights
from twinrun.record.card import run_git
from twinrun.record.home import STATE
from twinrun.record.trial import DRIVER
from twinrun.training.fingerprint import code_hashes, installed_environment
from twinrun.training.numerics import describe_numerics, resolve_numerics
from twinrun.training.shards import Numerics

PACK, MANIFEST = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
_DATA = ("images:", "manifest:", "pretrained weights:")  # what `_differences` begins with where data differ
_IMAGES, _SIDE_PX, _CHANNELS, _CLASSES = 16, 32, 16, 10


def describe_worker(params: TrainParams) -> dict[str, str]:
    """What decides a training's bits here, by name; run in the project's folder."""
    environment = installed_environment()
    numerics = resolve_numerics(params, np.zeros((1, 8, 8, 1), np.uint8), _one_image())
    pretrained = _data(params)[2:]
    return {
        "commit": run_git(Path(), "rev-parse", "HEAD").stdout.strip() or "none",
        "code": _hash(
            [code_hashes(), {str(file): file_sha256(file) for file in sorted(Path("networks").glob("*.py"))}]
        ),
        "requirements.lock": environment["lock"] or "missing",
        "packages": ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
        "images": _file(PACK),
        "manifest": _file(MANIFEST),
        "pretrained weights": ", ".join(map(_file, pretrained)) or str(params.pretrained),
        "numerics": _hash(describe_numerics(numerics)),
        "numeric self-test": self_test(numerics),
    }


def refusal(sweep: Path) -> str | None:
    """Why a worker here would not compute what the driver does that left driver.json and params.yaml in that folder.

    Data that are missing here are fetched first. None where it would.
    """
    wanted = json.loads((sweep / DRIVER).read_bytes())
    params = load_params(sweep / "params.yaml").train
    lines = _differences(wanted, describe_worker(params))
    if lines and all(line.startswith(_DATA) for line in lines):
        problem = _fetch_data(params)
        lines = [*_differences(wanted, describe_worker(params)), *problem]
    if not lines:
        return None
    listed = "\n".join(f"  {line}" for line in lines)
    return f"This worker would not compute what the sweep's driver does, so it trains nothing:\n{listed}"


def missing_weights(params: TrainParams) -> bool:
    """Whether the settings name pretrained weights that are fit for the network, and are not on this machine as such.

    Another machine may have them.
    """
    if params.pretrained is None or unfit_weights(params.pretrained, params.model):
        return False
    for setting, model in zip(
        weights_side_by_side(params.pretrained, params.model), side_by_side(params.model), strict=True
    ):
        try:
            if setting == IMAGENET and model not in PACKAGE_MODELS.values():
                published_weights(model)  # raises ModelError where none are published, on every machine
        except ModelError:
            return False
        try:
            load_weights(setting, model)
        except ModelError:
            return True
    return False


def _differences(wanted: dict[str, str], here: dict[str, str]) -> list[str]:
    """What differs between the driver and a worker, a line each; empty where nothing does."""
    return [
        f"{name}: the sweep has {_short(wanted.get(name))}, this worker {_short(here.get(name))}"
        for name in sorted(wanted.keys() | here.keys())
        if wanted.get(name) != here.get(name)
    ]


def _fetch_data(params: TrainParams) -> list[str]:
    """Fetch what a training reads and is missing here from the DVC remote; why that failed, in lines.

    Workers of one folder wait for one another, and the first fetches for all.
    """
    lock = Path(STATE, "pull.lock")
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        missing = [str(file) for file in _data(params) if not file.exists()]
        if not missing or not Path("dvc.yaml").is_file():
            return []
        pull = [sys.executable, "-m", "dvc", "pull", *missing]
        done = subprocess.run(pull, capture_output=True, text=True, errors="replace")
    if not done.returncode:
        return []
    reasons = [one_line(line) for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return [
        f"dvc pull did not fetch {', '.join(missing)}: {' '.join(reasons) or f'exit code {done.returncode}'}",
        "Where the sweep was started: git commit dvc.lock, and dvc push. Or copy the files here.",
    ]


def self_test(numerics: Numerics) -> str:
    """Sha256 of the outputs and gradients of a small network, in hexadecimal."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        convolution = nn.Conv2d(3, _CHANNELS, 3, padding=1)
        norm, linear = nn.BatchNorm2d(_CHANNELS), nn.Linear(_CHANNELS, _CLASSES)
        network = nn.Sequential(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
        for number, parameter in enumerate(network.parameters()):
            parameter.data = _drawn(number, tuple(parameter.shape)) / 4
        network.to(numerics.device).to(memory_format=torch.channels_last)
        images = _drawn(100, (_IMAGES, 3, _SIDE_PX, _SIDE_PX)).to(numerics.device)
        images = images.to(memory_format=torch.channels_last).requires_grad_()
        targets = torch.arange(_IMAGES, device=numerics.device) % _CLASSES
        precision = numerics.autocast or torch.float32
        with torch.autocast(numerics.device.type, precision, enabled=numerics.autocast is not None):
            logits = network(images)
        cross_entropy(logits.float(), targets).backward()  # type: ignore[no-untyped-call]
        results = [logits, images.grad, norm.running_var, *(parameter.grad for parameter in network.parameters())]
        digest = hashlib.sha256()
        for tensor in results:
            assert tensor is not None
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
    finally:
        torch.set_num_threads(threads)


def _data(params: TrainParams) -> list[Path]:
    """The files that a training reads: images, manifest, pretrained weights that are a file."""
    named = weights_side_by_side(params.pretrained, params.model) if params.pretrained else []
    files = [expanded(each) for each in named if each != IMAGENET and not each.startswith(PACKAGE)]
    return [PACK, MANIFEST, *files]


def _drawn(number: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers from -1 to 1 that are the same everywhere."""
    count = int(np.prod(shape))
    draws = keyed_uniform(0, number, np.arange(count, dtype=np.uint64))
    return torch.from_numpy((2 * draws - 1).astype(np.float32).reshape(shape))


def _one_image() -> Split:
    zero = np.zeros(1, np.int64)
    return Split(zero, ["0"], zero)


def _file(path: Path) -> str:
    return file_sha256(path) if path.is_file() else f"{path} is missing: dvc repro validate, or dvc pull"


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _short(value: str | None) -> str:
    is_hash = value is not None and len(value) in (40, 64) and value.isalnum()
    return f"{value[:12]}..." if is_hash and value else str(value)


if __name__ == "__main__":
    raise SystemExit(refusal(Path(sys.argv[1])))
