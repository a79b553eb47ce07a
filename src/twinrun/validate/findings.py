"""The results of a validation: violations, findings, the verdict. Plain values; judging.py computes them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from twinrun.core.params import Severity

if TYPE_CHECKING:
    from twinrun.validate.evidence import Evidence

UNSPLIT = "no split"


BY_DECISION = "decision"
"""The kind of reason with which a person's decision drops a row."""


@dataclass(frozen=True)
class Drop:
    """Why a row is dropped, kind first, as in "leak: of a.png", and for a copy the row that it copies."""

    reason: str
    partner: int | None = None


@dataclass(frozen=True)
class Proposal:
    """A proposed decision on an image."""

    row: int
    action: Literal["drop", "relabel"]
    label: str | None = None


@dataclass(frozen=True)
class Violation:
    """One violation of a check: an image, some that are copies of one another, or a class, and what is wrong with it.

    `text` names the images and what is wrong; `measure` is the text below their pictures, which have captions.
    """

    rows: tuple[int, ...]
    text: str
    measure: str = ""
    proposals: tuple[Proposal, ...] = ()


Status = Literal["passed", "failed", "warning", "not judged"]


@dataclass(frozen=True)
class Finding:
    """One check and its result.

    `meaning` is the rule, such as "No image is blurred", and `found` what was found instead, such as "2 images are
    blurred"; it is empty where the check passed. `recommended` is a setting, with its value, with which these data
    pass, if there is one.
    """

    name: str
    meaning: str
    severity: Severity
    status: Status
    found: str
    settings: tuple[str, ...]
    advice: str
    judged_by: str
    violations: list[Violation] = field(default_factory=list)
    recommended: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the data were judged and meet the rule."""
        return self.status == "passed"

    @property
    def stops(self) -> bool:
        """Whether the data may not be used: the check failed, or it is a critical one that could not be judged."""
        return self.status == "failed" or (self.status == "not judged" and self.severity == "critical")


@dataclass(frozen=True)
class Verdict:
    """How the data were judged; the lists have an entry for each row of the table.

    `dropped` are reasons; `partners` has, for a dropped copy, the row that it is a copy of; `decisions` are those of a
    person, such as "relabel: it barks"; `counts` are usable images of each class in each split, and those in no split,
    where there are any, under UNSPLIT; `units` are equal for near duplicates and for members of a group.
    """

    findings: list[Finding]
    classes: list[str]
    labels: list[str | None]
    splits: list[str | None]
    dropped: list[str | None]
    partners: dict[int, int]
    decisions: list[str | None]
    units: list[str | None]
    counts: dict[str, dict[str, int]]
    evidence: "Evidence"

    @property
    def passed(self) -> bool:
        """Whether the data may be used."""
        return not self.stopping

    @property
    def stopping(self) -> list[Finding]:
        """The checks that stop the pipeline: those that failed, and critical ones that could not be judged."""
        return [finding for finding in self.findings if finding.stops]

    @property
    def warnings(self) -> list[Finding]:
        """The checks that were not met and stop nothing."""
        return [finding for finding in self.findings if finding.status == "warning"]

    @property
    def not_judged(self) -> list[Finding]:
        """The checks that could not be judged and stop nothing."""
        return [finding for finding in self.findings if finding.status == "not judged" and not finding.stops]

    @property
    def reasons(self) -> dict[str, int]:
        """Number of dropped images for each kind of reason."""
        return _by_kind(self.dropped)

    @property
    def decided(self) -> dict[str, int]:
        """Number of images for each kind of decision: drop, relabel, keep."""
        return _by_kind(self.decisions)


def _by_kind(reasons: Sequence[str | None]) -> dict[str, int]:
    return dict(Counter(reason.partition(":")[0] for reason in reasons if reason is not None))
