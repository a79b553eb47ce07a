"""Journals: append-only JSONL files that are replayed to MLflow. `validate`, `train` and `evaluate` write them.

A training's journal is .twinrun/journals/<journal_id>/journal.jsonl, with copies (hard links) of its artifacts beside
it, so that nothing is lost when DVC removes data/out/train before the tracker has it. Each line is one event, written
by one write call and synced before the call returns: a crash damages at most the last line, and a reader recognises
that by the missing newline. Every event has its own time, so replaying it twice gives MLflow the same values twice,
which it stores once. A journal may come from somebody else: readers get events that `records` has parsed.

`validate` and `evaluate` write theirs at once, among their results (`write_result`). A training's journal includes that
of its data; `twinrun sync` adds an evaluation to the run of the training with the same weights.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from twinrun.base.errors import RecordError, TrackingError
from twinrun.base.files import canonical_json, explained, file_sha256, folder_hashes, replacing
from twinrun.core.params import flat_settings
from twinrun.record.card import DVC_LOCK, Code
from twinrun.record.home import Process, journals_folder, this_process
from twinrun.record.records import parse_event, require_plain

FILE = "journal.jsonl"
ARTIFACTS = "artifacts"
DIFF = "uncommitted.diff"
RESULTS = Path("data/out")
_STAGES = ("validate", "train", "evaluate")

Status = Literal["FINISHED", "KILLED", "FAILED"]
Event = dict[str, Any]


class Journal:
    """The writing side, for the process that trains. One writer at a time; any number of readers."""

    def __init__(self, folder: Path, workspace: Path | None = None) -> None:
        """Open a journal folder for appending; use `create` or `resume`.

        `workspace` is the folder in which the training's outputs lie, by default the project that holds the journal.
        """
        self.folder = folder
        self.workspace = (workspace or folder.parents[2]).resolve()
        self.id = folder.name
        self.file = folder / FILE
        with explained(self.file):
            folder.mkdir(parents=True, exist_ok=True)
            self._size = _drop_torn_line(self.file)
            self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._seen: set[tuple[str, object]] = set()
        self._artifacts: dict[tuple[str, str], str] = {}
        self._torn = False
        self.ended = False
        for _, event in _sound_events(self.file):
            self._remember(event)

    @classmethod
    def create(cls, root: Path, *, name: str, experiment: str) -> Self:
        """Begin the journal of a new training in the project at `root`.

        `name` is the run's name for people ("lenet5 on digits"); in MLflow the first digits of the run's id follow.
        """
        journal_id = uuid.uuid4().hex
        return cls._begin(root, journal_id, name, experiment)

    @classmethod
    def resume(
        cls,
        root: Path,
        journal_id: str,
        *,
        name: str = "resumed training",
        experiment: str = "Default",
        kept: Path | None = None,
        began_ms: int | None = None,
    ) -> Self:
        """Go on with the journal of a training that was stopped.

        Nothing is recorded twice: the metrics of a repeated epoch are dropped. If the journal is missing, it is
        restored from `kept`, a copy, or else a new one with the same id begins, with `name` and `experiment`.
        `began_ms` is when the process began, in Unix time; by default now.
        """
        file = journals_folder(root) / journal_id / FILE
        if kept is not None and kept.exists() and not file.exists():
            with replacing(file) as temp:
                shutil.copyfile(kept, temp)
        return cls._begin(root, journal_id, name, experiment, began_ms)

    @classmethod
    def _begin(cls, root: Path, journal_id: str, name: str, experiment: str, began_ms: int | None = None) -> Self:
        journal = cls(journals_folder(root) / journal_id, root)
        first = next((event for _, event in _sound_events(journal.file) if event["event"] == "run"), None)
        name, experiment = (first["name"], first["experiment"]) if first else (name, experiment)
        journal._append(**_begin_event(journal_id, name, experiment, _now_ms() if began_ms is None else began_ms))
        journal.ended = False
        return journal

    def params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested ones under dotted names (`train.epochs`). The first value of a name is kept."""
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in flat_settings(params)}
        flat = {name: text for name, text in texts.items() if ("param", name) not in self._seen}
        if flat:
            self._append(event="params", values=flat)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record tags, such as twinrun.weights_hash; a later value replaces an earlier one."""
        self._append(event="tags", values=dict(tags))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step (an epoch). A (name, step) that was recorded before is dropped."""
        new = {name: _number(value) for name, value in values.items() if (name, step) not in self._seen}
        if new:
            self._append(event="metrics", step=step, time_ms=_now_ms(), values=new)

    def dataset(
        self, *, name: str, digest: str, source: str, context: str = "training", images: int | None = None
    ) -> None:
        """Record the data set that was trained on; `digest` is at most 36 characters of its hash."""
        if ("dataset", name + digest + context) not in self._seen:
            profile = {} if images is None else {"images": images}
            self._append(
                event="dataset", name=name, digest=digest[:36], source=source, context=context, profile=profile
            )

    def artifact(self, path: Path, to: str = "") -> None:
        """Keep a copy of a file or folder for MLflow, which gets it as `to`/<name of path>."""
        place = (self.folder / ARTIFACTS / to / path.name).resolve()
        if not place.is_relative_to((self.folder / ARTIFACTS).resolve()):
            raise TrackingError(f"An artifact must be inside the journal's folder: {to}/{path.name}")
        sha256 = content_hash(path)
        if self._artifacts.get((to, path.name)) == sha256:
            return
        keep_copy(path, place)
        self._append(**_artifact(path, to, self.workspace, sha256))

    def text(self, name: str, text: str, to: str = "") -> None:
        """Keep a text as an artifact named `name`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_text(text, encoding="utf-8", errors="surrogateescape")
            self.artifact(file, to)

    def include(self, file: Path) -> None:
        """Record the events of an earlier stage's journal, if there is one and its data passed.

        Raises RecordError where it is not valid.
        """
        if file.exists():
            require_plain(file.absolute(), self.workspace)
        summary = summarize(file)
        for event in read_events(file) if summary is not None and summary.ended == "FINISHED" else ():
            match event["event"]:
                case "tags":
                    self.tags(event["values"])
                case "artifact" if (source := result_path(self.workspace, event, file)) is not None:
                    self.artifact(source, event["to"])
                case "table" if ("table", event["path"]) not in self._seen:
                    self._append(**event)

    def code(self, code: Code) -> None:
        """Record the commit and uncommitted changes; called at the start, so that a killed run has them too."""
        self.tags({"mlflow.source.git.commit": code.commit, "twinrun.dirty": str(code.dirty).lower()})
        if code.diff:
            self.text(DIFF, code.diff, "code")

    def end(self, status: Status = "FINISHED") -> None:
        """Record how the training ended. A resumed training may follow."""
        if not self.ended:
            self._append(event="end", status=status, time_ms=_now_ms())

    def copy_to(self, path: Path) -> None:
        """Publish the journal as it is now at `path` (data/out/train/journal.jsonl)."""
        with replacing(path) as temp:
            shutil.copyfile(self.file, temp)

    def close(self) -> None:
        """Release the file; the journal can be read and resumed, not written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, **event: Any) -> None:
        line = canonical_json(event) + b"\n"
        with explained(self.file):
            if self._torn:
                os.ftruncate(self._descriptor, self._size)
                self._torn = False
            try:
                if os.write(self._descriptor, line) != len(line):
                    raise OSError(28, "No space left on device")
                os.fsync(self._descriptor)
            except OSError:
                # The next event would be appended to half a line. If truncating fails too, the next event retries it.
                self._torn = True
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._size)
                    self._torn = False
                raise
        self._size += len(line)
        self._remember(event)

    def _remember(self, event: Event) -> None:
        match event["event"]:
            case "params":
                self._seen.update(("param", name) for name in event["values"])
            case "metrics":
                self._seen.update((name, event["step"]) for name in event["values"])
            case "dataset":
                self._seen.add(("dataset", event["name"] + event["digest"] + event["context"]))
            case "table":
                self._seen.add(("table", event["path"]))
            case "artifact":
                self._artifacts[event["to"], Path(event["path"]).name] = event["sha256"]
            case "run" | "end":
                self.ended = event["event"] == "end"


