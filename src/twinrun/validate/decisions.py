"""A person's decisions on single images, in a CSV that `twinrun data fix` proposes and `validate` applies.

Its columns are `path`, `action` (drop, relabel or keep), `label` (the new one) and `reason`, which is free text. A line
without an action is not decided yet, and has no effect.

`keep` means that a person looked at the image and wants it as it is:

- its label and its quality are not doubted again (nor are those of an image that was relabelled);
- no policy drops it as a copy: not for conflicting labels, nor as a leak, a near leak, a member of a group in two
  splits or a duplicate. A conflict or a leak is no longer reported once all its images are kept: all that share the
  pixels or the group, or both sides of a pair of near duplicates. A duplicate is no longer reported once the second
  image is kept.

Where a model doubts a label, the proposal has no action, and the other label beside it: many such labels are right, and
only a person who looks can tell. With `keep`, the column `label` has no effect.

An image that cannot be decoded cannot be kept, and `keep` does not change the allowed sizes and modes.

A path is written as the table of facts has it, on one line (`printing.escaped`). How names may be written by hand is
decided in `spelling.py`, and what a spreadsheet may make of the file in `sheet.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twinrun.base.errors import DataError
from twinrun.dataset.table import Columns
from twinrun.tables.sheet import cells_by_column, column_names, header_of, read_sheet, sheet_text
from twinrun.tables.spelling import Names
from twinrun.validate.findings import BY_DECISION, Drop

if TYPE_CHECKING:
    import pyarrow as pa

Action = Literal["drop", "relabel", "keep"]
_ACTIONS: dict[str, Action] = {"drop": "drop", "relabel": "relabel", "keep": "keep"}
_COLUMNS = ("path", "action", "label", "reason")
_SETTING = "params.yaml: validate.decisions"


@dataclass(frozen=True)
class Decision:
    """The decision on one image, None while nobody has decided; `where` names the line."""

    path: str
    action: Action | None
    label: str | None
    reason: str
    where: str


def read_decisions(path: Path) -> list[Decision]:
    """Read a CSV of decisions; raises DataError, which names the line, where it is not one."""
    try:
        sheet = read_sheet(path, _SETTING, DataError)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing ({_SETTING}). Create it: twinrun data fix --out {path}, or set it to null."
        ) from None
    header = column_names(sheet, path, DataError)
    if missing := {"path", "action"} - set(header):
        raise DataError(
            f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}; {' and '.join(sorted(missing))} is missing "
            f"({_SETTING})."
        )
    return [_decision(header, line.cells, f"{path}, line {line.number}") for line in sheet.lines[1:]]


def _decision(header: Sequence[str], line: Sequence[str], where: str) -> Decision:
    cells = cells_by_column(header, line, where, DataError)
    written = cells.get("action", "").strip()
    action = _ACTIONS.get(written.lower())
    if action is None and written:
        raise DataError(f"{where}: the action must be drop, relabel or keep, or empty, found {written!r}.")
    label = cells["label"] if cells.get("label", "").strip() else None
    if action == "relabel" and label is None:
        raise DataError(f"{where}: relabel needs the new label in the column label.")
    return Decision(cells.get("path", ""), action, label, cells.get("reason", "").strip(), where)


@dataclass(frozen=True)
class Decided:
    """The effect of the decisions on each row: its label, its drop, and a description, such as "relabel: it barks".

    `looked_at` are the rows that a person kept or relabelled, `approved` those that were kept.
    """

    labels: list[str | None]
    dropped: list[Drop | None]
    descriptions: list[str | None]
    looked_at: frozenset[int]
    approved: frozenset[int]


def decided(facts: Columns, decisions: Sequence[Decision]) -> Decided:
    """The effect of `decisions` on the rows.

    Raises DataError for an unknown image, one that cannot be kept, a label that no image has, and two different
    decisions on one image.
    """
    labels: list[str | None] = list(facts["label"])
    dropped: list[Drop | None] = [None] * len(labels)
    descriptions: list[str | None] = [None] * len(labels)
    rows = {path: row for row, path in enumerate(facts["path"])}
    classes = {label for label in labels if label is not None}
    paths, names = Names(rows), Names(classes)
    taken: dict[str, Decision] = {}
    decisions = [
        replace(
            decision,
            path=paths.find(decision.path) or decision.path,
            label=decision.label and (names.find(decision.label) or decision.label),
        )
        for decision in decisions
        if decision.action is not None
    ]
    for decision in decisions:
        if decision.path not in rows:
            raise DataError(f"{decision.where}: there is no image {decision.path!r}. Remove the line ({_SETTING}).")
        if decision.action == "relabel" and decision.label not in classes:
            known = ", ".join(sorted(map(str, classes))[:20])
            raise DataError(f"{decision.where}: no image has the label {decision.label!r}; there are {known}.")
        other = taken.setdefault(decision.path, decision)
        if other.action != decision.action or (decision.action == "relabel" and other.label != decision.label):
            raise DataError(
                f"{decision.where}: {decision.path} has another decision already, {other.action} ({other.where}). "
                "Remove one of them."
            )
        row = rows[decision.path]
        if decision.action == "keep" and facts["error"][row] is not None:
            raise DataError(
                f"{decision.where}: {decision.path} cannot be kept, since it cannot be decoded: {facts['error'][row]}. "
                "Fix the file, or decide to drop it."
            )
        descriptions[row] = f"{decision.action}: {decision.reason}" if decision.reason else decision.action
        if decision.action == "drop":
            dropped[row] = Drop(f"{BY_DECISION}: {decision.reason or 'dropped by hand'}")
        elif decision.action == "relabel":
            labels[row] = decision.label
    by_action = {action: frozenset(rows[d.path] for d in decisions if d.action == action) for action in _ACTIONS}
    return Decided(labels, dropped, descriptions, by_action["keep"] | by_action["relabel"], by_action["keep"])


def proposed(findings: "pa.Table") -> list[Decision]:
    """The proposals in a table of findings, one decision for each image: a drop overrides a label that is doubted."""
    decisions: dict[str, Decision] = {}
    for row in findings.to_pylist():
        if row["action"] is None:
            continue
        path = row["path"]
        action: Action | None = "drop" if row["action"] == "drop" else None
        if path not in decisions or (decisions[path].action is None and action == "drop"):
            decisions[path] = Decision(path, action, row["label"], f"{row['check']}: {row['words']}", "")
    return list(decisions.values())


def decisions_csv(decisions: Iterable[Decision], before: str = "") -> str:
    """The CSV that `read_decisions` reads: the text of `before`, unchanged, and then lines for `decisions`.

    They have the columns of `before`, in its order; additional columns are empty. Raises DataError where a relabel has
    no column for its label.
    """
    decisions = list(decisions)
    header, delimiter = header_of(before) if before else (list(_COLUMNS), ",")
    columns = [cell.strip().lower() for cell in header]
    if "label" not in columns and any(decision.label for decision in decisions):
        raise DataError("The decisions have no column label, which relabels need: add it to their first line.")
    end = "\r\n" if "\r\n" in before else "\n"
    rows: list[list[str]] = [] if before else [list(_COLUMNS)]
    for decision in decisions:
        values = {**asdict(decision), "action": decision.action or "", "label": decision.label or "", "where": ""}
        rows.append([values.get(column, "") for column in columns])
    return before + (end if before and not before.endswith("\n") else "") + sheet_text(rows, delimiter, end)


def not_decided(new: Iterable[Decision], before: Iterable[Decision]) -> list[Decision]:
    """Those of `new` whose image has no decision `before`, in any spelling of its name.

    A line without an action is none, but the same image is not put in doubt twice.
    """
    new, before = list(new), list(before)
    names = Names(decision.path for decision in new)
    known = {names.find(decision.path): False for decision in before if decision.action is None}
    known |= {names.find(decision.path): True for decision in before if decision.action is not None}
    return [d for d in new if d.path not in known or (d.action is not None and not known[d.path])]
