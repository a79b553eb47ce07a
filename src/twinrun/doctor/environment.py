"""Whether the installed packages are those of the lock, and Python is the version that trained the model."""

import platform
from collections.abc import Iterator
from pathlib import Path

from twinrun.doctor.findings import Finding, Result, counted
from twinrun.project.environment import CODE, outdated, stands_alone
from twinrun.record.card import LOCK, REINSTALL, installed_versions, locked_versions
from twinrun.record.records import CardRecord, read_record
from twinrun.twins.difference import compare_packages

CARD = Path("data/out/train/card.json")


def check(root: Path) -> Result:
    if stands_alone(root):
        findings = [
            Finding(f"{name} is out of date: other code or packages are installed now", "dvc status")
            for name in outdated(root)
        ]
        return f"{CODE} and {LOCK}", [*findings, *_python(root)]
    lock = root / LOCK
    if not lock.is_file():
        return "", [Finding(f"{LOCK} is missing, so runs cannot record their environment", "make lock")]
    locked = locked_versions(lock.read_text(encoding="utf-8", errors="replace"))
    changes = compare_packages(locked, installed_versions())
    findings = []
    if differing := [c for c in changes if c.before is not None]:
        text = counted([f"{c.name} {c.after or 'missing'} (locked: {c.before})" for c in differing], "package")
        findings.append(Finding(f"{text} not as {LOCK} says", REINSTALL))
    if extra := [c for c in changes if c.before is None]:
        text = counted([f"{c.name} {c.after}" for c in extra], "package")
        findings.append(Finding(f"{text} installed and not in {LOCK}", REINSTALL))
    return f"{len(locked)} packages in {LOCK}", [*findings, *_python(root)]


def _python(root: Path) -> Iterator[Finding]:
    """Whether the model in data/out was trained with the Python that runs here."""
    card = read_record(CardRecord, root / CARD, root) or {}
    if (trained := card.get("environment", {}).get("python")) is None:
        return
    here, series = platform.python_version(), ".".join(trained.split(".")[:2])
    if trained != here:
        yield Finding(
            f"the model in data/out/train was trained with Python {trained}; this is {here}",
            f"install Twinrun for python{series}"
            if stands_alone(root)
            else f"rm -rf .venv && make setup PYTHON=python{series}",
            harmless=here.startswith(f"{series}."),
        )
