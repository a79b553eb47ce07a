"""Two runs side by side: fetches their cards and results, compares them, and draws the differences. Read-only."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinrun.base.errors import TwinError
from twinrun.base.printing import add_row, one_line
from twinrun.record.card import LOCK
from twinrun.tracking.runs import RunFacts
from twinrun.tracking.store import Tracker
from twinrun.twins.champion_data import facts_used
from twinrun.twins.difference import (
    KINDS,
    Change,
    Differences,
    ImageChange,
    MetricPair,
    PredictionChange,
    class_changes,
    compare_cards,
    compare_metrics,
    compare_predictions,
)
from twinrun.twins.material import MANIFEST, NEEDED, TABLE, compare_data, recorded_files
from twinrun.twins.twin import continuing, packages_of, recorded_run, results_of
from twinrun.twins.worktree import changed_files, file_at, patched_files

_SHOWN = 30


@dataclass
class RunDiff:
    """What differs between two runs, and the results."""

    before: RunFacts
    after: RunFacts
    differences: Differences
    files: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    images: list[ImageChange] = field(default_factory=list)
    metrics: list[MetricPair] = field(default_factory=list)
    predictions: list[PredictionChange] = field(default_factory=list)
    compared: int = 0
    paths: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def same_weights(self) -> bool:
        """Whether both runs ended with the same weights."""
        return bool(_card(self.before)["weights_hash"] == _card(self.after)["weights_hash"])

    @property
    def nothing(self) -> bool:
        """Whether neither inputs nor results differ, as far as all could be compared."""
        same_inputs = not any(self.differences.changes.values()) and not self.files and not self.images
        same_results = all(pair.before == pair.after for pair in self.metrics) and not self.predictions
        return same_inputs and same_results and self.same_weights and not self.notes


def diff_runs(root: Path, tracker: Tracker, before: str, after: str, model_name: str) -> RunDiff:
    """Compare two runs, named as `find_run` takes them. Raises TwinError where one has no card."""
    root = root.resolve()
    runs = [recorded_run(root, tracker, reference, model_name) for reference in (before, after)]
    cards = [_card(run) for run in runs]
    locks = [_lock_of(root, card) for card in cards]
    diff = RunDiff(
        runs[0],
        runs[1],
        compare_cards(cards[0], cards[1], (packages_of(cards[0], locks[0]), packages_of(cards[1], locks[1]))),
    )
    files = changed_files(root, cards[0]["commit"], cards[1]["commit"])
    if files is None:
        diff.notes.append("One of the two commits is not in this repository, so changed files cannot be listed.")
    diff.files = files or []
    patches = [str(card.get("diff") or "") for card in cards]
    for when, patch in zip(("before", "after"), patches, strict=True):
        if patch and patches[0] != patches[1]:
            diff.files += [f"{file}, uncommitted {when}" for file in patched_files(root, patch)]
    _compare_images(root, cards, diff)
    with (
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        continuing("metrics", diff.notes.append),
    ):
        results = [results_of(root, tracker, run, Path(f)) for run, f in zip(runs, (first, second), strict=True)]
        diff.metrics = compare_metrics(results[0][0], results[1][0])
        before_file, after_file = results[0][1], results[1][1]
        if before_file is not None and after_file is not None:
            from twinrun.dataset.prediction_table import read_predictions

            with continuing("predictions", diff.notes.append):
                tables = read_predictions(before_file), read_predictions(after_file)
                diff.predictions, diff.compared = compare_predictions(*tables)
    return diff


def _compare_images(root: Path, cards: list[Mapping[str, Any]], diff: RunDiff) -> None:
    files = [
        {name: file.path for name, file in recorded_files(root, card, ask_remote=False).items() if file.path}
        for card in cards
    ]
    if TABLE in files[1]:
        from twinrun.dataset.table import read_table

        table = read_table(files[1][TABLE])
        diff.paths = dict(zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True))
    if not diff.differences.of_images:
        return
    diff.images = compare_data(files[0], files[1])
    if all(name in file for file in files for name in (TABLE, MANIFEST)):
        diff.classes = class_changes(*(facts_used(file[TABLE], file[MANIFEST]) for file in files))
    if not diff.images and any(name not in file for file in files for name in NEEDED):
        lacking = [name for name in (TABLE, MANIFEST) if any(name not in file for file in files)]
        diff.notes.append(f"Which images differ is unknown: {', '.join(lacking)} of a run is not in the DVC cache.")


def _card(run: RunFacts) -> Mapping[str, Any]:
    if run.card is None:
        raise TwinError(f"The run {run.title} ({run.status}) has no card: its training did not finish.")
    if "commit" not in run.card:
        raise TwinError(f"The card of run {run.title} names no commit, so it cannot be compared.")
    return run.card


def _lock_of(root: Path, card: Mapping[str, Any]) -> bytes | None:
    """The run's requirements.lock, from its commit or this folder, whichever has its hash."""
    import hashlib

    here = root / LOCK
    wanted = card.get("environment", {}).get("lock_sha256")
    for content in (file_at(root, card["commit"], LOCK), here.read_bytes() if here.is_file() else None):
        if content is not None and hashlib.sha256(content).hexdigest() == wanted:
            return content
    return None


