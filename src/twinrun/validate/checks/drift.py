"""The check of drift from a reference."""

from twinrun.validate.checks.check import Check, counting, severity_of
from twinrun.validate.expectations import Rule
from twinrun.validate.findings import Violation
from twinrun.validate.subject import Subject


def of_drift(subject: Subject) -> list[Check]:
    drift, reference = subject.evidence.drift, subject.evidence.reference
    if drift is None:
        return []
    severity, settings = severity_of(subject.params.on_drift), ("validate.on_drift", "validate.reference")
    changes = subject.changed_labels()
    rows = {path: row for row, path in enumerate(subject.facts["path"])}
    return [
        Check(
            name="no_drift",
            meaning=f"Facts and labels are distributed as in {reference}",
            table="drift",
            rule=Rule("ExpectColumnValuesToBeInSet", {"column": "significant", "value_set": [False]}, severity),
            settings=settings,
            advice="Find out what changed in how images are taken, or make these the reference",
            violations=lambda judgement: (
                Violation((), f"{shift.name}: {shift.measure} {shift.value:.3f}, p {shift.p_value:.2g}")
                for shift in (drift.shifts[i] for i in judgement.rows)
            ),
            says=counting(f"is distributed differently than in {reference}", "fact"),
        ),
        Check(
            name="same_labels",
            meaning=f"The labels are those of {reference}",
            table="labels_since_reference",
            rule=Rule("ExpectColumnValuesToBeInSet", {"column": "change", "value_set": ["none"]}, severity),
            settings=settings,
            advice="Rename or remove them, or make these the reference",
            violations=lambda judgement: (
                Violation((), f'Label "{changes[i][1]}" is {changes[i][0]}') for i in judgement.rows
            ),
            says=counting(f"is new or gone since {reference}", "label"),
        ),
        Check(
            name="same_images",
            meaning=f"No image has another label than in {reference}",
            table="images_since_reference",
            rule=Rule("ExpectColumnValuesToBeNull", {"column": "relabelled"}, severity),
            settings=settings,
            advice="Make sure that the new labels are right",
            violations=lambda judgement: (
                Violation((rows[path],), f"{path}: was {before}, is {now}", f"was {before}, is {now}")
                for path, before, now in (drift.relabelled[i] for i in judgement.rows)
            ),
            says=counting(f"has another label than in {reference}"),
        ),
    ]
