"""Features of images: what a network's head is given, computed once for each image and kept on disk.

An image is a batch of its own, computed by one thread, several images at once: so its features are the same bits
whatever the number of threads, the images beside it and the order, and batches of one are no slower on a CPU. They
are kept by the sha256 of the image's pixels, in a folder for each network, preparation and kind of processor, in blocks
that each appear whole. A training that was killed goes on after its last block, and experiments, seeds and folds share
them.
"""

import copy
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from twinrun.base.files import canonical_json, folder_faults, replacing_folder
from twinrun.base.progress import progress
from twinrun.core.arrays import Pixels
from twinrun.core.networks import is_own_file
from twinrun.models.architectures import in_channels_last, without_head
from twinrun.models.bundle import weights_hash
from twinrun.models.own import explained
from twinrun.models.predict import channel_tensor, normalised, of_this_thread
from twinrun.training.interruption import StopRequest
from twinrun.training.numerics import describe_numerics
from twinrun.training.shards import Numerics

FeatureArray = NDArray[np.float32]
LoadImage = Callable[[int], Pixels]
"""Given its number, an image, uint8 (H, W, C); called from many threads."""

FEATURES_KEPT = "Features computed so far are kept; `dvc repro` computes the others."
_BLOCK_IMAGES = 512
_BLOCK = "features.npy"
_KEYS = "sha256.npy"
_IN_USE_S = 3600.0  # a training changes its folder with each block
_KEPT = 8  # folders, each of one network and preparation: 5 KB an image for 1,280 features


def backbone_of(network: nn.Module, classes: int) -> nn.Module:
    """A copy of `network` that gives what the head is given, (N, D), in evaluation mode.

    Raises ValueError where it does not end in a linear layer for `classes`.
    """
    backbone = copy.deepcopy(network).eval()
    without_head(backbone, classes)
    return in_channels_last(backbone.requires_grad_(False))


class Features:
    """The features of one backbone, below `folder`, which it shares with those of others."""

    def __init__(self, folder: Path, backbone: nn.Module, numerics: Numerics, network: Mapping[str, Any]) -> None:
        """`network` describes, as JSON, what its layers do not show: its name, and the code that puts them together."""
        description = {
            "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
            "network": dict(network),
            "layers": [
                [name, repr(module)] for name, module in backbone.named_modules() if not list(module.children())
            ],
            "weights": weights_hash(backbone.state_dict()),
            "mean": numerics.mean,
            "std": numerics.std,
            "numerics": describe_numerics(numerics),
            "packages": {name: version(name) for name in ("torch", "torchvision", "timm")},
        }
        self._root, self._name = folder, str(network["name"])
        self._folder = folder / hashlib.sha256(canonical_json(description)).hexdigest()[:32]
        self._backbone = backbone.to(numerics.device)
        self._device = numerics.device
        self._mean = channel_tensor(numerics.mean, numerics.device)
        self._std = channel_tensor(numerics.std, numerics.device)

    def of(self, load: LoadImage, count: int, *, threads: int, stop: StopRequest) -> FeatureArray:
        """Features, float32 of shape (count, D), of the images that `load` gives for 0 to count - 1.

        Those that are kept are read, the others computed. Raises InterruptedTraining between blocks where `stop` asks
        for it; what is done by then is kept.
        """
        known = self._read()
        with _single_threads(threads) as pool:
            wanted = list(pool.map(lambda i: _sha256(load(i)), range(count)))
        missing: dict[bytes, int] = {}
        for i, key in enumerate(wanted):
            if key not in known:
                missing.setdefault(key, i)
        known |= self._compute(load, missing, threads, stop)
        self._forget_old()
        return np.stack([known[key] for key in wanted])

    def _compute(
        self, load: LoadImage, missing: dict[bytes, int], threads: int, stop: StopRequest
    ) -> dict[bytes, FeatureArray]:
        computed: dict[bytes, FeatureArray] = {}
        keys = list(missing)
        threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with progress("Computing features", len(keys)) as advance, _single_threads(threads) as pool:

                def compute(key: bytes) -> FeatureArray:
                    features = self._one(load(missing[key]))
                    advance(1)
                    return features

                for start in range(0, len(keys), _BLOCK_IMAGES):
                    stop.check(kept=FEATURES_KEPT)
                    block = keys[start : start + _BLOCK_IMAGES]
                    features = list(pool.map(compute, block))
                    self._keep(block, features)
                    computed |= dict(zip(block, features, strict=True))
        finally:
            torch.set_num_threads(threads_before)
        return computed

    def _one(self, image: NDArray[np.uint8]) -> FeatureArray:
        with torch.inference_mode(), explained(self._name) if is_own_file(self._name) else nullcontext():
            pixels = torch.from_numpy(np.array(image[None])).to(self._device)
            features = of_this_thread(self._backbone)(normalised(pixels, self._mean, self._std))
            result: FeatureArray = features.flatten().float().cpu().numpy()
        return result

    def _keep(self, keys: list[bytes], features: list[FeatureArray]) -> None:
        with replacing_folder(self._folder / uuid.uuid4().hex) as temp:
            np.save(temp / _KEYS, np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32))
            np.save(temp / _BLOCK, np.stack(features))

    def _read(self) -> dict[bytes, FeatureArray]:
        """What is kept; a block that was changed or is not whole is removed, and computed again."""
        known: dict[bytes, FeatureArray] = {}
        for block in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if block.name.startswith("."):  # another process writes it
                continue
            try:
                if folder_faults(block):
                    shutil.rmtree(block, ignore_errors=True)
                    continue
                keys = np.load(block / _KEYS, allow_pickle=False)
                features = np.load(block / _BLOCK, allow_pickle=False)
            except FileNotFoundError:  # another process removed it
                continue
            known |= zip(map(bytes, keys), features, strict=True)
        return known

    def _forget_old(self) -> None:
        """Remove the folders that were not used for longest, none that a training beside this one may be using."""
        if not self._folder.is_dir():
            return
        os.utime(self._folder)
        used: dict[Path, float] = {}
        for folder in self._root.iterdir():
            with suppress(FileNotFoundError):  # another process removed it
                used[folder] = folder.stat().st_mtime
        for folder in sorted(used, key=used.__getitem__, reverse=True)[_KEPT:]:
            if time.time() - used[folder] > _IN_USE_S:
                shutil.rmtree(folder, ignore_errors=True)


def _single_threads(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def _sha256(image: NDArray[np.uint8]) -> bytes:
    content: Any = np.ascontiguousarray(image).data
    return hashlib.sha256(str(image.shape).encode() + bytes(1) + hashlib.sha256(content).digest()).digest()
