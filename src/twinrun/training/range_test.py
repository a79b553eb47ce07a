"""A learning-rate range test: a short training whose rate rises with every step, to see where the loss falls.

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017. The same job, shards and augmentation as
in a training; the weights are thrown away.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from twinrun.base.progress import progress
from twinrun.core.arrays import FloatArray, IntArray
from twinrun.models.architectures import find_head
from twinrun.training.batches import epoch_batches
from twinrun.training.fit import in_shards
from twinrun.training.interruption import StopRequest
from twinrun.training.job import Job
from twinrun.training.module import Classifier, SplitImages, balanced_classes, build_optimizer, clip_gradient

_SMOOTHING = 0.9  # weight of the earlier losses in the moving average
_DIVERGED = 3.0  # times the lowest smoothed loss so far
_BELOW_LOWEST = 10.0


@dataclass(frozen=True)
class RangeTest:
    """Learning rate, loss and smoothed loss of each step; arrays of shape (steps,)."""

    rates: FloatArray
    losses: FloatArray
    smoothed: FloatArray

    def suggestion(self) -> float:
        """A learning rate to start from: a tenth of the rate with the lowest smoothed loss."""
        return float(self.rates[int(np.argmin(self.smoothed))] / _BELOW_LOWEST)

    @property
    def steepest(self) -> float:
        """The learning rate at which the smoothed loss falls fastest against the logarithm of the rate.

        Only rates up to the lowest loss count: a fall after it is noise from steps that are too large.
        """
        falling = slice(int(np.argmin(self.smoothed)) + 1)
        if falling.stop < 2:
            return self.suggestion()
        slopes = np.gradient(self.smoothed[falling], np.log(self.rates[falling]))
        return float(self.rates[int(np.argmin(slopes))])


def range_test(job: Job, *, lowest: float, highest: float, steps: int, stop: StopRequest) -> RangeTest:
    """Train for at most `steps` steps, the rate rising from `lowest` to `highest` by the same factor each step.

    Ends early if the loss is not finite or far above its lowest. Raises InterruptedTraining if `stop` was requested.
    """
    params = replace(job.params, ema_decay=None)
    train = SplitImages(job.images, job.manifest.split("train"), len(job.manifest.classes), job.numerics.device)
    head = find_head(job.network, train.classes)
    rates = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    with in_shards(job.network, train, params, job.numerics) as sharded:
        module = Classifier(sharded, train, train, params)
        optimizer = build_optimizer(job.network, params, list(head[1].parameters()) if head else ())
        with progress("Raising the learning rate", steps) as advance:
            for step, (rate, batch) in enumerate(zip(rates.tolist(), _batches(train, job), strict=False)):
                stop.check(kept="Nothing was changed.")
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["share"]
                load = partial(_load, module, batch)
                losses.append(sharded.backward(load, len(batch), step).loss)
                if not np.isfinite(losses[-1]) or _smoothed(losses)[-1] > _DIVERGED * min(_smoothed(losses)):
                    break
                clip_gradient(job.network, params)
                optimizer.step()
                advance(1)
    finite = [loss for loss in losses if np.isfinite(loss)]
    return RangeTest(rates[: len(finite)], np.array(finite), np.array(_smoothed(finite)))


def _load(module: Classifier, batch: IntArray, part: slice) -> tuple[Tensor, Tensor]:
    return module.load(batch[part])


def _batches(train: SplitImages, job: Job) -> Iterator[IntArray]:
    epoch, balanced = 0, balanced_classes(train, job.params)
    while True:
        yield from epoch_batches(train.keys, job.params.seed, epoch, job.params.batch_size, balanced)
        epoch += 1


def _smoothed(losses: list[float]) -> list[float]:
    """Exponential moving average of the losses up to each step, with bias correction."""
    mean, means = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        means.append(mean / (1 - _SMOOTHING**step))
    return means
