"""The verdict on a run by its twin: identical, equivalent or different, and why. Pure: no files, no tracker."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from twinrun.tracking.presentation import escaped, short
from twinrun.twins.difference import KINDS, Differences, ImageChange, MetricPair, PredictionChange

Word = Literal["identical", "equivalent", "different"]
EXIT_CODES: Mapping[Word, int] = {"identical": 0, "equivalent": 3, "different": 4}
_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict in one word, the first cause where the weights differ, and the reason in a sentence."""

    word: Word
    cause: str | None
    reason: str

    @property
    def exit_code(self) -> int:
        """0 identical, 3 equivalent, 4 different."""
        return EXIT_CODES[self.word]

    @property
    def tag(self) -> str:
        """The value of the tag in MLflow, such as `different: data`."""
        return self.word if self.cause is None else f"{self.word}: {self.cause}"


@dataclass(kw_only=True)
class TwinReport:
    """The comparison of a run with its twin; where no twin was trained, the reason."""

    verdict: Verdict
    run_id: str
    run_name: str
    weights_hash: str
    commit: str
    data: str
    twin_run_id: str | None = None
    twin_weights_hash: str | None = None
    twin_wall_time_s: float | None = None
    notes: list[str] = field(default_factory=list)
    differences: Differences = field(default_factory=Differences)
    images: list[ImageChange] = field(default_factory=list)
    metrics: list[MetricPair] = field(default_factory=list)
    predictions: list[PredictionChange] = field(default_factory=list)
    compared: int = 0
    folder: str | None = None
    problem: str | None = None

    def lines(self) -> list[str]:
        """For a person at a terminal: the verdict, then the evidence."""
        lines = [f"{self.verdict.tag.upper()}. {self.verdict.reason}"]
        lines += [f"  run   {self.weights_hash}  {self.run_name}"]
        if self.twin_weights_hash:
            lines.append(f"  twin  {self.twin_weights_hash}  {self._twin()}")
        for kind in KINDS:
            if self.differences.changes[kind] and self.verdict.word != "identical":
                lines.append(f"  {kind}:")
                lines += [f"    {change}" for change in self.differences.changes[kind][:_SHOWN]]
        if self.images:
            lines.append("  images:")
            lines += [f"    {change}" for change in self.images[:_SHOWN]]
            if len(self.images) > _SHOWN:
                lines.append(f"    and {len(self.images) - _SHOWN} more")
        if self.verdict.word != "identical":
            for pair in self.metrics:
                lines.append(f"  {pair.name}: {_pair(pair)}")
            if self.compared:
                lines.append(f"  {len(self.predictions)} of {self.compared} test images have another prediction")
        if self.problem:
            lines.append(f"  Not recorded in MLflow: {self.problem}")
        if self.folder:
            lines.append(f"  The twin's folder is kept: {self.folder}")
        return lines

    def markdown(self) -> str:
        """The report, an artifact of both runs in MLflow."""
        text = [
            f"# {self.verdict.tag}",
            "",
            self.verdict.reason,
            "",
            "| | run | twin |",
            "|---|---|---|",
            f"| MLflow | {escaped(self.run_name)} | {self._twin()} |",
            f"| weights | `{self.weights_hash}` | `{self.twin_weights_hash or 'none'}` |",
            "",
            f"Commit {self.commit}. Data: {self.data}.",
        ]
        for kind in KINDS:
            if self.differences.changes[kind]:
                text += ["", f"## {kind}", "", *(f"- {change}" for change in self.differences.changes[kind])]
        for title, entries in (("notes", self.notes), ("images", self.images)):
            if entries:
                text += ["", f"## {title}", "", *(f"- {entry}" for entry in entries)]
        if self.metrics:
            text += ["", "## metrics", "", *(f"- {pair.name}: {_pair(pair)}" for pair in self.metrics)]
        if self.predictions:
            text += ["", f"## predictions: {len(self.predictions)} of {self.compared} changed", ""]
            text += [f"- {image.id} ({image.label}): {image.before}, now {image.after}" for image in self.predictions]
        return "\n".join(text) + "\n"

    def _twin(self) -> str:
        return "not in MLflow yet" if self.twin_run_id is None else short(self.twin_run_id)

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        facts = asdict(self)
        facts["verdict"] = {**asdict(self.verdict), "exit_code": self.verdict.exit_code}
        return facts


def judge(run_hash: str, twin_hash: str, differences: Differences, metrics: list[MetricPair]) -> Verdict:
    """Compare weights; where they differ, name the first cause in the order code, params, data, environment, hardware.

    Another environment or processor is a known reason: the twin is equivalent if every metric that has an interval lies
    in it. If no metric has one, the twin is different.
    """
    if run_hash == twin_hash:
        return Verdict(word="identical", cause=None, reason="The twin has the run's weights, to the bit.")
    cause = differences.first_cause()
    if cause is None:
        return Verdict(
            word="different",
            cause="unknown",
            reason="The weights differ although code, params, data, environment and processor are the same. "
            "Reproduce it again: if it differs again, something that is not recorded decides these weights.",
        )
    first = differences.deciding[cause][0]
    if cause in ("environment", "hardware"):
        judged = [pair for pair in metrics if pair.within is not None]
        outside = [pair.name for pair in judged if not pair.within]
        if judged and not outside:
            return Verdict(
                word="equivalent",
                cause=cause,
                reason=f"Not the same bits, for a known reason ({first}); every metric lies in the run's interval.",
            )
        outcome = f"{', '.join(outside)} outside the run's interval" if outside else "no intervals to compare with"
        return Verdict(word="different", cause=cause, reason=f"Not the same bits ({first}), and {outcome}.")
    reasons = {"code": "The code differs from the run's", "params": "The params differ from the run's"}
    return Verdict(
        word="different",
        cause=cause,
        reason=f"{reasons.get(cause, 'The data differ from those that the run was trained on')}.",
    )


def _pair(pair: MetricPair) -> str:
    interval = "" if pair.before_interval is None else " [{:.4f}, {:.4f}]".format(*pair.before_interval)
    before = "unknown" if pair.before is None else f"{pair.before:.4f}"
    after = "unknown" if pair.after is None else f"{pair.after:.4f}"
    return f"{before}{interval}, now {after}"
