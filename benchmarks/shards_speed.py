"""Training speed with and without shards: `python -m benchmarks.shards_speed` or `make bench`; ten minutes on 2 cores.

ResNet-9 on 32 x 32 colour images at batch 512, several ways to train it in Lightning, on the same images, with the same
augmentation, optimizer and learning rates:

    shards      Twinrun's: K = 4 shards, one thread each, `precision: auto`
    bf16        the same module without shards: one bfloat16 batch, channels last, all cores within an operator; only
                where the processor multiplies bfloat16
    fp32        Lightning's default: float32, all cores within an operator
    fp32-nhwc   the same with channels last

They take turns, each turn in a process of its own, so that a busy moment of the machine hits all of them alike. Images
are Fashion-MNIST's where TWINRUN_TEST_DATA or data/raw has them, else scikit-learn's digits, many times over.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pytorch_lightning as pl
    from numpy.typing import NDArray

    from twinrun.core.params import TrainParams
    from twinrun.ingest.listing import Listing
    from twinrun.training.module import SplitImages

WAYS = ("shards", "bf16", "fp32", "fp32-nhwc")
_BATCH = 512
_CLASSES = 10
_SHARDS = 4


def main() -> None:
    options = _options()
    if options.way:
        print(json.dumps(_images_per_second(options.way, options.steps, options.threads)))
        return
    ways = [way for way in WAYS if way != "bf16" or has_bfloat16()]
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.repeats):
        for way in ways:
            speeds[way].append(_in_own_process(way, options.steps, options.threads))
            print(f"turn {turn + 1}/{options.repeats}  {way:10} {speeds[way][-1]:7.0f} images/s", file=sys.stderr)
    _report(speeds, options)


def has_bfloat16() -> bool:
    """Whether the processor multiplies matrices of bfloat16."""
    from twinrun.training.numerics import matrix_instructions

    return any(matrix_instructions().values())


def processor() -> str:
    """The processor's name, its cores that may be used, and whether it multiplies bfloat16."""
    from twinrun.record.card import collect_hardware

    hardware = collect_hardware()
    instructions = "with" if has_bfloat16() else "without"
    return f"{hardware['cpu']}, {hardware['cores_usable']} cores, {instructions} bfloat16 instructions"


