"""Whether the record of promotions can be read, and every change in it was completed."""

import shlex

from twinrun.doctor.findings import Finding, Result
from twinrun.tracking.store import MLRUNS, Tracker


def check(tracker: Tracker) -> Result:
    from twinrun.tracking.promotions import PROMOTIONS, Promotions

    entries, problems = Promotions(tracker.home / MLRUNS / PROMOTIONS).read()
    findings = [Finding(problem, f"remove that line from {MLRUNS}/{PROMOTIONS}") for problem in problems]
    for entry in entries:
        if entry.outcome is None:
            problem = f"the {entry.action} of {entry.model} to version {entry.after} ({entry.time}) was interrupted"
            fix = f"twinrun history --model {shlex.quote(entry.model)}"  # which asks the registry how it ended
            findings.append(Finding(problem, fix))
    return f"{len(entries)} recorded", findings
