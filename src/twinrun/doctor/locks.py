"""Locks that a process holds."""

import os
import time
from contextlib import suppress
from pathlib import Path

from twinrun.base.files import read_json
from twinrun.doctor.findings import Finding, Result, duration, shown
from twinrun.record.home import STATE, journal_folders
from twinrun.tracking.replay import LOCK as PUBLISHER_LOCK
from twinrun.tracking.store import MLRUNS, Tracker, opening_lock


def check(root: Path, tracker: Tracker) -> Result:
    files = [
        root / STATE / "train.lock",
        tracker.home / MLRUNS / "registry.lock",
        tracker.state / "sync.lock",
        *([] if tracker.database is None else [opening_lock(tracker.database)]),
        *(folder / PUBLISHER_LOCK for folder in journal_folders(tracker.home)),
    ]
    held = [(file, holder(file)) for file in files if file.is_file()]
    findings = [Finding(f"{shown(file, root)} is held {by[1]}", _ending(by[0])) for file, by in held if by is not None]
    for pid, command in _dvc_holders(root):
        findings.append(Finding(f"DVC's lock is held by process {pid} ({command}){_age(pid)}", _ending(pid)))
    return f"{len(files)} checked", findings


def holder(file: Path) -> tuple[int | None, str] | None:
    """The process that holds a lock file, and for how long, if known; None if it is not held."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(file, timeout=0):
            return None
    except Timeout:
        pass
    holder = file.with_name("train.holder.json")
    if file.name == "train.lock":
        facts = read_json(holder)
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            trainer, age_s = int(facts["pid"]), time.time() - float(facts["started"])
            return trainer, f"by the training of process {trainer}, for {duration(age_s)}"
    pid = _who_has_open(file)
    return pid, f"by process {pid}{_age(pid)}" if pid else "by another process"


def _who_has_open(file: Path) -> int | None:
    import psutil

    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(psutil.Error, OSError):
            if any(opened.path == str(file.resolve()) for opened in process.open_files()):
                return int(process.pid)
    return None


def _dvc_holders(root: Path) -> set[tuple[int, str]]:
    import psutil

    lock = read_json(root / ".dvc" / "tmp" / "rwlock")
    try:
        infos = [*lock.get("write", {}).values(), *(info for infos in lock.get("read", {}).values() for info in infos)]
        return {(int(i["pid"]), str(i.get("cmd"))) for i in infos if i and psutil.pid_exists(int(i["pid"]))}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):  # not what DVC writes
        return set()


def _ending(pid: int | None) -> str:
    return "wait for it to end" if pid is None else f"wait for it to end, or: kill {pid}"


def _age(pid: int | None) -> str:
    import psutil

    if pid is None:
        return ""
    try:
        return f", which began {duration(time.time() - psutil.Process(pid).create_time())} ago"
    except psutil.Error:
        return ""
