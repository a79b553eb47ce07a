"""What happens around the arithmetic: `python -m benchmarks.everyday`; ten minutes on 2 cores, part of `make bench`.

Each row is one thing that a training or its user waits for, done by Twinrun and by what its field does instead, on the
same data, in turns, each turn in a process of its own:

    step      processor time of a step of the loop beside its arithmetic; Lightning with its automatic optimization
    photos    images a second from the second epoch on, augmented; torchvision's ImageFolder and a DataLoader of PyTorch
              with a worker for each core
    recipe    images a second from the second epoch on, of a ResNet-18 from random weights, with all augmentation; the
              training recipes of timm and of torchvision, as their documentation gives them, with a worker for each
              core, channels last, and bfloat16 where the processor multiplies it
    copies    reading photos, measuring light, sharpness and the like of each, and searching copies and near copies;
              what CleanVision looks for by default (TrashNet's photos where TWINRUN_TEST_DATA has them, else those
              above)
    metrics   recording the four figures of an epoch; MLflow's client with SQLite
    start     from the command to the end of the first step; Lightning with MLflow and Great Expectations imported
    nothing   processor time of `dvc repro ingest` with 20,000 photos where nothing has changed; plain DVC with the
              photos and resized copies of them as loose files
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.shards_speed import Clock, has_bfloat16, processor

if TYPE_CHECKING:
    import pytorch_lightning as pl
    import torch

    from twinrun.core.params import TrainParams
    from twinrun.ingest.listing import Listing
    from twinrun.training.module import SplitImages

_BIN = Path(sys.executable).parent
_STEPS, _BATCH = 400, 4
_PHOTOS, _PHOTO_SIZE = 768, (384, 512)
_SIZE, _SMALL = (240, 320), (96, 128)
_RECIPE_BATCH = 64
_EPOCHS_LOGGED = 300
_FILES = 20_000


def main() -> None:
    started = time.time()
    options = _options()
    if options.way:
        print(json.dumps(_ROWS[options.row][1][options.way](options.folder, started)))
        return
    results: dict[str, dict[str, list[float]]] = {}
    for row in options.rows:
        ways = _ROWS[row][1]
        results[row] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as folder:
            for prepare in _PREPARATIONS.get(row, ()):
                prepare(Path(folder))
            for turn in range(options.repeats):
                for way in ways:
                    results[row][way].append(_in_own_process(row, way, folder))
                    print(
                        f"{row}, turn {turn + 1}/{options.repeats}: {way} {results[row][way][-1]:.4g}", file=sys.stderr
                    )
    _report(results, options)


def _in_own_process(row: str, way: str, folder: str) -> float:
    command = [sys.executable, "-m", "benchmarks.everyday", "--row", row, "--way", way, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{row}, {way}:\n{done.stdout}{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


# A step of the loop, in microseconds beside the arithmetic


def _step_by_twinrun(_: Path, __: float) -> float:
    import torch

    from twinrun.models.architectures import build_network
    from twinrun.training.fit import in_shards
    from twinrun.training.module import Classifier, EpochBatches, build_optimizer
    from twinrun.training.shards import Numerics, ShardedNetwork

    params, data = _tiny()
    numerics = Numerics(torch.device("cpu"), None, (0.5,), (0.25,))

    def sharded() -> ShardedNetwork:
        network = build_network("mlp", channels=1, size_px=(8, 8), classes=10, seed=0)
        return in_shards(network, data, params, numerics)

    def whole() -> float:
        with sharded() as network:
            return _seconds_a_step(Classifier(network, data, data, params))

    def bare() -> float:
        with sharded() as network:
            module = Classifier(network, data, data, params)
            optimizer = build_optimizer(network.network, params)
            clock = Clock(time.process_time)
            for step, batch in enumerate(EpochBatches(module, data, params)):
                network.backward(lambda part, batch=batch: module.load(batch[part]), len(batch), step)  # type: ignore[misc]
                optimizer.step()
                clock.tick()
            return clock.seconds_a_step()

    return _microseconds_more(whole, bare)


def _step_by_lightning(_: Path, __: float) -> float:
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from twinrun.models.architectures import build_network

    params, data = _tiny()
    images = torch.from_numpy(data.take(np.arange(len(data)))[0]).permute(0, 3, 1, 2).float() / 255
    loader = DataLoader(TensorDataset(images, torch.from_numpy(np.arange(len(data)) % 10)), _BATCH, shuffle=True)

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = build_network("mlp", channels=1, size_px=(8, 8), classes=10, seed=0)

        def train_dataloader(self) -> Any:
            return loader

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            return cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), params.learning_rate, params.momentum)

    def bare() -> float:
        module = Plain()
        optimizer = module.configure_optimizers()
        clock = Clock(time.process_time)
        for batch in loader:
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            clock.tick()
        return clock.seconds_a_step()

    torch.set_num_threads(1)
    return _microseconds_more(lambda: _seconds_a_step(Plain()), bare)


def _microseconds_more(whole: Callable[[], float], bare: Callable[[], float]) -> float:
    """How much longer a step of `whole` takes than one of `bare`: each once to warm up, then 25 times, in turns."""
    turns = [(whole(), bare()) for _ in range(26)][1:]
    return 1e6 * (median(turn[0] for turn in turns) - median(turn[1] for turn in turns))


def _seconds_a_step(module: "pl.LightningModule") -> float:
    from benchmarks.shards_speed import bare_trainer

    clock = Clock(time.process_time)
    if hasattr(module, "after_step"):
        module.after_step = clock.tick  # type: ignore[assignment]
    bare_trainer(None if hasattr(module, "after_step") else clock).fit(module)
    return clock.seconds_a_step()


def _tiny() -> "tuple[TrainParams, SplitImages]":
    import numpy as np

    from twinrun.dataset.manifest import Split
    from twinrun.project.presets import preset_params
    from twinrun.training.module import SplitImages

    count = _STEPS * _BATCH
    ids = [f"{number:016x}" for number in range(count)]
    images = np.zeros((count, 8, 8, 1), np.uint8)
    split = Split(np.arange(count), ids, np.arange(count) % 10)
    params = preset_params("digits").train
    as_it_is = replace(params.augment, shift_px=0, rotate_deg=0.0)
    plain = replace(params, augment=as_it_is, optimizer="sgd", ema_decay=None, epochs=1)
    return replace(plain, batch_size=_BATCH, shards=1, threads=1), SplitImages(images, split, 10)


# Photos that reach the network, a second


def _write_photos(folder: Path) -> None:
    """JPEG files of two classes, cut at random out of the two photos that come with scikit-learn."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    height, width = _PHOTO_SIZE
    for label, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(_PHOTOS // 2):
            top, left = (int(random.integers(0, n - m)) for n, m in zip(photo.shape[:2], _PHOTO_SIZE, strict=True))
            cut = Image.fromarray(photo[top : top + height, left : left + width])
            cut.save(folder / "photos" / label / f"{number}.jpg", quality=90)


def _pack_photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    files = sorted((folder / "photos").glob("*/*.jpg"))
    small = [np.asarray(Image.open(file).resize((_SIZE[1], _SIZE[0]), Image.Resampling.BICUBIC)) for file in files]
    np.save(folder / "pack.npy", np.stack(small))


def _photos_by_twinrun(folder: Path, _: float) -> float:
    import numpy as np
    import torch

    from twinrun.dataset.manifest import Split
    from twinrun.models.architectures import build_network
    from twinrun.models.predict import channel_tensor, normalised
    from twinrun.project.presets import preset_params
    from twinrun.training.batches import shard_slices
    from twinrun.training.fit import in_shards
    from twinrun.training.module import Classifier, EpochBatches, SplitImages
    from twinrun.training.shards import Numerics

    images = np.load(folder / "pack.npy", mmap_mode="r")
    params = replace(preset_params("photos-tuned").train, pretrained=None, freeze="none", head_first_epochs=0)
    rows = np.arange(len(images))
    data = SplitImages(images, Split(rows, [f"{row:016x}" for row in rows], rows % 2), 2)
    network = build_network("mlp", channels=3, size_px=(8, 8), classes=2, seed=0)
    mean, std = channel_tensor((0.5,) * 3), channel_tensor((0.25,) * 3)
    with in_shards(network, data, params, Numerics(torch.device("cpu"), None, (0.5,) * 3, (0.25,) * 3)) as sharded:
        module = Classifier(sharded, data, data, params)

        def epoch() -> None:
            for batch in EpochBatches(module, data, params):
                parts = [batch[part] for part in shard_slices(len(batch), params.shards)]
                for _ in pool.map(lambda part: normalised(module.load(part)[0], mean, std), parts):
                    pass

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            epoch()
            started = time.perf_counter()
            epoch()
            return len(images) / (time.perf_counter() - started)


def _photos_by_torchvision(folder: Path, _: float) -> float:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(_SIZE, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.2, 0.2, 0.2),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
        ]
    )
    cores = len(os.sched_getaffinity(0))
    images = ImageFolder(str(folder / "photos"), change)
    loader = DataLoader(images, 32, shuffle=True, num_workers=cores, persistent_workers=True)
    for _batch in loader:
        pass
    started = time.perf_counter()
    for _batch in loader:
        pass
    return len(images) / (time.perf_counter() - started)


