"""Bringing MLflow up to date with the files: what `twinrun sync` does, and each stage at its end.

It publishes waiting journals, and those among the results of the stages, which a stage wrote or DVC restored. A
training gets a run, and so do refused data; an evaluation and dvc.lock are added to the run of their training. Runs
whose process is dead are marked KILLED. What was published is remembered, so a second sync does nothing, and does not
even import MLflow. An invalid journal is reported and left where it is.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from twinrun.base.errors import RecordError
from twinrun.base.files import canonical_json, explained, file_sha256
from twinrun.record.card import DVC_LOCK, collect_dvc_lock
from twinrun.record.home import journal_folders, journals_folder, may_be_resumed
from twinrun.record.journal import (
    ARTIFACTS,
    DIFF,
    FILE,
    RESULTS,
    Event,
    Summary,
    content_hash,
    keep_copy,
    read_events,
    result_path,
    summarize,
    summary_of,
)
from twinrun.record.objects import file_md5
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
from twinrun.tracking.presentation import run_name, short
from twinrun.tracking.replay import Published, Replay, addition_state, publisher_lock, unpublished
from twinrun.tracking.store import Tracker, find_tracker, open_client, require_reachable
from twinrun.tracking.translation import describe

_PUBLISHER_S = 30.0
_FAILING_S = 20.0  # less than a request's timeout: a tracker that hangs is not tried for each journal


@dataclass
class SyncReport:
    """The result of one sync."""

    tracker: Tracker
    events: int = 0
    runs: int = 0
    attached: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    set_aside: list[str] = field(default_factory=list)
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    pending: int = 0
    problem: str | None = None

    @property
    def failed(self) -> bool:
        """Whether something could not be published: MLflow cannot be reached, or a record was set aside."""
        return self.problem is not None or bool(self.set_aside)

    def lines(self) -> list[str]:
        """For a person: one line for each thing that was done or remains to be done."""
        lines = []
        if self.lost:
            lines.append(
                f"{_count(self.lost, 'run')} published to {self.tracker.shown} earlier {_are(self.lost)} no longer "
                "there; what this project still has of them is published again."
            )
        if self.events:
            lines.append(
                f"{_count(self.events, 'event')} of {_count(self.runs, 'run')} published to {self.tracker.shown}."
            )
        if self.attached:
            lines.append(f"Added to the run: {', '.join(self.attached)}.")
        lines += [f"MLflow has the report on data that did not pass: run {name!r} (FAILED)." for name in self.failures]
        lines += [f"Run {short(run_id)} was left by a dead process; it is marked KILLED now." for run_id in self.killed]
        lines += [
            f"MLflow refused {_count(number, 'event')} of run {short(run_id)}; data/out/train/journal.jsonl has them."
            for run_id, number in self.refused.items()
        ]
        lines += self.notes
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

    An unreachable tracker never raises; the report names the problem. A journal that another process is still
    publishing after `wait_s` seconds is left to it. `verify` also asks a server whether it still has what was published
    to it; a local store is always asked. `thorough` does the same, and looks in MLflow for running runs whose process
    is dead.
    """
    workspace = (workspace or Path.cwd()).resolve()
    tracker = find_tracker(workspace)
    report = SyncReport(tracker)
    waiting, results = _sound_journals(tracker, report), _results(workspace, report)
    states = _states(tracker, waiting, results)
    _forget(lost_from_database(tracker, published_states(tracker) if thorough else states), report)
    asks = thorough and may_be_left_running(tracker)
    verify = (verify or thorough) and tracker.database is None
    if not asks and not verify and not _is_anything_to_do(tracker, waiting, results):
        return report
    from filelock import FileLock, Timeout

    tracker.state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(tracker.state / "sync.lock", timeout=2 * wait_s):
            _adopt_all(results, tracker, report)  # first, so that nothing is lost when the next results replace these
            require_reachable(tracker)
            if verify:
                _forget(lost_from_server(open_client(tracker), states), report)
                _adopt_all(results, tracker, report)
            failures = _publish_all(_sound_journals(tracker), tracker, report, wait_s)
            if asks:
                _mark_left(tracker, report)
        report.problem = "\n".join(failures) or None
    except Timeout:
        report.problem = "another `twinrun sync` is running."
    except Exception as error:  # of any kind: the files are the truth and wait
        report.problem = describe(error, tracker.uri)
    report.pending = sum(
        unpublished(folder, tracker) for folder in _sound_journals(tracker) if _over(folder) or not _held(folder)
    )
    return report


