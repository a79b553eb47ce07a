"""A training that is taken up again computes and tells what the undisturbed one does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_support import TrainableProject

from twinrun.base.errors import DataError
from twinrun.core.params import TrainParams, load_params
from twinrun.models.bundle import weights_hash
from twinrun.training.fit import check_batch_size
from twinrun.training.interruption import StopRequest
from twinrun.training.job import Job, prepare_job
from twinrun.training.module import EpochScores


def job(params: TrainParams, resume_root: str) -> Job:
    """The training of the working folder."""
    return prepare_job(
        load_params().ingest,
        params,
        Path("data/out/ingest/images.npy"),
        Path("data/out/validate/manifest.parquet"),
        Path(resume_root),
        Path("features"),
    )


@pytest.fixture
def params(trainable: TrainableProject) -> TrainParams:
    trainable.set(epochs=4)
    return load_params().train


def test_an_epoch_that_was_kept_and_not_told_is_told_when_training_goes_on(params: TrainParams) -> None:
    told: list[int] = []

    def die_after_two(scores: EpochScores, _: float | None) -> None:
        if scores.epoch == 2:
            raise KeyboardInterrupt
        told.append(scores.epoch)

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        job(params, "resume").run(StopRequest(), die_after_two)
    trained = job(params, "resume").run(StopRequest(), lambda scores, _: told.append(scores.epoch))

    assert set(told) == {1, 2, 3, 4}
    assert [scores.epoch for scores in trained.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_going_on_after_any_epoch_gives_the_undisturbed_weights(params: TrainParams, optimizer: Any) -> None:
    recipe = replace(params, optimizer=optimizer, ema_decay=0.8, gradient_clip=1.0, model="lenet5")
    undisturbed = job(recipe, "undisturbed").run(StopRequest(), lambda *_: None)

    def stop_after(epoch: int) -> None:
        def die(scores: EpochScores, speed: float | None) -> None:
            if speed is not None and scores.epoch == epoch:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            job(recipe, "stopped").run(StopRequest(), die)

    for epoch in (1, 2, 3):
        stop_after(epoch)
    trained = job(recipe, "stopped").run(StopRequest(), lambda *_: None)

    assert weights_hash(trained.tensors) == weights_hash(undisturbed.tensors)
    assert trained.history == undisturbed.history
    assert trained.resumed
    assert not undisturbed.resumed


def test_other_settings_do_not_resume_what_they_did_not_make(params: TrainParams) -> None:
    first = job(params, "resume")
    others = [
        replace(params, learning_rate=0.002),
        replace(params, shards=2),
        replace(params, seed=1),
        replace(params, augment=replace(params.augment, flip=True)),
    ]

    assert len({first.fingerprint, *(job(other, "resume").fingerprint for other in others)}) == 5
    assert job(replace(params, threads=1, devices=2), "resume").fingerprint == first.fingerprint


def test_a_batch_larger_than_the_split_is_refused_before_anything_is_made(params: TrainParams) -> None:
    with pytest.raises(DataError, match="is larger than the training split"):
        job(replace(params, batch_size=5000), "resume")
    with pytest.raises(DataError, match=r"which has 1\. Training needs two images: add some"):
        check_batch_size(1, 2)
