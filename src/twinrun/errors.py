"""What can go wrong, drawn as a tree, and the frame of every entry point, which turns it into messages.

    TwinrunError
    ├── ParamsError          params.yaml does not describe a run
    ├── SourceError          the images cannot be found or read as a data set
    ├── DataError            values that do not fit together: shapes, labels, empty splits
    │   ├── ValidationFailed the data were judged and a critical expectation failed
    │   └── DecodeError      bytes that are no image that can be decoded
    ├── ModelError           no such architecture, or it cannot take these images
    ├── BundleError          a model on disk is incomplete or was changed
    ├── TrainingError        training cannot start or go on
    │   ├── DivergedError    the loss became NaN or infinite
    │   ├── LockHeldError    another training writes to the same place
    │   └── InterruptedTraining  SIGTERM or SIGINT; the last finished epoch is kept
    ├── PublishError         a file could not be written: read-only, full, gone
    ├── RepositoryError      git is missing, or this is no repository
    ├── TwinError            a run cannot be rebuilt from what there is
    └── TrackingError        MLflow refused or cannot be reached
        └── RegistryError    no such model version, or it may not be promoted

A message says what failed, where, what was found, what was wanted and what to do next. The command line prints the
message alone: a traceback means that Twinrun has a bug.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from twinrun.printing import print

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
    """Bytes that are no image that can be decoded."""


class ModelError(TwinrunError):
    """No such architecture, or it cannot take these images."""


class BundleError(TwinrunError):
    """A model on disk is incomplete or was changed."""


class TrainingError(TwinrunError):
    """Training cannot start or go on."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


class LockHeldError(TrainingError):
    """Another training writes to the same place."""


class InterruptedTraining(TrainingError):
    """SIGTERM or SIGINT arrived; the last finished epoch is kept."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class PublishError(TwinrunError):
    """A file could not be written: read-only, full, gone."""


class RepositoryError(TwinrunError):
    """Git is missing, or this folder is no repository."""


class TwinError(TwinrunError):
    """A run cannot be rebuilt from what there is."""


class TrackingError(TwinrunError):
    """MLflow refused or cannot be reached."""


class RegistryError(TrackingError):
    """No such model version, or it may not be promoted."""


def run_main(main: Callable[[], None], stage: str | None = None) -> None:
    """Run the entry point of a stage or command: a TwinrunError becomes its message on stderr and its exit code.

    Ctrl-C ends it with 130, and a reader of its output that has gone, such as head, with 141, as in a shell. A `stage`
    that succeeds says how long it took, its imports included.
    """
    try:
        main()
        if stage is not None:
            print(f"{stage} took {duration(time.monotonic() - _IMPORTED)}", flush=True)
    except TwinrunError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C; nothing half-written was left behind.", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # What is still to be written goes nowhere, or Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def duration(seconds: float) -> str:
    """A span of time for a person: "3.2 s", "42 s", "2 min 10 s", "1 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
