"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twinrun.base.printing import console, print

_LINE_EVERY_S = 10.0
_PHASE_EVERY_S = 30.0  # one that is over sooner says nothing
_PERCENT = 100


@contextmanager
def progress(title: str, total: int, *, percent: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of things done since the last call; of no things, nothing is shown.

    Where they are `percent`, no number of things is shown.
    """
    if total == 0:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(title, total, percent) as advance:
            yield advance
    else:
        yield _lines(title, total, percent)


@contextmanager
def _bar(title: str, total: int, percent: bool) -> Iterator[Callable[[int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    number = TaskProgressColumn() if percent else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), number, TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


def _lines(title: str, total: int, percent: bool) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        if (now := time.monotonic()) - last >= _LINE_EVERY_S and done < total:
            last = now
            share = f"{done}%" if percent else f"{done:,} of {total:,}"
            print(f"{title}: {share}", file=sys.stderr, flush=True)

    return advance


@contextmanager
def fraction(title: str) -> Iterator[Callable[[float], None]]:
    """Yield a function to call with the share that is done, in [0, 1]."""
    done = 0
    with progress(title, _PERCENT, percent=True) as advance:

        def to(share: float) -> None:
            nonlocal done
            if (more := round(share * _PERCENT) - done) > 0:
                done += more
                advance(more)

        yield to


@contextmanager
def phase(title: str, every_s: float = _PHASE_EVERY_S) -> Iterator[None]:
    """Say that work is going on whose progress is unknown: on a terminal at once, elsewhere every so often."""
    if sys.stderr.isatty():
        with console(stderr=True).status(title):
            yield
        return
    over, started = threading.Event(), time.monotonic()

    def report() -> None:
        while not over.wait(every_s):
            print(f"{title}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()
