"""The page on a version's gates: what each requires, what it measured, and whether the version passed."""

from collections.abc import Sequence
from pathlib import Path

from twinrun.evaluation.gate import Gate
from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("gate.html")


def gate_page(gates: Sequence[Gate], version: str, refused: str | None, notes: Sequence[str]) -> str:
    """One offline page; `version` is its title and `notes` are sentences that stand below the gates."""
    return fill_page(
        _TEMPLATE,
        version=version,
        refused=refused,
        gates=gates,
        notes=notes,
        all_judged=all(gate.passed is not None for gate in gates),
    )
