"""One trial, seed or fold in a process of its own: `python -m twinrun.sweep.worker FOLDER`, in the project's folder.

It first compares this machine with the driver's. Its results are files in the trial's folder; result.json, written
last, says how it ended.
"""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twinrun.base.errors import (
    DataError,
    DivergedError,
    InterruptedTraining,
    ModelError,
    ParamsError,
    PausedTraining,
    SweepError,
    TwinrunError,
    os_problem,
)
from twinrun.base.files import read_json, write_json
from twinrun.base.printing import print
from twinrun.core.params import PARAMS, load_params
from twinrun.record.home import STATE
from twinrun.record.trial import VARIABLE

RESULT, LOG, PART = "result.json", "log.txt", "part.json"
# What the trial's own settings bring about, on every machine; any other error stops the sweep, which can be resumed.
_OF_THE_TRIAL = (DataError, DivergedError, ModelError, ParamsError)

State = Literal["paused", "finished", "failed", "refused", "stopped"]


@dataclass(frozen=True)
class Ending:
    """How a worker's process ended: `failed` for reasons of the trial, `refused` and `stopped` for others."""

    state: State
    reason: str = ""


def read_ending(folder: Path) -> Ending | None:
    """How the last process of a trial ended; None where it was killed, or none has run."""
    record = read_json(folder / RESULT)
    state, reason = record.get("state"), record.get("reason")
    if state not in ("paused", "finished", "failed", "refused", "stopped"):
        return None
    return Ending(state, str(reason or ""))


def preload() -> None:
    """Import what a training needs, for processes that are forked from this one."""
    _stage()
    importlib.import_module("twinrun.sweep.checks")
    importlib.import_module("sklearn.datasets")


def work(folder: Path) -> int:
    """Train what `folder` describes, or go on training it; returns the exit code of the process."""
    try:
        ending = _checked(folder) or _train(folder)
    except InterruptedTraining as interruption:
        print(interruption, file=sys.stderr, flush=True)
        return interruption.exit_code
    if ending.reason:
        print(ending.reason, file=sys.stderr, flush=True)
    write_json({"state": ending.state, "reason": ending.reason}, folder / RESULT)
    return 0 if ending.state in ("paused", "finished") else 1


def _checked(folder: Path) -> Ending | None:
    """Why this worker may not train, if there is a reason."""
    from twinrun.sweep.checks import refusal

    reason = refusal(folder.parents[1])
    return None if reason is None else Ending("refused", reason)


def _train(folder: Path) -> Ending:
    os.environ[VARIABLE] = str(folder)
    from torch import OutOfMemoryError

    try:
        if part := read_json(folder / PART).get("name"):
            _train_part(str(part), folder)
        else:
            _stage().main()
    except PausedTraining as pause:
        return Ending("paused", str(pause))
    except InterruptedTraining:
        raise
    except _OF_THE_TRIAL as error:
        return Ending("refused" if isinstance(error, ModelError) and _is_of_machine(folder) else "failed", str(error))
    except OutOfMemoryError as error:
        return Ending("failed", f"The GPU's memory is too small for this trial: {str(error).splitlines()[0]}")
    except TwinrunError as error:
        return Ending("stopped", str(error))
    except OSError as error:
        if error.errno is None:
            raise
        return Ending("stopped", os_problem(error))
    return Ending("finished")


def _is_of_machine(folder: Path) -> bool:
    """Whether a network could not be started because this machine lacks its pretrained weights."""
    from twinrun.sweep.checks import missing_weights

    file = folder / PARAMS
    return missing_weights(load_params(file if file.is_file() else folder.parents[1] / PARAMS).train)


def _train_part(name: str, folder: Path) -> None:
    """Train a seed or fold of the project's own training, whose checkpoints `pipeline.train` then finds."""
    from twinrun.sweep.checks import MANIFEST, PACK
    from twinrun.training.interruption import StopRequest, training_lock
    from twinrun.training.job import prepare_job
    from twinrun.training.launch import launch

    launch().check()
    stop = StopRequest()
    stop.install()
    stop.watch_parent()
    params, state = load_params(folder.parents[1] / PARAMS), Path(STATE)  # this clone's own may differ
    with training_lock(folder):
        job = prepare_job(params.ingest, params.train, PACK, MANIFEST, state / "resume", state / "features")
        job.run_part(name, stop)


def _stage() -> Any:
    """The project's own `pipeline.train`; a console script does not look for modules in the working folder."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    stage = importlib.import_module("pipeline.train")
    if not hasattr(stage, "current_trial"):  # it would train the project itself, and replace its model
        raise SweepError("pipeline/train.py is of an earlier version of Twinrun. Replace it: twinrun upgrade")
    return stage


if __name__ == "__main__":
    raise SystemExit(work(Path(sys.argv[1])))
