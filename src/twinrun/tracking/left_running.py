"""Runs that MLflow shows as running although their process is dead and no journal is left that would say so."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from twinrun.record.home import Process, journals_folder
from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.replay import JOURNAL_TAG, PROCESS_TAG, process_of
from twinrun.tracking.store import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


def may_be_left_running(tracker: Tracker) -> bool:
    """Whether it is worth asking MLflow for such runs.

    A local store is asked directly, in milliseconds: importing MLflow takes seconds. A server is always worth asking,
    and so is a database whose tables are not the ones known here.
    """
    if tracker.database is None:
        return True
    if not tracker.database.is_file():
        return False
    try:
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as store:
            rows = store.execute(_RUNNING, (PROCESS_TAG, JOURNAL_TAG)).fetchall()
    except sqlite3.Error:
        return True
    return any(_dead_process({PROCESS_TAG: process, JOURNAL_TAG: journal}, tracker) for process, journal in rows)


_RUNNING = """
    SELECT process.value, coalesce(journal.value, '-')
    FROM runs
    JOIN experiments ON experiments.experiment_id = runs.experiment_id AND experiments.lifecycle_stage = 'active'
    JOIN tags AS process ON process.run_uuid = runs.run_uuid AND process.key = ?
    LEFT JOIN tags AS journal ON journal.run_uuid = runs.run_uuid AND journal.key = ?
    WHERE runs.status = 'RUNNING' AND runs.lifecycle_stage = 'active'
"""


def running(client: "MlflowClient", tracker: Tracker) -> list[Any]:
    """Runs of this project that are running, as MLflow has it: on a server, where others may be too, only those of the
    experiment that params.yaml names."""
    if tracker.database is not None:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    else:
        from twinrun.core.params import load_params

        ours = client.get_experiment_by_name(load_params(tracker.home / "params.yaml").register.model_name)
        experiments = [] if ours is None else [ours.experiment_id]
    return list(client.search_runs(experiments, "attributes.status = 'RUNNING'")) if experiments else []


def left_running(client: "MlflowClient", tracker: Tracker) -> Iterator[tuple[Any, Process]]:
    """Those of them whose process is dead, with the process; where a journal waits, sync finds out by itself."""
    for run in running(client, tracker):
        if (process := _dead_process(run.data.tags, tracker)) is not None:
            yield run, process


def mark_killed(client: "MlflowClient", run: Any) -> None:
    """Say that a run's process died, at the time of what it said last."""
    times = [
        metric.timestamp for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)
    ]
    client.set_terminated(run.info.run_id, "KILLED", end_time=max(times, default=run.info.start_time))


def _dead_process(tags: Mapping[str, str], tracker: Tracker) -> Process | None:
    """The process of a run, if it is dead and no journal of the run is left."""
    process = process_of(tags)
    if process is None or not process.dead() or (journals_folder(tracker.home) / tags.get(JOURNAL_TAG, "-")).is_dir():
        return None
    return process