def _states(tracker: Tracker, waiting: list[Path], results: list["_Result"]) -> list[Published]:
    """What has been published so far, of everything in the workspace."""
    keys = [folder.name for folder in waiting if not _held(folder)]
    states = [*(Published.load(tracker, key) for key in keys), *(_state(result, tracker) for result in results)]
    return list({state.file: state for state in states}.values())


def _forget(lost: list[Published], report: SyncReport) -> None:
    """Forget what the store does not have, so that it is published again."""
    report.lost += len({state.run_id for state in lost if not state.deleted})
    for state in lost:
        with explained(state.file):
            if state.deleted:
                state.revive()
            else:
                state.file.unlink(missing_ok=True)


def run_of(workspace: Path, weights_hash: str) -> str | None:
    """The id of the published run that trained the model in `workspace`, if it has these weights."""
    result = _Result.read(workspace)
    if result is None or result.weights_hash != weights_hash:
        return None
    return Published.load(find_tracker(workspace), result.summary.journal_id).run_id


def training_here(workspace: Path) -> str:
    """The id of the journal of the training whose model is in `workspace`; raises RecordError where there is none."""
    result = _Result.read(workspace)
    if result is None:
        raise RecordError(
            f"This folder has no model of its own ({RESULTS / 'train'}). Train one: dvc repro. Or name a run or a "
            "version, as in `twinrun show 1`; list them: twinrun models"
        )
    return result.summary.journal_id


