"""A small project that DVC trained once, on bitmaps in a folder, with uncommitted changes, three commits ago."""

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preloaded import in_use
from tracking_support import runs
from training_support import REPOSITORY, change_params, git, made_once, run_stages_for_dvc

from twinrun.base.files import write_table
from twinrun.record.objects import Objects, file_md5
from twinrun.tracking.sync import sync
from twinrun.twins.material import MANIFEST, TABLE

_SPLITS = {"train": range(0, 60), "val": range(60, 80), "test": range(80, 110)}


@pytest.fixture(scope="session")
def once_trained(tmp_path_factory: pytest.TempPathFactory, new_store: Path, programs: Path) -> Path:
    """Trained with a learning rate and a remark in the code that are in no commit; to be copied."""
    with in_use(programs):
        return made_once(tmp_path_factory, "twins", lambda folder: _train_once(folder, new_store))


def _train_once(folder: Path, new_store: Path) -> None:
    copy_repository(folder)
    shutil.copytree(new_store, folder / "mlruns", dirs_exist_ok=True)
    draw_images(folder / "data/raw/folder")
    change_params(
        folder / "params.yaml", "ingest", {"source": "folder", "path": "data/raw/folder", "size_px": 8, "workers": 1}
    )
    change_params(folder / "params.yaml", "validate", {"min_images_per_class": 2, "on_leak": "drop"})
    change_params(folder / "params.yaml", "validate", {"label_errors": {"folds": 0, "budget_s": 600}})
    change_params(folder / "params.yaml", "train", {"model": "mlp", "epochs": 2, "batch_size": 32})
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    change_params(folder / "params.yaml", "train", {"learning_rate": 0.002})
    with (folder / "src/twinrun/training/schedule.py").open("ab") as code:
        code.write(b"# a remark in Latin-1, \xe4, and with its own line end\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # away: this process publishes it all in the end
        run_stages_for_dvc(folder, "ingest", "validate")
        _repro(folder, "train")  # with the code of the folder, which the fingerprint names
        run_stages_for_dvc(folder, "evaluate")
        patch.delenv("MLFLOW_TRACKING_URI")
        assert sync(folder).problem is None
    git(folder, "checkout", "--", ".")
    for number in range(3):
        change_params(folder / "params.yaml", "train", {"seed": number + 1})
        git(folder, "commit", "--quiet", "--all", "--message", f"Seed {number + 1}")


@pytest.fixture
def trained(once_trained: Path, tmp_path: Path, preloaded: None, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """A copy of it, as working folder."""
    # MLflow remembers for the whole process where the artifacts of a run are, and the copies have the same runs.
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
    folder = tmp_path / "project"
    shutil.copytree(once_trained, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def first_run(project: Path) -> str:
    """The id of the run that is no twin."""
    return next(run.id for run in runs(project) if "twinrun.twin_of" not in run.tags)


def relabel_one(project: Path, card: dict[str, Any]) -> None:
    """Make `card` that of a run whose first image, a "0", had the label "1"; its tables are in the DVC cache."""
    cache = Objects(project).cache
    assert cache is not None
    card["fingerprint_parts"]["data"]["manifest"] = "cd" * 32
    for stage, name in (("ingest", TABLE), ("validate", MANIFEST)):
        table = pq.read_table(project / name)
        labels = pa.array(["1", *table["label"].to_pylist()[1:]])
        write_table(
            table.set_column(table.schema.get_field_index("label"), "label", labels), project / "changed.parquet"
        )
        md5 = file_md5(project / "changed.parquet")
        (cache / md5[:2]).mkdir(exist_ok=True)
        (project / "changed.parquet").rename(cache / md5[:2] / md5[2:])
        card["dvc_lock"][stage]["outs"][name] = md5


def copy_repository(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file() and not name.startswith(("tests/", "benchmarks/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)


def draw_images(folder: Path) -> None:
    """Handwritten zeros and ones as bitmaps, whose last bytes are pixels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in (0, 1):
        images = digits.images[digits.target == label]
        for split, numbers in _SPLITS.items():
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in numbers:
                Image.fromarray((images[number] * 15).astype(np.uint8)).save(place / f"{number:03}.bmp")


def _repro(folder: Path, stage: str) -> None:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", stage], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
