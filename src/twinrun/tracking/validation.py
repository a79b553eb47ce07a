"""What validation found in the data, for MLflow: part of the run that trained on them, or, where they were refused, a
run of its own. A run gets nothing about data that it was not given.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.core.files import file_sha256
from twinrun.record.objects import file_md5
from twinrun.record.records import CardRecord, Record, ValidationRecord, read_record, require_plain
from twinrun.tracking.presentation import NOTE, escaped, log_table, run_name
from twinrun.tracking.replay import Published, source_tags
from twinrun.tracking.store import Tracker, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESULT, REPORT, DOCS = "validation result", "validation report", "data docs"
ARTIFACTS = "validation"
VALIDATION_TAG = "twinrun.validation"
_OUT = Path("data/out/validate")
_MANIFEST = _OUT / "manifest.parquet"
_CARD = Path("data/out/train/card.json")
_KEY = "validation-"
_PLACES = {RESULT: "result.json", REPORT: "report", DOCS: "data_docs"}


def validation_of_training(workspace: Path, journal_id: str, begun_ms: int) -> dict[str, Path]:
    """What validation wrote of the data that the training in data/out/train was given, by name; empty where it wrote
    of others.

    The card has the hash of the manifest. Without DVC, which hashes it, the manifest must be older than the training.
    """
    manifest = workspace / _MANIFEST
    card: Record = read_record(CardRecord, workspace / _CARD, workspace) or {}
    passed = _result(workspace).get("passed") is True
    if not passed or not manifest.is_file() or card.get("journal_id") != journal_id:
        return {}
    used = card.get("dvc_lock", {}).get("validate", {}).get("outs", {}).get(_MANIFEST.as_posix())
    same = file_md5(manifest) == used if used else manifest.stat().st_mtime * 1000 <= begun_ms
    return _written(workspace) if same else {}


def failure_key(workspace: Path) -> str | None:
    """What a refusal of the data is remembered by; None where the data passed or were not judged yet."""
    result = workspace / _OUT / _PLACES[RESULT]
    return f"{_KEY}{file_sha256(result)}" if _result(workspace).get("passed") is False else None


def failure_waits(workspace: Path, tracker: Tracker) -> bool:
    """Whether validation refused the data in `workspace`, and MLflow does not have it yet."""
    key = failure_key(workspace)
    return key is not None and not Published.load(tracker, key).complete


def record_failure(client: "MlflowClient", workspace: Path, tracker: Tracker) -> str:
    """Make a run, FAILED, of the validation that refused the data; once for each result.json. Returns its name."""
    from twinrun.core.params import load_params

    key = str(failure_key(workspace))
    state = Published.load(tracker, key)
    params = load_params(workspace / "params.yaml")
    name = f"data of {params.ingest.data_name}"
    result = workspace / _OUT / _PLACES[RESULT]
    time_ms = int(result.stat().st_mtime * 1000)
    experiment = experiment_id(client, tracker, params.register.model_name)
    run = _find_run(client, experiment, key)
    if run is None:
        tags = {VALIDATION_TAG: key, NOTE: _note(workspace), **source_tags("validate")}
        run = client.create_run(experiment, start_time=time_ms, tags=tags, run_name=name)
    if run.info.lifecycle_stage != "deleted":
        if run.info.run_name == name:  # only now MLflow has given it an id
            client.update_run(run.info.run_id, name=run_name(name, run.info.run_id))
        for each, place in _written(workspace).items():
            attach_validation(client, workspace, run.info.run_id, each, place)
        client.set_terminated(run.info.run_id, "FAILED", end_time=time_ms)
    state.run_id, state.complete = run.info.run_id, True
    state.save()
    return run_name(name, run.info.run_id)


def attach_validation(client: "MlflowClient", workspace: Path, run_id: str, name: str, place: Path) -> None:
    """Add one of the things that validation wrote to a run; side by side, so that the report's links work."""
    require_plain(place, workspace)
    if place.is_dir():
        client.log_artifacts(run_id, str(place), f"{ARTIFACTS}/{place.name}")
        return
    if name == RESULT:
        _log_checks(client, run_id, _result(workspace))
    client.log_artifact(run_id, str(place), ARTIFACTS)


def _result(workspace: Path) -> Record:
    return read_record(ValidationRecord, workspace / _OUT / _PLACES[RESULT], workspace) or {}


def _written(workspace: Path) -> dict[str, Path]:
    places = {name: workspace / _OUT / place for name, place in _PLACES.items()}
    return {name: place for name, place in places.items() if place.exists()}


def _find_run(client: "MlflowClient", experiment: str, key: str) -> Any:
    from mlflow.entities import ViewType

    found = client.search_runs([experiment], f"tags.`{VALIDATION_TAG}` = '{key}'", run_view_type=ViewType.ALL)
    return found[0] if found else None


def _note(workspace: Path) -> str:
    """What stopped the pipeline, and what could not be judged, for the run's page."""
    checks = _result(workspace).get("expectations", [])
    stopping = [check for check in checks if _stops(check)]
    lines = [f"- {check.get('status', 'failed')}: {escaped(check.get('found', ''))}" for check in stopping]
    return "\n".join(["The data did not pass:", "", *lines])


def _stops(check: dict[str, Any]) -> bool:
    """Whether it stopped the pipeline; a result.json of an earlier version does not say so itself."""
    return bool(check.get("stops", not check.get("passed") and check.get("severity") == "critical"))


def _log_checks(client: "MlflowClient", run_id: str, result: dict[str, Any]) -> None:
    """Add what each data check counted as a table, and the checks that found something as tags."""
    from mlflow.entities import RunTag

    counts, images, checks = result.get("counts", {}), result.get("images", {}), result.get("expectations", [])
    unjudged = {check.get("name"): str(check.get("found")) for check in checks if check.get("status") == "not judged"}
    found = ", ".join(f"{name} {count}" for name, count in counts.items() if count and name not in unjudged)
    tags = {
        "data.images": images.get("kept"),
        "data.dropped": None if not images else images.get("total", 0) - images.get("kept", 0),
        "data.findings": found or "none",
        "data.not_judged": "; ".join(unjudged.values()) or None,
    }
    client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in tags.items() if value is not None])
    rows = [
        {
            "check": check.get("name"),
            "status": check.get("status", "passed" if check.get("passed") else "failed"),
            "severity": check.get("severity"),
            "found": 0 if check.get("name") in unjudged else counts.get(check.get("name"), 0),
            "result": check.get("found") or check.get("meaning"),
        }
        for check in checks
    ]
    if rows:
        log_table(client, run_id, rows, f"{ARTIFACTS}/checks.json")