def _in_own_process(way: str, steps: int, threads: int) -> float:
    command = [sys.executable, "-m", "benchmarks.shards_speed", "--way", way, "--steps", str(steps)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _images_per_second(way: str, steps: int, threads: int) -> float:
    """Train for one step to warm up and for `steps` that count."""
    import logging
    import warnings

    import pytorch_lightning as pl
    import torch

    from twinrun.models.architectures import build_network

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    images = _images((steps + 1) * _BATCH)
    network = build_network("resnet9", channels=3, size_px=(32, 32), classes=_CLASSES, seed=0)
    params, clock = _params(), Clock()
    data = _split_images(images)
    precision: Any = "32-true"
    if way == "shards":
        from twinrun.training.module import Classifier
        from twinrun.training.shards import Numerics, ShardedNetwork

        torch.set_num_threads(1)
        precision_here = torch.bfloat16 if has_bfloat16() else None  # as `precision: auto`
        numerics = Numerics(torch.device("cpu"), precision_here, (0.5,) * 3, (0.25,) * 3)
        network.to(memory_format=torch.channels_last)
        sharded = ShardedNetwork(
            network, numerics, shards=_SHARDS, threads=threads, label_smoothing=params.label_smoothing, seed=0
        )
        module: pl.LightningModule = Classifier(sharded, data, data, params)
    else:
        torch.set_num_threads(threads)
        if way != "fp32":
            network.to(memory_format=torch.channels_last)
        if way == "bf16":
            precision = "bf16-mixed"
        module = _whole_batches(network, data, params, contiguous=way == "fp32")
    if way == "shards":
        module.after_step = clock.tick  # type: ignore[assignment]
    bare_trainer(None if way == "shards" else clock, precision).fit(module)
    return steps * _BATCH / (clock.ticks[-1] - clock.ticks[0])


class Clock:
    """The time at the end of every step: as a callback, or told by whoever takes the steps."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.ticks: list[float] = []
        self._now = now

    def tick(self) -> None:
        self.ticks.append(self._now())

    def seconds_a_step(self) -> float:
        """The mean, from the end of the first step to that of the last."""
        return (self.ticks[-1] - self.ticks[0]) / (len(self.ticks) - 1)

    def callback(self) -> "pl.Callback":
        from pytorch_lightning.callbacks import LambdaCallback

        return LambdaCallback(on_train_batch_end=lambda *_: self.tick())


def bare_trainer(clock: Clock | None, precision: Any = "32-true", steps: int | None = None) -> "pl.Trainer":
    """A trainer of Lightning that does nothing beside one epoch, or so many `steps`, and tells a clock of each."""
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        limit_train_batches=steps,
        logger=False,
        callbacks=[clock.callback()] if clock else [],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )


def _whole_batches(
    network: Any, data: "SplitImages", params: "TrainParams", *, contiguous: bool
) -> "pl.LightningModule":
    """The peer: Twinrun's images, augmentation, optimizer and learning rates, in Lightning's automatic optimization."""
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from torch.nn.functional import cross_entropy

    from twinrun.models.predict import channel_tensor, normalised
    from twinrun.training.augment import augment
    from twinrun.training.module import EpochBatches, build_optimizer
    from twinrun.training.schedule import learning_rate

    class WholeBatches(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.mean, self.std = channel_tensor((0.5,) * 3), channel_tensor((0.25,) * 3)

        def train_dataloader(self) -> Any:
            return EpochBatches(self, data, params)  # type: ignore[arg-type]

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            for group in self.optimizers().param_groups:  # type: ignore[union-attr]
                group["lr"] = learning_rate(batch_idx, self.trainer.num_training_batches, params)  # type: ignore[arg-type]
            pixels, targets = data.take(batch)
            changed = augment(np.asarray(pixels), data.keys[batch], params.seed, self.current_epoch, params.augment)
            inputs = normalised(torch.from_numpy(changed), self.mean, self.std)
            logits = self.network(inputs.contiguous() if contiguous else inputs)
            return cross_entropy(logits.float(), targets, label_smoothing=params.label_smoothing)

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
            return batch

        def configure_optimizers(self) -> Any:
            return build_optimizer(self.network, params)

    return WholeBatches()


def _params() -> "TrainParams":
    from dataclasses import replace

    from twinrun.project.presets import preset_params

    preset = preset_params("fashion-mnist").train
    return replace(preset, model="resnet9", batch_size=_BATCH, epochs=1, shards=_SHARDS, optimizer="sgd")


def _split_images(images: "NDArray[np.uint8]") -> "SplitImages":
    import numpy as np

    from twinrun.dataset.manifest import Split
    from twinrun.training.module import SplitImages

    count = len(images)
    ids = [f"{number:016x}" for number in range(count)]
    return SplitImages(images, Split(np.arange(count), ids, np.arange(count) % _CLASSES), _CLASSES)


def _images(count: int) -> "NDArray[np.uint8]":
    """Real images as uint8 of shape (count, 32, 32, 3)."""
    import numpy as np

    from twinrun.ingest.known_sets import list_digits, list_idx

    root = Path(__file__).parents[1]
    for folder in (Path(os.environ.get("TWINRUN_TEST_DATA", ""), "fashion-mnist"), root / "data/raw/fashion-mnist"):
        if folder.is_dir() and any(folder.glob("train-images*")):
            pixels = _pixels(list_idx("fashion-mnist", folder, may_download=False))
            break
    else:
        pixels = _pixels(list_digits()).repeat(4, axis=1).repeat(4, axis=2)
    margin = (32 - pixels.shape[1]) // 2
    square = np.pad(np.resize(pixels, (count, *pixels.shape[1:])), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    return np.ascontiguousarray(square.repeat(3, axis=3))


def _pixels(listing: "Listing") -> "NDArray[np.uint8]":
    from twinrun.ingest.listing import Arrays

    assert isinstance(listing.content, Arrays)
    return listing.content.pixels


def _report(speeds: dict[str, list[float]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    medians = {way: median(found) for way, found in speeds.items()}
    columns = ("training", "images/s, median", "lowest to highest", "shards are")
    lines = [
        (
            way,
            f"{medians[way]:.0f}",
            f"{min(found):.0f} to {max(found):.0f}",
            f"{medians['shards'] / medians[way]:.2f} x",
        )
        for way, found in speeds.items()
    ]
    if options.markdown:
        print("\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *lines)))
    else:
        table = Table(
            *columns,
            title=f"ResNet-9, batch {_BATCH}, {options.threads} threads, {options.repeats} turns",
            caption=processor(),
        )
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    if options.json:
        facts = {
            "processor": processor(),
            "threads": options.threads,
            "steps": options.steps,
            "batch_size": _BATCH,
            "shards": _SHARDS,
        }
        found = {"images_per_second": speeds, "medians": medians, **facts}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards_speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed in each turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores there are")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
