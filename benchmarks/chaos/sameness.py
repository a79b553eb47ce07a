"""The matrix of sameness: what must not change the weights, changed. One run for each cell.

    threads 1, 2, 4 x processes 1, 2        for lenet5; with --networks for resnet9 (batch normalisation) and a network
                                            of torchvision with dropout too, each in fp32 and bfloat16
    workers that take the images in, loader workers of the control
    working folder, TMPDIR, umask, TZ, LANG, PYTHONHASHSEED, user

Cells that share a network and a precision must agree with the first of them, which for lenet5 in fp32 is the
undisturbed run.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import Lab, Outcome, Row
from benchmarks.chaos.stacks import REPOSITORY, set_param

_NOBODY = 65534
_THREADS, _PROCESSES = (1, 2, 4), (1, 2)
_NETWORKS = ("lenet5", "resnet9", "mobilenet_v3_small")
_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its name, the settings and the environment that differ, and what stands before the command."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "project"
    prefix: tuple[str, ...] = ()
    user: int | None = None


def vary_surroundings(lab: Lab, n: int) -> Row:
    """Lenet5 under every change of its surroundings; n limits how many."""
    cells = _plain_cells() if lab.stack.name == "plain" else _cells()
    row = lab.try_all("matrix of sameness", [_case(lab, cell) for cell in cells[:n]])
    row.outcomes = [outcome for outcome in row.outcomes if "left out" not in outcome.moment]
    return row


def vary_networks(lab: Lab, n: int) -> Row:
    """Threads x processes for every network and precision; the first cell of each says what the others must give."""
    found: dict[tuple[str, str], str] = {}
    fault = "matrix of sameness, other networks"
    if lab.stack.name == "plain":
        return Row(fault=fault, stack="plain", seed=lab.seed, left_out="not tried")

    def case(network: str, precision: str, threads: int, processes: int) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            settings = {"model": network, "precision": precision, "threads": threads, "devices": processes}
            for name, value in {**settings, "epochs": 1, "batch_size": 128}.items():
                set_param(project, f"train.{name}", value)
            ended = lab.stack.start(project, lab.stack.train).finish()
            weights = lab.stack.weights(project)
            wanted = found.setdefault((network, precision), weights) if weights else None
            faults = [f"it ended with {ended.code}"] if ended.code else []
            faults += ["other weights"] if weights != wanted else []
            moment = f"{network} {precision}, {threads} threads x {processes} processes"
            return Outcome(moment=moment, faults=tuple(faults), log=str(ended.log))

        return attempt

    cells = [cell for cell in product(_NETWORKS, _PRECISIONS, _THREADS, _PROCESSES) if cell[:2] != ("lenet5", "fp32")]
    return lab.try_all(fault, [case(*cell) for cell in cells[:n]])


def _cells() -> list[Cell]:
    crowd = [
        Cell(
            name=f"{threads} threads x {processes} processes",
            params={"train.threads": threads, "train.devices": processes},
        )
        for threads, processes in product(_THREADS, _PROCESSES)
    ]
    ingest = [Cell(name=f"{workers} ingest workers", params={"ingest.workers": workers}) for workers in (1, 3)]
    return [*crowd, *ingest, *_surroundings()]


def _plain_cells() -> list[Cell]:
    crowd = [
        Cell(
            name=f"{threads} threads x {processes} processes",
            params={"train.devices": processes},
            environment={"OMP_NUM_THREADS": str(threads)},
        )
        for threads, processes in product(_THREADS, _PROCESSES)
    ]
    loader = [Cell(name=f"{workers} loader workers", params={"train.loader_workers": workers}) for workers in (1, 2)]
    return [*crowd, *loader, *_surroundings()]


def _surroundings() -> list[Cell]:
    return [
        Cell(name="a folder with a space and an umlaut", folder="ein anderer Ordner mit Ä"),
        Cell(name="another TMPDIR", environment={"TMPDIR": "{folder}/tmp"}),
        Cell(name="umask 077", prefix=("sh", "-c", 'umask 077; exec "$@"', "sh")),
        Cell(name="TZ=Pacific/Chatham", environment={"TZ": "Pacific/Chatham"}),
        Cell(name="LANG=C", environment={"LANG": "C", "LC_ALL": "C"}),
        Cell(name="PYTHONHASHSEED=1", environment={"PYTHONHASHSEED": "1"}),
        Cell(name="PYTHONHASHSEED=4294967295", environment={"PYTHONHASHSEED": "4294967295"}),
        Cell(name="another user", user=_NOBODY),
    ]


def _case(lab: Lab, cell: Cell) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        if cell.user is not None and not _may_become(cell.user):
            return Outcome(moment=f"{cell.name} (left out: needs root, and a Python that the user may read)", faults=())
        project = lab.stack.project(folder.with_name(cell.folder))
        for name, value in cell.params.items():
            set_param(project, name, value)
        environment = {name: value.format(folder=project.parent) for name, value in cell.environment.items()}
        if "TMPDIR" in environment:
            Path(environment["TMPDIR"]).mkdir()
        prefix = cell.prefix
        if cell.user is not None:
            environment["HOME"] = str(project.parent)
            prefix = _become(cell.user)
            _give(project.parent, cell.user)
        ended = lab.stack.start(project, (*prefix, *lab.stack.train), environment).finish()
        faults = [f"it ended with {ended.code}"] if ended.code else []
        faults += ["other weights"] if lab.stack.weights(project) != lab.undisturbed.weights else []
        return Outcome(moment=cell.name, faults=tuple(faults), log=str(ended.log) if faults else "")

    return attempt


def _become(user: int) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")


def _may_become(user: int) -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    # By way of a shell, as dvc runs a stage: what setpriv itself begins may still have root's rights to its folder.
    command = [*_become(user), "sh", "-c", '"$1" -c "import torch"; exit $?', "sh", sys.executable]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0


def _give(folder: Path, user: int) -> None:
    for place in [folder, *folder.rglob("*")]:
        os.chown(place, user, user, follow_symlinks=False)
