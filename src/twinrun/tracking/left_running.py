"""Runs that MLflow shows as running although their process is dead and no journal is left that would say so."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.params import load_params
from twinrun.tracking.home import Process, journals_folder
from twinrun.tracking.replay import JOURNAL_TAG, process_of
from twinrun.tracking.store import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


def running(client: "MlflowClient", tracker: Tracker) -> list[Any]:
    """Runs of this project that are running, as MLflow has it: on a server, where others may be too, only those of the
    experiment that params.yaml names."""
    if tracker.database is not None:
        found = [each.experiment_id for each in client.search_experiments()]
    else:
        ours = client.get_experiment_by_name(load_params(tracker.home / "params.yaml").register.model_name)
        found = [] if ours is None else [ours.experiment_id]
    return list(client.search_runs(found, "attributes.status = 'RUNNING'")) if found else []


def left_running(client: "MlflowClient", tracker: Tracker) -> Iterator[tuple[Any, Process]]:
    """Those of them whose process is dead, with the process; where a journal waits, sync finds out by itself."""
    for run in running(client, tracker):
        process = process_of(run.data.tags)
        if process is not None and process.dead() and not _journal(run, tracker).is_dir():
            yield run, process


def mark_killed(client: "MlflowClient", run: Any) -> None:
    """Say that a run's process died, at the time of what it said last."""
    times = [
        metric.timestamp for name in run.data.metrics for metric in client.get_metric_history(run.info.run_id, name)
    ]
    client.set_terminated(run.info.run_id, "KILLED", end_time=max(times, default=run.info.start_time))


def _journal(run: Any, tracker: Tracker) -> Path:
    return journals_folder(tracker.home) / str(run.data.tags.get(JOURNAL_TAG, "-"))
