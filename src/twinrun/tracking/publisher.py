"""Publishing a journal while its training goes on: `python -m twinrun.tracking.publisher JOURNAL_FOLDER`.

A separate process of low priority, so that the training neither waits for MLflow nor shares its interpreter with it. It
outlives the training for a while: if the training's process dies, it marks the run KILLED, and if the tracker cannot be
reached, it retries for some seconds. What it cannot publish stays in the journal for `twinrun sync`.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twinrun.base.errors import InterruptedTraining
from twinrun.base.printing import print
from twinrun.record.journal import FILE, Journal, Summary, summarize
from twinrun.tracking.replay import Published, Replay, publisher_lock, unpublished
from twinrun.tracking.store import TIMEOUT_VARIABLE, find_tracker

GRACE_S = 15.0
LOG = "publisher.log"
TROUBLED = "publisher.troubled"  # exists while the tracker cannot be reached or is slow
_LOOK_S = 0.2
_BATCH_S = 1.0
_LONGEST_PAUSE_S = 8.0
# A server that takes longer counts as slow; usually a step, which is a few requests, takes a tenth of that.
_SLOW_STEP_S = 1.5
_STOP_GRACE_S = 2.0
# At its end, a training waits for a server this long, or this share of its own time if that is longer.
_SERVER_GRACE_S, _SERVER_GRACE_SHARE = 5.0, 0.02
# With it, publishing takes about a tenth of a core from a training on busy cores.
_NICENESS = 10


class Publication:
    """The result of publishing one training."""

    def __init__(self, folder: Path) -> None:
        """Nothing is known before `publishing` has ended."""
        self.folder = folder
        self.unpublished = 0

    def notice(self) -> str | None:
        """For the terminal, or None where everything is in MLflow."""
        tracker = find_tracker(project_of(self.folder))
        notices = []
        if refused := Published.load(tracker, self.folder.name).refused:
            notices.append(f"MLflow refused {refused} of the events; they are in data/out/train/journal.jsonl.")
        if self.unpublished:
            events = "1 event is" if self.unpublished == 1 else f"{self.unpublished} events are"
            notices.append(f"{events} still to be published to {tracker.shown}; run `twinrun sync`.")
        return "\n".join(notices) or None


@contextmanager
def publishing(journal: Journal, *, grace_s: float = GRACE_S, live: bool = True) -> Iterator[Publication]:
    """Publish `journal` from another process while the body runs, then wait for it, at most `grace_s` seconds.

    It waits less for a server, and not at all for a tracker that is slow or cannot be reached: the publisher continues
    by itself and, if it fails, gives up after `grace_s` seconds. If the body raises, the journal's end is recorded as
    KILLED for an interruption and FAILED otherwise, and the wait is 2 s at most. No error of the tracker reaches the
    body. With `live` False there is no such process, and the journal waits for `twinrun sync`.
    """
    publication = Publication(journal.folder)
    process = _start(journal.folder, grace_s) if live else None
    began = time.monotonic()
    try:
        yield publication
    except BaseException as error:
        journal.end("KILLED" if isinstance(error, InterruptedTraining | KeyboardInterrupt) else "FAILED")
        publication.unpublished = _wait(journal.folder, process, min(grace_s, _STOP_GRACE_S))
        raise
    journal.end("FINISHED")
    if find_tracker(project_of(journal.folder)).database is None:
        grace_s = min(grace_s, max(_SERVER_GRACE_S, _SERVER_GRACE_SHARE * (time.monotonic() - began)))
    publication.unpublished = _wait(journal.folder, process, grace_s)


def follow(folder: Path, grace_s: float = GRACE_S) -> None:
    """Publish the journal in `folder` until its training has ended and all is published, or `grace_s` after that.

    If another process is already publishing the journal, wait for it and continue from where it stops.
    """
    watch = _Watch(folder)
    while True:
        with publisher_lock(folder, _LOOK_S) as mine:
            if mine:
                return _follow(folder, watch, grace_s)
        if watch.look() is None or watch.over_for_s() > grace_s:
            return None


def _follow(folder: Path, watch: "_Watch", grace_s: float) -> None:
    replay = Replay(folder, find_tracker(project_of(folder)))
    next_try, pause = 0.0, _BATCH_S
    while (summary := watch.look()) is not None:
        over = watch.over_for_s() > 0
        failed = False
        # The end of a training is published at once, unless the last attempt failed.
        if time.monotonic() >= next_try or (over and pause == _BATCH_S):
            try:
                while _step(replay, folder):
                    pause = _BATCH_S
                if summary.dead():
                    replay.mark_killed()
                if over and not replay.pending():
                    return
            except Exception as error:  # of any kind: the journal waits
                print(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                pause, failed = min(_LONGEST_PAUSE_S, 2 * pause), True
                _mark_trouble(folder, True)
            next_try = time.monotonic() + pause
        if failed and watch.over_for_s() > grace_s:
            return
        time.sleep(_LOOK_S)


def _step(replay: Replay, folder: Path) -> bool:
    """Publish the next events, and mark a server as troubled while it is slow; False where none were left."""
    if not replay.pending():
        return False
    replay.client  # noqa: B018 - it imports MLflow, which is not the tracker's fault
    if replay.tracker.database is not None:
        return replay.step()
    alarm = threading.Timer(_SLOW_STEP_S, _mark_trouble, (folder, True))
    alarm.daemon = True
    alarm.start()
    began = time.monotonic()
    try:
        done = replay.step()
    finally:
        alarm.cancel()
        alarm.join()
    _mark_trouble(folder, time.monotonic() - began > _SLOW_STEP_S)
    return done


def _mark_trouble(folder: Path, troubled: bool) -> None:
    with suppress(OSError):
        if troubled:
            (folder / TROUBLED).touch()
        else:
            (folder / TROUBLED).unlink(missing_ok=True)


class _Watch:
    """Looks at a journal often without reading it often."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._size = -1
        self._summary: Summary | None = None
        self._over_since: float | None = None

    def look(self) -> Summary | None:
        """The journal's summary as of now; None where it is gone or empty."""
        try:
            size = self._file.stat().st_size
        except FileNotFoundError:
            return None
        if size != self._size:
            self._size, self._summary = size, summarize(self._file)
        over = self._summary is not None and (self._summary.ended is not None or self._summary.process.dead())
        if not over:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = time.monotonic() - 1e-9
        return self._summary

    def over_for_s(self) -> float:
        """Seconds since the training was seen to have ended or died; 0 while it goes on."""
        return 0.0 if self._over_since is None else time.monotonic() - self._over_since