def evaluated_weights(workspace: Path) -> str | None:
    """Weights hash of the model that was evaluated last in `workspace`; older evaluations name it in metrics.json."""
    evaluation = workspace / RESULTS / "evaluate"
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
    """The journal that a stage left among its results in a workspace, or what it adds to the run of a training."""

    workspace: Path
    journal: Path
    events: list[Event]
    summary: Summary

    @classmethod
    def read(cls, workspace: Path, stage: str = "train") -> "_Result | None":
        """The journal of `stage`; None where there is none. Raises RecordError where it is not valid."""
        journal = workspace / RESULTS / stage / FILE
        if journal.is_symlink() or journal.exists():
            require_plain(journal, workspace)
        events = read_events(journal)
        summary = summary_of(events)
        return None if summary is None else cls(workspace, journal, events, summary)

    @property
    def weights_hash(self) -> str | None:
        return self.summary.tags.get("twinrun.weights_hash")

    def data(self) -> str:
        """The data that were trained on, for a person."""
        for event in self.events:
            if event["event"] == "dataset":
                name, source, images = event["name"], event["source"], event["profile"].get("images")
                where = "" if source == name else f" in {source}"
                return f"{name}{where}" + ("" if images is None else f", {images:,} training images")
        return "not recorded"

    def additions(self) -> Iterator["_Result"]:
        """What belongs to the run of this training: the evaluation of its weights, and dvc.lock if it has its hash."""
        evaluation = _Result.read(self.workspace, "evaluate")
        if evaluation is not None and evaluation.weights_hash == self.weights_hash is not None:
            yield self._addition("evaluate", evaluation.summary.journal_id, evaluation.events[1:], evaluation.journal)
        lock = self.workspace / DVC_LOCK
        # While a stage runs, dvc.lock still describes the run before.
        recorded = collect_dvc_lock(self.workspace).get("train", {}).get("outs", {})
        if file_md5(self.journal) in recorded.values():
            sha256 = file_sha256(lock)
            artifact = {"event": "artifact", "path": DVC_LOCK, "to": "", "source": DVC_LOCK, "sha256": sha256}
            yield self._addition(
                "dvc.lock", sha256, [artifact, {"event": "end", "status": "FINISHED", "time_ms": 0}], lock
            )

    def _addition(self, stage: str, identity: str, events: list[Event], journal: Path) -> "_Result":
        training = self.summary.journal_id
        journal_id = hashlib.sha256(f"{training} {identity}".encode()).hexdigest()[:32]
        begin = next(event for event in self.events if event["event"] == "run")
        run = {**begin, "journal_id": journal_id, "part_of": training, "stage": stage, "data": self.data()}
        summary = replace(self.summary, journal_id=journal_id, part_of=training, stage=stage)
        # MLflow shows the metric with the latest time: that of a result that DVC restored is now.
        now = {"time_ms": time.time_ns() // 1_000_000}
        events = [{**event, **now} if "time_ms" in event else event for event in (run, *events)]
        return _Result(self.workspace, journal, events, summary)


def _results(workspace: Path, report: SyncReport) -> list[_Result]:
    """The journals among the results in a workspace that belong in MLflow; `report` gets the faults of the others.

    The journal of data that passed is part of the run that trains on them.
    """
    results: list[_Result] = []
    with _setting_aside(report):
        refused = _Result.read(workspace, "validate")
        if refused is not None and refused.summary.ended == "FAILED":
            results.append(refused)
    with _setting_aside(report):
        training = _Result.read(workspace)
        if training is not None:
            results.append(training)
            results += training.additions()
    evaluation = workspace / RESULTS / "evaluate"
    if (evaluation / "metrics.json").exists() and not os.path.lexists(evaluation / FILE):
        report.notes.append(
            f"{RESULTS / 'evaluate'} was written by an earlier Twinrun and has no journal, so MLflow does not get it. "
            "To write one: dvc repro evaluate"
        )
    return results


def _is_anything_to_do(tracker: Tracker, waiting: list[Path], results: list[_Result]) -> bool:
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
    return any(_is_new(result, tracker) for result in results)


def _is_new(result: _Result, tracker: Tracker) -> bool:
    """Whether a journal among the results is neither in MLflow nor waiting."""
    state, journal_id = _state(result, tracker), result.summary.journal_id
    known = state.complete if result.summary.part_of is None else state.latest == journal_id
    return not known and not state.deleted and not (journals_folder(tracker.home) / journal_id).exists()


def _state(result: _Result, tracker: Tracker) -> Published:
    summary = result.summary
    if summary.part_of is None:
        return Published.load(tracker, summary.journal_id)
    return addition_state(tracker, summary.part_of, summary.stage)


def _sound_journals(tracker: Tracker, report: SyncReport | None = None) -> list[Path]:
    """Folders of the waiting journals, in the order of their start, those that add to a run last.

    `report` gets the faults of the others.
    """
    begun = {}
    for folder in journal_folders(tracker.home):
        if (folder / FILE).is_file():
            with _setting_aside(report):
                begun[folder] = _checked_begin(folder, folder.parent)
    return sorted(begun, key=lambda folder: (begun[folder], folder.name))


def _checked_begin(folder: Path, journals: Path) -> tuple[bool, int]:
    """Whether the journal in `folder` adds to a run, and when it was started, ms since 1970.

    Raises RecordError where it is not one to publish.
    """
    require_plain(folder, journals)
    events = read_events(folder / FILE)
    ids = {event["journal_id"] for event in events if event["event"] == "run"}
    if not is_journal_id(folder.name) or ids - {folder.name}:
        raise RecordError(
            f"{folder / FILE} has another journal's id than its folder, so it is a copy. If nothing in it is needed: "
            f"rm -r {shlex.quote(str(folder))}"
        )
    return any("part_of" in event for event in events), _begun(events)


def _begun(events: list[Event]) -> int:
    return next((int(event["time_ms"]) for event in events if event["event"] == "run"), 0)


@contextmanager
def _setting_aside(report: SyncReport | None) -> Iterator[None]:
    """Report a record that is not valid, and go on without it."""
    try:
        yield
    except RecordError as error:
        if report is not None and str(error) not in report.set_aside:
            report.set_aside.append(str(error))


def _adopt_all(results: list[_Result], tracker: Tracker, report: SyncReport) -> None:
    for result in results:
        with _setting_aside(report):
            _drop_superseded(result.summary, tracker)
            _adopt(result, tracker)


def _drop_superseded(latest: Summary, tracker: Tracker) -> None:
    """Delete waiting journals whose place in a run the `latest` one takes."""
    for folder in _sound_journals(tracker) if latest.part_of is not None else ():
        summary = summarize(folder / FILE)
        if summary is None or summary.journal_id == latest.journal_id:
            continue
        if (summary.part_of, summary.stage) == (latest.part_of, latest.stage):
            with publisher_lock(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _adopt(result: _Result, tracker: Tracker) -> None:
    """Copy a journal among the results, which a stage wrote or DVC restored, to those that wait."""
    if not _is_new(result, tracker):
        return
    folder = journals_folder(tracker.home) / result.summary.journal_id
    if result.summary.stage == "evaluate":
        read_record(MetricsRecord, result.journal.with_name("metrics.json"), result.workspace)
    temp = Path(tempfile.mkdtemp(prefix=".adopted-", dir=_made(folder.parent)))
    try:
        for event in result.events:
            source = result_path(result.workspace, event, result.journal) if event["event"] == "artifact" else None
            if source is not None and source.exists() and content_hash(source) == event["sha256"]:
                try:
                    keep_copy(source, temp / ARTIFACTS / event["path"])
                except (NotADirectoryError, FileExistsError):
                    raise RecordError(
                        f"{result.journal} names {event['path']}, which lies inside another artifact of it."
                    ) from None
        if result.summary.part_of is None:
            shutil.copyfile(result.journal, temp / FILE)
        else:
            (temp / FILE).write_bytes(b"".join(canonical_json(event) + b"\n" for event in result.events))
        _rebuild(result, temp)
        temp.replace(folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _rebuild(result: _Result, folder: Path) -> None:
    """Restore the patch of uncommitted changes from the card, since it is not among the training's outputs."""
    card: Record = read_record(CardRecord, result.workspace / RESULTS / "train/card.json", result.workspace) or {}
    for event in result.events:
        place = folder / ARTIFACTS / event.get("path", "")
        if event["event"] == "artifact" and place.name == DIFF and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(str(card.get("diff", "")), encoding="utf-8", errors="surrogateescape")


def _mark_left(tracker: Tracker, report: SyncReport) -> None:
    client = open_client(tracker)
    for run, _ in list(left_running(client, tracker)):
        mark_killed(client, run)
        report.killed.append(run.info.run_id)


def _publish_all(folders: list[Path], tracker: Tracker, report: SyncReport, wait_s: float) -> list[str]:
    """Publish what waits, and return which journals failed, with the reasons; the others are still published.

    Raises where the tracker cannot be reached, or where the attempts that failed took long, as with one that hangs.
    """
    failures, failing_s = [], 0.0
    for folder in folders:
        began = time.monotonic()
        try:
            with _setting_aside(report):
                _publish(folder, tracker, report, wait_s)
        except Exception as error:  # of any kind: it may be due to this journal
            failing_s += time.monotonic() - began
            if failing_s > _FAILING_S:
                raise
            require_reachable(tracker)
            place = folder.relative_to(tracker.home)
            failures.append(f"the journal {place} could not be published. {describe(error, tracker.uri)}")
    return failures


def _publish(folder: Path, tracker: Tracker, report: SyncReport, wait_s: float) -> None:
    # The publisher of a training that is over may still be trying; it ends soon, and leaves the rest to us.
    with publisher_lock(folder, wait_s=wait_s if _over(folder) else 0) as mine:
        summary = summarize(folder / FILE)
        if not mine or summary is None:
            return
        if summary.part_of is not None and Published.load(tracker, summary.part_of).run_id is None:
            return  # the training's own journal comes first
        waiting = unpublished(folder, tracker)
        replay = Replay(folder, tracker)
        refused = replay.state.refused
        try:
            while replay.step():
                pass
        finally:
            if replay.state.refused > refused:
                report.refused[str(replay.state.run_id)] = replay.state.refused - refused
            if summary.part_of is None and summary.stage == "train":
                done = waiting - unpublished(folder, tracker)
                report.events += done
                report.runs += bool(done)
        if replay.mark_killed():
            report.killed.append(str(replay.state.run_id))
        summary = summarize(folder / FILE)
        published = replay.state.run_id is not None and not replay.pending()
        over = summary is not None and (summary.ended == "FINISHED" or summary.stage == "validate")
        if summary is not None and published and over and not may_be_resumed(folder.name, tracker.home):
            # All of it is in MLflow, and in the journal among the stage's results.
            _finish(summary, replay)
            _say_published(summary, replay, report)
            shutil.rmtree(folder, ignore_errors=True)


def _finish(summary: Summary, replay: Replay) -> None:
    """Remember that all of a journal is published."""
    if summary.part_of is None:
        replay.state.finish()
        return
    state = addition_state(replay.tracker, summary.part_of, summary.stage)
    state.run_id, state.deleted, state.latest = replay.state.run_id, replay.state.deleted, summary.journal_id
    state.save()
    replay.state.file.unlink(missing_ok=True)


def _say_published(summary: Summary, replay: Replay, report: SyncReport) -> None:
    if replay.state.deleted:
        return
    if summary.part_of is not None and summary.stage == "evaluate":  # not dvc.lock, which every `dvc repro` changes
        report.attached.append("evaluation")
    elif summary.stage == "validate":
        report.failures.append(run_name(summary.name, str(replay.state.run_id)))


def _over(folder: Path) -> bool:
    """Whether a journal's training has ended, one way or another."""
    summary = summarize(folder / FILE)
    return summary is not None and (summary.ended is not None or summary.process.dead())


def _held(folder: Path) -> bool:
    """Whether a publisher is working on this journal."""
    with publisher_lock(folder) as mine:
        return not mine


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
