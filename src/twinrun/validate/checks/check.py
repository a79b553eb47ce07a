"""The type of all checks: an expectation, its severity and settings, and the messages of its result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from twinrun.core.params import Policy, Severity
from twinrun.validate.expectations import Judgement, Rule
from twinrun.validate.findings import Finding, Proposal, Status, Violation
from twinrun.validate.subject import Subject

TWINS_NAMED = 4
_CLASSES_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Check:
    """An expectation before it is judged.

    `violations` turns the rows that Great Expectations refused into violations, and `says` turns the rows and the
    violations into a sentence. Where `judges` is False, a refused row means that nothing could be judged.
    """

    name: str
    meaning: str
    table: str
    rule: Rule
    settings: tuple[str, ...]
    advice: str
    violations: Callable[[Judgement], Iterator[Violation]]
    says: "Says"
    judges: bool = True
    recommended: str | None = None

    def finding(self, judgement: Judgement) -> Finding:
        """The result; an expectation that could not be judged is critical even if the check is not."""
        if judgement.problem is not None:
            violations = [Violation((), judgement.problem)]
            return self._finding("not judged", "critical", f"{self.name} could not be judged", violations)
        if judgement.passed:
            return self._finding("passed", self.rule.severity, "", [])
        violations = list(self.violations(judgement))
        status: Status = "failed" if self.rule.severity == "critical" else "warning"
        result = self.says(judgement.rows, violations)
        return self._finding(status if self.judges else "not judged", self.rule.severity, result, violations)

    def _finding(self, status: Status, severity: Severity, found: str, violations: list[Violation]) -> Finding:
        return Finding(
            name=self.name,
            meaning=self.meaning,
            severity=severity,
            status=status,
            found=found,
            settings=self.settings,
            advice=self.advice,
            judged_by=self.rule.expectation,
            violations=violations,
            recommended=None if status == "passed" else self.recommended,
        )


Says = Callable[[Sequence[int], Sequence[Violation]], str]
"""From the refused rows and their violations to a sentence without its full stop."""


def counting(predicate: str, noun: str = "image", nouns: str = "", names: Sequence[str] | None = None) -> Says:
    """A sentence with the number of rows: from "is dark", "1 image is dark" or "1,200 images are dark".

    If `names` has a name for each row of the table, the names of the refused rows follow.
    """
    verb, _, rest = predicate.partition(" ")
    verbs = {"is": "are", "has": "have", "does": "do"}.get(verb, verb.removesuffix("s"))

    def say(rows: Sequence[int], _: Sequence[Violation]) -> str:
        more = [f"{len(rows) - _CLASSES_NAMED:,} more"] if len(rows) > _CLASSES_NAMED else []
        named = f" ({', '.join([*(names[row] for row in rows[:_CLASSES_NAMED]), *more])})" if names is not None else ""
        if len(rows) == 1:
            return f"1 {noun} {predicate}{named}"
        return f"{len(rows):,} {nouns or f'{noun}s'} {verbs} {rest}".rstrip() + named

    return say


def severity_of(policy: Policy) -> Severity:
    # With the policy `drop`, the images concerned are already dropped; any that are left would be critical.
    return "warning" if policy == "warn" else "critical"


def each_image(
    subject: Subject, text: Callable[[int], str], drop: bool = False, asked: Sequence[int] | None = None
) -> Callable[[Judgement], Iterator[Violation]]:
    """A violation for each refused image; `text` says what is wrong with it. Refused rows index `asked` or all rows."""
    judged = subject.kept if asked is None else asked

    def violations(judgement: Judgement) -> Iterator[Violation]:
        for index in judgement.rows:
            row = judged[index]
            proposals = (Proposal(row, "drop"),) if drop else ()
            yield Violation((row,), f"{subject.facts['path'][row]}: {text(row)}", text(row), proposals)

    return violations
