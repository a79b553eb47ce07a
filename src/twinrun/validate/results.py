"""The verdict for programs: result.json, the table of findings, the CSV of distributions. No times, no hosts."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinrun.base.files import read_json
from twinrun.dataset.manifest import SPLITS
from twinrun.validate.findings import Verdict

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3
PLOTTED = ("brightness", "contrast", "sharpness", "entropy")
_SHOWN = 10
_BINS = 40


def result_json(verdict: Verdict, table: "pa.Table") -> dict[str, Any]:
    """The verdict as plain values, for result.json: the same for the same data."""
    paths = table["path"].to_pylist()
    evidence = verdict.evidence
    return {
        "format": FORMAT,
        "passed": verdict.passed,
        "images": {
            "total": len(verdict.dropped),
            "kept": verdict.dropped.count(None),
            "dropped": verdict.reasons,
        },
        "decisions": {action: verdict.decided.get(action, 0) for action in ("drop", "relabel", "keep")},
        "splits": {name: sum(counts[name] for counts in verdict.counts.values()) for name in SPLITS},
        "classes": verdict.counts,
        "counts": {finding.name: len(finding.violations) for finding in verdict.findings},
        "expectations": [
            {
                **{key: value for key, value in asdict(finding).items() if key != "violations"},
                "passed": finding.passed,
                "stops": finding.stops,
                "violations": len(finding.violations),
                "first_violations": [
                    {"paths": [paths[row] for row in violation.rows], "what": violation.text}
                    for violation in finding.violations[:_SHOWN]
                ],
            }
            for finding in verdict.findings
        ],
        "label_search": {"accuracy": evidence.labels.accuracy, "finished": evidence.labels.finished}
        if evidence.labels
        else None,
        "shortcuts": [asdict(shortcut) for shortcut in evidence.shortcuts],
        "drift": {
            "reference": evidence.reference,
            "shifts": [asdict(shift) for shift in evidence.drift.shifts],
            "added": len(evidence.drift.added),
            "removed": len(evidence.drift.removed),
            "added_paths": evidence.drift.added,
            "removed_paths": evidence.drift.removed,
            "relabelled": [{"path": path, "was": was, "is": now} for path, was, now in evidence.drift.relabelled],
        }
        if evidence.drift
        else None,
    }


def is_result(path: Path) -> bool:
    """Whether a file is one that `result_json` was written to."""
    return {"format", "passed", "decisions", "expectations"} <= read_json(path).keys()


def findings_table(verdict: Verdict, table: "pa.Table") -> "pa.Table":
    """A row for each affected image: check, severity, number of the violation, image, message, proposal."""
    import pyarrow as pa

    paths = table["path"].to_pylist()
    rows = []
    for finding in verdict.findings:
        for number, violation in enumerate(finding.violations):
            proposed = {proposal.row: proposal for proposal in violation.proposals}
            for row in violation.rows or (None,):
                proposal = proposed.get(row) if row is not None else None
                rows.append(
                    {
                        "check": finding.name,
                        "severity": finding.severity,
                        "violation": number,
                        "path": paths[row] if row is not None else None,
                        "words": violation.text,
                        "action": proposal.action if proposal else None,
                        "label": proposal.label if proposal else None,
                    }
                )
    return pa.Table.from_pylist(rows, findings_schema())


def findings_schema() -> "pa.Schema":
    """The columns of `findings_table`."""
    import pyarrow as pa

    names = ("check", "severity", "path", "words", "action", "label")
    return pa.schema({**{name: pa.string() for name in names}, "violation": pa.int64()})


def is_findings(path: Path) -> bool:
    """Whether a file is one that `findings_table` was written to."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_schema(path).names == findings_schema().names)
    except pa.ArrowException:
        return False


def distributions_csv(verdict: Verdict, table: "pa.Table") -> str:
    """How facts are spread in each split: for each fact the middles of bins and, for each split, shares of its images.

    The same bins for all splits, so that lines may be compared; `dvc plots show` draws them.
    """
    splits = np.array([str(split) for split in verdict.splits])
    columns: dict[str, list[float]] = {}
    for fact in PLOTTED:
        values = np.array([np.nan if value is None else value for value in table[fact].to_pylist()], np.float64)
        usable = ~np.isnan(values) & np.array([reason is None for reason in verdict.dropped], bool)
        edges = np.histogram_bin_edges(values[usable], bins=_BINS)
        columns[fact] = ((edges[:-1] + edges[1:]) / 2).tolist()
        for split in SPLITS:
            counts = np.histogram(values[usable & (splits == split)], bins=edges)[0]
            columns[f"{fact}_{split}"] = (counts / max(1, counts.sum())).tolist()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6g}" for value in row] for row in zip(*columns.values(), strict=True))
    return text.getvalue()
