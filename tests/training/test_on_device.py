"""What a GPU does to images by torch operations are the integers of a processor; here with tensors of a processor."""

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
from twinrun.training.job import prepare_job

_NONE = dict.fromkeys(("rotate_deg", "erase", "brightness", "contrast", "saturation", "hue", "mixup", "cutmix"), 0.0)
NOTHING = AugmentParams(**_NONE, shift_px=0, flip=False, flip_in_turn=False, crop_scale=1.0, crop_ratio=1.0)
COLOURS = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.2}
SHAPES = [(100, 28, 28, 1), (60, 37, 50, 3), (500, 8, 8, 1)]


def images(shape: tuple[int, ...], seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "settings",
    [
        *({"rotate_deg": 15.0}, {"crop_scale": 0.4, "crop_ratio": 1.4}, {"brightness": 0.3}, {"contrast": 0.4}),
        *({"saturation": 0.4}, {"hue": 0.1}, COLOURS, {"shift_px": 3}, {"flip": True}, {"erase": 0.6}),
        *({"flip": True, "flip_in_turn": True}, {"rotate_deg": 9.0, "shift_px": 2, "flip": True, "erase": 0.3}),
    ],
)
def test_every_change_gives_the_same_integers(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    if shape[3] == 1 and {"saturation", "hue"} & set(settings):
        settings = {"brightness": 0.1}  # gray images have no colours
    params, keys, given = replace(NOTHING, **settings), id_keys([f"{i:016x}" for i in range(shape[0])]), images(shape)

    for epoch in range(3):
        tensors = on_device.augment(torch.from_numpy(given), keys, 7, epoch, params)

        assert (tensors.numpy() == augment.augment(given, keys, 7, epoch, params)).all()
    assert (given == images(shape)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.8}])
def test_mixtures_are_the_same_integers_with_the_same_shares(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    params, keys = replace(NOTHING, **settings), id_keys([f"{i:016x}" for i in range(shape[0])])
    own, others = images(shape), images(shape, 1)

    tensors, shares_of_tensors = on_device.mix(torch.from_numpy(own), torch.from_numpy(others), keys, 7, 2, params)
    arrays, shares = augment.mix(own, others, keys, 7, 2, params)

    assert (tensors.numpy() == arrays).all()
    assert (shares_of_tensors == shares).all()


@pytest.mark.parametrize("size", [(37, 50), (36, 49), (30, 40), (25, 34), (18, 25), (12, 20), (9, 11), (4, 5), (1, 1)])
def test_smaller_images_are_the_same_integers_whatever_the_number_of_pixels_in_one(size: tuple[int, int]) -> None:
    given = images((60, 37, 50, 3))

    assert (on_device.resized(torch.from_numpy(given), size).numpy() == augment.resized(given, size)).all()


def test_a_training_from_tensors_has_the_weights_of_one_from_the_pack(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable.keep_a_third().set(model="mlp", epochs=2, batch_size=64)
    params = load_params()
    mixed = replace(params.train.augment, mixup=0.4, rotate_deg=10.0, shift_px=1)

    def train(resume_root: str) -> Trained:
        pack, manifest = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
        settings = replace(params.train, augment=mixed)
        job = prepare_job(params.ingest, settings, pack, manifest, Path(resume_root), Path("features"))
        return job.run(StopRequest(), lambda *_: None)

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
