"""Whether the local store is still where its database says."""

from twinrun.doctor.findings import Finding, Result
from twinrun.tracking.relocate import moved_from
from twinrun.tracking.store import Tracker


def check(tracker: Tracker) -> Result:
    if tracker.database is None or tracker.is_new:
        return "nothing local", []
    folder = tracker.database.parent
    return str(folder), [
        Finding(
            f"the store was moved here from {before}, so MLflow cannot find its artifacts",
            "python -m twinrun.tracking.relocate",
        )
        for before in sorted(moved_from(folder))
    ]
