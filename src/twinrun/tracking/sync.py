"""Bringing MLflow up to date with the files: what `twinrun sync` does, and the stages at their end.

It publishes journals that are waiting, adopts the result of a training that DVC restored or pulled, attaches what other
stages found out about the model and its data, records data that were refused, and marks runs KILLED whose process is
dead. Everything is looked up before it is sent, so doing it again does nothing; and where there is nothing to do,
MLflow is not even imported. A journal or result that holds what nobody may put there is left where it is and named.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinrun.core.errors import RecordError
from twinrun.core.files import explained, file_sha256
from twinrun.record.card import collect_dvc_lock
from twinrun.record.home import journals_folder, may_be_resumed
from twinrun.record.journal import (
    ARTIFACTS,
    DIFF,
    FILE,
    Event,
    Summary,
    content_hash,
    keep_copy,
    read_events,
    summarize,
)
from twinrun.record.records import (
    CardRecord,
    MetricsRecord,
    ModelRecord,
    Record,
    is_journal_id,
    read_record,
    require_plain,
)
from twinrun.tracking.left_running import left_running, mark_killed, may_be_left_running
from twinrun.tracking.lost import lost_from_database, lost_from_server, published_states
from twinrun.tracking.metric_names import evaluation_metrics
from twinrun.tracking.presentation import describe_run, is_given_name, log_table, run_name, set_note, short
from twinrun.tracking.replay import LOCK, Published, Replay, is_refusal, unpublished
from twinrun.tracking.store import Tracker, find_tracker, open_client, require_reachable
from twinrun.tracking.translation import describe
from twinrun.tracking.validation import (
    DOCS,
    REPORT,
    RESULT,
    attach_validation,
    failure_key,
    failure_waits,
    record_failure,
    validation_of_training,
)

OUT = Path("data/out")
_PUBLISHER_S = 30.0


@dataclass
class SyncReport:
    """What one sync did, and what it could not do."""

    tracker: Tracker
    events: int = 0
    runs: int = 0
    attached: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    lost: int = 0
    pending: int = 0
    problem: str | None = None

    @property
    def failed(self) -> bool:
        """Whether something could not be published: MLflow is away, or a record was set aside."""
        return self.problem is not None or bool(self.set_aside)

    def lines(self) -> list[str]:
        """For a person: one line for each thing that was done or is left to do."""
        lines = []
        if self.lost:
            lines.append(
                f"{_count(self.lost, 'run')} that {_were(self.lost)} published to {self.tracker.shown} before "
                f"{_are(self.lost)} no longer there; what is still here is published again."
            )
        if self.events:
            lines.append(
                f"{_count(self.events, 'event')} of {_count(self.runs, 'run')} published to {self.tracker.shown}."
            )
        if self.attached:
            lines.append(f"Added to the run: {', '.join(self.attached)}.")
        lines += [f"The data did not pass: run {name!r} (FAILED) has the report." for name in self.failures]
        lines += [f"Run {short(run_id)} was left by a dead process; it is marked KILLED now." for run_id in self.killed]
        lines += [
            f"MLflow refused {_count(number, 'event')} of run {short(run_id)}; data/out/train/journal.jsonl has them."
            for run_id, number in self.refused.items()
        ]
        if self.pending:
            lines.append(
                f"{_count(self.pending, 'event')} {_are(self.pending)} still to be published; run `twinrun sync`."
            )
        if self.problem:
            lines.append(f"MLflow at {self.tracker.shown} is not up to date: {self.problem}")
        lines += [f"Not published: {fault}" for fault in self.set_aside]
        return lines


def sync(
    workspace: Path | None = None, *, thorough: bool = False, verify: bool = False, wait_s: float = _PUBLISHER_S
) -> SyncReport:
    """Bring the store of `workspace` (the working folder) up to date.

    A tracker that is away never raises; the report names the problem. What another process publishes just now is left
    to it, after `wait_s` seconds. `verify` asks a server, too, whether it still has what was published to it; a local
    store is always asked. `thorough` does the same, and asks MLflow whether it believes in runs whose process is dead.
    """
    workspace = (workspace or Path.cwd()).resolve()
    tracker = find_tracker(workspace)
    report = SyncReport(tracker)
    waiting, result = _sound_journals(tracker, report), _sound_result(workspace, report)
    states = _states(workspace, tracker, waiting, result)
    _forget(lost_from_database(tracker, published_states(tracker) if thorough else states), report)
    asks = thorough and may_be_left_running(tracker)
    verify = (verify or thorough) and tracker.database is None
    if not asks and not verify and not _is_anything_to_do(workspace, tracker, waiting, result):
        return report
    from filelock import FileLock, Timeout

    tracker.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(tracker.state / "sync.lock", timeout=2 * wait_s):
            require_reachable(tracker)
            if verify:
                _forget(lost_from_server(open_client(tracker), states), report)
            if result is not None:
                with _setting_aside(report):
                    _adopt(result, tracker)
            _publish_all(_sound_journals(tracker), tracker, report, wait_s)
            if result is not None:
                with _setting_aside(report):
                    _attach(result, tracker, report)
            with _setting_aside(report):
                if failure_waits(workspace, tracker):
                    report.failures.append(record_failure(open_client(tracker), workspace, tracker))
            if asks:
                _mark_left(tracker, report)
    except Timeout:
        report.problem = "another `twinrun sync` is running."
    except Exception as error:  # whatever a tracker does, the files are the truth and wait
        report.problem = describe(error, tracker.uri)
    report.pending = sum(
        unpublished(folder, tracker) for folder in _sound_journals(tracker) if _over(folder) or not _held(folder)
    )
    return report


def _states(workspace: Path, tracker: Tracker, waiting: list[Path], result: "_Result | None") -> list[Published]:
    """What is remembered of the publishing of all that is in the workspace."""
    keys = [folder.name for folder in waiting if not _held(folder)]
    keys += [] if result is None else [result.summary.journal_id]
    with suppress(RecordError):
        keys += filter(None, [failure_key(workspace)])
    return [Published.load(tracker, key) for key in dict.fromkeys(keys)]


def _forget(lost: list[Published], report: SyncReport) -> None:
    """Remember no longer what the store does not have, so that it is published again."""
    for state in lost:
        with explained(state.file):
            state.file.unlink(missing_ok=True)
    report.lost += len(lost)


def run_of(workspace: Path, weights_hash: str) -> str | None:
    """The id of the published run that made the model in `workspace`, if its weights are those."""
    result = _Result.read(workspace)
    if result is None or result.weights_hash != weights_hash:
        return None
    return Published.load(find_tracker(workspace), result.summary.journal_id).run_id


def evaluated_weights(workspace: Path) -> str | None:
    """Weights hash of the model that was evaluated last in `workspace`; older evaluations name it in metrics.json."""
    evaluation = workspace / OUT / "evaluate"
    for name in ("model.json", "metrics.json"):
        if record := read_record(ModelRecord, evaluation / name, workspace):
            return record.get("weights_hash")
    return None


def training_data(workspace: Path) -> str:
    """What the model in `workspace` was trained on, for a person."""
    result = _Result.read(workspace)
    return "not recorded" if result is None else result.data()


@dataclass(frozen=True)
class _Result:
    """The training whose outputs stand in a workspace."""

    workspace: Path
    journal: Path
    summary: Summary
    weights_hash: str | None

    @classmethod
    def read(cls, workspace: Path) -> "_Result | None":
        """None where there is none. Raises RecordError where the journal is not one that may be used."""
        journal = workspace / OUT / "train" / FILE
        if journal.is_symlink() or journal.exists():
            require_plain(journal, workspace)
        summary = summarize(journal)
        if summary is None:
            return None
        return cls(workspace, journal, summary, summary.tags.get("twinrun.weights_hash"))

    def data(self) -> str:
        """The data that were trained on, for a person."""
        for event in read_events(self.journal):
            if event["event"] == "dataset":
                name, source, images = event["name"], event["source"], event["profile"].get("images")
                where = "" if source == name else f" in {source}"
                return f"{name}{where}" + ("" if images is None else f", {images:,} training images")
        return "not recorded"

    def additions(self) -> dict[str, tuple[str, Path]]:
        """What later stages say of this very model: name, hash and place of each."""
        found: dict[str, tuple[str, Path]] = {}
        evaluation = self.workspace / OUT / "evaluate"
        metrics = evaluation / "metrics.json"
        if metrics.is_file() and evaluated_weights(self.workspace) == self.weights_hash is not None:
            found["test metrics"] = (file_sha256(metrics), metrics)
            for name, place in (("predictions", evaluation / "predictions.parquet"), ("report", evaluation / "report")):
                if place.exists():
                    found[name] = (content_hash(place), place)
        for name, place in validation_of_training(
            self.workspace, self.summary.journal_id, _begun(read_events(self.journal))
        ).items():
            found[name] = (content_hash(place), place)
        for place in [metrics, *(place for _, place in found.values())]:
            require_plain(place, self.workspace)
        lock = self.workspace / "dvc.lock"
        # While a stage runs, dvc.lock speaks of the run before.
        recorded = collect_dvc_lock(self.workspace).get("train", {}).get("outs", {})
        if hashlib.md5(self.journal.read_bytes()).hexdigest() in recorded.values():
            found["dvc.lock"] = (file_sha256(lock), lock)
        return found


_FOLDERS = {
    "predictions": "evaluation",
    "report": "evaluation",
    "dvc.lock": "",
}
# What describes the data that was trained on: a later one belongs to a later training.
_ONCE = frozenset({RESULT, REPORT, DOCS})


def _is_anything_to_do(workspace: Path, tracker: Tracker, waiting: list[Path], result: _Result | None) -> bool:
    for folder in waiting:
        summary = summarize(folder / FILE)
        if summary is not None and (_over(folder) or not _held(folder)):
            state = Published.load(tracker, folder.name)
            if unpublished(folder, tracker):
                return True
            if summary.ended == "FINISHED" and not may_be_resumed(folder.name, tracker.home):
                return True
            if summary.dead() and state.killed_at != state.offset:
                return True
    try:
        return failure_waits(workspace, tracker) or (result is not None and _is_result_waiting(result, tracker))
    except RecordError:
        return True  # what is to be published will say what is wrong


def _is_result_waiting(result: _Result, tracker: Tracker) -> bool:
    state = Published.load(tracker, result.summary.journal_id)
    if not state.complete and not state.deleted and not (journals_folder(tracker.home) / state.file.stem).exists():
        return True
    return bool(_missing(result, state))


def _missing(result: _Result, state: Published) -> dict[str, tuple[str, Path]]:
    if state.deleted:
        return {}
    return {
        name: (digest, place)
        for name, (digest, place) in result.additions().items()
        if state.attached.get(name) != digest and not (name in _ONCE and name in state.attached)
    }


def _sound_journals(tracker: Tracker, report: SyncReport | None = None) -> list[Path]:
    """Folders of the journals that wait, in the order of their begin; `report` gets what is wrong with others."""
    folders = journals_folder(tracker.home)
    if not folders.is_dir():
        return []
    begun = {}
    for folder in sorted(each for each in folders.iterdir() if (each / FILE).is_file()):
        with _setting_aside(report):
            begun[folder] = _checked_begin(folder, folders)
    return sorted(begun, key=lambda folder: (begun[folder], folder.name))


def _checked_begin(folder: Path, journals: Path) -> int:
    """When the journal in `folder` was begun, ms since 1970. Raises RecordError where it is not one to publish."""
    require_plain(folder, journals)
    events = read_events(folder / FILE)
    ids = {event["journal_id"] for event in events if event["event"] == "run"}
    if not is_journal_id(folder.name) or ids - {folder.name}:
        raise RecordError(f"{folder / FILE} is the journal of another training than its folder's name says.")
    return _begun(events)


def _begun(events: list[Event]) -> int:
    return next((int(event["time_ms"]) for event in events if event["event"] == "run"), 0)


def _sound_result(workspace: Path, report: SyncReport) -> "_Result | None":
    with _setting_aside(report):
        return _Result.read(workspace)
    return None


@contextmanager
def _setting_aside(report: SyncReport | None) -> Iterator[None]:
    """Name a record that may not be used in the report, and go on without it."""
    try:
        yield
    except RecordError as error:
        if report is not None and str(error) not in report.set_aside:
            report.set_aside.append(str(error))


def _adopt(result: "_Result", tracker: Tracker) -> None:
    """Take a training's result that DVC restored or pulled, and that was never published here, as a waiting journal."""
    workspace = result.workspace
    state = Published.load(tracker, result.summary.journal_id)
    folder = journals_folder(tracker.home) / result.summary.journal_id
    if folder.exists() or state.deleted or state.complete:
        return
    temp = Path(tempfile.mkdtemp(prefix=".adopted-", dir=_made(folder.parent)))
    try:
        for event in read_events(result.journal):
            source = _output(workspace, event) if event["event"] == "artifact" else None
            if source is not None and source.exists() and content_hash(source) == event["sha256"]:
                keep_copy(source, temp / ARTIFACTS / event["path"])
        shutil.copyfile(result.journal, temp / FILE)
        _rebuild(workspace, result, temp)
        temp.replace(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _output(workspace: Path, event: Event) -> Path | None:
    """The training's output that an artifact was a copy of; None for a text that was no file of it.

    Raises RecordError where it is another file of the project, or a link.
    """
    source = workspace / str(event["source"])
    if "/" not in event["source"]:
        return None
    if not source.is_relative_to(workspace / OUT / "train"):
        raise RecordError(
            f"{OUT / 'train' / FILE} names {event['source']} as an output of the training, which it is not: it lies "
            f"outside {OUT / 'train'}."
        )
    require_plain(source, workspace)
    return source


def _rebuild(workspace: Path, result: _Result, folder: Path) -> None:
    """The patch of uncommitted changes is no file of the training's outputs; the card holds it."""
    card: Record = read_record(CardRecord, workspace / OUT / "train" / "card.json", workspace) or {}
    for event in read_events(result.journal):
        place = folder / ARTIFACTS / event.get("path", "")
        if event["event"] == "artifact" and place.name == DIFF and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(card.get("diff", "")), encoding="utf-8", errors="surrogateescape")


