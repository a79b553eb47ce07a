"""Runs side by side: fetches their predictions, joins those that differ in the seed alone, and says what differs."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError, RecordError, TrackingError, TwinError, TwinrunError
from twinrun.core.arrays import IntArray
from twinrun.evaluation.champion import recorded_results
from twinrun.evaluation.comparison import Aligned, Contender, Slice, align, slices
from twinrun.evaluation.comparison_page import Beside, Comparison, page
from twinrun.evaluation.headline import Source
from twinrun.evaluation.predictions import Predictions, read_predictions
from twinrun.record.card import LOCK
from twinrun.tracking.metric_names import LATENCY
from twinrun.tracking.runs import RunFacts, add_to_run, metric_history
from twinrun.tracking.store import Tracker
from twinrun.twins.difference import Change, ImageChange, compare_cards, source_of
from twinrun.twins.rundiff import RunDiff, diff_runs
from twinrun.twins.twin import recorded_run, results_of

PAGE = "comparison.html"
_KINDS = {"test": "test images", "cross-validation": "images out of fold"}
_MOST = 50  # runs
_SHOWN = 6  # lines on what differs
_TABLE, _PACK, _NEAR, _MANIFEST = (
    Path("data/out/ingest/table.parquet"),
    Path("data/out/ingest/images.npy"),
    Path("data/out/ingest/near.parquet"),
    Path("data/out/validate/manifest.parquet"),
)
_MEASURED = {"brightness": ("dark", "bright"), "sharpness": ("blurred", "sharp"), "width": ("narrow", "wide")}
# Settings that change no weight.
_NO_RESULT = frozenset(
    {"ingest.path", "ingest.workers", "train.threads", "train.devices", "train.accelerator", "validate.reference"}
)
_FEWEST = 20  # images of a part that is worth a line


class _RecordedRun:
    """A run with what it predicted."""

    def __init__(self, run: RunFacts, metrics: Mapping[str, Any], predictions: dict[Source, Predictions]) -> None:
        if run.card is None:
            raise TwinError(f"The run {run.title} ({run.status}) has no card: its training did not finish.")
        self.run, self.card, self.metrics, self.predictions = run, run.card, metrics, predictions


def compare_runs(
    root: Path, tracker: Tracker, references: Sequence[str], model_name: str, *, margin: float
) -> tuple[Comparison, str, RunFacts]:
    """Compare the runs that `references` name, as `find_run` takes them.

    Returns the comparison, its page, and the run that was trained last.

    Runs that differ in the seed alone are one row. All are compared on the same kind of images: out of fold where that
    is the headline of each, and on the test split otherwise. Raises TwinError or DataError with the reason.
    """
    if len(references) > _MOST:
        raise TwinError(f"At most {_MOST} runs are compared at once; these are {len(references)}.")
    chosen = [_recorded(root, tracker, recorded_run(root, tracker, reference, model_name)) for reference in references]
    unique = list({run.run.run_id: run for run in chosen}.values())
    rows = _by_seed(unique)
    if len(rows) == 1:  # nothing but the seed differs, or one run is compared with itself
        rows = [[run] for run in (unique if len(unique) > 1 else chosen[:2])]
    source = _source_of(unique)
    aligned = align(
        [Contender(name=_row_name(row), members=tuple(_of_source(run, source) for run in row)) for row in rows]
    )
    table = _table_here(root, _of_source(rows[0][0], source))
    comparison = Comparison(
        aligned=aligned,
        beside=[_beside(tracker, row) for row in rows],
        kind=_KINDS[source],
        margin=margin,
        same_weights=len({run.card["weights_hash"] for run in chosen}) == 1,
        slices=_slices(root, aligned, table) if len(rows) == 2 else (),
        notes=_left_out(aligned),
    )
    if len(rows) == 2:
        first, second = (run.run.run_id for run in _pair(*rows))
        differing, cause = _differing(diff_runs(root, tracker, first, second, model_name))
        comparison = replace(comparison, differing=differing, cause=None if comparison.same_weights else cause)
    elif len(rows) > 2:
        comparison = replace(comparison, differing=[_apart(rows[0], row) for row in rows[1:]])
    paths = [table.get(name, {}).get("path", name) for name in aligned.ids]
    newest = max((run.run for run in unique), key=lambda facts: str((facts.card or {}).get("started", "")))
    return comparison, page(comparison, _pictures(root, aligned, table), paths), newest


def log_page(tracker: Tracker, run_id: str, text: str) -> None:
    """Add the page to a run as an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, PAGE)
        file.write_text(text, encoding="utf-8")
        add_to_run(tracker, run_id, file, "comparison")


