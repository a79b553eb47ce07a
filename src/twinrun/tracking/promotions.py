"""The journal of promotions, mlruns/promotions.jsonl: who made which version the champion, when and why.

A change is recorded before it is made, and its outcome after it, each as a line that is on the disk before anything
else happens. So a line without an outcome is a change that was interrupted, and the registry shows how it ended.
"""

import getpass
import json
import os
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from twinrun.base.errors import RegistryError
from twinrun.base.printing import printable

PROMOTIONS = "promotions.jsonl"
ELSEWHERE = "elsewhere"
Outcome = Literal["done", "failed", "refused"]
_KEPT_BYTES = 64_000_000


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Begun(_Line):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None  # none in journals of earlier versions
    time: AwareDatetime
    user: str
    action: Literal["promote", "rollback", "elsewhere"]
    model: str
    before: Annotated[int | None, Field(alias="from", ge=1)]
    after: Annotated[int | None, Field(alias="to", ge=1)]
    reason: str | None
    tracker: str
    gates: list[str] = []
    test_set: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    failed: str | None = None  # in journals of earlier versions


class _Ended(_Line):
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    time: str
    outcome: Outcome
    detail: str | None


_LINE: TypeAdapter[_Begun | _Ended] = TypeAdapter(_Begun | _Ended)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A change of a champion: from version `before` to `after`, None where there was none.

    `outcome` is None where the change was interrupted; `detail` says why it failed or was refused. `gates` are the
    results of the gates, with the numbers, and `test_set` is the hash of the images that they used.
    """

    id: str | None
    time: datetime
    user: str
    action: str
    model: str
    before: int | None
    after: int | None
    reason: str | None
    tracker: str
    gates: tuple[str, ...] = ()
    test_set: str | None = None
    outcome: Outcome | None = None
    detail: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The result of the gates for a version: why it was refused, if it was; a line for each gate; the test set."""

    refusal: str | None
    gates: tuple[str, ...] = ()
    test_set: str | None = None


class Promotions:
    """The journal of one project; to be changed by one process at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> tuple[list[Entry], list[str]]:
        """All entries, the oldest first, and what is wrong with the file, a sentence each."""
        try:
            if (size := self.file.stat().st_size) > _KEPT_BYTES:
                return [], [f"{self.file} was not read: it has {size / 1e6:.0f} MB, and Twinrun writes no such file"]
            content = self.file.read_bytes()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self.file} cannot be read ({error.strerror})"]
        entries: dict[str, Entry] = {}
        problems = []
        for number, line in enumerate(content.splitlines(), 1):
            parsed = _parsed(line)
            if parsed is None:
                problems.append(f"{self.file.name}, line {number}: not a record of a promotion")
            elif isinstance(parsed, _Begun):
                entries[parsed.id or f"line {number}"] = _entry(parsed)
            elif parsed.id in entries:
                entries[parsed.id] = replace(entries[parsed.id], outcome=parsed.outcome, detail=parsed.detail)
            else:
                problems.append(f"{self.file.name}, line {number}: the outcome of a change that has no line")
        return list(entries.values()), problems

    def unfinished(self, model: str, tracker: str) -> list[Entry]:
        """Changes of one model that were interrupted."""
        return [entry for entry in self._of(model, tracker) if entry.outcome is None]

    def last(self, model: str, tracker: str) -> Entry | None:
        """The last change of one model that was made."""
        return next((entry for entry in reversed(self._of(model, tracker)) if entry.outcome == "done"), None)

    def uses(self, model: str, tracker: str) -> Counter[str]:
        """For each test set, the number of promotions of one model that were decided on it."""
        made = (entry for entry in self._of(model, tracker) if entry.action == "promote" and entry.outcome == "done")
        return Counter(entry.test_set for entry in made if entry.test_set is not None)

    def begin(
        self,
        *,
        action: str,
        model: str,
        before: int | None,
        after: int | None,
        reason: str | None,
        tracker: str,
        gates: Sequence[str] = (),
        test_set: str | None = None,
    ) -> str:
        """Record a change before it is made; returns its id. Raises RegistryError where it cannot be recorded."""
        entry_id = uuid.uuid4().hex
        user = "unknown"
        with suppress(KeyError, OSError):
            user = getpass.getuser()
        line = {
            "id": entry_id,
            "time": _now(),
            "user": user,
            "action": action,
            "model": model,
            "from": before,
            "to": after,
            "reason": reason,
            "tracker": tracker,
            "gates": list(gates),
            "test_set": test_set,
        }
        try:
            self._append(line)
        except OSError as error:
            raise RegistryError(
                f"The {action} to version {after} of {model!r} cannot be recorded in {self.file} "
                f"({error.strerror}), so nothing was changed.\n"
                "Make that file writable, or free some space, and run again."
            ) from error
        return entry_id

    def end(self, entry_id: str, outcome: Outcome, detail: str | None = None) -> None:
        """Record how a change ended. If that fails, the next command does it."""
        with suppress(OSError):
            self._append({"id": entry_id, "time": _now(), "outcome": outcome, "detail": detail})

    def _of(self, model: str, tracker: str) -> list[Entry]:
        return [entry for entry in self.read()[0] if entry.model == model and entry.tracker == tracker]

    def _append(self, line: dict[str, Any]) -> None:
        """Add a line, completely or not at all. An incomplete line of a killed process is removed first.

        A record that lacks nothing but the end of its line stays: an editor may have removed that.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a+b") as file:
            end = _whole_lines(file)
            file.seek(end)
            last = file.read()
            start, end = (b"\n", end + len(last)) if _parsed(last) is not None else (b"", end)
            file.truncate(end)
            try:
                file.write(start + json.dumps({name: _text(value) for name, value in line.items()}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise


def _parsed(line: bytes) -> _Begun | _Ended | None:
    """What a line of the journal says; None where it is not one that was written here."""
    try:
        return _LINE.validate_json(line)
    except ValidationError:
        return None


def _entry(line: _Begun) -> Entry:
    outcome: Outcome | None = "failed" if line.failed is not None else "done" if line.id is None else None
    return Entry(
        id=line.id,
        time=line.time,
        user=line.user,
        action=line.action,
        model=line.model,
        before=line.before,
        after=line.after,
        reason=line.reason,
        tracker=line.tracker,
        gates=tuple(line.gates),
        test_set=line.test_set,
        outcome=outcome,
        detail=line.failed,
    )


def _text(value: Any) -> Any:
    """A value whose texts can be read again: a reason or a user's name may hold bytes that are not UTF-8."""
    if isinstance(value, list):
        return [_text(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _whole_lines(file: Any) -> int:
    """The offset of the end of the last complete line of an open binary file, bytes."""
    size = int(file.seek(0, os.SEEK_END))
    at = size
    while at > 0:
        start = max(0, at - 65536)
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        at = start
    return 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
