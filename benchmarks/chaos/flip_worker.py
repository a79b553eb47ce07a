"""`python -m benchmarks.chaos.flip_worker N SEED`, in a project of Twinrun: flips N bits and prints a line for each."""

import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.flips import flip_bit
from pipeline.train import MANIFEST, PACK
from twinrun.base.errors import BundleError
from twinrun.core.params import load_params
from twinrun.models.bundle import load_bundle, save_bundle, weights_hash
from twinrun.training.checkpoints import Checkpoints
from twinrun.training.interruption import StopRequest
from twinrun.training.job import Job, prepare_job
from twinrun.training.module import EpochScores


class _Stopped(Exception):
    """The training was stopped where it should be."""


def main() -> None:
    n, seed = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        job = _job(folder / "whole")
        wanted = weights_hash(job.run(StopRequest(), lambda *_: None).tensors)
        stopped_after = job.params.epochs - 1
        _stop_after(stopped_after, folder / "stopped")
        for number in range(n // 2):
            _flip_checkpoint(folder, random.Random(f"{seed}/checkpoint/{number}"), stopped_after, wanted)
        model = folder / "bundle"
        _save(job, model)
        for number in range(n - n // 2):
            _flip_bundle(model, folder / "flipped", random.Random(f"{seed}/bundle/{number}"))


def _job(checkpoints: Path) -> Job:
    params = load_params()
    job = prepare_job(params.ingest, params.train, PACK, MANIFEST, checkpoints, checkpoints / "features")
    return replace(job, checkpoints=Checkpoints(checkpoints))


def _stop_after(epoch: int, checkpoints: Path) -> None:
    def on_epoch(scores: EpochScores, speed: float | None) -> None:  # noqa: ARG001
        if scores.epoch == epoch:
            raise _Stopped

    with contextlib.suppress(_Stopped):
        _job(checkpoints).run(StopRequest(), on_epoch)


def _flip_checkpoint(folder: Path, draws: random.Random, stopped_after: int, wanted: str) -> None:
    checkpoints = folder / "flipped-checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.copytree(folder / "stopped", checkpoints)
    file = draws.choice(sorted(file for file in checkpoints.rglob("*") if file.is_file()))
    moment = f"{flip_bit(file, draws)} of the checkpoint of {file.parent.name}"
    computed: list[int] = []

    def note(scores: EpochScores, speed: float | None) -> None:
        if speed is not None:  # or it was only read from the checkpoint
            computed.append(scores.epoch)

    warnings = io.StringIO()
    faults = []
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(warnings):
            found = _job(checkpoints).run(StopRequest(), note)
        if weights_hash(found.tensors) != wanted:
            faults.append("other weights")
        if file.parent.name == f"epoch-{stopped_after:05d}" and "passed over" not in warnings.getvalue():
            faults.append("it was used")
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    recomputed = sum(epoch <= stopped_after for epoch in computed)
    if recomputed > 1:
        faults.append(f"{recomputed} epochs computed again")
    _tell(moment, faults, recomputed)


def _save(job: Job, model: Path) -> None:
    save_bundle(
        model,
        job.network.state_dict(),
        architecture=job.params.model,
        classes=job.manifest.classes,
        preprocessing=job.preprocessing,
    )


def _flip_bundle(model: Path, place: Path, draws: random.Random) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(model, place)
    moment = flip_bit(draws.choice(sorted(place.iterdir())), draws)
    faults = []
    try:
        load_bundle(place)
        faults.append("it was loaded")
    except BundleError:
        pass
    except Exception as error:
        faults.append(f"{type(error).__name__}: {error}")
    _tell(f"{moment} of the model", faults, 0)


def _tell(moment: str, faults: list[str], recomputed: int) -> None:
    print(json.dumps({"moment": moment, "faults": faults, "recomputed": recomputed}), flush=True)


if __name__ == "__main__":
    main()
