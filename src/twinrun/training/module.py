"""The LightningModule: steps, epochs and scores of one training."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from twinrun.base.errors import DivergedError, ModelError
from twinrun.core.arrays import Pixels
from twinrun.core.keyed import UInt64Array, id_keys
from twinrun.core.params import TrainParams
from twinrun.dataset.manifest import Split
from twinrun.models.predict import chunk_slices
from twinrun.training import augment, on_device
from twinrun.training.augment import partners
from twinrun.training.batches import batch_sizes, epoch_batches, place_keys
from twinrun.training.lightning import pl
from twinrun.training.muon import FilterMuon, map_here
from twinrun.training.schedule import image_size, learning_rate
from twinrun.training.shards import ShardedNetwork

_CPU = torch.device("cpu")
_GROUPS = 32  # lists of steps in an epoch, at most twice as many; the progress bar moves once for each


@dataclass(frozen=True)
class EpochScores:
    """Scores of an epoch, counted from 1: mean losses, accuracy in [0, 1], and the learning rate of its last step."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float


class SplitImages:
    """The images of one split with targets and keys: in the memory of the GPU if they fit, else read when needed."""

    def __init__(self, images: Pixels, split: Split, classes: int, device: torch.device = _CPU) -> None:
        """If `device` is the CPU or has too little free memory, images are read from the pack, batch by batch."""
        self._images: Pixels | Tensor = images
        self._rows = split.rows
        self.size: tuple[int, int] = (images.shape[1], images.shape[2])
        self.keys: UInt64Array = id_keys(split.ids)
        self.targets, self.classes = split.targets, classes
        self.is_on_device = on_device.fits(device, len(split.rows) * math.prod(images.shape[1:]))
        if self.is_on_device:
            self._images = on_device.copied(images, split.rows, device)
        self._targets = torch.from_numpy(split.targets).to(device if self.is_on_device else _CPU)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: NDArray[np.int64]) -> tuple[Pixels | Tensor, Tensor]:
        """Images as uint8 of shape (n, H, W, C), a copy, and their targets as int64 of shape (n,).

        The images are a tensor on the device, or an array.
        """
        chosen = torch.from_numpy(indices).to(self._targets.device)
        if isinstance(self._images, Tensor):
            return self._images[chosen], self._targets[chosen]
        return np.ascontiguousarray(self._images[self._rows[indices]]), self._targets[chosen]


