"""Which store a project uses, and its creation."""

import multiprocessing
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from twinrun.base.errors import TrackingError
from twinrun.tracking.store import experiment_id, find_tracker, open_client


def _use_new_store(folder: Path) -> None:
    tracker = find_tracker(folder)
    client = open_client(tracker)
    client.create_run(experiment_id(client, tracker, "digits"))


def test_two_processes_that_need_a_new_store_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow  # noqa: F401 - so that both children start at once

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_use_new_store, args=(tmp_path,)) for _ in range(2)]

    for child in children:
        child.start()
    for child in children:
        child.join(100)

    client = open_client(find_tracker(tmp_path))
    assert [child.exitcode for child in children] == [0, 0]
    assert len(client.search_runs([experiment_id(client, find_tracker(tmp_path), "digits")])) == 2


def test_a_model_is_described_without_a_warning_where_pip_is_not_installed_as_uv_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.utils import environment

    open_client(find_tracker(tmp_path))
    monkeypatch.setattr(environment, "_get_package_version", lambda _: None)

    described: Any = environment._mlflow_conda_env(additional_pip_deps=["torch"])  # type: ignore[no-untyped-call]

    assert "pip" in described["dependencies"]
    assert capfd.readouterr().err == ""


def test_the_environment_names_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    default = find_tracker(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    relative = find_tracker(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    server = find_tracker(tmp_path)

    assert default == relative
    assert default.uri == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert (server.uri, server.database) == ("https://mlflow.example", None)
    assert server.state != default.state


def test_the_store_that_an_environment_names_for_its_own_project_is_not_used_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "_TWINRUN_DEFAULT_URI"):  # as .venv/bin/activate of the first project does
        monkeypatch.setenv(name, f"sqlite:///{tmp_path}/first/mlruns/mlflow.db")
    (tmp_path / "second").mkdir()
    (tmp_path / "second/dvc.yaml").touch()

    second = find_tracker(tmp_path / "second")

    assert second.uri == f"sqlite:///{tmp_path}/second/mlruns/mlflow.db"


def test_a_store_that_a_stopped_process_is_opening_is_said_after_a_while(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinrun.tracking.store._OPENING_S", 0.1)

    with (
        FileLock(project / "mlruns/mlflow.lock"),
        pytest.raises(TrackingError, match=r"Another process has been opening /.* Wait for it, or stop it"),
    ):
        open_client(find_tracker(project))


def test_what_the_database_refuses_is_an_error_and_no_traceback_in_the_log_of_mlflow(tracked_project: Path) -> None:
    database = tracked_project / "mlruns/mlflow.db"
    with closing(sqlite3.connect(database)) as store:
        store.execute("CREATE TRIGGER broken BEFORE INSERT ON experiments BEGIN INSERT INTO gone VALUES (1); END")
        store.commit()
    code = """
from twinrun.base.errors import run_main
from twinrun.tracking.store import experiment_id, explaining, find_tracker, open_client
def main():
    with explaining(find_tracker()):
        experiment_id(open_client(find_tracker()), find_tracker(), "new")
run_main(main)
"""

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tracked_project, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert str(database) in done.stderr
    assert "Traceback" not in done.stderr
