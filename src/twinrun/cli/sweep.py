"""The commands `twinrun sweep`, which searches settings of training, `twinrun seeds` and `twinrun train`."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import InterruptedTraining, SweepError
from twinrun.base.files import write_text
from twinrun.base.printing import print
from twinrun.core.cores import available_cores

if TYPE_CHECKING:
    from twinrun.core.params import Params
    from twinrun.sweep.launcher import Launcher


class Engine(StrEnum):
    """Where trials run."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


class Cluster(StrEnum):
    """Where the processes of one training run."""

    ray = "ray"


Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, max=1000, help="Trainings at a time; by default one for each core, or one on a GPU."
    ),
]
On = Annotated[
    Engine, typer.Option("--on", help="Where trainings run: in processes here, as jobs of Slurm, as tasks of Ray.")
]


def sweep(
    file: Annotated[
        Path, typer.Argument(help="File of the search space and settings; the sweep takes its name.")
    ] = Path("sweep.yaml"),
    workers: Workers = None,
    on: On = Engine.local,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted sweep of that name.")] = False,
) -> None:
    """Search settings of training: Optuna proposes trials, and the validation images judge them.

    The result is the same for any number of workers and after any interruption. Each trial is a run in MLflow, below
    the run of the sweep, and `twinrun reproduce` works on it. Ctrl-C stops; --resume continues. The test images are
    never read.

    Examples: twinrun sweep, twinrun sweep rates.yaml --workers 2, twinrun sweep --resume --on slurm --workers 20
    """
    from twinrun.core.params import load_params
    from twinrun.sweep.page import page, summary
    from twinrun.sweep.plan import load_plan
    from twinrun.sweep.sweep import BEST, PAGE, TABLE, open_sweep, resuming

    if not re.fullmatch(r"[\w-][\w.-]*", file.stem):
        raise SweepError(
            f"A sweep has the name of its file, and {file.stem!r} cannot name a folder: use letters, digits, _, - and ."
        )
    params = load_params()
    plan = load_plan(file, params)
    launch = _launch(on, workers, max(plan.trials, plan.seeds), params)
    _validate()
    with (
        _stopped_by_signal(f"{_STOPPED}: {resuming(file)}"),
        open_sweep(file, plan, resume=resume, launch=launch, say=_say) as running,
    ):
        outcome = running.run()
        target = outcome.folder / PAGE
        write_text(page(outcome), target)
        running.keep(target, outcome.folder / TABLE, outcome.folder / BEST)
    for line in summary(outcome):
        print(line)
    print(f"Page: {target}, table: {outcome.folder / TABLE}")
    if outcome.best is not None:
        print(f"To use the best settings: cp {outcome.folder / BEST} params.yaml && dvc repro")


def seeds(workers: Workers = None, on: On = Engine.local) -> None:
    """Train the seeds and folds of params.yaml side by side (train.seeds, train.folds); `dvc repro` combines them.

    They are the trainings that `dvc repro` would run one after the other, with the same weights. Ctrl-C keeps what is
    done.

    Example: twinrun seeds --workers 2 && dvc repro
    """
    from twinrun.core.params import load_params
    from twinrun.sweep.parts import part_names, train_parts

    params = load_params()
    names = part_names(params)
    if not names or params.train.freeze == "backbone":
        raise SweepError(
            "There is nothing to train side by side: params.yaml asks for one training. Set train.seeds to 2 or more, "
            "or train.folds, for a network that is trained (train.freeze: none or batch_norm)."
        )
    launch = _launch(on, workers, len(names), params)
    _validate()
    with _stopped_by_signal("Stopped; finished epochs are kept. To go on: twinrun seeds"):
        train_parts(params, launch, _say)
    print(f"{len(names)} trainings are done. To combine them: dvc repro")


def train(
    on: Annotated[Cluster, typer.Option("--on", help="The cluster: Ray's, which RAY_ADDRESS names.")],
    workers: Annotated[int, typer.Option("--workers", min=1, max=1000, help="Training processes.")] = 2,
) -> None:
    """Train in several processes on the machines of a cluster; `dvc repro` then records and evaluates the model.

    On this machine alone, `dvc repro` trains. The weights are those of one process. Several processes on one machine
    need no cluster: set train.devices.

    Example: twinrun train --on ray --workers 4 && dvc repro
    """
    from twinrun.core.params import load_params
    from twinrun.record.card import installed_gpus
    from twinrun.record.home import STATE
    from twinrun.sweep.engines import open_launcher

    params, folder = load_params(), Path(STATE, on.value)
    launcher = open_launcher(on.value, workers, folder)
    try:
        from twinrun.sweep.ray_training import train

        _validate()
        with _stopped_by_signal("Stopped; finished epochs are kept. To go on: the same command"):
            train(params, workers, folder, gpus=params.train.accelerator != "cpu" and bool(installed_gpus()))
    finally:
        launcher.close()
    print("The training is done. To record it, and to evaluate the model: dvc repro")


_STOPPED = "The sweep was stopped; what its trials have finished is kept. To go on"


def _say(text: str) -> None:
    print(text, flush=True)


def _launch(on: Engine, workers: int | None, most: int, params: "Params") -> "Callable[[Path], Launcher]":
    """A function that opens the launcher, given a folder for its files."""
    from twinrun.record.card import installed_gpus
    from twinrun.sweep.engines import open_launcher

    shared = params.train.accelerator != "cpu" and installed_gpus()  # the trainings would share its memory
    slots = min(workers or (1 if shared else available_cores()), most)
    return lambda jobs: open_launcher(on.value, slots, jobs, forks=params.train.devices == 1)


@contextmanager
def _stopped_by_signal(message: str) -> Iterator[None]:
    """End with `message` after Ctrl-C and SIGTERM."""
    number: int = signal.SIGINT

    def stop(received: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal number
        number = received
        raise KeyboardInterrupt  # Ray passes no other exception of a handler on

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedTraining(message, number) from None


def _validate() -> None:
    """Bring the data up to date, once for all trials; raises SweepError where that fails."""
    if not Path("dvc.yaml").is_file():
        return
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "validate"])
    if done.returncode:
        raise SweepError("`dvc repro validate` failed, see its message above. Nothing was trained.")
