"""The errors of Twinrun, as a tree, and `run_main`, which every entry point uses to print their messages.

    TwinrunError
    ├── ParamsError          params.yaml does not describe a run
    ├── SourceError          the images cannot be found or read as a data set
    ├── DataError            values that do not fit together: shapes, labels, empty splits
    │   ├── ValidationFailed the data were judged and a critical expectation failed
    │   └── DecodeError      bytes that cannot be decoded as an image
    ├── ModelError           no such architecture, or it cannot take these images
    ├── BundleError          a model on disk is incomplete or was changed
    ├── TrainingError        training cannot start or go on
    │   ├── DivergedError    the loss became NaN or infinite
    │   ├── LockHeldError    another training writes to the same place
    │   └── InterruptedTraining  SIGTERM or SIGINT; the last finished epoch is kept
    │       └── PausedTraining   a trial of a sweep has reached the epoch at which it is judged
    ├── PublishError         a file could not be written: read-only, full, gone
    ├── RecordError          a journal, a card or another record has invalid content
    ├── RepositoryError      git is missing, or this folder is not a repository
    ├── SweepError           a sweep cannot start, go on or be resumed
    ├── TwinError            a run cannot be rebuilt or compared
    └── TrackingError        MLflow refuses a request or cannot be reached
        └── RegistryError    no such model version, or it may not be promoted

A message says what failed, where, what was found, what was expected and what to do next. The command line prints the
message alone: a traceback means that Twinrun has a bug.
"""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from twinrun.base.printing import print

_IMPORTED = time.monotonic()  # every stage imports this module before what takes seconds, such as PyTorch


class TwinrunError(Exception):
    """Something that the person at the keyboard can understand and fix."""

    exit_code = 1


class ParamsError(TwinrunError):
    """params.yaml does not describe a run."""


class SourceError(TwinrunError):
    """The images cannot be found or read as a data set."""


class DataError(TwinrunError):
    """Values that do not fit together: shapes, labels, empty splits."""


class ValidationFailed(DataError):
    """The data were judged and a critical expectation failed."""


class DecodeError(DataError):
    """Bytes that cannot be decoded as an image."""


class ModelError(TwinrunError):
    """No such architecture, or it cannot take these images."""


class BundleError(TwinrunError):
    """A model on disk is incomplete or was changed."""


