"""The check of shortcuts: facts beside the content that give the labels away."""

from typing import TYPE_CHECKING

from twinrun.validate.checks.check import Check, counting, severity_of
from twinrun.validate.expectations import Rule
from twinrun.validate.findings import Violation
from twinrun.validate.subject import Subject

if TYPE_CHECKING:
    from twinrun.validate.searches.shortcuts import Shortcut


def of_shortcuts(subject: Subject) -> list[Check]:
    shortcuts, params = subject.evidence.shortcuts, subject.params
    if not shortcuts:
        return []

    def shortcut_text(shortcut: "Shortcut") -> str:
        separated = "the labels" if shortcut.label is None else f'"{shortcut.label}" from all others'
        indicator = "All of these facts tell" if shortcut.name == "all" else f"{shortcut.name.capitalize()} alone tells"
        return (
            f"{indicator} {separated}: balanced accuracy {shortcut.balanced_accuracy:.3f} "
            f"({shortcut.low:.3f} to {shortcut.high:.3f}), chance {shortcut.chance:.3f}"
        )

    return [
        Check(
            name="no_shortcut",
            meaning="No size, format, light or camera predicts the labels"
            f" (at most {params.max_shortcut:.0%}, from chance to always right)",
            table="shortcuts",
            rule=Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "share", "max_value": params.max_shortcut},
                severity_of(params.on_shortcut),
            ),
            settings=("validate.on_shortcut", "validate.max_shortcut"),
            advice="Take images of all labels in the same way, or raise that number",
            violations=lambda judgement: (Violation((), shortcut_text(shortcuts[i])) for i in judgement.rows),
            says=counting("predicts the labels", "shortcut"),
        )
    ]
