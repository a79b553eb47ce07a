"""Journals that wait to be published, and events that MLflow refused."""

import shlex
from collections.abc import Iterator

from twinrun.base.errors import RecordError
from twinrun.doctor.findings import Finding, Result, shown
from twinrun.record.home import journal_folders
from twinrun.record.journal import FILE, summarize
from twinrun.tracking.presentation import short
from twinrun.tracking.replay import Published, unpublished
from twinrun.tracking.store import Tracker


def check(tracker: Tracker) -> Result:
    folders = journal_folders(tracker.home)
    findings = []
    for folder in folders:
        fix = f"rm -r {shlex.quote(shown(folder, tracker.home))}"
        try:
            summary, fault = summarize(folder / FILE), "it holds no event"
        except RecordError as error:
            summary, fault = None, str(error).splitlines()[0]
            fix = (
                "upgrade Twinrun, if a newer one may have written it (git pull && make setup, or pip install -r "
                f"requirements.lock); only if the file is damaged: {fix}"
            )
        if summary is None:
            findings.append(Finding(f"{shown(folder, tracker.home)} has no readable journal: {fault}", fix))
            continue
        if summary.journal_id != folder.name:
            findings.append(Finding(f"{shown(folder, tracker.home)} is a copy of another journal", fix))
            continue
        state = Published.load(tracker, folder.name)
        title = state.title(summary.name)
        if summary.dead() and state.killed_at is None:
            findings.append(
                Finding(f"the training {title} has no end: its process {summary.process.pid} died", "twinrun sync")
            )
        elif (waiting := unpublished(folder, tracker)) and summary.ended is not None:
            findings.append(Finding(f"{waiting} events of {title} are not yet in MLflow", "twinrun sync"))
    return f"{len(folders)} waiting", [*findings, *_refused(tracker)]


def _refused(tracker: Tracker) -> Iterator[Finding]:
    """Events that MLflow did not accept."""
    for file in sorted(tracker.state.glob("*.json")):
        state = Published.load(tracker, file.stem)
        if state.refused and not state.deleted:
            events = f"{state.refused} event{'' if state.refused == 1 else 's'}"
            yield Finding(
                f"MLflow refused {events} of run {short(state.run_id or '')}; to send all of it again:",
                f"rm {shlex.quote(shown(file, tracker.home))}; twinrun sync",
                harmless=True,
            )
