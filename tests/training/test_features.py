"""Features that are kept on disk: which folders make room for newer ones."""

import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from twinrun.training.features import Features
from twinrun.training.interruption import StopRequest
from twinrun.training.shards import Numerics


def test_only_folders_that_no_training_used_within_the_hour_make_room(tmp_path: Path) -> None:
    now = time.time()
    for number in range(12):
        folder = tmp_path / f"{number:032x}"
        folder.mkdir()
        hours = 2 if number < 2 else 0
        os.utime(folder, (now, now - 3600 * hours - number))
    backbone = nn.Sequential(nn.Flatten()).eval()
    numerics = Numerics(torch.device("cpu"), None, (0.5,), (0.5,))

    made = Features(tmp_path, backbone, numerics, {"name": "mlp"}).of(
        lambda number: np.full((2, 2, 1), number, np.uint8), 3, threads=1, stop=StopRequest()
    )

    left = {folder.name for folder in tmp_path.iterdir()}
    assert made.shape == (3, 4)
    assert left >= {f"{number:032x}" for number in range(2, 12)}
    assert len(left) == 11  # with the new one