# A ResNet-18 from random weights, images a second


def _pack_small_photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    files = sorted((folder / "photos").glob("*/*.jpg"))
    height, width = _SMALL
    small = [np.asarray(Image.open(file).resize((width, height), Image.Resampling.BICUBIC)) for file in files]
    np.save(folder / "small.npy", np.stack(small))


def _recipe_by_twinrun(folder: Path, _: float) -> float:
    import numpy as np

    from benchmarks.shards_speed import bare_trainer
    from twinrun.dataset.manifest import Split
    from twinrun.models.architectures import build_network, find_head
    from twinrun.project.presets import preset_params
    from twinrun.training.fit import in_shards
    from twinrun.training.module import Classifier, SplitImages
    from twinrun.training.numerics import resolve_numerics

    images = np.load(folder / "small.npy")
    # The images are changed as that preset has it, and a ResNet-18 is trained by AdamW as by the peers' recipes.
    preset, rows = preset_params("photos-scratch").train, np.arange(len(images))
    params = replace(preset, start_size=1.0, batch_size=_RECIPE_BATCH, optimizer="adamw", weight_decay=0.05)
    params = replace(params, shards=len(os.sched_getaffinity(0)))  # more than there are cores only cost time
    split = Split(rows, [f"{row:016x}" for row in rows], rows % 2)
    data = SplitImages(images, split, 2)
    network = build_network("resnet18", channels=3, size_px=_SMALL, classes=2, seed=0)
    with in_shards(network, data, params, resolve_numerics(params, images, split)) as sharded:
        head = find_head(network, 2)
        module = Classifier(sharded, data, data, params, list(head[1].parameters()) if head else ())
        clock, begin = Clock(), module.on_train_epoch_start

        def begin_epoch() -> None:
            begin()
            clock.tick()

        module.on_train_epoch_start = begin_epoch  # type: ignore[method-assign]
        module.after_step = clock.tick
        bare_trainer(None).fit(module)  # from an array: the first epoch is as fast as the second
    return len(images) / (clock.ticks[-1] - clock.ticks[0])


