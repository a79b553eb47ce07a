"""What a GPU does to images by torch operations are the integers of a processor.

Tested with tensors of a processor, and where there is a GPU with its own, too; trainings on one are skipped elsewhere.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_support import TrainableProject

from twinrun.core.arrays import Pixels
from twinrun.core.keyed import UInt64Array, id_keys
from twinrun.core.params import AugmentParams, load_params
from twinrun.models.bundle import weights_hash
from twinrun.training import augment, on_device
from twinrun.training.fit import Trained
from twinrun.training.interruption import StopRequest
from twinrun.training.job import Job, prepare_job
from twinrun.training.module import EpochScores

_NONE = dict.fromkeys(("rotate_deg", "erase", "brightness", "contrast", "saturation", "hue", "mixup", "cutmix"), 0.0)
NOTHING = AugmentParams(
    **_NONE, shift_px=0, shift_border="zeros", flip=False, flip_in_turn=False, crop_scale=1.0, crop_ratio=1.0
)
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.2}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SHAPES = [(100, 28, 28, 1), (60, 37, 50, 3), (500, 8, 8, 1)]


def images(shape: tuple[int, ...], seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "settings",
    [
        *({"rotate_deg": 15.0}, {"crop_scale": 0.4, "crop_ratio": 1.4}, {"brightness": 0.3}, {"contrast": 0.4}),
        *({"saturation": 0.4}, {"hue": 0.1}, COLOURS, {"shift_px": 3}, {"flip": True}, {"erase": 0.6}),
        {"shift_px": 7, "shift_border": "mirror", "flip": True},
        *({"flip": True, "flip_in_turn": True}, {"rotate_deg": 9.0, "shift_px": 2, "flip": True, "erase": 0.3}),
    ],
)
def test_every_change_gives_the_same_integers(device: str, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    if shape[3] == 1 and {"saturation", "hue"} & set(settings):
        settings = {"brightness": 0.1}  # gray images have no colours
    params, keys, given = replace(NOTHING, **settings), id_keys([f"{i:016x}" for i in range(shape[0])]), images(shape)

    for epoch in range(3):
        tensors = on_device.augment(torch.from_numpy(given).to(device), keys, 7, epoch, params)

        assert (tensors.cpu().numpy() == augment.augment(given, keys, 7, epoch, params)).all()
    assert (given == images(shape)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.8}])
def test_mixtures_are_the_same_integers_with_the_same_shares(
    device: str, shape: tuple[int, ...], settings: dict[str, Any]
) -> None:
    params, keys = replace(NOTHING, **settings), id_keys([f"{i:016x}" for i in range(shape[0])])
    own, others = images(shape), images(shape, 1)

    on_it = [torch.from_numpy(each).to(device) for each in (own, others)]
    tensors, shares_of_tensors = on_device.mix(on_it[0], on_it[1], keys, 7, 2, params)
    arrays, shares = augment.mix(own, others, keys, 7, 2, params)

    assert (tensors.cpu().numpy() == arrays).all()
    assert (shares_of_tensors == shares).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(37, 50), (36, 49), (30, 40), (25, 34), (18, 25), (12, 20), (9, 11), (4, 5), (1, 1)])
def test_smaller_images_are_the_same_integers_whatever_the_number_of_pixels_in_one(
    device: str, size: tuple[int, int]
) -> None:
    given = images((60, 37, 50, 3))

    assert (
        on_device.resized(torch.from_numpy(given).to(device), size).cpu().numpy() == augment.resized(given, size)
    ).all()


def a_job(resume_root: str, **settings: Any) -> Job:
    """The training of the working folder."""
    params = load_params()
    pack, manifest = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
    train = replace(params.train, **settings)
    return prepare_job(params.ingest, train, pack, manifest, Path(resume_root), Path("features"))


def changed_much() -> AugmentParams:
    """Settings under which digits are turned, shifted and mixed."""
    return replace(load_params().train.augment, mixup=0.4, rotate_deg=10.0, shift_px=1)


def test_a_training_from_tensors_has_the_weights_of_one_from_the_pack(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable.keep_a_third().set(model="mlp", epochs=2, batch_size=64, accelerator="cpu")

    def train(resume_root: str) -> Trained:
        return a_job(resume_root, augment=changed_much()).run(StopRequest(), lambda *_: None)

    from_pack = train("pack")
    taken: list[torch.Tensor] = []
    augment_tensors = on_device.augment

    def noted(given: torch.Tensor, keys: UInt64Array, seed: int, epoch: int, params: AugmentParams) -> torch.Tensor:
        taken.append(given)
        return augment_tensors(given, keys, seed, epoch, params)

    monkeypatch.setattr(on_device, "fits", lambda *_: True)
    monkeypatch.setattr(on_device, "augment", noted)
    from_tensors = train("tensors")

    assert len(taken) > 3
    assert from_tensors.history == from_pack.history
    assert weights_hash(from_tensors.tensors) == weights_hash(from_pack.tensors)


@pytest.mark.skipif(len(DEVICES) == 1, reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_the_weights_are_those_of_an_undisturbed_training_wherever_the_images_are(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch, optimizer: Any, precision: Any
) -> None:
    trainable.set(model="resnet9_w8", epochs=3, accelerator="gpu")
    settings = {"augment": changed_much(), "optimizer": optimizer, "precision": precision, "ema_decay": 0.9}
    undisturbed = a_job("undisturbed", **settings).run(StopRequest(), lambda *_: None)

    def die(scores: EpochScores, _: float | None) -> None:
        if scores.epoch == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        a_job("stopped", **settings).run(StopRequest(), die)
    gone_on = a_job("stopped", **settings).run(StopRequest(), lambda *_: None)
    monkeypatch.setattr(on_device, "fits", lambda *_: False)
    from_pack = a_job("pack", **settings).run(StopRequest(), lambda *_: None)

    assert undisturbed.history[-1].val_accuracy > 0.5
    assert gone_on.resumed
    for name, trained in {"gone on": gone_on, "from the pack": from_pack}.items():
        assert (name, trained.history) == (name, undisturbed.history)
        assert (name, weights_hash(trained.tensors)) == (name, weights_hash(undisturbed.tensors))
