"""What the checks of `twinrun doctor` report, and how they name files, numbers and times.

Each other module here has a function `check`, which looks at one part of the set-up and changes nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import ParamsError, TwinrunError
from twinrun.base.printing import one_line

SHOWN = 6
# The last sentence of a text; a period inside a path, as in "/data/St. Gallen/x", ends none.
_LAST_SENTENCE = re.compile(r"(.+)\. ([^\s/]+ .+)")


@dataclass(frozen=True)
class Finding:
    """A problem, or only a hint if `harmless`, and the command that fixes it."""

    problem: str
    fix: str
    harmless: bool = False


# What was checked, for a person, and what is wrong there.
Result = tuple[str, list[Finding]]


@dataclass(frozen=True)
class Check:
    """One part of the set-up: what was checked, and the findings."""

    name: str
    seen: str
    findings: tuple[Finding, ...]

    def causes(self) -> list[list[Finding]]:
        """The findings in lists: what one command fixes has one cause."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.fix, []).append(finding)
        return list(groups.values())


def reported(error: TwinrunError, default: str | None = None) -> Finding:
    """A message as a finding: the lines after the first, or the last sentence, say what to do.

    Unless it lists wrong settings. The fix of a single sentence is `default`, or the sentence itself.
    """
    problem, *more = str(error).splitlines()
    if more and isinstance(error, ParamsError):
        return Finding("\n      ".join([problem, *more]), "correct params.yaml")
    if more:
        return Finding(problem, "\n      ".join(more))
    sentences = _LAST_SENTENCE.fullmatch(problem)
    return Finding(sentences[1], sentences[2]) if sentences else Finding(problem, default or problem)


def counted(names: list[str], noun: str) -> str:
    """The subject and verb of a sentence on some things: "2 files (a, b) are"."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({', '.join(map(one_line, names[:SHOWN]))}{more}) {verb}"
    )


def shown(path: Path, root: Path) -> str:
    """A path below `root` as a person would type it there."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def duration(seconds: float) -> str:
    """A time in the largest unit of which there are two or more."""
    seconds = max(0.0, seconds)  # below 0 if the clock was set back
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