def _recipe_by_timm(folder: Path, _: float) -> float:
    """timm's train.py: --aug-splits 0 --aa rand-m9-mstd0.5 --reprob 0.25 --mixup 0.8 --cutmix 1.0 --opt adamw."""
    from timm import create_model
    from timm.data import Mixup, create_dataset, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2

    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=2)
    loader = create_loader(
        create_dataset("", root=str(folder / "photos")),
        input_size=(3, *_SMALL),
        batch_size=_RECIPE_BATCH,
        is_training=True,
        use_prefetcher=False,
        auto_augment="rand-m9-mstd0.5",
        re_prob=0.25,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
    )
    network = create_model("resnet18", num_classes=2)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05)
    loss = SoftTargetCrossEntropy()
    return _images_a_second(network, loader, optimizer, lambda logits, targets: loss(logits, targets), mixup)


def _recipe_by_torchvision(folder: Path, _: float) -> float:
    """torchvision's new recipe: references/classification/train.py --auto-augment ta_wide --random-erase 0.1 ..."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, default_collate
    from torchvision.datasets import ImageFolder
    from torchvision.models import resnet18
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(_SMALL, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
            v2.RandomErasing(0.1),
        ]
    )
    mixture = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=2), v2.CutMix(alpha=1.0, num_classes=2)])
    loader = DataLoader(
        ImageFolder(str(folder / "photos"), change),
        _RECIPE_BATCH,
        shuffle=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
        drop_last=True,
        collate_fn=lambda batch: mixture(*default_collate(batch)),
    )
    network = resnet18(num_classes=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=2e-5)
    return _images_a_second(
        network,
        loader,
        optimizer,
        lambda logits, targets: cross_entropy(logits, targets, label_smoothing=0.1),
        lambda images, targets: (images, targets),
    )


def _images_a_second(
    network: "torch.nn.Module", loader: Any, optimizer: Any, loss: Callable[..., Any], mix: Callable[..., Any]
) -> float:
    """Train for two epochs in the best way of a processor: the speed of the second, loading included."""
    import torch

    network = network.to(memory_format=torch.channels_last).train()
    for _epoch in range(2):
        started, steps = time.perf_counter(), 0
        for given in loader:
            images, targets = mix(*given)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            loss(logits.float(), targets).backward()
            optimizer.step()
            steps += 1
    return _RECIPE_BATCH * steps / (time.perf_counter() - started)


# Reading photos and searching copies among them, in seconds


def _listed_photos(folder: Path) -> "Listing":
    from twinrun.ingest.listing import Files, Item, Listing

    trashnet = Path(os.environ.get("TWINRUN_TEST_DATA", ""), "trashnet")
    files = sorted((trashnet if trashnet.is_dir() else folder / "photos").rglob("*.jpg"))
    return Listing([Item(str(file), file.parent.name, None) for file in files], Files(files))


def _copies_by_twinrun(folder: Path, _: float) -> float:
    from twinrun.dataset.pack import creating_pack, open_pack
    from twinrun.ingest.copies.nearest import near_duplicates
    from twinrun.ingest.packing import Shape, fill_pack

    listing, shape = _listed_photos(folder), Shape((64, 64), "rgb", "pad", "bilinear", 10**8)
    started = time.perf_counter()
    with creating_pack(folder / "copies.npy", (len(listing.items), *shape.of_image)) as temp:
        facts = fill_pack(listing, shape, temp, len(os.sched_getaffinity(0)))
    near_duplicates(open_pack(folder / "copies.npy"), facts)
    return time.perf_counter() - started


def _copies_by_cleanvision(folder: Path, _: float) -> float:
    from cleanvision import Imagelab

    content: Any = _listed_photos(folder).content
    started = time.perf_counter()
    lab = Imagelab(filepaths=[str(path) for path in content.paths], verbose=False)
    lab.find_issues(verbose=False)  # all that it looks for by default: facts of each image, as ours, and copies
    return time.perf_counter() - started


# Recording the figures of an epoch, in microseconds


def _metrics_by_twinrun(folder: Path, _: float) -> float:
    from twinrun.record.journal import Journal

    journal = Journal.create(folder, name="benchmark", experiment="benchmark")
    return _microseconds(lambda epoch: journal.metrics(epoch, _FIGURES))


def _metrics_by_mlflow(folder: Path, _: float) -> float:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{folder / f'{os.getpid()}.db'}")
    run = client.create_run(client.create_experiment("benchmark")).info.run_id

    def log(epoch: int) -> None:
        metrics = [Metric(name, value, time.time_ns() // 1_000_000, epoch) for name, value in _FIGURES.items()]
        client.log_batch(run, metrics=metrics)

    log(-1)
    return _microseconds(log)


_FIGURES = {"train_loss": 0.1, "val_loss": 0.2, "val_accuracy": 0.9, "learning_rate": 0.01}


def _microseconds(log: Callable[[int], None]) -> float:
    started = time.perf_counter()
    for epoch in range(_EPOCHS_LOGGED):
        log(epoch)
    return 1e6 * (time.perf_counter() - started) / _EPOCHS_LOGGED


# From the command to the end of the first step, in seconds


def _prepare_digits(folder: Path) -> None:
    _quietly([_BIN / "twinrun", "init", "digits"], folder)
    _quietly([_BIN / "dvc", "repro", "validate"], folder / "digits")


def _start_of_twinrun(folder: Path, started: float) -> float:
    os.chdir(folder / "digits")
    sys.path.insert(0, ".")
    from twinrun.training.module import Classifier

    step = Classifier.training_step

    def first(module: Classifier, batch: Any, batch_idx: int) -> None:
        step(module, batch, batch_idx)
        print(json.dumps(time.time() - started), flush=True)
        os._exit(0)

    Classifier.training_step = first  # type: ignore[method-assign, assignment]
    import pipeline.train

    pipeline.train.main()
    raise AssertionError("no step")


def _start_of_lightning(folder: Path, started: float) -> float:
    import great_expectations  # noqa: F401
    import mlflow
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from sklearn.datasets import load_digits
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader, TensorDataset

    from twinrun.models.architectures import build_network

    mlflow.set_tracking_uri(f"sqlite:///{folder / f'{os.getpid()}.db'}")
    pixels = load_digits().images.astype(np.float32).repeat(4, axis=1).repeat(4, axis=2)[:, None]
    data = TensorDataset(torch.from_numpy(pixels), torch.from_numpy(load_digits().target))

    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=0)

        def train_dataloader(self) -> Any:
            return DataLoader(data, 64, shuffle=True)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            return cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            print(json.dumps(time.time() - started), flush=True)
            os._exit(0)

    with mlflow.start_run():
        mlflow.log_param("model", "lenet5")
        pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False).fit(Plain())
    raise AssertionError("no step")


# Nothing to do, in seconds of processor time


def _prepare_many(folder: Path) -> None:
    """A project of Twinrun, and one of DVC alone, that have run on so many small photos."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(_FILES):
        file = folder / "many" / str(number % 10) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(file)
    _quietly([_BIN / "twinrun", "init", "ours", "--data", "many"], folder)
    small = ["--set", "ingest.size_px=16", "--set", "ingest.path=data/raw/many"]
    _quietly([_BIN / "twinrun", "preset", "photos", *small], folder / "ours")
    _quietly([_BIN / "dvc", "repro", "ingest"], folder / "ours")
    peer = folder / "peer"
    peer.mkdir()
    (peer / "resize.py").write_text("import shutil\nshutil.copytree('photos', 'resized')\n", encoding="utf-8")
    stage = {"cmd": f"{sys.executable} resize.py", "deps": ["resize.py", "photos"], "outs": ["resized"]}
    (peer / "dvc.yaml").write_text(json.dumps({"stages": {"resize": stage}}), encoding="utf-8")
    (folder / "many").rename(peer / "photos")
    (folder / "many").symlink_to(peer / "photos")
    _quietly(["git", "init", "-q"], peer)
    _quietly([_BIN / "dvc", "init", "-q"], peer)
    _quietly([_BIN / "dvc", "repro"], peer)


