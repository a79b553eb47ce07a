"""The whole pipeline as a person runs it: `dvc repro` in a clone, then what MLflow shows of it.

The tests of this module go on from one another, in order: a run, no change, a forced training, an experiment, a move.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracking_support import StoredRun, runs
from training_support import change_params, git
from twin_support import copy_repository

from twinrun.tracking.store import find_tracker, open_client

pytestmark = pytest.mark.usefixtures("preloaded_module")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Path:
    """A clone of this repository as it is now, with a short training."""
    folder = tmp_path_factory.mktemp("whole") / "clone"
    copy_repository(folder)
    shutil.copytree(new_store, folder / "mlruns", dirs_exist_ok=True)
    change_params(folder / "params.yaml", "train", {"epochs": 3})
    change_params(folder / "params.yaml", "validate", {"label_errors": {"folds": 0, "budget_s": 600}})
    change_params(folder / "params.yaml", "register", {"min_accuracy": 0.5})
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.com")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    """Run dvc as an activated environment does; the run must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env={**environment, "DVC_NO_ANALYTICS": "true"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "data/out/evaluate/metrics.json").read_bytes())
    return loaded


def weights_hash(folder: Path) -> str:
    return str(json.loads((folder / "data/out/evaluate/model.json").read_bytes())["weights_hash"])


def newest(folder: Path) -> StoredRun:
    return max(runs(folder), key=lambda run: int(run.info.info.start_time))


def test_dvc_repro_takes_images_to_a_registered_model_with_its_run(clone: Path) -> None:
    dvc(clone, "repro")

    (run,) = runs(clone)
    client = open_client(find_tracker(clone))
    (version,) = client.search_model_versions("name='twinrun-digits'")
    candidate = client.get_model_version_by_alias("twinrun-digits", "candidate")
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history["val/loss"]] == [1, 2, 3]
    assert run.metrics["test/accuracy"] == pytest.approx(metrics(clone)["accuracy"])
    assert run.info.data.params["train.epochs"] == "3"
    assert run.info.inputs.dataset_inputs[0].dataset.name == "digits"
    assert run.tags["twinrun.weights_hash"] == weights_hash(clone)
    assert {"card.json", "dvc.lock"} <= {Path(path).name for path in run.artifacts}
    assert any(path.endswith(".png") for path in run.artifacts)
    assert int(version.version) == int(candidate.version) == 1
    assert version.run_id == run.id
    assert version.tags["twinrun.weights_hash"] == run.tags["twinrun.weights_hash"]


@pytest.mark.parametrize(
    ("room", "stale"), [("record", False), ("tracking", False), ("training", True), ("dataset", True)]
)
def test_a_change_of_code_that_decides_no_weight_trains_nothing_again(clone: Path, room: str, stale: bool) -> None:
    files = [file for file in (clone / "src/twinrun" / room).glob("*.py") if file.name != "__init__.py"]
    before = {file: file.read_bytes() for file in files}
    for file, content in before.items():
        file.write_bytes(content + b"# a comment\n")

    status = dvc(clone, "status", "train", "--json")

    for file, content in before.items():
        file.write_bytes(content)
    assert (f"src/twinrun/{room}" in status) == stale


def test_the_commands_that_dvc_users_know_show_the_result(clone: Path) -> None:
    assert "Data and pipelines are up to date" in dvc(clone, "status")
    assert "register" in dvc(clone, "dag")
    table = dvc(clone, "metrics", "show")
    assert table.split()[:2] == ["Path", "accuracy"]
    assert max(map(len, table.splitlines())) <= 100
    assert weights_hash(clone) not in table
    assert "index.html" in dvc(clone, "plots", "show")


def test_repro_again_runs_no_stage(clone: Path) -> None:
    said = dvc(clone, "repro")

    assert "Running stage" not in said
    assert "Data and pipelines are up to date" in said


def test_training_again_gives_the_same_weights_and_leaves_evaluate_up_to_date(clone: Path) -> None:
    before = weights_hash(clone)

    dvc(clone, "repro", "--force", "--single-item", "train")

    again = newest(clone)
    assert len(runs(clone)) == 2
    assert again.tags["twinrun.weights_hash"] == before
    assert again.metrics["test/accuracy"] == pytest.approx(metrics(clone)["accuracy"])
    assert "Data and pipelines are up to date" in dvc(clone, "status", "evaluate", "register")


def test_an_experiment_with_another_setting_is_another_run_and_only_later_stages_run(clone: Path) -> None:
    said = dvc(clone, "exp", "run", "-S", "train.epochs=2", "--name", "shorter")

    assert "Running stage 'ingest'" not in said
    assert "Running stage 'validate'" not in said
    assert len(newest(clone).history["val/loss"]) == 2
    assert len(runs(clone)) == 3
    assert "shorter" in dvc(clone, "exp", "show", "--no-pager", "--csv")
    assert "train.epochs" in dvc(clone, "params", "diff")
    versions = open_client(find_tracker(clone)).search_model_versions("name='twinrun-digits'")
    assert sorted(int(version.version) for version in versions) == [1, 2]


def test_a_result_that_dvc_restores_from_its_cache_makes_no_second_version(clone: Path) -> None:
    dvc(clone, "exp", "run", "-S", "train.epochs=3")

    versions = open_client(find_tracker(clone)).search_model_versions("name='twinrun-digits'")
    assert len(versions) == 2


def test_after_a_move_every_run_still_has_its_artifacts(clone: Path) -> None:
    moved = clone.rename(clone.with_name("moved project"))

    assert all("card.json" in {Path(path).name for path in run.artifacts} for run in runs(moved))
    client = open_client(find_tracker(moved))
    for run in runs(moved):
        assert json.loads(Path(client.download_artifacts(run.id, "card.json")).read_bytes())["commit"]
