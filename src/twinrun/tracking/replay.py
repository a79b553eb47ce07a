"""Replaying one journal to MLflow, each event exactly once.

The progress is in mlruns/published/<store>/<journal_id>.json, written after each accepted request. After a crash
between the two, one batch is sent again, which is harmless: events carry fixed times, a run is looked up by its
journal's id before it is created, and MLflow's SQL store keeps equal metrics once.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import RecordError, TrackingError
from twinrun.base.files import write_json
from twinrun.base.printing import print
from twinrun.record.home import Process
from twinrun.record.journal import ARTIFACTS, FILE, Event, count_events, events_from, given_name, summarize
from twinrun.record.records import MetricsRecord, PublishedRecord, parse_json, parse_record, process_from, read_record
from twinrun.record.trial import PARENT_TAG
from twinrun.tracking.metric_names import metric_name
from twinrun.tracking.presentation import describe, describe_run, is_given_name, log_table, run_name
from twinrun.tracking.store import Tracker, experiment_id, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

LOCK = "publisher.lock"
JOURNAL_TAG = "twinrun.journal_id"
PROCESS_TAG = "twinrun.process"
# MLflow takes 1,000 entities in one request, of them 100 params and 100 tags.
_MOST_METRICS, _MOST_PARAMS, _MOST_TAGS = 800, 90, 90
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})
_DEADLOCK_PAUSES_S = (0.1, 0.4, 1.6)  # before a step that a deadlock ended is sent again


@dataclass
class Published:
    """How far a journal was published to one store; `refused` counts the events that MLflow did not accept.

    Several journals may add the same thing to a run, such as its evaluation; `latest` is the one that the run shows.
    """

    file: Path
    offset: int = 0
    run_id: str | None = None
    killed_at: int | None = None
    deleted: bool = False
    complete: bool = False
    refused: int = 0
    latest: str | None = None

    @classmethod
    def load(cls, tracker: Tracker, journal_id: str) -> "Published":
        """Read the state; a new one where nothing was published yet."""
        file = tracker.state / f"{journal_id}.json"
        try:
            record = parse_record(PublishedRecord, file.read_bytes(), str(file))
        except (OSError, RecordError):
            return cls(file)  # publishing again is harmless, see above
        record.pop("attached", None)
        state = cls(file, **record)
        if state.run_id is None:  # nothing can have been published without a run
            state.forget()
        return state

    def save(self) -> None:
        """Write the state so that a crash leaves the old one or this one."""
        write_json({name: value for name, value in vars(self).items() if name != "file"}, self.file)

    def forget(self) -> None:
        """Start again: the store does not have the run."""
        self.offset, self.run_id, self.killed_at, self.refused, self.latest = 0, None, None, 0, None
        self.deleted = self.complete = False

    def revive(self) -> None:
        """Publish again from the start: a person restored the run that was deleted."""
        self.offset, self.killed_at, self.refused, self.latest = 0, None, 0, None
        self.deleted = self.complete = False
        self.save()

    def title(self, name: str) -> str:
        """The title of the run of a journal named `name`: as in MLflow, or just `name` before it is there."""
        return name if self.run_id is None else run_name(name, self.run_id)

    def finish(self) -> None:
        """Remember that all is published and the journal deleted; a resumed training begins a new one."""
        self.offset, self.complete = 0, True
        self.save()


def addition_state(tracker: Tracker, training: str, stage: str) -> Published:
    """How far the results of `stage` were added to the run of the journal `training`."""
    return Published.load(tracker, hashlib.sha256(f"{training} {stage}".encode()).hexdigest()[:32])


def unpublished(folder: Path, tracker: Tracker) -> int:
    """How many events of the journal in `folder` are not yet in the store."""
    state = Published.load(tracker, folder.name)
    return 0 if state.deleted else count_events(folder / FILE, state.offset)


def is_refusal(error: Exception, tracker: Tracker) -> bool:
    """Whether MLflow itself says that a request is wrong, so that sending it again is of no use.

    A proxy before a server, which may want https or a password, answers with pages of its own; they do not count.
    """
    from mlflow.exceptions import MlflowException, RestException

    if not isinstance(error, MlflowException) or error.error_code not in _REFUSALS:
        return False
    return isinstance(error, RestException) or not tracker.uri.startswith(("http", "databricks"))


def is_momentary(error: Exception) -> bool:
    """Whether a database ended the transaction because of a deadlock (two transactions that wait for each other).

    A server then answers 503, and MLflow's client does not keep the reason.
    """
    from mlflow.exceptions import MlflowException

    text = str(error).lower()
    return isinstance(error, MlflowException) and ("deadlock" in text or "too many 503 error responses" in text)


def source_tags(stage: str) -> dict[str, str]:
    """The tags that MLflow shows as a run's source and user."""
    import getpass

    tags = {"mlflow.source.name": f"pipeline/{stage}.py", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


@contextmanager
def publisher_lock(folder: Path, wait_s: float = 0) -> Iterator[bool]:
    """Whether this process is the one that may publish the journal in `folder`, after `wait_s` seconds at most.

    Never where the journal is gone: whoever published the last of it deleted it, perhaps while this process waited.
    """
    from filelock import FileLock, Timeout

    journal = folder / FILE
    lock = FileLock(folder / LOCK)
    with suppress(Timeout):
        if journal.exists():
            lock.acquire(timeout=wait_s)
    try:
        yield lock.is_locked and journal.exists()
    finally:
        if lock.is_locked and not journal.exists():
            with suppress(OSError):  # acquiring made the folder again
                (folder / LOCK).unlink()
                folder.rmdir()
        lock.release()


class Replay:
    """Publishes one journal; hold its `publisher_lock` while using it."""

    def __init__(self, folder: Path, tracker: Tracker, client: "MlflowClient | None" = None) -> None:
        """Prepare; before `step`, nothing is imported and no store is contacted."""
        self.file = folder / FILE
        self.artifacts = folder / ARTIFACTS
        self.journal_id = folder.name
        self.tracker = tracker
        self.state = Published.load(tracker, self.journal_id)
        self._client = client

    @cached_property
    def _first(self) -> Event:
        """The event that begins the journal."""
        return next(event for _, event in events_from(self.file, 0) if event["event"] == "run")

    @property
    def part_of(self) -> str | None:
        """The journal of the training to whose run this journal adds; None where it has a run of its own."""
        return self._first.get("part_of")

    @property
    def client(self) -> "MlflowClient":
        """The client, opened at first use."""
        if self._client is None:
            self._client = open_client(self.tracker)
        return self._client

    def pending(self) -> bool:
        """Whether the journal has events that are not yet published."""
        return not self.state.deleted and next(events_from(self.file, self.state.offset), None) is not None

    def step(self) -> bool:
        """Send the next request's worth of events; False where nothing was left to send. Raises what MLflow raises."""
        if not self.pending():
            return False
        batch: list[Event] = []
        end = self.state.offset
        for offset, event in events_from(self.file, self.state.offset):
            if event["event"] not in _BATCHED:
                if not batch:
                    batch, end = [event], offset
                break
            if batch and not _fits([*batch, event]):
                break
            batch.append(event)
            end = offset
        self._send(batch)
        self.state.offset = end
        self.state.killed_at, self.state.complete = None, False
        self.state.save()
        return True

    def mark_killed(self) -> bool:
        """Mark the run in MLflow as KILLED, once; False where its process is alive or the run is already marked."""
        if self.state.run_id is None or self.state.killed_at == self.state.offset or self.state.deleted:
            return False
        # Read again now: while this published, the training may have been resumed, and have ended.
        summary = summarize(self.file)
        if summary is None or not summary.dead() or self.pending():
            return False
        times = [event["time_ms"] for _, event in events_from(self.file, 0) if "time_ms" in event]
        try:
            self.client.set_terminated(self.state.run_id, "KILLED", end_time=max(times, default=None))
        except Exception:
            if not self._run_is_deleted():
                raise
            self.state.deleted = True
        self.state.killed_at = self.state.offset
        self.state.save()
        return not self.state.deleted

    def _send(self, batch: list[Event]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._deliver_despite_deadlocks(batch)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST" and self.state.run_id is not None and self._run_is_gone():
                self.state.forget()
                self.state.save()
                raise
            if not is_refusal(error, self.tracker) or self.state.run_id is None:
                raise
            if self._run_is_deleted():
                self.state.deleted = True
                return
            if batch[0]["event"] in _NEVER_DROPPED:
                raise
            if len(batch) > 1:
                for event in batch:
                    self._send([event])
                return
            self.state.refused += 1
            print(f"MLflow refused {batch[0]}: {error}", file=sys.stderr, flush=True)

    def _deliver_despite_deadlocks(self, batch: list[Event]) -> None:
        """Deliver, and retry a few times after a deadlock: sending a batch twice is harmless (see above)."""
        share = 0.5 + int(self.journal_id[:2], 16) / 255  # differs by journal, so that two do not collide again
        for pause_s in _DEADLOCK_PAUSES_S:
            try:
                return self._deliver(batch)
            except Exception as error:
                if not is_momentary(error):
                    raise
                time.sleep(pause_s * share)
        return self._deliver(batch)

    def _deliver(self, batch: list[Event]) -> None:
        event = batch[0]
        if self.state.run_id is None or event["event"] == "run":
            self._enter_run(event)
        run_id = str(self.state.run_id)
        match event["event"]:
            case "run":
                pass
            case "end" if self.part_of is not None:
                self._describe_evaluation(run_id)
            case "end":
                self.client.set_terminated(run_id, event["status"], end_time=event["time_ms"])
                self._drop_doubles(run_id)
            case "artifact":
                self._upload(run_id, self.artifacts / event["path"], event["to"])
            case "dataset":
                self.client.log_inputs(run_id, datasets=[_dataset(event)])
            case "table":
                log_table(self.client, run_id, event["rows"], event["path"])
            case _:
                self._log_batch(run_id, batch)

    def _log_batch(self, run_id: str, batch: list[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics, params, tags = [], [], []
        for event in batch:
            match event["event"]:
                case "metrics":
                    metrics += [
                        Metric(metric_name(name), float(value), event["time_ms"], event["step"])
                        for name, value in event["values"].items()
                    ]
                case "params":
                    params += [Param(name, str(value)[:6000]) for name, value in event["values"].items()]
                case "tags":
                    tags += [RunTag(name, str(value)[:5000]) for name, value in event["values"].items()]
                    tags += self._parent(event["values"].get(PARENT_TAG))
        if self.part_of is not None:
            metrics = self._new_metrics(run_id, metrics)
        # Several requests are needed only where a single event has more than fit into one.
        while metrics or params or tags:
            self.client.log_batch(run_id, metrics[:_MOST_METRICS], params[:_MOST_PARAMS], tags[:_MOST_TAGS])
            metrics, params, tags = metrics[_MOST_METRICS:], params[_MOST_PARAMS:], tags[_MOST_TAGS:]

    def _new_metrics(self, run_id: str, metrics: "list[Metric]") -> "list[Metric]":
        """Those of an evaluation that the run does not show, each with a later time than the values that it has.

        MLflow shows the latest value, and the clock may have been set back, or be another machine's.
        """
        from mlflow.entities import Metric

        known, new = self.client.get_run(run_id).data.metrics, []
        for metric in metrics:
            if known.get(metric.key) != metric.value:
                earlier = self.client.get_metric_history(run_id, metric.key) if metric.key in known else []
                time_ms = max([metric.timestamp, *(value.timestamp + 1 for value in earlier)])
                new.append(Metric(metric.key, metric.value, time_ms, metric.step))
        return new

    def _parent(self, journal_id: str | None) -> "list[RunTag]":
        """The tag by which MLflow shows a trial's run below that of its sweep, whose journal came first."""
        from mlflow.entities import RunTag

        parent = None if journal_id is None else Published.load(self.tracker, journal_id).run_id
        return [] if parent is None else [RunTag("mlflow.parentRunId", parent)]

    def _upload(self, run_id: str, path: Path, to: str) -> None:
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), "/".join(filter(None, [to, path.name])))
        elif path.is_file():
            self.client.log_artifact(run_id, str(path), to or None)
        else:
            print(f"{path} no longer exists, so MLflow does not get it", file=sys.stderr, flush=True)

    def _enter_run(self, event: Event) -> None:
        """Find the journal's run, or create it; the run of a resumed training is RUNNING again."""
        if event["event"] != "run":
            # The state was lost or the store replaced: the journal's first event says what the run is called.
            event = self._first
        if self.part_of is not None:
            training = Published.load(self.tracker, self.part_of)
            self.state.run_id, self.state.deleted = training.run_id, training.deleted
            return
        process = json.dumps({**event["process"], "machine": event.get("machine", "")}, sort_keys=True)
        name = given_name(event)
        if self.state.run_id is not None and not self._run_is_gone():  # even in an experiment that was renamed
            known = [self.client.get_run(self.state.run_id)]
        else:
            experiment = experiment_id(self.client, self.tracker, event["experiment"])
            known = self._runs(experiment)
        if known:
            run = known[0]
            self.state.run_id = run.info.run_id
            if run.info.lifecycle_stage == "deleted":
                self.state.deleted = True
                return
            self.client.set_tag(run.info.run_id, PROCESS_TAG, process)
            if run.info.status != "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {JOURNAL_TAG: self.journal_id, PROCESS_TAG: process, **source_tags(event.get("stage", "train"))}
            run = self.client.create_run(experiment, start_time=event["time_ms"], tags=tags, run_name=name)
            if not run.info.run_id:
                raise TrackingError(
                    f"{self.tracker.shown} answers, but not as an MLflow server does: it gave a new run no id. Correct "
                    "MLFLOW_TRACKING_URI."
                )
            self.state.run_id = run.info.run_id
        if run.info.run_name == name:  # the name contains the id, which MLflow has given only now
            self.client.update_run(run.info.run_id, name=run_name(name, run.info.run_id))
        self.state.save()

    def _describe_evaluation(self, run_id: str) -> None:
        """Put the accuracy into the run's name and description, unless a person gave it others."""
        file = self.artifacts / "evaluation/metrics.json"
        metrics = read_record(MetricsRecord, file, self.artifacts)
        if metrics is None:
            return
        run, name = self.client.get_run(run_id), str(self._first["name"])
        if is_given_name(run.info.run_name, name, run_id):
            self.client.update_run(run_id, name=run_name(name, run_id, metrics["accuracy"]))
        page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
        describe(self.client, run, describe_run(metrics, file.with_name("confusion.csv"), self._first["data"], page))

    def _runs(self, experiment: str) -> list[Any]:
        """This journal's runs, oldest first, deleted ones too."""
        from mlflow.entities import ViewType

        runs = self.client.search_runs(
            [experiment], f"tags.`{JOURNAL_TAG}` = '{self.journal_id}'", run_view_type=ViewType.ALL
        )
        return sorted(
            runs, key=lambda run: (run.info.lifecycle_stage == "deleted", run.info.start_time, run.info.run_id)
        )

    def _drop_doubles(self, run_id: str) -> None:
        """Delete empty runs of this journal: a request to create it may have succeeded after it timed out here."""
        experiment = self.client.get_run(run_id).info.experiment_id
        for run in self._runs(experiment):
            if run.info.run_id != run_id and run.info.lifecycle_stage != "deleted" and not run.data.metrics:
                self.client.delete_run(run.info.run_id)

    def _run_is_deleted(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(str(self.state.run_id)).info.lifecycle_stage == "deleted")
        except MlflowException:
            return False

    def _run_is_gone(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_run(str(self.state.run_id))
        except MlflowException as error:
            return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
        return False


_BATCHED = frozenset({"metrics", "params", "tags"})
# Without them there is no run, or one that stays RUNNING forever.
_NEVER_DROPPED = frozenset({"run", "end"})


def _fits(batch: list[Event]) -> bool:
    return all(
        sum(len(event["values"]) for event in batch if event["event"] == kind) <= most
        for kind, most in (("metrics", _MOST_METRICS), ("params", _MOST_PARAMS), ("tags", _MOST_TAGS))
    )


def _dataset(event: Event) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile: Mapping[str, Any] = event["profile"]
    dataset = Dataset(
        name=event["name"],
        digest=event["digest"],
        source_type="local",
        source=json.dumps({"uri": event["source"]}),
        profile=json.dumps(profile) if profile else None,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])


def process_of(tags: Mapping[str, str]) -> Process | None:
    """The process that a run's tags name, if they do."""
    try:
        return process_from(parse_json(tags[PROCESS_TAG], PROCESS_TAG))
    except (KeyError, RecordError):
        return None