def write_result(
    out: Path,
    stage: str,
    *,
    to: str,
    artifacts: Iterable[str],
    tags: Mapping[str, str],
    tables: Mapping[str, list[dict[str, Any]]],
    metrics: Mapping[str, float] | None = None,
    name: str = "results",
    experiment: str = "Default",
    status: Status = "FINISHED",
) -> None:
    """Write the journal of a stage whose results lie in `out`, data/out/<stage>.

    `artifacts` are names of files and folders in `out`, `tables` rows by name; MLflow gets both in the folder `to`.
    The journal's id is a hash of its content, so that equal results have the same id.
    """
    events: list[Event] = [{"event": "tags", "values": dict(tags)}]
    if metrics:
        values = {name: _number(value) for name, value in metrics.items()}
        events.append({"event": "metrics", "step": 0, "time_ms": _now_ms(), "values": values})
    events += [_artifact(out / result, to, out.resolve().parents[2]) for result in artifacts if (out / result).exists()]
    events += [{"event": "table", "path": f"{to}/{file}", "rows": rows} for file, rows in tables.items() if rows]
    said = [{key: value for key, value in event.items() if key != "time_ms"} for event in events]
    identity = hashlib.sha256(canonical_json([stage, name, experiment, status, said])).hexdigest()[:32]
    begin = _begin_event(identity, name, experiment, _now_ms())
    end = {"event": "end", "status": status, "time_ms": _now_ms()}
    lines = [canonical_json(event) + b"\n" for event in ({**begin, "stage": stage}, *events, end)]
    with replacing(out / FILE) as temp:
        temp.write_bytes(b"".join(lines))


