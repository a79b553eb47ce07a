"""The journals of `validate` and `evaluate`: what MLflow gets of their results. MLflow itself is not imported.

Data that were refused become a run of their own; of other data the run that trains on them gets the result.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinrun.core.params import Params
from twinrun.record.journal import write_result
from twinrun.tracking.metric_names import evaluation_metrics
from twinrun.tracking.presentation import NOTE, escaped


def journal_evaluation(out: Path, metrics: Mapping[str, Any], weights_hash: str) -> None:
    """Write the journal of an evaluation whose results lie in `out`; `metrics` are those of metrics.json."""
    write_result(
        out,
        "evaluate",
        to="evaluation",
        artifacts=("metrics.json", "confusion.csv", "predictions.parquet", "report"),
        tags={"twinrun.weights_hash": weights_hash},
        tables={"per_class.json": metrics.get("per_class", [])},
        metrics=evaluation_metrics(metrics),
    )


def journal_validation(out: Path, result: Mapping[str, Any], params: Params) -> None:
    """Write the journal of a validation whose results lie in `out`; `result` is what result.json holds."""
    passed = bool(result["passed"])
    write_result(
        out,
        "validate",
        to="validation",
        artifacts=("result.json", "report", "data_docs"),
        tags=_tags(result) if passed else {**_tags(result), NOTE: _note(result)},
        tables={"checks.json": _rows(result)},
        name=f"data of {params.ingest.data_name}",
        experiment=params.register.model_name,
        status="FINISHED" if passed else "FAILED",
    )


def publish() -> None:
    """Have `twinrun sync` publish the journals, where DVC runs the stage; otherwise that is left to the person.

    A separate process, so that a stage imports no MLflow and no fault of a tracker reaches it.
    """
    if "DVC_STAGE" in os.environ:
        subprocess.run([sys.executable, "-m", "twinrun", "sync"], check=False)


def _tags(result: Mapping[str, Any]) -> dict[str, str]:
    counts, images, unjudged = result["counts"], result["images"], _unjudged(result)
    affected = ", ".join(f"{name} {count}" for name, count in counts.items() if count and name not in unjudged)
    tags = {
        "data.images": str(images["kept"]),
        "data.dropped": str(images["total"] - images["kept"]),
        "data.findings": affected or "none",
    }
    return {**tags, "data.not_judged": "; ".join(unjudged.values())} if unjudged else tags


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each data check counted."""
    counts, unjudged = result["counts"], _unjudged(result)
    return [
        {
            "check": check["name"],
            "status": check["status"],
            "severity": check["severity"],
            "found": 0 if check["name"] in unjudged else counts.get(check["name"], 0),
            "result": check["found"] or check.get("meaning"),
        }
        for check in result["expectations"]
    ]


def _unjudged(result: Mapping[str, Any]) -> dict[str, str]:
    return {check["name"]: check["found"] for check in result["expectations"] if check["status"] == "not judged"}


def _note(result: Mapping[str, Any]) -> str:
    """What stopped the pipeline, for the run's page."""
    stopping = [check for check in result["expectations"] if check["stops"]]
    lines = [f"- {check['status']}: {escaped(check['found'])}" for check in stopping]
    return "\n".join(["The data did not pass:", "", *lines])
