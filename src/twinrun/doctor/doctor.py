"""A check of the whole set-up. It changes nothing; every finding names the command that fixes it."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from twinrun.base.errors import TwinrunError, os_problem
from twinrun.doctor import (
    code,
    data,
    dependencies,
    environment,
    journals,
    locks,
    params,
    promotions,
    registry,
    resume,
    runs,
    source,
    store,
    twins,
)
from twinrun.doctor import tracker as tracking_server
from twinrun.doctor.findings import Check, Finding, Result, reported
from twinrun.tracking.store import Tracker, find_tracker
from twinrun.tracking.translation import describe


def examine(root: Path, *, deep: bool = False) -> Iterator[Check]:
    """Check the project at `root`, part by part. `deep` hashes the DVC cache and data/out again, which takes longer.

    A part that cannot be checked is a finding itself, and the others are still checked. A finding of several parts is
    reported once.
    """
    root = root.resolve()
    tracker = find_tracker(root)
    parts: list[tuple[str, Callable[[], Result]]] = [
        ("code", lambda: code.check(root)),
        ("params", lambda: params.check(root)),
        ("source", lambda: source.check(root)),
        ("environment", lambda: environment.check(root)),
        ("dvc.yaml", lambda: dependencies.check(root)),
        ("tracker", lambda: tracking_server.check(tracker)),
        ("store", lambda: store.check(tracker)),
        ("journals", lambda: journals.check(tracker)),
        ("runs", lambda: runs.check(tracker)),
        ("registry", lambda: registry.check(root, tracker)),
        ("promotions", lambda: promotions.check(tracker)),
        ("locks", lambda: locks.check(root, tracker)),
        ("twins", lambda: twins.check(root)),
        ("resume", lambda: resume.check(root)),
        ("data", lambda: data.check(root, deep)),
    ]
    known: set[Finding] = set()
    for name, look in parts:
        try:
            seen, findings = look()
        except TwinrunError as error:
            seen, findings = "", [reported(error)]
        except Exception as error:  # one broken part must not hide the rest
            seen, findings = "", [_unseen(name, error, tracker)]
        new = tuple(finding for finding in findings if finding not in known)
        known.update(new)
        yield Check(name, seen if new or not findings else "not checked: see above", new)


def _unseen(name: str, error: Exception, tracker: Tracker) -> Finding:
    """A part that could not be checked: for errors of the system and the store there is a remedy, others are bugs."""
    if isinstance(error, OSError) and error.errno is not None:
        problem, _, remedy = os_problem(error).partition(". ")
        return Finding(problem, remedy or "check the disk (dmesg), then run again")
    if isinstance(error, sqlite3.Error):
        problem, _, remedy = describe(error, tracker.uri).partition(". ")
        return Finding(problem, remedy or "twinrun sync")
    kind = f"{type(error).__name__}: {error}"
    return Finding(f"{name} could not be checked: {kind}", "report this line: it is a bug of Twinrun")