def _recorded(root: Path, tracker: Tracker, run: RunFacts) -> _RecordedRun:
    predictions, metrics = dict[Source, Predictions](), None
    with suppress(TrackingError, DataError, RecordError):  # this folder may have them
        if not run.is_unpublished:
            predictions, metrics = recorded_results(tracker, run.run_id)
    if not predictions or metrics is None:
        with tempfile.TemporaryDirectory() as folder:
            metrics, file = results_of(root, tracker, run, Path(folder))
            if file is not None and not predictions:
                predictions["test"] = read_predictions(file)
    if not predictions:
        raise DataError(f"The predictions of the run {run.title} are not recorded. Evaluate it: dvc repro evaluate")
    return _RecordedRun(run, metrics, predictions)


def _source_of(runs: Sequence[_RecordedRun]) -> Source:
    return "cross-validation" if all("cross-validation" in run.predictions for run in runs) else "test"


def _of_source(run: _RecordedRun, source: Source) -> Predictions:
    if source not in run.predictions:
        raise DataError(f"The predictions of the run {run.run.title} on the {_KINDS[source]} are not recorded.")
    return run.predictions[source]


def _by_seed(runs: Sequence[_RecordedRun]) -> list[list[_RecordedRun]]:
    """The runs in rows: those of one row differ in train.seed alone, of all that decides weights.

    A twin of one of them is a row of its own: it is no further seed.
    """
    rows: list[list[_RecordedRun]] = []
    for run in runs:
        for row in rows:
            if all(_only_seed_differs(member.card, run.card) for member in row):
                row.append(run)
                break
        else:
            rows.append([run])
    return rows


