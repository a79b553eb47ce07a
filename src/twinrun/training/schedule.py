"""The learning rate of each step as a pure function of settings. Holds no state, so a resume needs none."""

import math

from twinrun.core.networks import shrunk
from twinrun.core.params import TrainParams

GROWING = 0.75
"""Share of the epochs in which images grow to their whole size."""


def image_size(epoch: int, size: tuple[int, int], params: TrainParams) -> tuple[int, int]:
    """Height and width of training images in `epoch` (from 0): a share of `size`, in steps of 8 pixels.

    The share grows from `params.start_size` by the same amount each epoch, to 1 after GROWING of the epochs
    ("progressive resizing", Jeremy Howard, fast.ai's entry to DAWNBench, 2018).
    """
    growing = math.ceil(GROWING * params.epochs)
    share = min(1.0, params.start_size + (1 - params.start_size) * epoch / growing)
    return shrunk(size, share)


def learning_rate(step: int, steps_per_epoch: int, params: TrainParams) -> float:
    """Learning rate of `step` (from 0) of a training of `params.epochs` epochs.

    Rises linearly over the warm-up to `params.learning_rate`, which the first step after it has; then falls to 0 by a
    half cosine (Loshchilov and Hutter, "SGDR", 2017) or a line, or stays.
    """
    total = params.epochs * steps_per_epoch
    warmup = min(round(params.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup:
        return params.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / (total - warmup)
    match params.schedule:
        case "cosine":
            return params.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return params.learning_rate * (1 - done)
        case "constant":
            return params.learning_rate
