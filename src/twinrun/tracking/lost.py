"""What was published to a store and is no longer in it: its database was removed or replaced, or runs were.

Only then does what is remembered of the publishing give way, so that everything that is still here is published again.
A run that a person deleted stays deleted. A local store is asked directly, in milliseconds; a server with its client.
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
    """Those whose run a local store lacks; none where it cannot be read just now, or is a server's."""
    remembered = [state for state in states if state.run_id is not None and not state.deleted]
    if tracker.database is None or not remembered:
        return []
    if not tracker.database.is_file() or tracker.database.stat().st_size == 0:
        return remembered
    try:
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as store:
            known = {run_id for (run_id,) in store.execute("SELECT run_uuid FROM runs")}
    except sqlite3.Error:
        return []
    return [state for state in remembered if state.run_id not in known]


def lost_from_server(client: "MlflowClient", states: Iterable[Published]) -> list[Published]:
    """Those whose run the store says it does not have; a request for each."""
    from mlflow.exceptions import MlflowException

    lost = []
    for state in states:
        if state.run_id is None or state.deleted:
            continue
        try:
            client.get_run(state.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            lost.append(state)
    return lost
