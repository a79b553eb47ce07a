"""Runs that the store lost, and those that are shown as running although their process is dead."""

from twinrun.doctor.findings import Finding, Result
from twinrun.tracking.left_running import left_running, running
from twinrun.tracking.lost import lost_from_database, published_states
from twinrun.tracking.presentation import titled
from twinrun.tracking.store import Tracker, explaining, look_client, require_reachable


def check(tracker: Tracker) -> Result:
    """Runs that the store lost, and RUNNING ones whose process is dead and which have no journal."""
    findings = []
    if lost := [state for state in lost_from_database(tracker, published_states(tracker)) if not state.deleted]:
        number = len({state.run_id for state in lost})
        runs = "1 run that was" if number == 1 else f"{number} runs that were"
        problem = f"{tracker.shown} lacks {runs} published to it: the database was replaced, or runs were removed"
        findings.append(Finding(problem, "twinrun sync"))
    if tracker.is_new:
        return "none yet", findings
    require_reachable(tracker)
    with explaining(tracker):
        client = look_client(tracker)
        number = len(running(client, tracker))
        findings += [
            Finding(
                f"MLflow shows {titled(run.info.run_name, run.info.run_id)} as running, but its process {process.pid} "
                "is dead",
                "twinrun sync",
            )
            for run, process in left_running(client, tracker)
        ]
    return f"{number} running", findings
