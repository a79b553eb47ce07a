"""The rows as a table for a terminal, as Markdown for a README, and as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.chaos.cases import Row

_COLUMNS = (
    *("fault", "n", "passed", "seed", "epochs computed again, at worst", "extra time, median"),
    *("plain stack: passed", "what it lost"),
)


def paired(rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
    """Each row of Twinrun with the control's for the same fault, where there is one."""
    controls = {row.fault: row for row in rows if row.stack == "plain" and not row.left_out}
    return [(row, controls.get(row.fault)) for row in rows if row.stack == "twinrun"]


def as_table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(*_COLUMNS, title="Faults, and what became of the weights")
    for cells in _lines(rows):
        table.add_row(*cells)
    return table


def as_markdown(rows: Sequence[Row]) -> str:
    """For a README."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *_lines(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(rows: Sequence[Row], facts: dict[str, Any]) -> dict[str, Any]:
    """Everything, every case included."""
    return {**facts, "rows": [row.facts() for row in rows]}


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [
            row.fault,
            str(len(row.outcomes)) if not row.left_out else "-",
            str(row.held) if not row.left_out else row.left_out,
            str(row.seed),
            str(row.worst_recomputed),
            "-" if row.extra_s is None else f"{row.extra_s:+.0f} s",
            "-" if control is None else f"{control.held} of {len(control.outcomes)}",
            "-" if control is None else _losses(control),
        ]
        for row, control in paired(rows)
    ]


def _losses(row: Row) -> str:
    """The kinds of faults, the most frequent first; numbers within a fault are left out, so that equal ones add up."""
    kinds = Counter(
        " ".join(word for word in fault.split() if not word.isdigit())
        for outcome in row.outcomes
        for fault in outcome.faults
    )
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(4)) or "nothing"
