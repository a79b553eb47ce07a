"""One training from first weights to last, or from the last finished epoch on."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from twinrun.base.errors import DataError, DivergedError, ModelError, PausedTraining, TrainingError
from twinrun.base.printing import print
from twinrun.core.arrays import FloatArray, Pixels
from twinrun.core.networks import is_own_file
from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import Manifest
from twinrun.models.architectures import find_head, in_channels_last
from twinrun.training import collectives
from twinrun.training.checkpoints import Checkpoint, Checkpoints
from twinrun.training.folds import OutOfFold
from twinrun.training.interruption import StopRequest
from twinrun.training.launch import starting_others
from twinrun.training.lightning import pl
from twinrun.training.module import Classifier, EpochScores, SplitImages
from twinrun.training.probe import Probe
from twinrun.training.processes import build_strategy, cluster, join_others, local_process_count, node_count, rank
from twinrun.training.shards import Numerics, ShardedNetwork, laid_out_like, thread_count

_LINE_EVERY_S = 30.0


@dataclass(frozen=True)
class Trained:
    """The weights that a training ends with, those of `kept_epoch`, and the scores of every epoch.

    `earlier_s` counts the epochs that earlier processes computed, should it have been `resumed`. A probe has one epoch
    and says how its `probe` was chosen. `out_of_fold` are scores of all images where there are any, and `beside` the
    probabilities (N, C) of the test images by other models, by name: those of each seed, the nearest neighbour.
    """

    tensors: dict[str, Tensor]
    history: tuple[EpochScores, ...]
    kept_epoch: int
    earlier_s: float
    resumed: bool
    probe: Probe | None = None
    out_of_fold: OutOfFold | None = None
    beside: Mapping[str, FloatArray] = field(default_factory=dict)


OnEpoch = Callable[[EpochScores, float | None], None]
"""Called after each epoch, in the first process, with its scores and the training speed in images per second.

Called without a speed for every epoch of a checkpoint that training goes on from: the process that computed it may have
died before it could report.
"""


def fit(
    network: nn.Module,
    images: Pixels,
    manifest: Manifest,
    params: TrainParams,
    numerics: Numerics,
    *,
    checkpoints: Checkpoints,
    stop: StopRequest,
    on_epoch: OnEpoch,
) -> Trained:
    """Train `network` on the train split and judge it on the val split after each epoch.

    Goes on after the newest checkpoint, and ends with the same weights as a training that was never stopped; on several
    machines the first process's checkpoint counts. Raises DataError where a batch is larger than the training set,
    DivergedError where the loss is not finite, InterruptedTraining where `stop` asks for it, and PausedTraining after
    the epoch that `stop` names.
    """
    classes = len(manifest.classes)
    train, val = (SplitImages(images, manifest.split(name), classes, numerics.device) for name in ("train", "val"))
    check_batch_size(len(train), params.batch_size)
    with in_shards(network, train, params, numerics) as sharded:
        head = find_head(network, classes)
        module = Classifier(sharded, train, val, params, list(head[1].parameters()) if head else ())
        progress = _Progress(module, checkpoints, stop, on_epoch, params)
        join_others()
        progress.restore()
        progress.pause()
        if not progress.is_over:
            _run(module, progress, params, numerics, stop)
    if not progress.is_over:
        raise TrainingError(f"Lightning ended the training after epoch {progress.epochs_done} of {params.epochs}.")
    return Trained(
        progress.kept_tensors, tuple(progress.history), progress.kept_epoch, progress.earlier_s, progress.resumed
    )


def in_shards(network: nn.Module, train: SplitImages, params: TrainParams, numerics: Numerics) -> ShardedNetwork:
    """The network on its device, computed in shards as the settings say; to be used as a context."""
    return ShardedNetwork(
        in_channels_last(network.to(numerics.device)),
        numerics,
        shards=params.shards,
        threads=thread_count(params.threads),
        label_smoothing=params.label_smoothing,
        seed=params.seed,
        class_weights=class_weights(train) if params.balance == "weights" else None,
        keep_batch_norm=params.freeze == "batch_norm",
        own_file=params.model if is_own_file(params.model) else None,
    )


def class_weights(train: SplitImages) -> list[float]:
    """The weight of each class in the loss, such that all weigh the same together and an image weighs 1 on average."""
    counts = np.bincount(train.targets, minlength=train.classes)
    present = np.count_nonzero(counts)
    return [len(train) / (present * count) if count else 0.0 for count in counts.tolist()]


def check_batch_size(images: int, batch_size: int) -> None:
    """Raise DataError where a batch would be larger than the training set."""
    if batch_size > images:
        raise DataError(
            f"A batch of {batch_size} images (params.yaml: train.batch_size) is larger than the training split, which "
            f"has {images}. "
            + (f"Set it to {images} or less, or add images." if images > 1 else "Training needs two images: add some.")
        )


def announce(scores: EpochScores, images_per_second: float, epochs: int) -> None:
    """Print what an epoch gave; on a terminal the progress bar stands above it."""
    print(
        f"epoch {scores.epoch:>{len(str(epochs))}}/{epochs}  train loss {scores.train_loss:.4f}  "
        f"val loss {scores.val_loss:.4f}  val accuracy {scores.val_accuracy:.2%}  {images_per_second:,.0f} images/s",
        flush=True,
    )


def _run(module: Classifier, progress: "_Progress", params: TrainParams, numerics: Numerics, stop: StopRequest) -> None:
    if rank() == 0:
        stop.check()  # another one goes on until all can stop together
    on_terminal = sys.stdout.isatty() and rank() == 0
    callbacks: list[pl.Callback] = [progress]
    if on_terminal:
        callbacks.append(_EpochBar())
    # Lightning names the devices it sees, recommends products and deplores its own use of PyTorch.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer = pl.Trainer(
            accelerator="gpu" if numerics.device.type == "cuda" else "cpu",
            devices=local_process_count(params),
            num_nodes=node_count(),
            strategy=build_strategy(params, numerics.device),
            plugins=[cluster()],
            max_epochs=params.epochs,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=on_terminal,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        # Lightning's own count of epochs, so that its loop and its display go on where the training stopped.
        counts = trainer.fit_loop.epoch_progress.current
        for count in ("ready", "started", "processed", "completed"):
            setattr(counts, count, progress.epochs_done)
        try:
            stop.hold_for_children()
            with starting_others():
                trainer.fit(module)
        except (RuntimeError, ModelError) as error:
            if "deterministic" not in str(error.__cause__ or error):  # of a network's own error the name may have it
                raise
            raise ModelError(
                f"{params.model} has a part that PyTorch cannot compute twice in the same way on this device: "
                f"{str(error).splitlines()[0]}\n"
                "Train it on a CPU (train.accelerator: cpu) or choose another train.model."
            ) from error
        finally:
            stop.install()


class _EpochBar(pl.callbacks.RichProgressBar):
    """Lightning's bar, gone when its epoch is over, with epochs counted from 1 as everywhere else."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


