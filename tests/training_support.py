"""A project whose images are validated and ready to be trained on, for tests of training."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from twinrun.base.errors import run_main

REPOSITORY = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 128, "warmup_epochs": 0.0, "accelerator": "cpu"}


@dataclass(frozen=True)
class TrainableProject:
    """A git repository with handwritten digits, taken in and judged, and a short training on the CPU."""

    folder: Path

    def set(self, **settings: Any) -> "TrainableProject":
        """Change settings of training, such as epochs=5."""
        change_params(self.folder / "params.yaml", "train", settings)
        return self

    def keep_a_third(self) -> "TrainableProject":
        """Leave a third of the images in the manifest, where they show the same."""
        manifest = self.folder / "data/out/validate/manifest.parquet"
        table = pq.read_table(manifest)
        pq.write_table(table.filter(np.array(table["row"]) % 3 == 0), manifest)
        return self

    def start(self, *launcher: str, **environment: str) -> "subprocess.Popen[str]":
        """Start the stage as real Python in a process group of its own, after a launcher's arguments if need be."""
        return subprocess.Popen(
            [preloaded.REAL, *launcher, "-m", "pipeline.train"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def train(self, *launcher: str, **environment: str) -> tuple[int, str]:
        """Run the stage to its end: exit code and what it said."""
        process = self.start(*launcher, **environment)
        said, _ = process.communicate(timeout=240)
        return process.returncode, said

    def train_here(self) -> None:
        """Run the stage in this process, whose working folder is the project; for what is not about processes."""
        run_stage("train")

    def weights_hash(self) -> str:
        """Of the model that the last training wrote."""
        model = YAML(typ="safe").load(self.folder / "data/out/train/bundle/model.json")
        return str(model["weights_hash"])


def run_stage(name: str) -> None:
    """Run a stage's entry point in this process and put the handlers of signals back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        run_main(importlib.import_module(f"pipeline.{name}").main)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_stages_for_dvc(folder: Path, *stages: str) -> None:
    """Run stages of a DVC project in this process, each recorded by DVC as if it had run it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in stages:
            run_stage(stage)
            subprocess.run(
                [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", stage],
                env={**os.environ, "DVC_NO_ANALYTICS": "true"},
                check=True,
            )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made by the first of pytest's worker processes to want it and read by all of them."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            unfinished = folder.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def change_params(file: Path, section: str, settings: dict[str, Any]) -> None:
    """Set values in one section of a params.yaml."""
    yaml = YAML()
    params = yaml.load(file)
    params[section].update(settings)
    yaml.dump(params, file)


def git(folder: Path, *arguments: str) -> None:
    """Run git quietly, as somebody."""
    somebody = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    subprocess.run(["git", *somebody, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def validated_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose images are taken in and judged; to be copied."""
    return made_once(tmp_path_factory, "validated", _take_in_digits)


def _take_in_digits(folder: Path) -> None:
    for name in ("params.yaml", "requirements.lock", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    change_params(folder / "params.yaml", "train", SMALL)
    change_params(folder / "params.yaml", "validate", {"label_errors": {"folds": 0, "budget_s": 600}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("ingest", "validate"):
            run_stage(stage)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")


@pytest.fixture
def trainable(
    validated_digits: Path,
    new_store: Path,
    tmp_path: Path,
    preloaded: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> TrainableProject:
    """A project of one's own with validated digits and an empty MLflow store; the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(validated_digits, folder)
    shutil.copytree(new_store, folder / "mlruns", dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return TrainableProject(folder)
