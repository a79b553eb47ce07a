"""Checks of quality: dark, bright, blurred, empty or oddly shaped images."""

from twinrun.validate.checks.check import Check, counting, each_image, severity_of
from twinrun.validate.expectations import Rule
from twinrun.validate.subject import QUALITY, Subject, flaw_column

_SHOW_NOTHING = ("dark", "bright", "low information")


def of_quality(subject: Subject) -> list[Check]:
    texts = {(issue.name, issue.row): issue.text for issue in subject.evidence.quality}
    return [
        Check(
            name=f"not_{name.replace(' ', '_')}",
            meaning=f"No image {predicate}",
            table="images",
            rule=Rule(
                "ExpectColumnValuesToBeNull", {"column": flaw_column(name)}, severity_of(subject.params.on_quality)
            ),
            settings=("validate.on_quality",),
            advice="Look at them, and drop those that show nothing",
            violations=each_image(subject, lambda row, name=name: texts[name, row], drop=name in _SHOW_NOTHING),  # type: ignore[misc]
            says=counting(predicate),
        )
        for name, predicate in QUALITY.items()
    ]
