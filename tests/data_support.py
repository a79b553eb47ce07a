"""A project of one's own for a test: a folder with a params.yaml, in which stages run."""

import contextlib
import ctypes
import importlib
import io
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from twinrun.base.errors import run_main

REPOSITORY = Path(__file__).parents[1]


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

    def run(self, stage: str) -> Ran:
        """Run a stage here to its end, inside this process, which imports its libraries once for all tests."""
        said, code = io.StringIO(), 0
        main = importlib.import_module(f"pipeline.{stage}").main
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                run_main(main)
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Ran(code, said.getvalue())

    def run_apart(self, stage: str, **environment: str) -> Ran:
        """Run `python -m pipeline.<stage>` here to its end, as `start` does."""
        done = self.start(stage, **environment)
        said, _ = done.communicate(timeout=240)
        return Ran(done.returncode, said)

    def start(self, stage: str, **environment: str) -> "subprocess.Popen[str]":
        """Start `python -m pipeline.<stage>` here, bound by permissions even as root."""
        path = os.pathsep.join([str(self.folder), str(REPOSITORY / "src"), str(REPOSITORY)])
        return subprocess.Popen(
            [preloaded.REAL, "-m", f"pipeline.{stage}"],  # permissions are of a process, and not of its fork
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_permissions,
        )

    def table(self) -> list[dict[str, Any]]:
        """The rows that ingest wrote."""
        return list(pq.read_table(self.folder / "data/out/ingest/table.parquet").to_pylist())

    def pack(self) -> Any:
        """The images that ingest wrote."""
        return np.load(self.folder / "data/out/ingest/images.npy")

    def manifest(self) -> list[dict[str, Any]]:
        """The rows that validate wrote."""
        return list(pq.read_table(self.folder / "data/out/validate/manifest.parquet").to_pylist())

    def result(self) -> Any:
        """What validate wrote for programs."""
        return YAML(typ="safe").load(self.folder / "data/out/validate/result.json")

    def report(self) -> str:
        """The page that validate wrote."""
        return (self.folder / "data/out/validate/report/index.html").read_text(encoding="utf-8")


def run_twinrun(folder: Path, *arguments: str) -> Ran:
    """Run the command line in `folder` to its end, inside this process."""
    from twinrun.cli import main as cli

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"argv": ["twinrun", *arguments], "stdout": out, "stderr": err}.items():
            patch.setattr(sys, name, value)
        for name in ("_LINE_EVERY_S", "_PHASE_EVERY_S"):  # of progress, which a busy machine would print
            patch.setattr(f"twinrun.base.progress.{name}", 600.0)
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ran(code, out.getvalue() + err.getvalue())


def heed_permissions() -> None:
    """Bind this process by permissions even as root: a `preexec_fn`."""
    drop_capability, may_ignore_all, may_ignore_for_reading = 24, 1, 2
    for capability in (may_ignore_all, may_ignore_for_reading):
        ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0)
