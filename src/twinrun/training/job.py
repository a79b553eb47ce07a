"""A training that is ready to start: everything that decides its weights, put together and named by its fingerprint."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from twinrun.core.arrays import Pixels
from twinrun.core.errors import DataError, ModelError
from twinrun.core.networks import is_own_file
from twinrun.core.params import IngestParams, TrainParams
from twinrun.dataset.manifest import SPLITS, Manifest, read_manifest
from twinrun.dataset.pack import open_pack
from twinrun.models.architectures import build_network, find_head
from twinrun.models.bundle import Preprocessing
from twinrun.models.own import own_source
from twinrun.models.pretrained import Pretrained, for_channels, load_pretrained, start_from
from twinrun.training.checkpoints import Checkpoints
from twinrun.training.features import Features, backbone_of
from twinrun.training.fingerprint import fingerprint, fingerprint_parts
from twinrun.training.fit import OnEpoch, Trained, check_batch_size, fit
from twinrun.training.interruption import StopRequest
from twinrun.training.module import EpochScores
from twinrun.training.numerics import describe_numerics, resolve_numerics
from twinrun.training.probe import out_of_fold, train_probe
from twinrun.training.shards import Numerics, thread_count


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network at its first weights, the data and the settings, and where checkpoints and features are kept."""

    network: nn.Module
    images: Pixels
    manifest: Manifest
    params: TrainParams
    preprocessing: Preprocessing
    numerics: Numerics
    parts: dict[str, Any]
    fingerprint: str
    checkpoints: Checkpoints
    features: Path

    def bundle_bytes(self) -> int:
        """What the model needs on disk, about."""
        tensors = self.network.state_dict().values()
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weights + 100_000

    def checkpoint_bytes(self) -> int:
        """What the checkpoints need on disk at most: three at a time, each with weights, best weights and optimizer."""
        return 3 * 5 * self.bundle_bytes()

    def run(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Train, or go on training; see `fit`, and for a frozen backbone `probe`."""
        if self.params.freeze == "backbone":
            return self._run_probe(stop, on_epoch)
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

    def _run_probe(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Compute the features of all usable images and train a head on those of the train split, in this process."""
        threads, classes = thread_count(self.params.threads), len(self.manifest.classes)
        train, val, test = (self.manifest.split(name) for name in SPLITS)
        features = Features(self.features, backbone_of(self.network, classes), self.numerics).of(
            self.images, np.concatenate([train.rows, val.rows, test.rows]), threads=threads, stop=stop
        )
        of_train, of_val = features[: len(train)], features[len(train) : len(train) + len(val)]
        probe = train_probe(of_train, train, classes, self.params, threads)
        stop.check()
        scored = out_of_fold(features, self.manifest, self.params, threads)
        stop.check()
        (train_loss, _), (val_loss, val_accuracy) = (
            probe.score(of_train, train.targets),
            probe.score(of_val, val.targets),
        )
        scores = EpochScores(1, train_loss, val_loss, val_accuracy, learning_rate=0.0)
        on_epoch(scores, None)
        return Trained(
            probe.put_into(self.network), (scores,), 1, earlier_s=0.0, resumed=False, probe=probe, out_of_fold=scored
        )


def prepare_job(
    ingest: IngestParams, params: TrainParams, pack: Path, manifest_file: Path, resume_root: Path, features: Path
) -> Job:
    """Put a training together; raises what can be known before the first batch.

    That is DataError for a batch larger than the training set, ModelError for an unknown network or one that cannot
    take the images, TrainingError for a GPU that is not there.
    """
    images = open_pack(pack)
    manifest = read_manifest(manifest_file, len(images))
    for name in ("train", "val"):
        if len(manifest.split(name)) == 0:
            raise DataError(
                f"{manifest_file} has no images in {name}. Training fits the weights to those of train and scores each "
                f"epoch on those of val. Give {name} a larger share (params.yaml: validate.fractions), or put images "
                "into it where splits are listed (ingest.splits_file, validate.splits)."
            )
    train = manifest.split("train")
    if params.freeze != "backbone":
        check_batch_size(len(train), params.batch_size)
    _, height, width, channels = images.shape
    network = build_network(
        params.model, channels=channels, size_px=(height, width), classes=len(manifest.classes), seed=params.seed
    )
    numerics = resolve_numerics(params, images, train)
    pretrained = None
    if params.pretrained is not None:
        pretrained = load_pretrained(params.pretrained, params.model)
        start_from(network, pretrained, classes=len(manifest.classes))
        numerics = _normalised_as(pretrained, numerics, channels)
    needs_head = params.freeze == "backbone" or params.head_first_epochs > 0 or params.backbone_learning_rate != 1
    if needs_head and find_head(network, len(manifest.classes)) is None:
        raise ModelError(
            f"{params.model} does not end in a linear layer, so a separate head cannot be trained on it. In "
            "params.yaml set train.freeze: none, train.head_first_epochs: 0 and train.backbone_learning_rate: 1.0, or "
            "choose another train.model."
        )
    preprocessing = Preprocessing(
        size_px=(height, width),
        channels=ingest.channels,
        fit=ingest.fit,
        resample=ingest.resample,
        max_pixels=ingest.max_pixels,
        mean=numerics.mean,
        std=numerics.std,
        depth=ingest.depth,
        ground=ingest.ground,
        bands=None if ingest.bands is None else tuple(ingest.bands),
    )
    parts = fingerprint_parts(params, asdict(preprocessing), pack, manifest, describe_numerics(numerics))
    if pretrained is not None:
        parts["pretrained"] = {"sha256": pretrained.sha256}
    if is_own_file(params.model):
        parts["network"] = {"sha256": hashlib.sha256(own_source(params.model)).hexdigest()}
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
        features=features,
    )


def _normalised_as(pretrained: Pretrained, numerics: Numerics, channels: int) -> Numerics:
    """The normalisation that pretrained weights expect, where they expect one."""
    if pretrained.mean is None or pretrained.std is None:
        return numerics
    return replace(numerics, mean=for_channels(pretrained.mean, channels), std=for_channels(pretrained.std, channels))
