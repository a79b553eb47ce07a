"""The verdict for the terminal: one line if everything passed, ten at most if not. Pure."""

from collections.abc import Mapping, Sequence

from twinrun.core.intervals import widest_interval_points
from twinrun.dataset.manifest import SPLITS
from twinrun.validate.findings import BY_DECISION, Finding, Verdict

_LINES = 10
_AFFECTED = 3
_WIDE_POINTS = 10  # from which the interval is worth a line: below about 380 test images

Places = Mapping[str, tuple[int, str]]  # lines of params.yaml by the name of the setting


def summary(verdict: Verdict, report: str, places: Places | None, most_lines: int = _LINES) -> str:
    """What to print: one line where every check passed, and otherwise the worst first, in `most_lines`.

    Without `places` there is no params.yaml whose settings could be named.
    """
    notes = _unjudged(verdict)
    room = most_lines - len(notes)
    lines = _passed(verdict, room) if verdict.passed else _stopped(verdict, places, room)
    lines += notes
    if verdict.stopping or verdict.warnings:
        of_images = any(violation.rows for finding in verdict.stopping for violation in finding.violations)
        fix = (
            "; twinrun data fix proposes what to drop, and which labels to look at"
            if of_images and places is not None
            else ""
        )
        lines.append(f"The report with pictures: {report}{fix}")
    return "\n".join(lines)


def headline(verdict: Verdict) -> str:
    """The verdict in one sentence without its full stop, such as "The data passed 22 of 24 checks, with 2 warnings"."""
    total = len(verdict.findings)
    unjudged = sum(finding.status == "not judged" for finding in verdict.findings)
    failed = sum(finding.status == "failed" for finding in verdict.findings)
    others = [f"{unjudged} could not be judged"] if unjudged else []
    if not verdict.passed:
        problems = [f"{failed} of {total} checks failed"] if failed else []
        return f"The data did not pass: {' and '.join([*problems, *others])}"
    warnings = len(verdict.warnings)
    passed = total - warnings - unjudged
    parts = [f"The data passed {f'{passed} of {total}' if passed < total else f'all {total}'} checks"]
    parts += [f"{warnings} gave a warning"] if warnings else []
    return ", ".join([*parts, *others])


def _passed(verdict: Verdict, most_lines: int) -> list[str]:
    totals = {name: sum(counts[name] for counts in verdict.counts.values()) for name in SPLITS}
    sizes = ", ".join(f"{name} {total:,}" for name, total in totals.items() if total) or _count(
        len(verdict.dropped), "image", "images"
    )
    counts = sorted(verdict.reasons.items())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts if reason != BY_DECISION)
    dropped = f"; dropped: {reasons or 'none'}" if reasons or not counts else ""
    classes = _count(len(verdict.classes), "class", "classes")
    lines = [f"{headline(verdict)}. {classes}; {sizes}{dropped}.{_decided(verdict)}"]
    images = totals["test"]
    if images and (points := widest_interval_points(images)) >= _WIDE_POINTS:
        width = f"the 95% interval of their accuracy is up to {points} points wide"
        lines.append(f"  {images:,} test images: {width} (Wilson).")
    return [*lines, *_warnings(verdict.warnings, most_lines - 1 - len(lines))]


def _stopped(verdict: Verdict, places: Places | None, most_lines: int) -> list[str]:
    stopping, warnings = verdict.stopping, verdict.warnings
    lines = [f"{headline(verdict)}.{_decided(verdict)}"]
    room = most_lines - len(lines) - 1 - bool(warnings)
    if len(stopping) > room:
        shown, more = stopping[: room - 1], f"and {len(stopping) - room + 1} more"
    else:
        shown, more = stopping, None
    spare = room - len(shown) - bool(more)
    for finding in shown:
        named = min(spare, _AFFECTED, len(finding.violations))
        spare -= named
        lines.append(f"  {_said(finding, alone=not named)}{_settings(finding, places)}")
        lines += [f"    {violation.text}" for violation in finding.violations[:named]]
    if more:
        lines.append(f"  {more}")
    return lines + _warnings(warnings, 1)


def _unjudged(verdict: Verdict) -> list[str]:
    findings = verdict.not_judged
    return [f"  Not judged: {'; '.join(finding.found for finding in findings)}"] if findings else []


def _decided(verdict: Verdict) -> str:
    done = {"drop": "dropped", "relabel": "relabelled", "keep": "kept"}
    counts = [f"{verdict.decided[action]:,} {word}" for action, word in done.items() if action in verdict.decided]
    return f" By your decisions: {', '.join(counts)}." if counts else ""


def _said(finding: Finding, alone: bool) -> str:
    """What was found; a single violation whose line stands `alone` is named too."""
    if not alone or len(finding.violations) != 1:
        return finding.found
    violation = finding.violations[0]
    name = violation.text.removesuffix(f": {violation.measure}")
    return f"{finding.found}: {violation.text if name == violation.text else f'{name} ({violation.measure})'}"


def _settings(finding: Finding, places: Places | None) -> str:
    if places is None or not finding.settings:
        return ""
    if finding.recommended is not None:
        name = finding.recommended.partition(":")[0]
        line = f", line {places[name][0]}" if name in places else ""
        return f". Add images, or set {finding.recommended} (params.yaml{line})"
    named = (f"line {places[name][0]}: {name}" if name in places else name for name in finding.settings)
    return f". {finding.advice} (params.yaml, {' and '.join(named)})"


def _warnings(warnings: Sequence[Finding], room: int) -> list[str]:
    """Each warning in a line where there is room for it, and all in one where not."""
    if len(warnings) <= room:
        return [f"  Warning: {_said(finding, alone=True)}" for finding in warnings]
    return [f"  Warnings: {'; '.join(finding.found for finding in warnings)}"]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
