"""Whether the tracker answers, and a local database is undamaged."""

import shlex
import sqlite3
from contextlib import closing

from twinrun.base.errors import TwinrunError
from twinrun.doctor.findings import Finding, Result, reported
from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.store import URI_VARIABLE, Tracker, require_reachable


def check(tracker: Tracker) -> Result:
    try:
        require_reachable(tracker)
    except TwinrunError as error:
        return tracker.shown, [reported(error, f"unset {URI_VARIABLE}, or start the server")]
    if tracker.database is not None and tracker.database.is_file():
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            fix = f"sqlite3 {shlex.quote(str(tracker.database))} .recover | sqlite3 recovered.db"
            return tracker.shown, [Finding(f"{tracker.database} is damaged: {answer}", fix)]
    return tracker.shown, []