def _only_seed_differs(card: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    deciding = [change for changes in compare_cards(card, other).deciding.values() for change in changes]
    return bool(deciding) and all(change.name == "seed" for change in deciding)


def _row_name(row: Sequence[_RecordedRun]) -> str:
    if len(row) == 1:
        return row[0].run.title
    seeds = ", ".join(sorted(str(_seed(run)) for run in row))
    name = re.sub(r"^(\d+\.\d{1,2}% )?[0-9a-f]{8} ", "", row[0].run.title)  # accuracy and number of one of them
    return f"{name}, seeds {seeds}"


def _seed(run: _RecordedRun) -> Any:
    return run.card.get("params", {}).get("train", {}).get("seed")


def _beside(tracker: Tracker, row: Sequence[_RecordedRun]) -> Beside:
    metrics, times = row[0].metrics, [run.card.get("wall_time_s") for run in row]
    known = [float(time) for time in times if isinstance(time, int | float)]
    size = metrics.get("model_bytes")
    return Beside(
        seeds=len(row),
        model_bytes=size if isinstance(size, int) else None,
        wall_time_s=float(np.mean(known)) if known else None,
        latency_ms=row[0].run.metrics.get(LATENCY),
        curve=[] if row[0].run.is_unpublished else metric_history(tracker, row[0].run.run_id, "val/accuracy"),
    )


def _left_out(aligned: Aligned) -> list[str]:
    """What the comparison does not cover, in sentences."""
    notes = [
        f"{count:,} images of {name} are left out: the other runs have no predictions for them."
        for name, count in aligned.left_out.items()
        if count
    ]
    if aligned.relabelled:
        notes.append(f"{aligned.relabelled:,} images are left out since their label was changed.")
    return notes


def _pair(row: Sequence[_RecordedRun], other: Sequence[_RecordedRun]) -> tuple[_RecordedRun, _RecordedRun]:
    """A run of each row, with the same seed where there are two such."""
    pairs = [(one, two) for one in row for two in other]
    return next((pair for pair in pairs if _seed(pair[0]) == _seed(pair[1])), pairs[0])


def _apart(first: Sequence[_RecordedRun], row: Sequence[_RecordedRun]) -> str:
    """How a row differs from the first one, in a line."""
    before, after = _pair(first, row)
    changes = compare_cards(before.card, after.card).changes
    shown = [str(change) for kind in changes for change in changes[kind] if not _is_noise(change)]
    return f"{_row_name(row)}: {_some(shown, '; ') or 'nothing that its card records'}"


def _differing(diff: RunDiff) -> tuple[list[str], str | None]:
    """Lines on what differs, and a sentence where exactly one thing does."""
    lines = []
    code = [changed for changed in diff.files if re.search(r"(^| )(src|pipeline|networks)/", changed)]
    for kind, changes in diff.differences.changes.items():
        shown = [str(change) for change in changes if not _is_noise(change)]
        if kind == "code":  # of a file that is listed with its lines the hash says nothing more
            listed = [change for change in changes if any(f"{change.name} (" in file for file in code)]
            shown = code + [text for text in shown if text not in map(str, listed)]
        if shown:
            lines.append(f"{kind}: {_some(shown, '; ')}")
    if others := [changed for changed in diff.files if changed not in code and "params.yaml (" not in changed]:
        lines.append(f"other files: {_some(others, '; ')}")
    if diff.images:
        lines.append(f"images: {_image_changes(diff.images)}")
    lines += diff.notes
    things = _things(diff)
    if len(things) == 1:
        return lines, (
            f"Of all that affects the weights only {things[0]} differs, and training is deterministic: it is the cause "
            "of what changed."
        )
    return lines, None


def _image_changes(images: Sequence[ImageChange]) -> str:
    """How many images were added, removed, relabelled or changed, with the first of each."""
    named: dict[str, list[str]] = {"added": [], "removed": [], "relabelled": [], "changed": []}
    for change in images:
        kind = next((kind for kind in named if change.description.startswith(kind)), "changed")
        named[kind].append(f"{change.path} {change.description.removeprefix(kind).lstrip()}".rstrip())
    return "; ".join(f"{len(names):,} {kind} ({_some(names, ', ')})" for kind, names in named.items() if names)


def _things(diff: RunDiff) -> list[str]:
    """What a person changed and what can change the weights. Pixels that follow from a setting are not another one.

    Files of code are one thing together, and so are packages, and parts of a machine.
    """
    changes, deciding = diff.differences.changes, diff.differences.deciding
    settings = [
        f"{change.name} ({change.before}, now {change.after})" for change in changes["params"] if _decides(change.name)
    ]
    of_data = any(change.name.startswith(("ingest.", "validate.")) for change in changes["params"])
    things = settings or [change.name for change in deciding["params"]]
    if diff.differences.of_images and (diff.images or not of_data):
        things.append(f"the data ({_image_changes(diff.images)})" if diff.images else "the data")
    things += [f"the content of the {change.name}" for change in diff.differences.of_pretrained]
    names = {
        "the code": [source_of(change.name) for change in deciding["code"]],
        "the environment": [str(change) for change in deciding["environment"]],
        "the hardware": [change.name for change in deciding["hardware"]],
    }
    return things + [f"{name} ({_some(parts, ', ')})" for name, parts in names.items() if parts]


def _decides(setting: str) -> bool:
    """Whether a setting of params.yaml can change the weights."""
    return setting.startswith(("ingest.", "validate.", "train.")) and setting not in _NO_RESULT


def _some(texts: Sequence[str], between: str) -> str:
    more = f"{between}and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return between.join(texts[:_SHOWN]) + more


def _is_noise(change: Change) -> bool:
    """Commits and patches say little beside the files and settings that differ, the lock's hash beside packages."""
    return change.name in ("commit", "uncommitted changes", LOCK)


def _table_here(root: Path, predictions: Predictions) -> dict[str, dict[str, Any]]:
    """The rows of this folder's table of facts for images of `predictions`, by their id, with the row's place.

    An image may have another name here, and its name another image: the pixels decide, where they are known.
    """
    from twinrun.dataset.table import read_table

    try:
        rows = [{**row, "row": at} for at, row in enumerate(read_table(root / _TABLE).to_pylist())]
    except TwinrunError:
        return {}
    if predictions.pixels is None:
        return {row["id"]: row for row in rows}
    by_pixels = {row["pixels_sha256"]: row for row in reversed(rows)}
    by_both = {(row["id"], row["pixels_sha256"]): row for row in rows}
    images = zip(predictions.ids, predictions.pixels, strict=True)
    found = {image[0]: by_both.get(image) or by_pixels.get(image[1]) for image in images}
    return {name: row for name, row in found.items() if row is not None}


def _slices(root: Path, aligned: Aligned, table: Mapping[str, Mapping[str, Any]]) -> list[Slice]:
    """The difference by brightness, sharpness, size, camera and group, and for copies of training images."""
    facts = [table.get(name) for name in aligned.ids]
    parts: dict[str, IntArray] = {}
    for column, (low, high) in _MEASURED.items():
        values = np.array([np.nan if fact is None or fact[column] is None else float(fact[column]) for fact in facts])
        known = np.flatnonzero(~np.isnan(values))
        if len(known) >= 4 * _FEWEST and len(np.unique(values[known])) >= 4:
            quarters = np.array_split(known[np.argsort(values[known], kind="stable")], 4)
            parts[f"the quarter that is most {low}"] = quarters[0]
            parts[f"the quarter that is most {high}"] = quarters[3]
    for column in ("camera", "group"):
        places: dict[str, list[int]] = {}
        for at, fact in enumerate(facts):
            if fact is not None and fact.get(column) is not None:
                places.setdefault(fact[column], []).append(at)
        common = sorted(places, key=lambda name: (-len(places[name]), name))[:4]
        parts |= {f"{column} {name}": np.array(places[name]) for name in common if len(places[name]) >= _FEWEST}
    parts["near duplicates of training images"] = _copies(root, aligned, table)
    return slices(aligned, 0, 1, parts)


def _copies(root: Path, aligned: Aligned, table: Mapping[str, Mapping[str, Any]]) -> IntArray:
    from twinrun.dataset.manifest import read_manifest
    from twinrun.dataset.pairs import read_pairs

    nothing = np.zeros(0, np.int64)
    try:
        pairs, manifest = read_pairs(root / _NEAR), read_manifest(root / _MANIFEST)
    except TwinrunError:
        return nothing
    train = set(manifest.split("train").rows.tolist())
    copies = {
        row for pair in pairs for row, other in ((pair.first, pair.second), (pair.second, pair.first)) if other in train
    }
    return np.array([at for at, name in enumerate(aligned.ids) if table.get(name, {}).get("row") in copies], np.int64)


def _pictures(
    root: Path, aligned: Aligned, table: Mapping[str, Mapping[str, Any]]
) -> list[npt.NDArray[np.uint8] | None] | None:
    """The images of this folder's pack; None where it has none, or one of other pixels."""
    from twinrun.dataset.pack import open_pack

    try:
        images = open_pack(root / _PACK)
    except TwinrunError:
        return None
    rows = [table.get(name, {}).get("row") for name in aligned.ids]
    return [None if row is None or row >= len(images) else images[row] for row in rows]
