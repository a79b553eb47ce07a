"""A training that is ready to start: everything that decides its weights, put together and named by its fingerprint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from twinrun.data.manifest import Manifest, read_manifest
from twinrun.data.pack import open_pack
from twinrun.errors import ParamsError
from twinrun.models.architectures import build_network
from twinrun.models.bundle import Preprocessing
from twinrun.params import IngestParams, TrainParams
from twinrun.training.checkpoints import Checkpoints
from twinrun.training.fingerprint import fingerprint, fingerprint_parts
from twinrun.training.fit import OnEpoch, Trained, check_batch_size, fit
from twinrun.training.interruption import StopRequest
from twinrun.training.module import ImageArray
from twinrun.training.numerics import describe_numerics, resolve_numerics
from twinrun.training.shards import Numerics


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network at its first weights, the data and the settings, and where its checkpoints are."""

    network: nn.Module
    images: ImageArray
    manifest: Manifest
    params: TrainParams
    preprocessing: Preprocessing
    numerics: Numerics
    parts: dict[str, Any]
    fingerprint: str
    checkpoints: Checkpoints

    def bundle_bytes(self) -> int:
        """What the model needs on disk, about."""
        tensors = self.network.state_dict().values()
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weights + 100_000

    def checkpoint_bytes(self) -> int:
        """What the checkpoints need on disk at most: three at a time, each with weights, best weights and optimizer."""
        return 3 * 5 * self.bundle_bytes()

    def run(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Train, or go on training; see `fit`."""
        return fit(
            self.network,
            self.images,
            self.manifest,
            self.params,
            self.numerics,
            checkpoints=self.checkpoints,
            stop=stop,
            on_epoch=on_epoch,
        )


def prepare_job(ingest: IngestParams, params: TrainParams, pack: Path, manifest_file: Path, resume_root: Path) -> Job:
    """Put a training together; raises what can be known before the first batch.

    That is DataError for a batch larger than the training set, ModelError for an unknown network or one that cannot
    take the images, ParamsError for shifts larger than the images, TrainingError for a GPU that is not there.
    """
    images, manifest = open_pack(pack), read_manifest(manifest_file)
    train = manifest.split("train")
    check_batch_size(len(train), params.batch_size)
    _, height, width, channels = images.shape
    if params.augment.shift_px >= min(height, width):
        raise ParamsError(
            "params.yaml does not describe a run:\n  train.augment.shift_px: must be less than ingest.size_px, "
            f"{min(height, width)}, got {params.augment.shift_px}"
        )
    network = build_network(
        params.model, channels=channels, size_px=(height, width), classes=len(manifest.classes), seed=params.seed
    )
    numerics = resolve_numerics(params, images, train)
    preprocessing = Preprocessing(
        size_px=(height, width),
        channels=ingest.channels,
        fit=ingest.fit,
        resample=ingest.resample,
        max_pixels=ingest.max_pixels,
        mean=numerics.mean,
        std=numerics.std,
    )
    parts = fingerprint_parts(params, asdict(preprocessing), pack, manifest, describe_numerics(numerics))
    name = fingerprint(parts)
    return Job(
        network=network,
        images=images,
        manifest=manifest,
        params=params,
        preprocessing=preprocessing,
        numerics=numerics,
        parts=parts,
        fingerprint=name,
        checkpoints=Checkpoints(resume_root / name),
    )
