"""A project of one's own for a test: a folder with a params.yaml, in which stages run as a person runs them."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """How a stage ended."""

    code: int
    said: str


@dataclass(frozen=True)
class Project:
    """A folder with a params.yaml like the repository's own."""

    folder: Path

    def set(self, **settings: Any) -> "Project":
        """Change settings, such as ingest__source="folder"."""
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        for name, value in settings.items():
            section, _, key = name.partition("__")
            params[section][key] = value
        yaml.dump(params, self.folder / "params.yaml")
        return self

    def run(self, stage: str, **environment: str) -> Ran:
        """Run `python -m pipeline.<stage>` here, to its end."""
        done = self.start(stage, **environment)
        said, _ = done.communicate(timeout=240)
        return Ran(done.returncode, said)

    def start(self, stage: str, **environment: str) -> "subprocess.Popen[str]":
        """Start `python -m pipeline.<stage>` here, bound by permissions even as root."""
        path = os.pathsep.join([str(self.folder), str(REPOSITORY / "src"), str(REPOSITORY)])
        return subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{stage}"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_heed_permissions,
        )

    def table(self) -> list[dict[str, Any]]:
        """The rows that ingest wrote."""
        return pq.read_table(self.folder / "data/out/ingest/table.parquet").to_pylist()

    def pack(self) -> Any:
        """The images that ingest wrote."""
        return np.load(self.folder / "data/out/ingest/images.npy")

    def manifest(self) -> list[dict[str, Any]]:
        """The rows that validate wrote."""
        return pq.read_table(self.folder / "data/out/validate/manifest.parquet").to_pylist()

    def result(self) -> Any:
        """What validate wrote for programs."""
        return YAML(typ="safe").load(self.folder / "data/out/validate/result.json")

    def report(self) -> str:
        """The page that validate wrote."""
        return (self.folder / "data/out/validate/report/index.html").read_text(encoding="utf-8")


def busy(seconds: float) -> float:
    """A time measured on two free cores, as long as it may take on a machine that has other things to do."""
    return seconds * max(1.0, os.getloadavg()[0] / 2)


def _heed_permissions() -> None:
    drop_capability, may_ignore_all, may_ignore_for_reading = 24, 1, 2
    for capability in (may_ignore_all, may_ignore_for_reading):
        ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project with the params.yaml of the digits preset."""
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "presets/digits.yaml").read_bytes())
    return Project(tmp_path)


@pytest.fixture
def write_digits(project: Project) -> Callable[..., Path]:
    """Write real handwritten digits as PNG files: images/<class>/<number>.png, `each` of every class."""
    from sklearn.datasets import load_digits

    digits = load_digits()

    def write(each: int = 20, classes: tuple[int, ...] = (0, 1, 2), root: str = "images") -> Path:
        folder = project.folder / root
        for label in classes:
            (folder / str(label)).mkdir(parents=True)
            for number, pixels in enumerate(digits.images[digits.target == label][:each]):
                image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).resize((16, 16))
                image.save(folder / str(label) / f"{number:03d}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real image sets; the test is skipped where there is none."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with mnist, fashion-mnist, trashnet and hostile-images")
    return Path(folder)