# Called so, DVC is not watched by Twinrun, as it is wherever Twinrun is installed.
_PLAIN_DVC = (sys.executable, "-c", "import sys; from dvc.cli import main; sys.exit(main(sys.argv[1:]))")


def _nothing(project: str, *command: Any) -> Callable[[Path, float], float]:
    def run(folder: Path, _: float) -> float:
        before = os.times()
        _quietly([*command], folder / project)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return run


def _quietly(command: list[Any], folder: Path) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"},
    )
    if done.returncode:
        raise RuntimeError(f"{command}:\n{done.stdout}{done.stderr}")


# What is measured

_Way = Callable[[Path, float], float]
_ROWS: dict[str, tuple[str, dict[str, _Way]]] = {
    "step": ("a step's loop, µs", {"twinrun": _step_by_twinrun, "lightning": _step_by_lightning}),
    "photos": ("photos/s, 2nd epoch", {"twinrun": _photos_by_twinrun, "torchvision": _photos_by_torchvision}),
    "recipe": (
        "ResNet-18, images/s",
        {"twinrun": _recipe_by_twinrun, "timm": _recipe_by_timm, "torchvision": _recipe_by_torchvision},
    ),
    "copies": ("photos read and searched, s", {"twinrun": _copies_by_twinrun, "cleanvision": _copies_by_cleanvision}),
    "metrics": ("figures of an epoch, µs", {"twinrun": _metrics_by_twinrun, "mlflow": _metrics_by_mlflow}),
    "start": ("to the first step, s", {"twinrun": _start_of_twinrun, "lightning": _start_of_lightning}),
    "nothing": (
        "nothing to do, s",
        {
            "twinrun": _nothing("ours", _BIN / "dvc", "repro", "ingest"),
            "dvc": _nothing("peer", *_PLAIN_DVC, "repro", "resize"),
        },
    ),
}
_PREPARATIONS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "photos": (_write_photos, _pack_photos),
    "recipe": (_write_photos, _pack_small_photos),
    "copies": (_write_photos,),
    "start": (_prepare_digits,),
    "nothing": (_prepare_many,),
}
_MORE_IS_BETTER = {"photos", "recipe"}


def _report(results: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "Twinrun, median", "the other, median", "the other is", "times better", caption=processor())
    for row, ways in results.items():
        (_, ours), *others = ((way, median(values)) for way, values in ways.items())
        for other, theirs in others:
            ratio = ours / theirs if row in _MORE_IS_BETTER else theirs / ours
            table.add_row(_ROWS[row][0], f"{ours:.4g}", f"{theirs:.4g}", other, f"{ratio:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(
            json.dumps({"processor": processor(), "rows": results}, indent=2) + "\n", encoding="utf-8"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everyday", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--rows", nargs="+", choices=_ROWS, default=list(_ROWS), help="what to measure")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--row", choices=_ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
