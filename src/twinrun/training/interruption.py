"""Stopping cleanly, and one training at a time: signals, a vanished parent, and the lock of an output folder."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from twinrun.base.errors import InterruptedTraining, LockHeldError
from twinrun.base.files import explained, read_json
from twinrun.base.printing import print
from twinrun.training.launch import launch

LOCK_WAIT_S = 30.0
_POLL_S = 0.25
_FIRST_ENDS_S = 10.0  # how long the first process may take from its last word to the others until it has ended
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_EPOCH_KEPT = "The last finished epoch is kept; `dvc repro` continues after it."
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish"})


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM, by SIGINT, or by the end of the process it works for."""

    def __init__(self, pause_after: int | None = None) -> None:
        """`pause_after`: how many finished epochs a trial of a sweep pauses after."""
        self.pause_after = pause_after
        self._signal: int | None = None
        self._reason = ""

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; a second signal ends the process at once. Call from the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def hold_for_children(self) -> None:
        """Let signals to the processes started from now on wait until they `install`, and those to this one likewise.

        They import for seconds before they can listen, and one that a signal ends takes all of them with it.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def watch_parent(self) -> None:
        """Ask to stop when a process that this one works for ends: dvc, `twinrun reproduce`, or the first trainer."""
        if _is_orphan():
            self._request(signal.SIGTERM, "the dvc that it worked for ended")
            return
        employers = _employers()

        def watch() -> None:
            while all(map(_works, employers)):
                time.sleep(_POLL_S)
            gone = next((employer.pid for employer in employers if not _works(employer)), employers[0].pid)
            self._request(signal.SIGTERM, f"the process that it worked for ({gone}) ended")

        if employers:
            threading.Thread(target=watch, daemon=True, name="parent-watch").start()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._signal is not None

    def check(self, *, also: bool = False, kept: str = _EPOCH_KEPT) -> None:
        """Raise InterruptedTraining if a stop was asked for, here or, with `also`, in another training process.

        `kept` is a sentence for the person: what is kept of the work.
        """
        if self._signal is not None or also:
            reason = self._reason or "another training process was asked to stop"
            raise InterruptedTraining(f"Training stopped: {reason}. {kept}", self._signal or signal.SIGTERM)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """For every process but the first: end without a word where training was stopped, which the first one says.

        A stop may show as an error of the network that the processes talk over, when the first one is gone already.
        """
        try:
            yield
        except InterruptedTraining as interruption:
            raise SystemExit(_quiet_code(interruption.exit_code)) from None
        except RuntimeError:
            until = time.monotonic() + _FIRST_ENDS_S
            while time.monotonic() < until and not self.requested:
                time.sleep(_POLL_S)
            if self.requested:
                raise SystemExit(_quiet_code(128 + signal.SIGTERM)) from None
            raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._signal is not None:
            os._exit(128 + number)
        self._request(number, f"{signal.Signals(number).name} arrived")

    def _request(self, number: int, reason: str) -> None:
        self._signal, self._reason = number, reason


@contextmanager
def training_lock(folder: Path) -> Iterator[None]:
    """Let one training at a time write to the project; a second one waits, then is refused.

    Raises LockHeldError with the holder's process and its age after LOCK_WAIT_S seconds.
    """
    from filelock import FileLock, Timeout

    holder = folder / "train.holder.json"
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "train.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{_described(holder)} Waiting up to {LOCK_WAIT_S:.0f} s for it to end.", flush=True)
            try:
                lock.acquire(timeout=LOCK_WAIT_S)
            except Timeout:
                raise LockHeldError(f"{_described(holder)} Wait for it to end, or stop it, and run again.") from None
    try:
        with explained(holder):
            holder.write_text(json.dumps({"pid": os.getpid(), "started": time.time()}), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _described(holder: Path) -> str:
    facts = read_json(holder)
    pid, started = facts.get("pid"), facts.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float) or not math.isfinite(started):
        return "Another training is writing to this project."
    age_s = max(0.0, time.time() - started)
    return f"Another training, process {pid}, has been writing to this project for {age_s:.0f} s."


def _quiet_code(code: int) -> int:
    """How a process that stops as it was asked to ends: Lightning kills the first one where another ends otherwise."""
    return code if launch().launcher == "torchrun" else 0


def _works(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _employers() -> list[psutil.Process]:
    """The ancestors that this process must not outlive: who started it, where that is one of ours, and the nearest dvc.

    Between dvc and a trainer there may be a torchrun, which outlives dvc.
    """
    processes = []
    if launch().launcher != "none" or "TWINRUN_TWIN_OF" in os.environ or "TWINRUN_TRIAL" in os.environ:
        processes += [parent for parent in [psutil.Process().parent()] if parent is not None]
    if "DVC_ROOT" in os.environ:
        processes += [ancestor for ancestor in psutil.Process().parents() if _is_dvc(ancestor)][:1]
    return processes


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _is_orphan() -> bool:
    """Whether a dvc started this process and ended before we could look: the system's first process has adopted it."""
    if "DVC_STAGE" not in os.environ:
        return False
    for ancestor in psutil.Process().parents():
        try:
            name, command = ancestor.name(), ancestor.cmdline()
        except psutil.Error:
            return True
        if name not in _SHELLS:
            # In a container dvc, or a program that calls it, may be the first process.
            at_work = any("dvc" in word or "python" in word for word in command[:3])
            return not at_work and (ancestor.pid == 1 or name == "systemd")
    return True