class Classifier(pl.LightningModule):
    """Trains `sharded.network` by manual optimization: the shards compute the gradient, Lightning runs the loop.

    After each epoch `scores` holds its EpochScores, and `result_network` the network that validation judged: the moving
    average of the weights where the settings ask for one.
    """

    def __init__(
        self,
        sharded: ShardedNetwork,
        train: SplitImages,
        val: SplitImages,
        params: TrainParams,
        head: Sequence[nn.Parameter] = (),
    ) -> None:
        """`head` are the parameters of the last layer, which may be trained first and faster than the others."""
        super().__init__()
        self.automatic_optimization = False
        self.network = sharded.network.eval()
        self.average = _moving_average(self.network, params.ema_decay)
        self.steps_done = 0
        self.after_step: Callable[[], None] = lambda: None
        self.scores: EpochScores | None = None
        self._sharded, self._train_images, self._val_images, self._params = sharded, train, val, params
        self._changes: ModuleType = on_device if train.is_on_device else augment
        self._head = head
        self._losses: list[tuple[float, int]] = []

    @property
    def images_per_epoch(self) -> int:
        return len(self._train_images)

    @property
    def result_network(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.network, self._params, self._head, self._sharded.map)

    def train_dataloader(self) -> "Grouped":
        batches = EpochBatches(self, self._train_images, self._params)
        return Grouped(batches, max(1, len(batches) // _GROUPS))

    def val_dataloader(self) -> "WholeSplit":
        return WholeSplit(chunk_slices(len(self._val_images), self._val_images.size))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002
        return batch  # indices; images that are not on the device go there with the shards

    def training_step(self, batch: list[NDArray[np.int64]], batch_idx: int) -> None:  # noqa: ARG002
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for places in batch:
            self._step(places, optimizer)
            self.after_step()

    def _step(self, batch: NDArray[np.int64], optimizer: torch.optim.Optimizer) -> None:
        rate = learning_rate(self.steps_done, self.steps_per_epoch, self._params)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        result = self._sharded.backward(lambda part: self.load(batch[part]), len(batch), self.steps_done)
        if not np.isfinite(result.loss):
            shrink = rate * self._params.weight_decay
            decay = f" train.weight_decay takes {shrink:.3g} of each weight away per step; lower it too." * (shrink > 1)
            raise DivergedError(
                f"The loss became {result.loss} at step {self.steps_done} (epoch {self.current_epoch + 1}), "
                f"where the learning rate was {rate:.3g}. Lower train.learning_rate, lengthen train.warmup_epochs "
                f"or set train.gradient_clip in params.yaml.{decay}"
            )
        clip_gradient(self.network, self._params)
        optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.steps_done += 1
        self._losses.append((result.loss, len(batch)))

    def load(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images to train on, and their targets: class indices (n,), or class shares (n, C) if mixed."""
        images, params, epoch = self._train_images, self._params, self.current_epoch
        keys = place_keys(images.keys, places)
        pixels, targets = self._augmented(places % len(images), keys)
        if params.augment.mixup or params.augment.cutmix:
            others = partners(keys, len(images), params.seed, epoch)
            theirs, their_targets = self._augmented(others, images.keys[others])
            pixels, shares = self._changes.mix(pixels, theirs, keys, params.seed, epoch, params.augment)
            own, rest = (
                torch.from_numpy(share.astype(np.float32)).to(targets.device)[:, None] for share in (shares, 1 - shares)
            )
            targets = own * one_hot(targets, images.classes) + rest * one_hot(their_targets, images.classes)
        return torch.as_tensor(self._changes.resized(pixels, image_size(epoch, images.size, params))), targets

    def _augmented(self, indices: NDArray[np.int64], keys: UInt64Array) -> tuple[Pixels | Tensor, Tensor]:
        pixels, targets = self._train_images.take(indices)
        return self._changes.augment(pixels, keys, self._params.seed, self.current_epoch, self._params.augment), targets

    def on_train_start(self) -> None:
        # Where Lightning starts processes, it gives each its share of the cores as threads, which would change weights.
        self._sharded.use_one_thread()

    def on_train_epoch_start(self) -> None:
        self._losses = []
        self._sharded.train_only(self._head if self.current_epoch < self._params.head_first_epochs else None)
        self._random_state = self._global_random_state()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if not torch.equal(self._random_state, self._global_random_state()):
            raise ModelError(
                f"{self._params.model} draws random numbers in a way that Twinrun cannot key to (seed, step, shard), "
                "so that a second training would give other weights. Choose another train.model."
            )

    def validation_step(self, batch: list[slice], batch_idx: int) -> None:  # noqa: ARG002
        everything = np.arange(len(self._val_images))

        def load(part: slice) -> tuple[Tensor, Tensor]:
            pixels, targets = self._val_images.take(everything[part])
            return torch.as_tensor(pixels), targets

        network = self.result_network.eval()
        val_loss, correct = self._sharded.scores(network, load, batch).sum(dim=0).tolist()
        images = len(self._val_images)
        trained = sum(count for _, count in self._losses)
        self.scores = EpochScores(
            epoch=self.current_epoch + 1,
            train_loss=sum(loss * count for loss, count in self._losses) / trained,
            val_loss=val_loss / images,
            val_accuracy=correct / images,
            learning_rate=learning_rate(self.steps_done - 1, self.steps_per_epoch, self._params),
        )

    def _global_random_state(self) -> Tensor:
        state = torch.get_rng_state()
        return torch.cat([state, torch.cuda.get_rng_state(self.device)]) if self.device.type == "cuda" else state

    @property
    def steps_per_epoch(self) -> int:
        return len(batch_sizes(len(self._train_images), self._params.batch_size))


class EpochBatches:
    """The batches of the epoch that the module is in, as arrays of indices."""

    def __init__(self, module: Classifier, images: SplitImages, params: TrainParams) -> None:
        self._module, self._images, self._params = module, images, params

    def __len__(self) -> int:
        return len(batch_sizes(len(self._images), self._params.batch_size))

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        params, epoch = self._params, self._module.current_epoch
        balanced = balanced_classes(self._images, params)
        return iter(epoch_batches(self._images.keys, params.seed, epoch, params.batch_size, balanced))


def balanced_classes(images: SplitImages, params: TrainParams) -> NDArray[np.int64] | None:
    """The images' class indices (N,) if the settings ask for balanced sampling, else None."""
    return images.targets if params.balance == "sampling" else None


def clip_gradient(network: nn.Module, params: TrainParams) -> None:
    """Shrink the gradient of a network, in place, to the largest norm that the settings allow."""
    if params.gradient_clip is not None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), params.gradient_clip)


class Grouped:
    """Batches in lists of `size`; the last list may be shorter.

    A turn of Lightning's loop takes as long as a step of a small network, so it covers a whole list.
    """

    def __init__(self, batches: EpochBatches, size: int) -> None:
        self._batches, self._size = batches, size

    def __len__(self) -> int:
        return -(-len(self._batches) // self._size)

    def __iter__(self) -> Iterator[list[NDArray[np.int64]]]:
        batches = iter(self._batches)
        return iter(lambda: list(islice(batches, self._size)), [])


class WholeSplit:
    """A split as a single batch: the list of its chunks, which the shards' threads share."""

    def __init__(self, chunks: list[slice]) -> None:
        self._chunks = chunks

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[list[slice]]:
        yield self._chunks


def build_optimizer(
    network: nn.Module,
    params: TrainParams,
    head: Sequence[nn.Parameter] = (),
    share_out: Callable[[Callable[[int], None], Sequence[int]], object] = map_here,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, AdamW, or Muon for all matrices and filters but the head.

    Weight decay is not applied to tensors of one dimension: biases and normalisation. `share_out` distributes Muon's
    work: it calls a function with each of several numbers.

    The `share` of a group is its factor on the learning rate: 1 for the `head`, backbone_learning_rate elsewhere.
    """
    in_head = {id(parameter) for parameter in head}
    groups: list[dict[str, Any]] = []
    for share, of_head in ((params.backbone_learning_rate, False), (1.0, True)):
        trained = [p for p in network.parameters() if p.requires_grad and (id(p) in in_head) == of_head]
        is_muon = params.optimizer == "muon" and not of_head
        filters = [p for p in trained if is_muon and p.dim() in (2, 4)]
        others = [p for p in trained if p.dim() > 1 and not (is_muon and p.dim() in (2, 4))]
        for parameters, decay, muon in (
            (filters, params.weight_decay, True),
            (others, params.weight_decay, False),
            ([p for p in trained if p.dim() <= 1], 0.0, False),
        ):
            groups.append({"params": parameters, "weight_decay": decay, "share": share, "muon": muon})
    groups = [group for group in groups if group["params"]]
    if params.optimizer == "muon":
        rates = {"learning_rate": params.learning_rate, "momentum": params.momentum}
        return FilterMuon(groups, **rates, share_out=share_out)
    if params.optimizer == "sgd":
        sgd, nesterov = _not_compiled(torch.optim.SGD), params.momentum > 0
        return sgd(groups, lr=params.learning_rate, momentum=params.momentum, nesterov=nesterov, fused=True)
    adamw = _not_compiled(torch.optim.AdamW)
    return adamw(groups, lr=params.learning_rate, betas=(params.momentum, 0.999), fused=True)


def _not_compiled(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer without the wrappers that PyTorch adds for its compiler, whose import takes seconds."""
    wrapped = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in wrapped}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**plain, "step": step})


def _moving_average(network: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return average.eval().requires_grad_(False)
