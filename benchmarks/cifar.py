"""The preset cifar10 against airbench94: `python -m benchmarks.cifar --data FOLDER`; an hour on 2 cores.

airbench94 (Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024) is the package `airbench` as it is,
network, recipe and loader; `make bench-cifar` installs it. It asks for a GPU and its half precision; here it is given
the CPU, all cores, and bfloat16 where the processor has it, else float32. FOLDER holds train/<class>/ and
test/<class>/.

First both train for a few steps, in turns, each turn in a process of its own: images per second. With `--whole` each
then trains to its end, once, in a process of its own: seconds from the start of the process to the accuracy on test.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.shards_speed import Clock, bare_trainer, has_bfloat16, processor

if TYPE_CHECKING:
    import torch

    from twinrun.core.arrays import Pixels
    from twinrun.core.params import TrainParams
    from twinrun.dataset.manifest import Manifest

WAYS = ("twinrun", "airbench94")
_EPOCHS = 9.9  # of airbench94


def main() -> None:
    started = time.perf_counter()
    options = _options()
    if options.way:
        print(json.dumps(_run(options, started)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _pack(options.data, Path(folder))
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(options.repeats):
            for way in WAYS:
                speeds[way].append(_in_own_process(way, options, folder)["images_per_second"])
                print(f"turn {turn + 1}/{options.repeats}  {way:10} {speeds[way][-1]:6.0f} images/s", file=sys.stderr)
        whole = {way: _in_own_process(way, options, folder, "--whole") for way in WAYS if options.whole}
    _report(speeds, whole, options)


def _in_own_process(way: str, options: argparse.Namespace, folder: str, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cifar", "--way", way, "--data", folder, "--steps", str(options.steps)]
    done = subprocess.run(
        [*command, "--threads", str(options.threads), *more], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{way} failed")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _pack(source: Path, folder: Path) -> None:
    """Write both splits as airbench keeps them, cifar10/train.pt and cifar10/test.pt: uint8 (N, 32, 32, 3), labels."""
    import numpy as np
    import torch
    from PIL import Image

    (folder / "cifar10").mkdir()
    for split in ("train", "test"):
        files = sorted((source / split).glob("*/*"))
        classes = sorted({file.parent.name for file in files})
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        labels = torch.tensor([classes.index(file.parent.name) for file in files])
        packed = {"images": torch.from_numpy(pixels), "labels": labels, "classes": classes}
        torch.save(packed, folder / "cifar10" / f"{split}.pt")


def _run(options: argparse.Namespace, started: float) -> dict[str, Any]:
    import torch

    torch.manual_seed(options.seed)
    os.chdir(options.data)
    way = _airbench if options.way == "airbench94" else _twinrun
    ticks, batch, accuracy = way(options)
    if not options.whole:
        return {"images_per_second": (len(ticks) - 1) * batch / (ticks[-1] - ticks[0])}
    return {"seconds": time.perf_counter() - started, "accuracy": accuracy}


def _airbench(options: argparse.Namespace) -> tuple[list[float], int, float]:
    """Train by the package: the time of each step, images in a batch, and accuracy on test by its six views."""
    import torch

    torch.set_num_threads(options.threads)
    _on_the_cpu(torch.bfloat16 if has_bfloat16() else torch.float32)
    from airbench import lib_airbench94, utils  # type: ignore[import-not-found]

    ticks: list[float] = []

    class Timed(utils.CifarLoader):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for batch in super().__iter__():
                yield batch
                ticks.append(time.perf_counter())

    settings = lib_airbench94.hyp
    batch = int(settings["opt"]["batch_size"])
    loader = Timed("cifar10", batch_size=batch, aug=settings["aug"], altflip=True)
    epochs = _EPOCHS if options.whole else (options.steps + 2) / len(loader)
    network = lib_airbench94.train94(loader, epochs=epochs, verbose=False)
    if not options.whole:
        return ticks[1:], batch, 0.0
    return (
        ticks,
        batch,
        utils.evaluate(network, utils.CifarLoader("cifar10", train=False, batch_size=2000), tta_level=2),
    )


def _on_the_cpu(precision: "torch.dtype") -> None:
    """Let what asks for a GPU and half precision have the CPU and `precision`."""
    import torch

    class Event:
        def __init__(self, **_: Any) -> None:
            pass

        def record(self) -> None:
            pass

        def elapsed_time(self, _: "Event") -> float:
            return 0.0

    # Loaded now: a file cannot be, once `half` is another type.
    packed = {name: torch.load(Path("cifar10", name)) for name in ("train.pt", "test.pt")}
    changes: dict[Any, dict[str, Any]] = {
        torch: {"half": precision, "load": lambda file, **_: packed[Path(file).name]},
        torch.Tensor: {"half": lambda tensor: tensor.to(precision)},
        torch.nn.Module: {"half": lambda module: module.to(precision), "cuda": lambda module: module},
        torch.cuda: {"Event": Event, "synchronize": lambda: None},
    }
    for of, names in changes.items():
        for name, value in names.items():
            setattr(of, name, value)


def _twinrun(options: argparse.Namespace) -> tuple[list[float], int, float]:
    """Train by the preset cifar10, with one of 50 training images as val: as `_airbench`, by the preset's views."""
    import logging
    import warnings
    from dataclasses import asdict, replace

    import numpy as np
    import torch

    from twinrun.dataset.manifest import Manifest, Split
    from twinrun.models.architectures import build_network
    from twinrun.models.bundle import Bundle, Preprocessing, weights_hash
    from twinrun.models.predict import probabilities
    from twinrun.models.views import with_views
    from twinrun.project.presets import preset_params
    from twinrun.training.checkpoints import Checkpoints
    from twinrun.training.fit import fit
    from twinrun.training.interruption import StopRequest
    from twinrun.training.numerics import resolve_numerics
    from twinrun.training.starting import set_first_weights

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    packed = [torch.load(Path("cifar10", f"{split}.pt")) for split in ("train", "test")]
    images = np.concatenate([each["images"].numpy() for each in packed])
    targets = np.concatenate([each["labels"].numpy() for each in packed])
    rows = np.arange(len(images))
    in_test = rows >= len(packed[0]["images"])
    in_val = (rows % 50 == 0) & ~in_test
    splits = {
        name: Split(rows[chosen], [f"{row:016x}" for row in rows[chosen]], targets[chosen])
        for name, chosen in (("train", ~in_val & ~in_test), ("val", in_val), ("test", in_test))
    }
    manifest = Manifest(tuple(packed[0]["classes"]), splits)  # type: ignore[arg-type]
    params = replace(preset_params("cifar10").train, threads=options.threads, seed=options.seed)
    numerics = resolve_numerics(params, images, splits["train"])

    def first() -> "torch.nn.Module":
        return build_network(
            params.model, channels=3, size_px=(32, 32), classes=len(manifest.classes), seed=params.seed
        )

    network = first()
    set_first_weights(network, params, images, splits["train"].rows, numerics)
    if not options.whole:
        return _steps(network, images, manifest, params, numerics, options.steps + 2), params.batch_size, 0.0

    trained = fit(
        network,
        images,
        manifest,
        params,
        numerics,
        checkpoints=Checkpoints(Path("checkpoints")),
        stop=StopRequest(),
        on_epoch=lambda scores, speed: print(scores, speed, file=sys.stderr),
    )
    final = first()
    final.load_state_dict(trained.tensors)
    preprocessing = Preprocessing(
        size_px=(32, 32),
        channels="rgb",
        fit="pad",
        resample="bilinear",
        max_pixels=1,
        mean=numerics.mean,
        std=numerics.std,
    )
    views = with_views(final.eval().to(memory_format=torch.channels_last), **asdict(params.test_views))
    bundle = Bundle(
        network=views,
        architecture=params.model,
        classes=manifest.classes,
        preprocessing=preprocessing,
        weights_hash=weights_hash(trained.tensors),
    )
    given = probabilities(bundle, images, splits["test"].rows).argmax(axis=1)
    return [], 0, float((given == splits["test"].targets).mean())