def draw(diff: RunDiff) -> list[Any]:
    """What rich prints, top to bottom: one line where nothing differs."""
    first, second = diff.before, diff.after
    if diff.nothing:
        weights = str(_card(first)["weights_hash"])
        return [
            f"{first.title} and {second.title} are the same: code, params, data, environment, hardware and results.",
            f"weights {weights}",
        ]
    parts: list[Any] = [f"before  {first.title}", f"after   {second.title}"]
    same = [kind for kind in KINDS if not diff.differences.changes[kind]]
    for kind in KINDS:
        if diff.differences.changes[kind]:
            parts.append(_changes(kind, diff.differences.changes[kind]))
        if kind == "code" and diff.files:
            parts.append(_list("changed files", diff.files))
        if kind == "data" and diff.classes:
            parts += [one_line(line) for line in diff.classes]
        if kind == "data" and diff.images:
            parts.append(_list("images", [str(change) for change in diff.images]))
    if same:
        parts.append(f"\nThe same in both: {', '.join(same)}.")
    parts += diff.notes
    weights = "the same in both" if diff.same_weights else "not the same"
    parts.append(f"\nweights: {weights} ({_card(first)['weights_hash'][:12]}, {_card(second)['weights_hash'][:12]})")
    if diff.metrics:
        parts.append(_metrics(diff.metrics))
    if diff.predictions:
        parts.append(_predictions(diff))
    elif diff.compared:
        parts.append(f"\nEvery one of {diff.compared} test images is classified as before.")
    return parts


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", header_style="dim")
    return table


def _changes(kind: str, changes: list[Change]) -> Any:
    table = _table(kind, "", "before", "after")
    for change in changes:
        add_row(table, change.name, change.before or "(none)", change.after or "(none)")
    return table


def _list(title: str, entries: list[str]) -> Any:
    table = _table(f"{title}: {len(entries)}", "")
    table.show_header = False
    for entry in entries[:_SHOWN]:
        add_row(table, entry)
    if len(entries) > _SHOWN:
        add_row(table, f"and {len(entries) - _SHOWN} more")
    return table


def _metrics(pairs: list[MetricPair]) -> Any:
    table = _table(
        "metrics (test split, or out of fold where that is small)",
        "",
        "before",
        "95% interval",
        "after",
        "95% interval",
        "change",
    )
    for pair in pairs:
        known = pair.before is not None and pair.after is not None
        add_row(
            table,
            pair.name,
            _number(pair.before),
            _interval(pair.before_interval),
            _number(pair.after),
            _interval(pair.after_interval),
            f"{pair.after - pair.before:+.4f}" if known else "",  # type: ignore[operator]
        )
    return table


def _predictions(diff: RunDiff) -> Any:
    title = f"images with another prediction: {len(diff.predictions)} of {diff.compared}"
    table = _table(title, "image", "label", "before", "", "after", "", "")
    for change in diff.predictions[:_SHOWN]:
        verdict = (
            "now right"
            if change.after == change.label
            else "now wrong"
            if change.before == change.label
            else "still wrong"
        )
        add_row(
            table,
            diff.paths.get(change.id, change.id),
            change.label,
            change.before,
            f"{change.before_probability:.1%}",
            change.after,
            f"{change.after_probability:.1%}",
            verdict,
        )
    if len(diff.predictions) > _SHOWN:
        add_row(table, f"and {len(diff.predictions) - _SHOWN} more")
    return table


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
