"""Whether the version in the results of `register` is in the registry."""

from pathlib import Path

from twinrun.doctor.findings import Finding, Result
from twinrun.record.records import RegisteredRecord, read_record
from twinrun.tracking.store import Tracker

REGISTERED = Path("data/out/register/registered.json")


def check(root: Path, tracker: Tracker) -> Result:
    from twinrun.tracking.registry import Registry, how_to_register

    if not (root / REGISTERED).is_file():
        return "nothing registered yet", []
    facts = read_record(RegisteredRecord, root / REGISTERED, root) or {}
    versions = []
    if not tracker.is_new:
        versions = Registry(tracker, facts["name"], only_looking=True).versions()
    if any(known.version == facts["version"] and known.weights_hash == facts["weights_hash"] for known in versions):
        return f"version {facts['version']} of {facts['name']}", []
    problem = f"{REGISTERED} names version {facts['version']} of {facts['name']}, which {tracker.shown} lacks"
    return "", [Finding(problem, how_to_register(root))]
