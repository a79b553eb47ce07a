"""The user's own expectations, of params.yaml."""

from collections import Counter
from collections.abc import Callable, Iterator

from twinrun.validate.checks.check import Check, Says, counting
from twinrun.validate.expectations import Judgement, Rule
from twinrun.validate.findings import Violation
from twinrun.validate.subject import Subject


def of_the_user(subject: Subject) -> list[Check]:
    names = Counter(wanted.name for wanted in subject.params.expectations)
    return [
        Check(
            name=wanted.name if names[wanted.name] == 1 else f"{wanted.name}_{number}",
            meaning=f"{wanted.name}: " + ", ".join(f"{key} {value}" for key, value in wanted.arguments.items()),
            table="images",
            rule=Rule(wanted.name, wanted.arguments, wanted.severity),
            settings=("validate.expectations",),
            advice="Look into them, or change the expectation",
            violations=_asked(subject, str(wanted.arguments.get("column", ""))),
            says=_not_meeting(wanted.name),
        )
        for number, wanted in enumerate(subject.params.expectations, 1)
    ]


def _not_meeting(expectation: str) -> Says:
    counted = counting(f"does not meet {expectation}")
    return lambda rows, violations: counted(rows, violations) if rows else f"{expectation} is not met"


def _asked(subject: Subject, column: str) -> Callable[[Judgement], Iterator[Violation]]:
    def violations(judgement: Judgement) -> Iterator[Violation]:
        for index in judgement.rows:
            row = subject.kept[index]
            value = f": {column} is {subject.facts[column][row]}" if column in subject.facts else ""
            yield Violation((row,), f"{subject.named(row)}{value}", value.removeprefix(": "))
        if not judgement.rows:
            observed = "it is not so" if judgement.observed is None else f"observed {judgement.observed}"
            yield Violation((), f"{column or 'the table'}: {observed}")

    return violations
