"""The page on a version's gates: what each asked, what it measured, and whether the version passed."""

from collections.abc import Sequence
from pathlib import Path

from twinrun.evaluation.gate import Gate

_TEMPLATE = Path(__file__).with_name("gate.html")


def gate_page(gates: Sequence[Gate], version: str, refused: str | None, notes: Sequence[str]) -> str:
    """One offline page; `version` is its title and `notes` are sentences that stand below the gates."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        version=version,
        refused=refused,
        gates=gates,
        notes=notes,
        all_judged=all(gate.passed is not None for gate in gates),
    )