def _mark_left(tracker: Tracker, report: SyncReport) -> None:
    client = open_client(tracker)
    for run, _ in list(left_running(client, tracker)):
        mark_killed(client, run)
        report.killed.append(run.info.run_id)


def _publish_all(folders: list[Path], tracker: Tracker, report: SyncReport, wait_s: float) -> None:
    """Publish what waits; a run that MLflow will not take does not keep the others from it, any other trouble does."""
    refusal: Exception | None = None
    for folder in folders:
        try:
            _publish(folder, tracker, report, wait_s)
        except Exception as error:
            if not is_refusal(error, tracker):
                raise
            refusal = error
    if refusal is not None:
        raise refusal


def _publish(folder: Path, tracker: Tracker, report: SyncReport, wait_s: float) -> None:
    # The publisher of a training that is over may be trying still; it ends soon, and leaves the rest to us.
    with _publisher_lock(folder, wait_s=wait_s if _over(folder) else 0) as mine:
        summary = summarize(folder / FILE)
        if not mine or summary is None:
            return
        waiting = unpublished(folder, tracker)
        replay = Replay(folder, tracker)
        refused = replay.state.refused
        try:
            while replay.step():
                pass
        finally:
            if replay.state.refused > refused:
                report.refused[str(replay.state.run_id)] = replay.state.refused - refused
            done = waiting - unpublished(folder, tracker)
            report.events += done
            report.runs += bool(done)
        if replay.mark_killed():
            report.killed.append(str(replay.state.run_id))
        summary = summarize(folder / FILE)
        published = replay.state.run_id is not None and not replay.pending()
        finished = summary is not None and summary.ended == "FINISHED"
        if published and finished and not may_be_resumed(folder.name, tracker.home):
            # MLflow and data/out/train/journal.jsonl hold all of it.
            replay.state.finish()
            shutil.rmtree(folder, ignore_errors=True)