def project_of(folder: Path) -> Path:
    """The project that a journal's folder, .twinrun/journals/<journal_id>, lies in."""
    return folder.resolve().parents[2]


def _start(folder: Path, grace_s: float) -> "subprocess.Popen[bytes] | None":
    try:
        (folder / TROUBLED).unlink(missing_ok=True)
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "twinrun.tracking.publisher", os.fspath(folder.resolve()), str(grace_s)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=project_of(folder),
                env=_environment(),
                # So that a signal to the training's group leaves it alive to say what happened.
                start_new_session=True,
            )
    except OSError:
        return None


def _environment() -> dict[str, str]:
    # A stage's PYTHONPATH is relative, and the publisher works in another folder.
    path = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]  # noqa: PTH100
    python_path = {"PYTHONPATH": os.pathsep.join(path)} if path else {}
    # Its libraries' thread pools would compete with the training.
    return {**os.environ, **python_path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _wait(folder: Path, process: "subprocess.Popen[bytes] | None", grace_s: float) -> int:
    """Wait until the publisher has ended or is in trouble, at most `grace_s` seconds; return what is unpublished."""
    deadline = time.monotonic() + grace_s
    while process is not None and process.poll() is None and time.monotonic() < deadline:
        if (folder / TROUBLED).exists():
            break
        time.sleep(_LOOK_S / 10)
    return unpublished(folder, find_tracker(project_of(folder)))


def main() -> None:
    """Follow the journal whose folder is the first argument; the second is the grace in seconds."""
    if len(sys.argv) not in (2, 3):
        print("usage: python -m twinrun.tracking.publisher JOURNAL_FOLDER [GRACE_S]", file=sys.stderr)
        raise SystemExit(2)
    os.environ.setdefault(TIMEOUT_VARIABLE, "5")
    with suppress(OSError):
        os.nice(_NICENESS)
    folder = Path(sys.argv[1])
    follow(folder, float(sys.argv[2]) if len(sys.argv) > 2 else GRACE_S)
    # A model that was evaluated before needs no evaluation now: its metrics belong to this run too.
    from twinrun.tracking.sync import sync

    sync(project_of(folder))


if __name__ == "__main__":
    main()