class TrainingError(TwinrunError):
    """Training cannot start or go on."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class LockHeldError(TrainingError):
    """Another process writes to the same place."""


class InterruptedTraining(TrainingError):
    """SIGTERM or SIGINT arrived; the last finished epoch is kept."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class PausedTraining(InterruptedTraining):
    """A trial of a sweep has reached the epoch at which it is judged; its checkpoint is kept."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"Paused after epoch {epoch}.", 0)
        self.exit_code = 0


class PublishError(TwinrunError):
    """A file could not be written: read-only, full, gone."""


class RecordError(TwinrunError):
    """A journal, a card or another record has content that Twinrun does not write."""


class RepositoryError(TwinrunError):
    """Git is missing, or this folder is not a repository."""


class SweepError(TwinrunError):
    """A sweep cannot start, go on or be resumed."""


class TwinError(TwinrunError):
    """A run cannot be rebuilt or compared."""


class TrackingError(TwinrunError):
    """MLflow refuses a request or cannot be reached."""


class RegistryError(TrackingError):
    """No such model version, or it may not be promoted."""


class MissingModelError(RegistryError):
    """The registry has no model of that name, or none with that alias."""


# Errors of the disk that is written to, whichever file they name.
OF_THE_TARGET = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_interrupts: list[int] = []  # SIGINTs that this process received
_STOPPED = "\nStopped by Ctrl-C; nothing half-written was left behind."


def is_program(name: str) -> bool:
    """Whether this process is the script of that name, or `python -m` with a module whose name begins with it."""
    return any(word.startswith(name) or Path(word).name == name for word in sys.orig_argv[1:4])


def end_quietly_while_importing() -> None:
    """Have Ctrl-C end this process with a sentence also before `run_main`.

    PyTorch and others take seconds to import, in which a traceback of theirs would be printed.
    """
    explain = sys.excepthook
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # neither ignored nor another's
        signal.signal(signal.SIGINT, _interrupt)

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):  # a library may have wrapped it
            cause = cause.__cause__ or cause.__context__
        if cause is None and not _was_lost(error):
            explain(kind, error, traceback)
            return
        print(_STOPPED, file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)

    sys.excepthook = hook


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _was_lost(error: BaseException) -> bool:
    """Whether `error` stands for a Ctrl-C: modules in C replace it where they import another module."""
    return bool(_interrupts) and isinstance(error, ImportError | SystemError)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C, which a terminal sends to all of them; this one does.

    For workers that end with the process that started them.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it lets this process hear Ctrl-C again once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_main(main: Callable[[], None], stage: str | None = None) -> None:
    """Run the entry point of a stage or command: a TwinrunError becomes its message on stderr and its exit code.

    Exits with 130 after Ctrl-C and with 141 if the reader of its output, such as head, has ended, as shells do. When a
    `stage` succeeds, prints how long it took, including imports.
    """
    try:
        main()
        if stage is not None:
            print(f"{stage} took {duration(running_s())}", flush=True)
    except TwinrunError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except (ImportError, SystemError) as error:
        if not _was_lost(error):
            raise
        print(_STOPPED, file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # The remaining output goes nowhere, or Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno is None:  # not an error of the operating system
            raise
        print(f"\n{os_problem(error)}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


@contextmanager
def failing_with(exit_code: int) -> Iterator[None]:
    """Have an error end the command with `exit_code`, where the usual 1 is a result, such as a difference."""
    try:
        yield
    except (TwinrunError, OSError) as error:
        if isinstance(error, OSError) and (error.errno is None or isinstance(error, BrokenPipeError)):
            raise  # which `run_main` knows, or does not either
        problem = TwinrunError(os_problem(error)) if isinstance(error, OSError) else error
        problem.exit_code = exit_code
        raise problem from None


def os_problem(error: OSError, path: object = None, *, verb: str = "used") -> str:
    """The message for an error of the operating system, with what to do: for every errno, in one place.

    `path` is the file that was being written or read, if the error itself names none.
    """
    reason = error.strerror or str(error)
    if "temporary directory" in reason:
        return (
            "No temporary folder is writable: TMPDIR, /tmp and the others are full, read-only or missing. Free some "
            "space, or name another folder: export TMPDIR=FOLDER"
        )
    # A copy names the file that it reads first; what is full or read-only is the place of the other one.
    names = [error.filename2, error.filename] if error.errno in OF_THE_TARGET else [error.filename]
    name = path or next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), None)
    advice = _ADVICE.get(error.errno or 0, f"{reason}. Check that it exists and is of the right kind, and run again.")
    if error.errno == errno.EMFILE:
        advice = advice.format(_open_files())
    subject = "A file" if name is None else str(name)
    where = f" (the project's folder, or the temporary one, {_TEMPORARY})" if name is None else ""
    return f"{subject} cannot be {verb}: {advice}{where}"


_TEMPORARY = "TMPDIR or /tmp"
_FORBIDDEN = "this user has no permission ({}). Give this user the permission and run again."
_ADVICE = {
    errno.EACCES: _FORBIDDEN.format("Permission denied"),
    errno.EPERM: _FORBIDDEN.format("Operation not permitted"),
    errno.EROFS: "the file system is read-only. Make it writable and run again; finished results are kept.",
    errno.ENOSPC: "the disk is full. Free some space and run again; finished results are kept.",
    errno.EDQUOT: "the disk is full for this user (quota). Free some space and run again; finished results are kept.",
    errno.EIO: "the disk reports an input/output error. Check it (dmesg), then run again; finished results are kept.",
    errno.EMFILE: "this process has too many files open (limit: {}). Raise it (ulimit -n 4096) and run again.",
    errno.ENFILE: "the machine has too many files open. Close other programs and run again.",
    errno.ENAMETOOLONG: "its name is too long for the file system. Shorten it, or move the project to a shorter path.",
    errno.ELOOP: "its links form a loop. Remove the link.",
    errno.ENOENT: "there is no such file or folder. If a stage writes it: dvc repro; if it was pushed: dvc pull.",
    errno.ENOTDIR: "a part of its path is a file and should be a folder. Move that file away.",
    errno.EISDIR: "it is a folder and should be a file. Move it away.",
    errno.ESTALE: "its network share has changed or is gone. Mount it again and run again.",
    errno.ENOMEM: "the machine has no memory left. Close other programs and run again.",
    errno.ENOLCK: "the file system does not support locks. Move the project to a local disk, or enable them there.",
    errno.EFBIG: "it would be larger than the file system or a limit (ulimit -f) allows. Raise it and run again.",
    errno.EBUSY: "it is in use. Close what uses it and run again.",
}


def _open_files() -> str:
    try:
        import resource
    except ImportError:
        return "unknown"
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def restart_clock() -> None:
    """Begin the time of `running_s` anew: this process was forked from one that had imported everything."""
    global _IMPORTED
    _IMPORTED = time.monotonic()


def running_s() -> float:
    """Seconds since this process began to import what it needs."""
    return time.monotonic() - _IMPORTED


def duration(seconds: float) -> str:
    """A span of time for a person: "3.2 s", "42 s", "2 min 10 s", "1 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
