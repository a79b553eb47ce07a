"""A training that is ready to start: everything that decides its weights, identified by its fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from twinrun.base.errors import DataError, ModelError, TrainingError
from twinrun.base.printing import print
from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.core.keyed import id_keys
from twinrun.core.networks import BESIDE, is_own_file
from twinrun.core.params import IngestParams, TrainParams
from twinrun.dataset.manifest import SPLITS, Manifest, Split, read_manifest
from twinrun.dataset.pack import open_pack
from twinrun.models.architectures import (
    build_network,
    ends_in_head,
    find_head,
    in_channels_last,
    require_same_answers,
    require_size,
    require_storable,
    require_trainable,
)
from twinrun.models.bundle import Bundle, Preprocessing, weights_hash
from twinrun.models.own import own_source
from twinrun.models.predict import probabilities
from twinrun.models.pretrained import Pretrained, for_channels, load_pretrained, start_from
from twinrun.models.views import with_views
from twinrun.training.augment import augment
from twinrun.training.checkpoints import Checkpoints
from twinrun.training.features import FEATURES_KEPT, FeatureArray, Features, LoadImage, backbone_of
from twinrun.training.fingerprint import fingerprint, fingerprint_parts
from twinrun.training.fit import OnEpoch, Trained, announce, check_batch_size, fit
from twinrun.training.folds import Labels, OutOfFold, joined_rows, without_fold
from twinrun.training.interruption import StopRequest
from twinrun.training.launch import starting_others
from twinrun.training.module import EpochScores
from twinrun.training.numerics import describe_numerics, pixel_statistics, resolve_numerics
from twinrun.training.probe import MOST_CROSS_VALIDATED, NEAREST, nearest_neighbour, out_of_fold, train_probe
from twinrun.training.processes import rank
from twinrun.training.schedule import image_size
from twinrun.training.shards import Numerics, thread_count
from twinrun.training.starting import set_first_weights


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network with initial weights, data and settings, and the places of checkpoints and features.

    `initial` builds the network again, with the initial weights of a seed. `source` is the content of the file in
    networks/ that defines the network, or None if Twinrun or a library defines it.
    """

    network: nn.Module
    initial: Callable[[int], nn.Module]
    images: Pixels
    manifest: Manifest
    params: TrainParams
    preprocessing: Preprocessing
    numerics: Numerics
    parts: dict[str, Any]
    fingerprint: str
    checkpoints: Checkpoints
    features: Path
    source: bytes | None = None

    def require_source(self) -> None:
        """Raise TrainingError if the file that defines the network has changed since the training began."""
        name = self.params.model.partition(":")[0]
        with suppress(ModelError):
            if self.source is None or own_source(self.params.model) == self.source:
                return
        raise TrainingError(
            f"{name} was changed while the network in it was trained. The result was not written: it would be recorded "
            f"as that of {name} as it is now. To have it, put the file back and run dvc repro, which goes on after the "
            "last epoch. To train the network as it is now: dvc repro"
        )

    def bundle_bytes(self) -> int:
        """Approximate size of the model on disk, bytes."""
        tensors = self.network.state_dict().values()
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return weights + 100_000

    def checkpoint_bytes(self) -> int:
        """Upper limit for the size of the checkpoints on disk, bytes: two for each training, and one being written.

        Each has weights, best weights and the state of the optimizer.
        """
        return (1 + 2 * (self.params.seeds + self.params.folds)) * 5 * self.bundle_bytes()

    def run(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Train, or resume, once or for each seed and fold: see `fit`, or `probe` for a frozen backbone."""
        if self.params.freeze == "backbone":
            return self._run_probe(stop, on_epoch)
        with starting_others() if self.params.seeds > 1 or self.params.folds else nullcontext():
            folds = self._folds()
            trained = self._run_seeds(stop, on_epoch) if self.params.seeds > 1 else self._fit(stop, on_epoch)
            return replace(trained, out_of_fold=self._run_folds(folds, stop)) if folds else trained

    def run_part(self, name: str, stop: StopRequest) -> None:
        """Train one of the seeds or folds to its last checkpoint, from which `run` then goes on.

        `name` is seed-SEED or fold-NUMBER; folds are counted from 0.
        """
        kind, _, number = name.partition("-")
        if kind == "seed":
            part = self._part(name, int(number), self.manifest)
        else:
            part = self._part(name, self.params.seed, self._folds()[int(number)])
        part._fit(stop, self._quietly)

    def _fit(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
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

    def _part(self, name: str, seed: int, manifest: Manifest) -> "Job":
        """The job of one seed or fold, normalised by its own training images unless weights are pretrained."""
        numerics = self.numerics
        if self.params.pretrained is None:
            mean, std = pixel_statistics(self.images, manifest.split("train").rows)
            numerics = replace(numerics, mean=mean, std=std)
        network = self.initial(seed)
        set_first_weights(network, self.params, self.images, manifest.split("train").rows, numerics)
        return replace(
            self,
            network=network,
            manifest=manifest,
            params=replace(self.params, seed=seed, seeds=1, folds=0),
            preprocessing=replace(self.preprocessing, mean=numerics.mean, std=numerics.std),
            numerics=numerics,
            checkpoints=self.checkpoints.part(name),
        )

    def _run_seeds(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Train with each seed; the training with the median validation accuracy goes on."""
        trainings, beside = [], {}
        for number in range(self.params.seeds):
            seed = (self.params.seed + number) % 2**63
            _say(f"Seed {seed}, {number + 1} of {self.params.seeds}:")
            part = self._part(f"seed-{seed}", seed, self.manifest)
            trainings.append(part._fit(stop, self._quietly))
            beside[f"seed {seed}"] = part._probabilities(trainings[-1], self.manifest.split("test").rows)
        chosen = median_training(trainings)
        _say(f"Seed {(self.params.seed + chosen) % 2**63} has the median validation accuracy and goes on.")
        if rank() == 0:
            for scores in trainings[chosen].history:
                on_epoch(scores, None)
        earlier_s, resumed = sum(each.earlier_s for each in trainings), any(each.resumed for each in trainings)
        return replace(trainings[chosen], earlier_s=earlier_s, resumed=resumed, beside=beside)

    def _folds(self) -> list[Manifest]:
        """The images of each fold as a test split, the others as train and val; none where no folds are asked for."""
        if not self.params.folds:
            return []
        fold = Labels.of_all(self.manifest).folds(self.params.folds, self.params.seed)
        manifests = [without_fold(self.manifest, fold == number) for number in np.unique(fold)]
        for manifest in manifests:
            check_batch_size(len(manifest.split("train")), self.params.batch_size)
        return manifests

    def _run_folds(self, manifests: list[Manifest], stop: StopRequest) -> OutOfFold:
        """Train without each fold, and predict the images of that fold."""
        predicted = []
        for number, manifest in enumerate(manifests):
            _say(f"Fold {number + 1} of {len(manifests)}:")
            part = self._part(f"fold-{number}", self.params.seed, manifest)
            predicted.append(part._probabilities(part._fit(stop, self._quietly), manifest.split("test").rows))
        tests = [manifest.split("test") for manifest in manifests]
        labels = Labels.of(*tests)
        numbers = np.repeat(np.arange(len(tests)), [len(test) for test in tests])
        return OutOfFold(labels.ids, labels.targets, np.concatenate(predicted), numbers)

    def _quietly(self, scores: EpochScores, images_per_second: float | None) -> None:
        if images_per_second is not None:
            announce(scores, images_per_second, self.params.epochs)

    def _probabilities(self, trained: Trained, rows: IntArray) -> FloatArray:
        """Probabilities (n, C) of images, as the bundle of that training would give them."""
        network = self.initial(self.params.seed)
        network.load_state_dict(trained.tensors)
        bundle = Bundle(
            network=with_views(in_channels_last(network.eval()), **asdict(self.params.test_views)),
            architecture=self.params.model,
            classes=self.manifest.classes,
            preprocessing=self.preprocessing,
            weights_hash=weights_hash(trained.tensors),
        )
        return probabilities(bundle, self.images, rows) if rank() == 0 else np.empty((len(rows), len(bundle.classes)))

    def _run_probe(self, stop: StopRequest, on_epoch: OnEpoch) -> Trained:
        """Compute the features of all usable images and train a head on those of the train split, in this process."""
        threads, classes = thread_count(self.params.threads), len(self.manifest.classes)
        train, val, test = (self.manifest.split(name) for name in SPLITS)
        code = {file: digest for file, digest in self.parts["code"].items() if file.startswith("models/")}
        network = {"name": self.params.model, "code": code, "source": self.parts.get("network")}
        features = Features(self.features, backbone_of(self.network, classes), self.numerics, network)

        def of(*splits: Split, views: int = self.params.probe_views) -> FeatureArray:
            """Features (V, N, D) of the first `views` views of the N images of the splits, in that order."""
            images = sum(map(len, splits))
            computed = features.of(self._views(splits), views * images, threads=threads, stop=stop)
            return computed.reshape(views, images, -1)

        if len(train) + len(val) + len(test) <= MOST_CROSS_VALIDATED:
            of_all = of(train, val, test)
            of_train, of_val = of_all[:, : len(train)], of_all[:, len(train) : len(train) + len(val)]
        else:
            of_all, of_train, of_val = None, of(train), of(val, views=1)
        probe = train_probe(of_train, train, classes, self.params, threads)
        stop.check(kept=FEATURES_KEPT)
        scored = None
        if of_all is not None and (self.params.folds or self.params.probe.folds):
            scored = out_of_fold(of_all, self.manifest, self.params, threads)
        stop.check(kept=FEATURES_KEPT)
        (train_loss, _), (val_loss, val_accuracy) = (
            probe.score(of_train[0], train.targets),
            probe.score(of_val[0], val.targets),
        )
        scores = EpochScores(1, train_loss, val_loss, val_accuracy, learning_rate=0.0)
        on_epoch(scores, None)
        beside = {}
        if of_all is not None:
            of_test = of_all[0, len(train) + len(val) :]
            beside[NEAREST] = nearest_neighbour(of_train[0], train.targets, of_test, classes)
        return Trained(
            probe.put_into(self.network),
            (scores,),
            1,
            earlier_s=0.0,
            resumed=False,
            probe=probe,
            out_of_fold=scored,
            beside=beside,
        )

    def _views(self, splits: Sequence[Split]) -> LoadImage:
        """Loads image view * N + i of the N images of the splits: view 0 unchanged, others augmented by view and id."""
        rows = joined_rows(splits)
        keys = np.concatenate([id_keys(split.ids) for split in splits])

        def load(number: int) -> Pixels:
            view, i = divmod(number, len(rows))
            image: Pixels = np.array(self.images[rows[i]][None])
            if view > 0:
                image = augment(image, keys[i : i + 1], self.params.seed, view, self.params.augment)
            only: Pixels = image[0]
            return only

        return load


def median_training(trainings: Sequence[Trained]) -> int:
    """Index of the training with the median validation accuracy; of an even number, the lower one in the middle."""
    kept = [trained.history[trained.kept_epoch - 1] for trained in trainings]
    order = sorted(range(len(kept)), key=lambda i: (kept[i].val_accuracy, -kept[i].val_loss, i))
    return order[(len(order) - 1) // 2]


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def prepare_job(
    ingest: IngestParams, params: TrainParams, pack: Path, manifest_file: Path, resume_root: Path, features: Path
) -> Job:
    """Prepare a training, and raise errors that can be detected before the first batch.

    These are DataError for an empty split or a batch larger than the training set, ModelError for an unknown network or
    one that cannot take the images, and TrainingError for a missing GPU.
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
    classes = len(manifest.classes)
    source = own_source(params.model) if is_own_file(params.model) else None
    pretrained = [] if params.pretrained is None else load_pretrained(params.pretrained, params.model)

    def initial(seed: int) -> nn.Module:
        built = build_network(
            params.model,
            channels=channels,
            size_px=(height, width),
            classes=classes,
            seed=seed,
            source=source,
        )
        if pretrained:
            start_from(built, pretrained, classes=classes)
        return built

    numerics = resolve_numerics(params, images, train)
    if pretrained:
        numerics = _normalised_as(pretrained[0], numerics, channels)
    network = initial(params.seed)
    require_storable(network, params.model)
    if params.freeze != "backbone":
        require_trainable(network, params.model, channels, (height, width), classes)
    if source is not None:
        rebuilt = initial((params.seed + 1) % 2**63)
        require_same_answers(network, rebuilt, params.model, channels, (height, width), classes)
    set_first_weights(network, params, images, train.rows, numerics)
    if params.start_size < 1:
        require_size(network, params.model, channels, image_size(0, (height, width), params), classes)
    needs_head = params.freeze == "backbone" or params.head_first_epochs > 0 or params.backbone_learning_rate != 1
    if (needs_head and find_head(network, classes) is None) or (
        params.freeze == "backbone" and not ends_in_head(network, channels, (height, width), classes)
    ):
        raise ModelError(
            f"{params.model} does not end in a linear layer with a bias, so a separate head cannot be trained on it. "
            "In params.yaml set train.freeze: none, train.head_first_epochs: 0 and train.backbone_learning_rate: 1.0, "
            "or choose another train.model."
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
        test_flip=params.test_views.flip,
        test_shift_px=params.test_views.shift_px,
    )
    parts = fingerprint_parts(params, asdict(preprocessing), pack, manifest, describe_numerics(numerics))
    if pretrained:
        parts["pretrained"] = {"sha256": BESIDE.join(each.sha256 for each in pretrained)}
    if source is not None:
        parts["network"] = {"sha256": hashlib.sha256(source).hexdigest()}
    name = fingerprint(parts)
    return Job(
        network=network,
        initial=initial,
        images=images,
        manifest=manifest,
        params=params,
        preprocessing=preprocessing,
        numerics=numerics,
        parts=parts,
        fingerprint=name,
        checkpoints=Checkpoints(resume_root / name),
        features=features,
        source=source,
    )


def _normalised_as(pretrained: Pretrained, numerics: Numerics, channels: int) -> Numerics:
    """The normalisation that pretrained weights expect, where they expect one."""
    if pretrained.mean is None or pretrained.std is None:
        return numerics
    return replace(numerics, mean=for_channels(pretrained.mean, channels), std=for_channels(pretrained.std, channels))
