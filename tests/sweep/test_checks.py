"""What a worker compares with the driver: the bits of a small computation."""

from dataclasses import replace

import numpy as np
import torch

from twinrun.dataset.manifest import Split
from twinrun.project.presets import preset_params
from twinrun.sweep.checks import self_test
from twinrun.training.numerics import resolve_numerics


def test_the_numeric_self_test_has_the_same_bits_for_any_threads_and_others_in_another_precision() -> None:
    train, image = preset_params("digits").train, Split(np.zeros(1, np.int64), ["0"], np.zeros(1, np.int64))
    full, half = (
        resolve_numerics(replace(train, precision=precision), np.zeros((1, 8, 8, 1), np.uint8), image)
        for precision in ("fp32", "bf16")
    )
    threads = torch.get_num_threads()

    first = self_test(full)
    torch.set_num_threads(threads + 1)
    again, other = self_test(full), self_test(half)

    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert first == again != other
