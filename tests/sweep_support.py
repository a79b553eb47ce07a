"""A small project whose data are validated, with a sweep to run."""

import csv
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
from preloaded import in_use
from training_support import change_params, git, made_once

SPACE = """space:
  train.learning_rate: {from: 1e-4, to: 1e-1, scale: log}
  train.optimizer: [sgd, adamw]
trials: 4
width: 2
seed: 0
metric: val_loss
rungs: [1]
keep: 0.5
seeds: 1
"""


@dataclass(frozen=True)
class SweepProject:
    """A project in the working folder."""

    folder: Path

    def start(self, *arguments: str, module: str = "twinrun") -> "subprocess.Popen[str]":
        """Start a command of twinrun, with the code of the project."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": "src", "DVC_NO_ANALYTICS": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, module: str = "twinrun") -> tuple[int, str]:
        """Run a command of twinrun to its end: exit code and output."""
        process = self.start(*arguments, module=module)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def table(self, name: str) -> str:
        """The table of trials of a sweep."""
        return (self.folder / "data/sweeps" / name / "trials.csv").read_text(encoding="utf-8")

    def rows(self, name: str = "one") -> list[dict[str, str]]:
        """The rows of that table."""
        return list(csv.DictReader(self.table(name).splitlines()))


@pytest.fixture(scope="session")
def once_swept(tmp_path_factory: pytest.TempPathFactory, once_trained: Path, programs: Path) -> Path:
    """A project with one sweep, data/sweeps/one, which one worker ran; to be copied."""
    with in_use(programs):
        return made_once(tmp_path_factory, "swept", lambda folder: _sweep_once(folder, once_trained))


def _sweep_once(folder: Path, once_trained: Path) -> None:
    shutil.copytree(once_trained, folder, symlinks=True, dirs_exist_ok=True)
    change_params(folder / "params.yaml", "train", {"epochs": 2, "seed": 0})
    (folder / "one.yaml").write_text(SPACE, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, output = SweepProject(folder).run("sweep", "one.yaml", "--workers", "1")
        assert code == 0, output
        (folder / "output.txt").write_text(output, encoding="utf-8")


@pytest.fixture
def swept(once_swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepProject:
    """A copy of it, as working folder."""
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
    folder = tmp_path / "project"
    shutil.copytree(once_swept, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return SweepProject(folder)