def _attach(result: _Result, tracker: Tracker, report: SyncReport) -> None:
    folder = journals_folder(tracker.home) / result.summary.journal_id
    with _publisher_lock(folder) if folder.exists() else nullcontext(True) as mine:
        state = Published.load(tracker, result.summary.journal_id)
        missing = _missing(result, state)
        if not mine or state.run_id is None or not missing:
            return
        client = open_client(tracker)
        for name, (digest, place) in missing.items():
            if name == "test metrics":
                _attach_metrics(client, result, state, place)
            elif name in _ONCE:
                attach_validation(client, result.workspace, state.run_id, name, place)
            elif place.is_dir():
                client.log_artifacts(state.run_id, str(place), "/".join(filter(None, [_FOLDERS[name], place.name])))
            else:
                client.log_artifact(state.run_id, str(place), _FOLDERS[name] or None)
            state.attached[name] = digest
            state.save()
            report.attached.append(name)


def _attach_metrics(client: Any, result: _Result, state: Published, file: Path) -> None:
    """Add the metrics of the evaluation, and what a person reads first: the run's name and description."""
    from mlflow.entities import Metric

    run_id, metrics = str(state.run_id), read_record(MetricsRecord, file, result.workspace) or {}
    run = client.get_run(run_id)
    new = evaluation_metrics(metrics)
    time_ms = int(file.stat().st_mtime * 1000)
    client.log_batch(run_id, [Metric(k, v, time_ms, 0) for k, v in new.items() if run.data.metrics.get(k) != v])
    client.log_artifact(run_id, str(file), "evaluation")
    if per_class := metrics.get("per_class"):
        log_table(client, run_id, per_class, "evaluation/per_class.json")
    name = result.summary.name
    if is_given_name(run.info.run_name, name, run_id):
        client.update_run(run_id, name=run_name(name, run_id, metrics["accuracy"]))
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
    text = describe_run(metrics, file.with_name("confusion.csv"), result.data(), page)
    state.attached["description"] = set_note(client, run, text, state.attached.get("description"))


@contextmanager
def _publisher_lock(folder: Path, wait_s: float = 0) -> Iterator[bool]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK, timeout=wait_s):
            yield True
    except Timeout:
        yield False


def _over(folder: Path) -> bool:
    """Whether a journal's training has ended, one way or another."""
    summary = summarize(folder / FILE)
    return summary is not None and (summary.ended is not None or summary.process.dead())


def _held(folder: Path) -> bool:
    """Whether a publisher is working on this journal."""
    with _publisher_lock(folder) as mine:
        return not mine


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
