"""What a store lacks of what was published to it: its database was removed or replaced, or runs were.

Only then does what is remembered of the publishing give way, so that everything that is still here is published again.
A run that a person deleted stays deleted, until a person restores it: then it lacks what was left out. A local store is
asked directly, in milliseconds; a server with its client.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.replay import Published
from twinrun.tracking.store import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient


def published_states(tracker: Tracker) -> list[Published]:
    """What is remembered of every journal and validation that was published to the store."""
    return [Published.load(tracker, file.stem) for file in sorted(tracker.state.glob("*.json"))]


def lost_from_database(tracker: Tracker, states: Iterable[Published]) -> list[Published]:
    """Those that a local store lacks; none where it cannot be read just now, or is a server's."""
    remembered = [state for state in states if state.run_id is not None]
    if tracker.database is None or not remembered:
        return []
    if not tracker.database.is_file() or tracker.database.stat().st_size == 0:
        return [state for state in remembered if not state.deleted]
    try:
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as store:
            stages = dict(store.execute("SELECT run_uuid, lifecycle_stage FROM runs").fetchall())
    except sqlite3.Error:
        return []
    return [state for state in remembered if _is_lost(state, stages.get(state.run_id))]


def lost_from_server(client: "MlflowClient", states: Iterable[Published]) -> list[Published]:
    """Those that the store says it lacks; a request for each."""
    from mlflow.exceptions import MlflowException

    lost = []
    for state in states:
        if state.run_id is None:
            continue
        stage: str | None = None
        try:
            stage = client.get_run(state.run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        if _is_lost(state, stage):
            lost.append(state)
    return lost


def _is_lost(state: Published, stage: str | None) -> bool:
    """Whether a store lacks the run of `state`, or what was left out while that was deleted.

    The run's `stage` in the store is "active", "deleted", or None where there is no such run.
    """
    return stage == "active" if state.deleted else stage is None