def result_path(workspace: Path, event: Event, journal: Path) -> Path | None:
    """The file among a stage's results that an artifact is a copy of; None for a text, which is not a file there.

    Raises RecordError where it is another file of the project, or a link.
    """
    source = workspace / str(event["source"])
    if event["source"] != DVC_LOCK:
        if "/" not in event["source"]:
            return None
        if not any(source.is_relative_to(workspace / RESULTS / stage) for stage in _STAGES):
            raise RecordError(f"{journal} names {event['source']}, which is not a result of a stage.")
    require_plain(source, workspace)
    return source


@dataclass(frozen=True)
class Summary:
    """What a journal says about its training as a whole."""

    journal_id: str
    name: str
    experiment: str
    process: Process
    ended: str | None
    tags: Mapping[str, str]
    stage: str = "train"
    part_of: str | None = None  # the journal of the training to whose run this one adds

    def dead(self) -> bool:
        """Whether the training's process died without recording an end."""
        return self.ended is None and self.process.dead()


def summarize(file: Path) -> Summary | None:
    """Read a journal's identity and state; None where the file does not hold a journal.

    Raises RecordError where a line is not a valid event.
    """
    return summary_of(read_events(file))


def summary_of(events: Iterable[Event]) -> Summary | None:
    """The identity and state of the journal with these events; None where none of them begins a journal."""
    run: Event | None = None
    ended: str | None = None
    tags: dict[str, str] = {}
    for event in events:
        match event["event"]:
            case "run":
                run, ended = event, None
            case "end":
                ended = event["status"]
            case "tags":
                tags.update(event["values"])
    if run is None:
        return None
    process = Process(**{"machine": run.get("machine", ""), **run["process"]})
    return Summary(
        run["journal_id"],
        given_name(run),
        run["experiment"],
        process,
        ended,
        tags,
        run.get("stage", "train"),
        run.get("part_of"),
    )


def given_name(run: Event) -> str:
    """The name in a journal's first event, without the digits of the journal's id that earlier versions added."""
    return str(run["name"]).removesuffix(f", {run['journal_id'][:6]}")


def read_events(file: Path) -> list[Event]:
    """All complete events of a journal, in order. Raises RecordError as `events_from` does."""
    return [event for _, event in events_from(file, 0)]


def events_from(file: Path, offset: int) -> Iterator[tuple[int, Event]]:
    """Complete events from a byte offset on, each with the offset of its end; an incomplete last line is left out.

    Raises RecordError, naming file and place, at a line that is not an event.
    """
    for end, line in _lines(file, offset):
        yield end, parse_event(line, f"{file}, the event at byte {end - len(line)},")


def count_events(file: Path, offset: int) -> int:
    """The number of complete events from a byte offset on, damaged ones too."""
    return sum(1 for _ in _lines(file, offset))


def _sound_events(file: Path) -> Iterator[tuple[int, Event]]:
    """The events of a journal that can be read: a damaged line must not prevent a training from resuming."""
    for end, line in _lines(file, 0):
        with suppress(RecordError):
            yield end, parse_event(line, str(file))


def _lines(file: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    try:
        content = file.open("rb")
    except FileNotFoundError:
        return
    with content:
        content.seek(offset)
        for line in content:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, line


def content_hash(path: Path) -> str:
    """Sha256 of a file, or of the names and hashes of all files in a folder."""
    if path.is_dir():
        return hashlib.sha256(canonical_json(folder_hashes(path))).hexdigest()
    return file_sha256(path)


def keep_copy(source: Path, place: Path) -> None:
    """Put a hard link, or else a copy, of a file or folder at `place`, replacing what is there.

    A link is safe, since these files are replaced by rename and never changed in place.
    """
    with explained(place):
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, copy_function=_link)
        else:
            place.unlink(missing_ok=True)
            _link(str(source), str(place))


def _begin_event(journal_id: str, name: str, experiment: str, time_ms: int) -> Event:
    process = asdict(this_process())
    machine = process.pop("machine")  # not in `process`: earlier versions, which a twin may run, reject the field there
    return {
        "event": "run",
        "journal_id": journal_id,
        "name": name,
        "experiment": experiment,
        "time_ms": time_ms,
        "process": process,
        "machine": machine,
    }


def _artifact(path: Path, to: str, workspace: Path, sha256: str | None = None) -> Event:
    source = path.parent.resolve() / path.name  # which may be a link into DVC's cache
    inside = source.is_relative_to(workspace)
    return {
        "event": "artifact",
        "path": PurePosixPath(to, path.name).as_posix(),
        "to": to,
        "source": source.relative_to(workspace).as_posix() if inside else source.name,
        "sha256": sha256 or content_hash(path),
    }


def _link(source: str, place: str) -> str:
    try:
        os.link(Path(source).resolve(), place)
    except OSError:
        shutil.copyfile(source, place)
    return place


def _drop_torn_line(file: Path) -> int:
    """Cut off an incomplete last line, and return the size."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.truncate(file, whole)
    return whole


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those are written as text, which float() reads back."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