@dataclass(frozen=True)
class _Facts:
    """What a checkpoint keeps beside its tensors."""

    history: list[EpochScores]
    kept_epoch: int
    elapsed_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    steps_done: Annotated[int, Field(ge=0)]


class _Progress(pl.Callback):
    """After each epoch: keeps the weights that count, writes the checkpoint, tells the world; stops when asked to."""

    def __init__(
        self, module: Classifier, checkpoints: Checkpoints, stop: StopRequest, on_epoch: OnEpoch, params: TrainParams
    ) -> None:
        self.history: list[EpochScores] = []
        self.kept_epoch = 0
        self.kept_tensors: dict[str, Tensor] = {}
        self._module, self._checkpoints, self._stop = module, checkpoints, stop
        self._on_epoch, self._params = on_epoch, params
        self.earlier_s = 0.0
        self.resumed = False
        self._elapsed_s = 0.0
        self._resumed: Checkpoint | None = None
        self._epoch_started = self._line_written = time.monotonic()
        self._writes_lines = rank() == 0
        module.after_step = self.after_step

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or the validation loss has not fallen for `train.patience` epochs."""
        return self.epochs_done >= self._params.epochs or self._is_out_of_patience

    @property
    def _is_out_of_patience(self) -> bool:
        if self._params.patience is None or not self.history:
            return False
        lowest = min(self.history, key=lambda scores: (scores.val_loss, scores.epoch))
        return self.epochs_done - lowest.epoch >= self._params.patience

    def restore(self) -> None:
        """Put the newest checkpoint's state into the module; the optimizer's follows when Lightning has made it."""
        checkpoint, passed_over = collectives.from_first(self._checkpoints.newest)
        if rank() == 0:
            for line in passed_over:
                print(f"Warning: {line}", file=sys.stderr, flush=True)
        if checkpoint is None:
            return
        self._resumed = checkpoint
        self.resumed = True
        with self._explained():
            facts = TypeAdapter(_Facts).validate_python(checkpoint.facts)
            if [scores.epoch for scores in facts.history] != list(range(1, checkpoint.epoch + 1)):
                raise ValueError(f"its history is not that of {checkpoint.epoch} epochs")
            if not 1 <= facts.kept_epoch <= checkpoint.epoch:
                raise ValueError(f"it keeps epoch {facts.kept_epoch} of {checkpoint.epoch}")
            self.kept_tensors = _under(checkpoint.tensors, "kept.")
            self._module.load_state_dict(_under(checkpoint.tensors, "module."))
        self.earlier_s = self._elapsed_s = facts.elapsed_s
        self.history, self.kept_epoch = facts.history, facts.kept_epoch
        self._module.steps_done = facts.steps_done
        if rank() == 0:
            print(
                f"Resuming after epoch {checkpoint.epoch} of {self._params.epochs} from {self._checkpoints.folder}",
                flush=True,
            )
            for scores in self.history:
                self._on_epoch(scores, None)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what does not fit this training, in a checkpoint whose hashes are right, into a TrainingError."""
        try:
            yield
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
            folder = self._checkpoints.folder
            raise TrainingError(
                f"The newest checkpoint in {folder} is not one that this training wrote: {error}\n"
                f"Remove it and train from the start: rm -r {folder}"
            ) from None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._writes_lines = rank() == 0 and trainer.progress_bar_callback is None
        self._stop.install()  # again, since Lightning has installed its own, which would end the process with 0
        standings = collectives.gather_objects((self._checkpoints.folder.name, self.epochs_done))
        if len(set(standings)) > 1:
            lines = [f"  process {i}: fingerprint {f[:12]}, {e} epochs done" for i, (f, e) in enumerate(standings)]
            raise TrainingError(
                "The training processes do not work on the same training:\n"
                + "\n".join(lines)
                + "\nGive them the same code, params, data and processors."
            )
        if self._resumed is not None:
            with self._explained():
                _load_optimizer(trainer.optimizers[0], self._resumed)
            self._resumed = None
        self._stop_together()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._epoch_started = self._line_written = time.monotonic()

    def after_step(self) -> None:
        """Stop where that was asked for; without a progress bar, tell now and again how far the epoch is."""
        self._stop_together()
        now = time.monotonic()
        if self._writes_lines and now - self._line_written > _LINE_EVERY_S:
            self._line_written = now
            total = self._module.steps_per_epoch
            done = self._module.steps_done - self.epochs_done * total
            print(f"epoch {self.epochs_done + 1}/{self._params.epochs}  step {done}/{total}", flush=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._epoch_s = time.monotonic() - self._epoch_started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        scores = self._module.scores
        assert scores is not None
        if not torch.tensor(scores.val_loss).isfinite():
            raise DivergedError(
                f"The validation loss became {scores.val_loss} after epoch {scores.epoch}, where the learning rate was "
                f"{scores.learning_rate:.3g}. Lower train.learning_rate in params.yaml or set train.gradient_clip."
            )
        self.history.append(scores)
        if self._params.keep == "last" or scores.epoch == _best_epoch(self.history):
            self.kept_epoch = scores.epoch
            state = self._module.result_network.state_dict()
            self.kept_tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        self._elapsed_s += time.monotonic() - self._epoch_started
        if rank() == 0:
            self._checkpoints.save(scores.epoch, self._tensors(trainer.optimizers[0]), self._facts())
            self._on_epoch(scores, self._module.images_per_epoch / max(self._epoch_s, 1e-9))
            if self._is_out_of_patience:
                print(f"Training ends: no lower validation loss for {self._params.patience} epochs (train.patience)")
        trainer.should_stop = self.is_over
        self._stop_together()
        self.pause()

    def pause(self) -> None:
        """Raise PausedTraining where a trial has reached the epoch at which it is judged, unless it is over."""
        pause_after = self._stop.pause_after
        if pause_after is not None and self.epochs_done >= pause_after and not self.is_over:
            raise PausedTraining(self.epochs_done)

    def _stop_together(self) -> None:
        """Stop all processes after the same step, whichever of them was asked to."""
        self._stop.check(also=collectives.is_any(self._stop.requested))

    def _tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        states = optimizer.state_dict()["state"]
        return {
            **{f"module.{name}": tensor for name, tensor in self._module.state_dict().items()},
            **{f"kept.{name}": tensor for name, tensor in self.kept_tensors.items()},
            **{f"optimizer.{i}.{key}": value for i, state in states.items() for key, value in state.items()},
        }

    def _facts(self) -> dict[str, Any]:
        return {
            "history": [asdict(scores) for scores in self.history],
            "kept_epoch": self.kept_epoch,
            "elapsed_s": self._elapsed_s,
            "steps_done": self._module.steps_done,
        }


def _best_epoch(history: list[EpochScores]) -> int:
    """The epoch with the highest validation accuracy; of equals the one with the lowest loss, then the first."""
    return min(history, key=lambda scores: (-scores.val_accuracy, scores.val_loss, scores.epoch)).epoch


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(checkpoint.tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        # A file holds no strides, and the moments of a parameter must lie in memory as it does.
        moment = laid_out_like(tensor, parameter.detach()) if tensor.shape == parameter.shape else tensor
        states.setdefault(int(index), {})[key] = moment
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
