"""Where trials run. A launcher starts the worker of a folder and reports which have ended; results are files.

It holds no state that a sweep could lose: what a killed launcher had started is started again.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Protocol

from twinrun.base.errors import restart_clock
from twinrun.sweep import worker
from twinrun.sweep.worker import LOG

_POLL_S = 0.05
_STOP_S = 30.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# Thread pools of libraries, which a batch system or an engine may have set; training counts its own threads.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Launcher(Protocol):
    """Runs the workers of several folders at a time."""

    slots: int

    def submit(self, folder: Path) -> None:
        """Start the worker of `folder`, whose output goes to its log."""

    def ended(self) -> list[tuple[Path, str]]:
        """Wait until a worker has ended; its folder and what the engine says of its end."""

    def close(self) -> None:
        """Ask what still runs to stop, and wait for it."""


TRIAL = "twinrun.sweep.worker"


def command(folder: Path, module: str = TRIAL) -> list[str]:
    """The worker of a folder as a command line, for an engine; it runs in the project's folder."""
    return [sys.executable, "-m", module, os.fspath(folder)]


def run_command(arguments: Sequence[str], project: str, log: str) -> int:
    """Run a command on the machine that an engine chose; returns its exit code. Ends with the engine's task."""
    environment = {name: value for name, value in os.environ.items() if name not in _THREADS}
    path = [os.path.join(project, "src"), project, environment.get("PYTHONPATH", "")]  # noqa: PTH118
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with Path(log).open("ab") as output:
        first = _end_with_parent if sys.platform == "linux" else None
        process = subprocess.Popen(
            arguments, cwd=project, env=environment, stdout=output, stderr=output, preexec_fn=first
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _end_with_parent() -> None:
    """In a new process: get SIGTERM when the one that started it ends, also where that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Local:
    """Processes of this machine, each on its share of the cores.

    On Linux they are forks of this process, which has imported PyTorch once: that takes longer than a small training.
    Where each training starts processes itself (`train.devices`), they are new ones.
    """

    def __init__(self, slots: int, *, forks: bool) -> None:
        """Run up to `slots` workers at a time."""
        self.slots = slots
        self._forks = forks and sys.platform == "linux"
        self._running: dict[int, tuple[Path, int]] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        if self._forks:
            worker.preload()

    def submit(self, folder: Path) -> None:
        """Start the worker in the first free slot."""
        taken = {slot for _, slot in self._running.values()}
        slot = next(slot for slot in range(self.slots) if slot not in taken)
        sys.stdout.flush()
        sys.stderr.flush()
        if self._forks:
            pid = os.fork()
            if pid == 0:
                _become_worker(folder, _cores(slot, self.slots))
        else:
            with (folder / LOG).open("ab") as log:
                process = subprocess.Popen(command(folder), stdout=log, stderr=log, start_new_session=True)
            pid = process.pid
            self._processes[pid] = process
        self._running[pid] = folder, slot

    def ended(self) -> list[tuple[Path, str]]:
        """Wait for one or more of the processes."""
        while True:
            over = [(pid, status) for pid in self._running if (status := self._status(pid)) is not None]
            if over or not self._running:
                return [(self._running.pop(pid)[0], _how(status)) for pid, status in over]
            time.sleep(_POLL_S)

    def close(self) -> None:
        """End them with SIGTERM, after which a training keeps its last finished epoch."""
        for pid in self._running:
            with suppress(ProcessLookupError):  # an interruption came when its end was read
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while self._running and time.monotonic() < deadline:
            for pid in [pid for pid in self._running if self._status(pid) is not None]:
                del self._running[pid]
            time.sleep(_POLL_S)
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)

    def _status(self, pid: int) -> int | None:
        """The exit code of a process, negative for a signal; None while it runs. 0 where it was read before."""
        if pid in self._processes:
            return self._processes[pid].poll()
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        return os.waitstatus_to_exitcode(status) if done else None


def _become_worker(folder: Path, cores: set[int]) -> NoReturn:
    """In a fork: train the trial of `folder`, and end."""
    code = 1
    try:
        os.setpgid(0, 0)  # so that Ctrl-C reaches the driver alone, which then stops all
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if cores:
            os.sched_setaffinity(0, cores)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        restart_clock()
        code = worker.work(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _cores(slot: int, slots: int) -> set[int]:
    """The cores of a slot; none where there are fewer than slots, and the system shares them out."""
    usable = sorted(os.sched_getaffinity(0))
    each = len(usable) // slots
    return set(usable[slot * each : (slot + 1) * each]) if each else set()


def _how(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"it was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
    return f"it ended with exit code {status}"
