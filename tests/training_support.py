"""A project whose images are validated and ready to be trained on, for tests of training."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 128, "warmup_epochs": 0.0}


@dataclass(frozen=True)
class TrainableProject:
    """A git repository with handwritten digits, taken in and judged, and a training of a few epochs."""

    folder: Path

    def set(self, **settings: Any) -> "TrainableProject":
        """Change settings of training, such as epochs=5."""
        change_params(self.folder / "params.yaml", "train", settings)
        return self

    def start(self, *launcher: str, **environment: str) -> "subprocess.Popen[str]":
        """Start the stage in a process group of its own, with a launcher's arguments before it if need be."""
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "pipeline.train"],
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

    def weights_hash(self) -> str:
        """Of the model that the last training wrote."""
        model = YAML(typ="safe").load(self.folder / "data/out/train/bundle/model.json")
        return str(model["weights_hash"])


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
    folder = tmp_path_factory.mktemp("validated") / "project"
    folder.mkdir()
    for name in ("params.yaml", "requirements.lock", ".gitignore"):
        shutil.copy(REPOSITORY / name, folder)
    change_params(folder / "params.yaml", "train", SMALL)
    for stage in ("ingest", "validate"):
        subprocess.run(
            [sys.executable, "-m", f"pipeline.{stage}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
            check=True,
            capture_output=True,
        )
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return folder


@pytest.fixture
def trainable(
    validated_digits: Path, new_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TrainableProject:
    """A project of one's own with validated digits and an empty MLflow store; the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(validated_digits, folder)
    shutil.copytree(new_store, folder / "mlruns", dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return TrainableProject(folder)
