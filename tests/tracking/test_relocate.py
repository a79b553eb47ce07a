"""Moving, renaming or copying the project's folder leaves every artifact reachable."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_support import AB, evaluate, runs, train

from twinrun.tracking.registry import Registry
from twinrun.tracking.relocate import relocate
from twinrun.tracking.store import find_tracker, open_client
from twinrun.tracking.sync import run_of, sync


def test_artifacts_and_models_of_a_moved_project_are_found_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    metrics = evaluate(project)
    sync()
    run_id = run_of(project, AB)
    Registry(find_tracker(), "m").register(
        project / "data/out/train/bundle", metrics, passed=True, fingerprint="f", run_id=run_id
    )
    moved = tmp_path / "50% done #2" / "renamed"
    moved.parent.mkdir()
    project.rename(moved)
    monkeypatch.chdir(moved)
    (moved / "pipeline").mkdir()
    (moved / "pipeline/ingest.py").touch()

    printed = subprocess.run(
        [sys.executable, "-m", "mlflow", "--version"], check=True, capture_output=True, text=True
    ).stderr

    (run,) = runs(moved)
    client = open_client(find_tracker(moved))
    card = client.download_artifacts(run.id, "card.json", str(tmp_path))
    source = client.get_model_version_download_uri("m", "1")
    assert "This project was moved" in printed
    assert "evaluation/report/index.html" in run.artifacts
    assert Path(card).read_text().startswith("{")
    assert str(project) not in source.replace("%20", " ")
    assert not [
        place for place in _places(moved / "mlruns/mlflow.db") if "my project" in place or "my%20project" in place
    ]


def test_a_new_run_in_a_moved_project_lands_in_the_moved_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    sync()
    moved = tmp_path / "renamed"
    project.rename(moved)
    monkeypatch.chdir(moved)

    train(moved)
    sync()

    assert not project.exists()
    assert [len(run.artifacts) for run in runs(moved)] == [4, 4]


def test_a_copied_project_reads_its_own_artifacts(project: Path, tmp_path: Path) -> None:
    train(project)
    sync()

    copied = tmp_path / "copy"
    shutil.copytree(project, copied)
    relocate(copied / "mlruns")

    assert all(place.startswith((str(copied), f"file://{copied}")) for place in _places(copied / "mlruns/mlflow.db"))
    assert not any(str(copied) in place for place in _places(project / "mlruns/mlflow.db"))


def test_a_store_without_a_record_of_its_place_is_mended_too(project: Path, tmp_path: Path) -> None:
    train(project)
    sync()
    (project / "mlruns/.location").unlink()
    moved = tmp_path / "renamed"
    project.rename(moved)

    relocate(moved / "mlruns")

    assert len(runs(moved)[0].artifacts) == 4


def test_places_outside_the_project_are_left_alone(project: Path, tmp_path: Path) -> None:
    client = open_client(find_tracker(project))
    client.create_experiment("elsewhere", artifact_location=f"file://{tmp_path}/my project 2/artifacts")
    client.create_experiment("bucket", artifact_location="s3://bucket/mlruns/artifacts")
    moved = tmp_path / "renamed"
    project.rename(moved)

    relocate(moved / "mlruns")

    places = _places(moved / "mlruns/mlflow.db")
    assert f"file://{tmp_path}/my project 2/artifacts" in places
    assert "s3://bucket/mlruns/artifacts" in places


def test_looking_after_an_unmoved_project_takes_no_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relocate(project / "mlruns")
    monkeypatch.delattr("sqlite3.connect")  # the database is not even opened

    assert relocate(project / "mlruns") == 0


def _places(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    columns = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    found = [
        place for table, column in columns.items() for (place,) in connection.execute(f"SELECT {column} FROM {table}")
    ]
    connection.close()
    return found
