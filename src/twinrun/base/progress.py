"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere. And what is being imported."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from twinrun.base.printing import console, print

_LINE_EVERY_S = 10.0
_PHASE_EVERY_S = 30.0  # one that is over sooner says nothing
_PERCENT = 100
# What takes seconds to import, and half a minute on a busy machine.
_SLOW = {
    "torch": "PyTorch",
    "pytorch_lightning": "Lightning",
    "torchvision": "torchvision",
    "timm": "timm",
    "mlflow": "MLflow",
    "mlflow.store.tracking.sqlalchemy_store": "MLflow",
    "great_expectations": "Great Expectations",
}
_is_shown = False  # a line that is taken away again, so that no other is drawn over it


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
    with _on_terminal(), Progress(*columns, console=console(stderr=True), transient=True) as bar:
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
        with _on_terminal(), console(stderr=True).status(title):
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


def show_imports() -> None:
    """Show on a terminal which slow library is being imported, for as long as it is; elsewhere nothing."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds modules as Python does, those in `_SLOW` with a loader that shows their import."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in _SLOW or _is_shown:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, f"Loading {_SLOW[name]} ...")
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader, line: str) -> None:
        self._loader, self._line = loader, line

    def __getattr__(self, name: str) -> Any:  # for whoever looks for a module and does not import it
        if name == "_loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with _on_terminal():
            print(self._line, end="", file=sys.stderr, flush=True)
            try:
                self._loader.exec_module(module)
            finally:
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()


@contextmanager
def _on_terminal() -> Iterator[None]:
    global _is_shown
    before, _is_shown = _is_shown, True
    try:
        yield
    finally:
        _is_shown = before
