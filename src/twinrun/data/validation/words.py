"""The verdict for the terminal, in one line where all is well and in ten where it is not. Pure."""

from collections.abc import Mapping

from twinrun.data.intervals import widest_interval_points
from twinrun.data.manifest import SPLITS
from twinrun.data.validation.findings import Finding, Verdict

_LINES = 10
_OFFENDERS = 3
_WIDE_POINTS = 10  # from which the interval is worth a line: below about 380 test images

Places = Mapping[str, tuple[int, str]]  # lines of params.yaml by the name of the setting


def summary(verdict: Verdict, report: str, places: Places | None, most_lines: int = _LINES) -> str:
    """What to print: all in one line where every check is met, and otherwise the worst first, in `most_lines`.

    Without `places` there is no params.yaml whose settings could be named.
    """
    lines = _stopped(verdict, places, most_lines) if verdict.failed else _passed(verdict, most_lines)
    if verdict.evidence.labels is not None and verdict.evidence.labels.unjudged:
        lines[0] += f" {verdict.evidence.labels.unjudged}."
    if verdict.findings and (verdict.failed or verdict.warnings):
        lines.append(f"The report with pictures: {report}")
    return "\n".join(lines)


def _passed(verdict: Verdict, most_lines: int) -> list[str]:
    totals = {name: sum(counts[name] for counts in verdict.counts.values()) for name in SPLITS}
    sizes = (
        ", ".join(f"{name} {total:,}" for name, total in totals.items() if total) or f"{len(verdict.dropped):,} images"
    )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.reasons.items()))
    met = sum(finding.passed for finding in verdict.findings)
    checks = (
        f"{met} checks met" if not verdict.warnings else f"{met} of {len(verdict.findings)} checks met, none failed"
    )
    first = f"{checks}. {len(verdict.classes)} classes; {sizes}; dropped: {reasons or 'none'}.{_decided(verdict)}"
    lines = [first]
    images = totals["test"]
    if images and (points := widest_interval_points(images)) >= _WIDE_POINTS:
        width = f"the 95% interval of their accuracy is up to {points} points wide"
        lines.append(f"  {images:,} test images: {width} (Wilson).")
    return [*lines, *_warnings(verdict.warnings, most_lines - 1 - len(lines))]


def _stopped(verdict: Verdict, places: Places | None, most_lines: int) -> list[str]:
    failed, warnings = verdict.failed, verdict.warnings
    lines = [f"The data did not pass: {len(failed)} of {len(verdict.findings)} checks failed.{_decided(verdict)}"]
    room = most_lines - len(lines) - 1 - bool(warnings)
    if len(failed) > room:
        shown, more = failed[: room - 1], f"and {len(failed) - room + 1} more checks failed"
    else:
        shown, more = failed, None
    spare = room - len(shown) - bool(more)
    for finding in shown:
        named = min(spare, _OFFENDERS, len(finding.offences))
        spare -= named
        lines.append(f"  {finding.meaning}: {_words(finding, named)}{_settings(finding, places)}")
        lines += [f"    {offence.words}" for offence in finding.offences[:named]]
    if more:
        lines.append(f"  {more}")
    return lines + _warnings(warnings, 1)


def _decided(verdict: Verdict) -> str:
    done = {"drop": "dropped", "relabel": "relabelled", "keep": "kept"}
    counts = [f"{verdict.decided[action]:,} {word}" for action, word in done.items() if action in verdict.decided]
    return f" By your decisions: {', '.join(counts)}." if counts else ""


def _words(finding: Finding, named: int) -> str:
    if not named and len(finding.offences) == 1:
        return finding.offences[0].words
    return finding.found


def _settings(finding: Finding, places: Places | None) -> str:
    if places is None:
        return ""
    if finding.recommended is not None:
        name = finding.recommended.partition(":")[0]
        line = f", line {places[name][0]}" if name in places else ""
        return f". Add images, or set {finding.recommended} (params.yaml{line})"
    named = (f"line {places[name][0]}: {name}" if name in places else name for name in finding.settings)
    return f" (params.yaml, {' and '.join(named)})"


def _warnings(warnings: list[Finding], room: int) -> list[str]:
    """Each warning in a line where there is room for it, and all in one where not."""
    if len(warnings) <= room:
        return [f"  Warning: {finding.meaning}: {_words(finding, 0)}" for finding in warnings]
    return ["  Warnings: " + "; ".join(f"{finding.name} {finding.found}" for finding in warnings)]
