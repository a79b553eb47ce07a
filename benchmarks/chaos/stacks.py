"""The two stacks that faults hit: how a project of each is made, run and read. Knows no faults.

A project is made once, with its data ready and an empty MLflow store, and copied for every case. What a case ended with
is read from the files: the weights from the model, the runs from MLflow's database.
"""

import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
EPOCHS = 4
# A run takes half a minute; one that takes this long hangs, and is not held.
_LONGEST_S = 300.0
_SOURCES = (
    *("src", "pipeline", "dvc.yaml", "params.yaml", "requirements.lock", ".gitignore", ".dvcignore"),
    *(".dvc/config", ".dvc/.gitignore", "mlruns/.gitkeep"),
    *(f"data/{folder}/.gitkeep" for folder in ("raw/digits", "decisions", "reference", "pretrained")),
    "networks/.gitkeep",
)
_SETTINGS = {"train.epochs": EPOCHS, "register.min_accuracy": 0.1, "validate.label_errors.folds": 0}
# What both stacks record for every epoch, under the plain stack's names and under Twinrun's.
_METRICS = ("train_loss", "val_loss", "val_accuracy", "train/loss", "val/loss", "val/accuracy")

Metrics = Counter[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One way to train, as a folder to copy and the commands of its users."""

    name: str
    template: Path
    train: tuple[str, ...]
    everything: tuple[str, ...]
    after: tuple[str, ...] | None
    database: str
    weights: Callable[[Path], str | None]
    began: Callable[["Run"], bool]
    written: Callable[["Run"], bool]

    def project(self, folder: Path) -> Path:
        """A new project in `folder`."""
        shutil.copytree(self.template, folder, symlinks=True)
        return folder

    def start(
        self,
        folder: Path,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> "Run":
        """Start a command in a project, in a process group of its own; its output goes to a file beside the project."""
        log = log or next_log(folder)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=child_environment() | dict(environment or {}),
                start_new_session=True,
            )
        return Run(folder=folder, process=process, log=log, started=time.monotonic(), began=self.began)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over: its exit code, what it printed, and whether its training had begun."""

    code: int
    seconds: float
    log: Path
    had_begun: bool

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def epochs(self) -> list[int]:
        """The epochs that the output tells of, in order."""
        return told_epochs(self.output())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command that runs; `began` finds out whether its training has begun."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    log: Path
    started: float
    began: Callable[["Run"], bool]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def finish(self, longest_s: float = _LONGEST_S) -> Ended:
        """Wait for the end; a run that takes minutes is killed, and its code says so."""
        try:
            self.process.wait(longest_s)
        except subprocess.TimeoutExpired:
            self.signal_group(signal.SIGKILL)
        code = self.process.wait()
        return Ended(code=code, seconds=self.seconds, log=self.log, had_begun=self.began(self))

    def signal_group(self, number: int) -> None:
        """Send a signal to the command and all that it started and that is still in its group."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is so, or the run is over; False where it ended first."""
        while not condition():
            if self.over or self.seconds > _LONGEST_S:
                return condition()
            time.sleep(0.01)
        return True

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def epochs(self) -> list[int]:
        """The epochs that the output tells of so far, in order."""
        return told_epochs(self.output())


@dataclass(frozen=True, kw_only=True)
class Record:
    """What MLflow holds of a project: the state of its runs, and how often it has each metric of each step."""

    statuses: tuple[str, ...]
    metrics: Metrics = field(default_factory=Counter)


def told_epochs(output: str) -> list[int]:
    """The numbers in lines such as `epoch 2/4 ...`."""
    return [int(number) for number in re.findall(r"^epoch +(\d+)/\d+", output, re.MULTILINE)]


def next_log(folder: Path) -> Path:
    """A new file beside a project for the output of its next run."""
    return folder.parent / f"{folder.name}-{sum(1 for _ in folder.parent.glob(f'{folder.name}-*.log'))}.log"


def child_environment() -> dict[str, str]:
    """This environment without what would lead a project elsewhere."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TWINRUN_", "DVC_"))}
    return ours | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{ours.get('PATH', '')}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def make_twinrun(folder: Path, prepare: Callable[[Path], None] | None = None) -> Stack:
    """Twinrun as this working tree has it, with the digits taken in and validated, by `prepare` or by dvc."""
    folder.mkdir(parents=True)
    for name in _SOURCES:
        source, place = REPOSITORY / name, folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    for setting, value in _SETTINGS.items():
        set_param(folder, setting, value)
    _make_repository(folder)
    (prepare or _prepare)(folder)
    return Stack(
        name="twinrun",
        template=folder,
        train=("dvc", "repro", "train"),
        everything=("dvc", "repro"),
        after=(
            sys.executable,
            "-c",
            "import sys; sys.argv = ['twinrun', 'sync']; from twinrun.cli.main import main; main()",
        ),
        database="mlruns/mlflow.db",
        weights=_bundle_weights,
        began=lambda run: any(run.folder.glob(".twinrun/resume/*/owner-*")),
        written=lambda run: "Weights hash" in run.output(),
    )


def _prepare(folder: Path) -> None:
    _must(folder, "dvc", "repro", "validate")
    store = "from pathlib import Path; from twinrun.tracking.store import *; open_client(find_tracker(Path.cwd()))"
    _must(folder, sys.executable, "-c", store, PYTHONPATH="src")


def make_plain(folder: Path, store: Path) -> Stack:
    """The control, with a copy of an empty MLflow store."""
    shutil.copytree(Path(__file__).parent / "plain", folder, ignore=shutil.ignore_patterns("__pycache__"))
    _make_repository(folder)
    shutil.copy(store, folder / "mlflow.db")
    return Stack(
        name="plain",
        template=folder,
        train=("dvc", "repro"),
        everything=("dvc", "repro"),
        after=None,
        database="mlflow.db",
        weights=_torch_weights,
        began=lambda run: "training begins" in run.output(),
        written=lambda run: (run.folder / "model.pt").exists(),
    )


def read_record(database: Path, experiment: str | None = None) -> Record:
    """Read a store's runs, those of one experiment where it is named, and the metrics of epochs."""
    chosen = "lifecycle_stage = 'active'"
    if experiment is not None:
        chosen += f" AND experiment_id IN (SELECT experiment_id FROM experiments WHERE name = '{experiment}')"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        statuses = connection.execute(f"SELECT status FROM runs WHERE {chosen} ORDER BY start_time").fetchall()
        found = connection.execute(
            f"SELECT key, step FROM metrics WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE {chosen})"
        ).fetchall()
    finally:
        connection.close()
    return Record(
        statuses=tuple(status for (status,) in statuses),
        metrics=Counter((key, step) for key, step in found if key in _METRICS),
    )


def set_param(folder: Path, name: str, value: Any) -> None:
    """Change one setting of a project's params.yaml, such as train.threads."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    file = folder / "params.yaml"
    settings = yaml.load(file.read_text(encoding="utf-8"))
    *sections, key = name.split(".")
    place = settings
    for section in sections:
        place = place[section]
    place[key] = value
    with file.open("w", encoding="utf-8") as output:
        yaml.dump(settings, output)


def _bundle_weights(project: Path) -> str | None:
    from safetensors.numpy import load_file

    file = project / "data/out/train/bundle/weights.safetensors"
    return _digest(load_file(file)) if file.is_file() else None


def _torch_weights(project: Path) -> str | None:
    import torch

    file = project / "model.pt"
    if not file.is_file():
        return None
    return _digest({name: tensor.numpy() for name, tensor in torch.load(file, weights_only=True).items()})


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}|{arrays[name].dtype}|{arrays[name].shape}|".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _make_repository(folder: Path) -> None:
    _must(folder, "git", "init", "--quiet")
    if not (folder / ".dvc").is_dir():
        _must(folder, "dvc", "init", "--quiet")
    # Beside the project: hundreds of short-lived projects would leave their traces in a folder of the system.
    _must(folder, "dvc", "config", "--local", "core.site_cache_dir", str(folder.parent / "dvc-site"))
    _must(folder, "git", "add", "--all")
    author = ("-c", "user.name=chaos", "-c", "user.email=chaos@localhost")
    _must(folder, "git", *author, "commit", "--quiet", "--message", "The project that faults hit")


def _must(folder: Path, *command: str, **environment: str) -> None:
    done = subprocess.run(command, cwd=folder, env=child_environment() | environment, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {folder}:\n{done.stdout.decode()}\n{done.stderr.decode()}")
