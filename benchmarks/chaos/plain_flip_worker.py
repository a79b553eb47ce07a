"""`python -m benchmarks.chaos.plain_flip_worker N SEED`, in a project of the control: flips N bits of a saved model.

Half of them in a state_dict that torch.save wrote, half in one of Lightning's checkpoints. A flip is held where loading
refuses it, or gives the very tensors that were written.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.chaos.flips import flip_bit
from benchmarks.chaos.plain.train import LeNet


def main() -> None:
    n, seed = int(sys.argv[1]), int(sys.argv[2])
    module = LeNet(0.001)
    wanted = module.state_dict()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "model")
        for number in range(n):
            if number < n // 2:
                trainer.save_checkpoint(file)
            else:
                torch.save(wanted, file)
            moment = flip_bit(file, random.Random(f"{seed}/plain/{number}"))
            try:
                found = torch.load(file, weights_only=True)
                same = _same(found.get("state_dict", found), wanted)
                faults = [] if same else ["loaded with other weights"]
            except Exception:
                faults = []
            print(json.dumps({"moment": moment, "faults": faults, "recomputed": 0}), flush=True)


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


if __name__ == "__main__":
    main()
