"""The learning rate of each step as a pure function of settings. Holds no state, so a resume needs none."""

import math

from twinrun.core.params import TrainParams


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