def _steps(
    network: "torch.nn.Module", images: "Pixels", manifest: "Manifest", params: "TrainParams", numerics: Any, steps: int
) -> list[float]:
    """Train for so many steps as `fit` does: the time of each but the first."""
    from twinrun.models.architectures import find_head
    from twinrun.training.fit import in_shards
    from twinrun.training.module import Classifier, SplitImages

    clock, classes = Clock(), len(manifest.classes)
    train, val = (SplitImages(images, manifest.split(name), classes) for name in ("train", "val"))
    with in_shards(network, train, params, numerics) as sharded:
        head = find_head(network, classes)
        module = Classifier(sharded, train, val, params, list(head[1].parameters()) if head else ())
        module.after_step = clock.tick
        bare_trainer(None, steps=steps).fit(module)  # or a few more, as it takes several at a time
    return clock.ticks[1:steps]


def _report(speeds: dict[str, list[float]], whole: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    medians = {way: median(values) for way, values in speeds.items()}
    table = Table(
        "training",
        "images/s, median",
        "lowest to highest",
        "seconds to the end",
        "accuracy on test",
        caption=processor(),
    )
    for way, values in speeds.items():
        end = whole.get(way)
        table.add_row(
            way,
            f"{medians[way]:.0f}",
            f"{min(values):.0f} to {max(values):.0f}",
            f"{end['seconds']:.0f}" if end else "",
            f"{end['accuracy']:.1%}" if end else "",
        )
    Console().print(table)
    if options.json:
        facts = {"processor": processor(), "threads": options.threads, "images_per_second": speeds}
        facts |= {"medians": medians, "whole": whole}
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cifar", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed in each turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="the cores there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="also train both to the end")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
