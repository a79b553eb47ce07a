"""Checkpoints of trainings that were stopped and not resumed."""

import shlex
import time
from pathlib import Path

from twinrun.doctor.findings import Finding, Result, duration, shown
from twinrun.doctor.locks import holder
from twinrun.record.home import STATE
from twinrun.record.journal import FILE

_GIVEN_UP_S = 7 * 86400


def check(root: Path) -> Result:
    places = root / STATE / "resume"
    folders = sorted(entry for entry in places.iterdir() if entry.is_dir()) if places.is_dir() else []
    findings: list[Finding] = []
    lock = root / STATE / "train.lock"
    if lock.is_file() and holder(lock) is not None:  # its checkpoints are in use, however old they look
        return f"{len(folders)} to resume; a training is running", findings
    for folder in folders:
        stats = [path.stat() for path in (folder, *folder.rglob("*"))]
        age_s = time.time() - max(stat.st_mtime for stat in stats)
        if age_s > _GIVEN_UP_S:
            size = sum(stat.st_size for stat in stats) / 1e6
            place = shlex.quote(shown(folder, root))
            problem = f"{place} ({size:.1f} MB) is from a training that stopped {duration(age_s)} ago"
            findings.append(Finding(problem, f"rm -r {place}", harmless=True))
    unfinished = [folder for folder in folders if not (folder / FILE).exists()]
    if not unfinished:
        return "none to resume", findings
    place = shlex.quote(shown(unfinished[0] if len(unfinished) == 1 else places, root))
    trainings = f"{len(unfinished)} stopped training{'' if len(unfinished) == 1 else 's'}"
    return f"{trainings}; dvc repro with the same settings resumes; to discard: rm -r {place}", findings
