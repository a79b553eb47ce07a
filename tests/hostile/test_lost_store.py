"""A store that lost what was published to it: its database was removed alone, or runs were removed for good."""

import gc
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import Engine
from tracking_support import FaultyTracker, evaluate, runs, train, validate

from pipeline import register
from twinrun.tracking.replay import Replay
from twinrun.tracking.store import find_tracker, open_client


@pytest.fixture
def published(tracked_project: Path) -> Path:
    """A project whose model is in the store and registered."""
    train(tracked_project)
    evaluate(tracked_project)
    register.main()
    return tracked_project


def empty(project: Path, new_store: Path) -> None:
    """Put an empty database in the place of the project's: what MLflow makes of one that was removed, at once."""
    remove(project)
    (project / "mlruns/mlflow.db").write_bytes((new_store / "mlflow.db").read_bytes())


def remove(project: Path) -> None:
    """Remove the database alone, as a process of its own would find it: MLflow keeps connections to it open."""
    for engine in (each for each in gc.get_objects() if isinstance(each, Engine)):
        engine.dispose()
    for file in (project / "mlruns").glob("mlflow.db*"):
        file.unlink()


def in_a_new_process(*arguments: str) -> str:
    """What a command prints where MLflow has not seen the store yet."""
    command = [sys.executable, "-m", "twinrun", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
def test_after_the_database_was_removed_all_that_is_here_is_published_again(
    replaced: bool, published: Path, new_store: Path, twinrun: Callable[..., str]
) -> None:
    if replaced:
        empty(published, new_store)
    else:
        remove(published)

    found = twinrun("doctor")
    first = twinrun("sync") if replaced else in_a_new_process("sync")
    second = twinrun("sync")

    assert "lacks 1 run that was published to it" in found
    assert "fix: twinrun sync" in found
    assert "1 run published to sqlite://" in first
    assert "is up to date" in second
    (run,) = runs(published)
    assert run.metrics["test/accuracy"] == 0.99
    assert {"card.json", "evaluation/metrics.json"} <= set(run.artifacts)


def test_after_the_database_was_removed_register_makes_the_version_again(
    published: Path, new_store: Path, twinrun: Callable[..., str]
) -> None:
    empty(published, new_store)

    before = twinrun("models")
    register.main()

    assert "Register the model of params.yaml: dvc repro" in before
    assert "twinrun-digits" in twinrun("models")
    (run,) = runs(published)
    client = open_client(find_tracker())
    assert client.get_model_version("twinrun-digits", "1").run_id == run.id


def test_a_run_that_was_removed_for_good_is_published_again_and_one_in_the_bin_is_not(
    published: Path, twinrun: Callable[..., str]
) -> None:
    (run,) = runs(published)
    client = open_client(find_tracker())
    client.delete_run(run.id)
    twinrun("sync")
    in_the_bin = runs(published)

    with closing(sqlite3.connect(published / "mlruns/mlflow.db")) as store:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            store.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run.id,))
        store.commit()
    twinrun("sync")

    assert in_the_bin == []
    assert [each.id == run.id for each in runs(published)] in ([False], [])


def test_refused_data_are_recorded_again(tracked_project: Path, new_store: Path, twinrun: Callable[..., str]) -> None:
    validate(tracked_project, passed=False)
    twinrun("sync")
    empty(tracked_project, new_store)

    twinrun("sync")

    (run,) = runs(tracked_project)
    assert run.status == "FAILED"


def test_a_killed_training_whose_journal_waits_is_published_again(
    tracked_project: Path, new_store: Path, twinrun: Callable[..., str]
) -> None:
    journal = train(tracked_project, end=False)
    journal.end("KILLED")
    twinrun("sync")
    empty(tracked_project, new_store)

    twinrun("sync")

    (run,) = runs(tracked_project)
    assert (run.status, run.tags["twinrun.journal_id"]) == ("KILLED", journal.id)


def test_a_server_that_lost_a_run_gets_it_again_and_register_works(
    tracker: FaultyTracker, tracked_project: Path, twinrun: Callable[..., str]
) -> None:
    assert tracker.fault is None
    train(tracked_project)
    evaluate(tracked_project)
    twinrun("sync")
    for state in find_tracker().state.glob("*.json"):
        state.write_text(state.read_text().replace(state.read_text().split('"run_id": "')[1][:32], "0" * 32))

    register.main()

    version = open_client(find_tracker()).get_model_version("twinrun-digits", "1")
    assert version.run_id not in (None, "", "0" * 32)


@pytest.mark.parametrize("removed", [False, True], ids=["deleted", "removed for good"])
def test_a_model_whose_run_a_person_deleted_is_registered_without_it(
    removed: bool, published: Path, twinrun: Callable[..., str]
) -> None:
    (run,), client = runs(published), open_client(find_tracker(published))
    client.delete_run(run.id)
    if removed:
        client._tracking_client.store._hard_delete_run(run.id)

    register.main()  # the version is there already
    shown = twinrun("show", "1")
    client.delete_registered_model("twinrun-digits")
    register.main()

    assert client.get_model_version("twinrun-digits", "1").tags["twinrun.passed"] == "true"
    expected = f"The run {run.id[:8]}, which '1' names, was removed from sqlite:" if removed else "(FINISHED)"
    assert expected in shown
    assert removed or client.get_run(run.id).info.lifecycle_stage == "deleted"


def test_a_killed_training_whose_run_a_person_deleted_does_not_keep_others_from_being_published(
    tracked_project: Path, twinrun: Callable[..., str]
) -> None:
    dies = (
        "from pathlib import Path; from twinrun.record.journal import Journal\n"
        "print(Journal.create(Path(), name='dead', experiment='twinrun-digits').folder)"
    )
    folder = Path(subprocess.run([sys.executable, "-c", dies], capture_output=True, text=True, check=True).stdout[:-1])
    replay = Replay(folder, find_tracker())
    while replay.step():
        pass
    replay.client.delete_run(str(replay.state.run_id))
    train(tracked_project)

    first, second = twinrun("sync"), twinrun("sync")

    assert "not up to date" not in first
    assert "is up to date" in second
    assert [run.info.info.run_name.partition(" ")[2] for run in runs(tracked_project)] == ["lenet5 on digits"]
