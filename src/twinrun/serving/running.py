"""The processes of a server: this one alone, or workers that share its socket and are replaced when they die.

One process fills the cores with threads, since decoders and ONNX Runtime let go of Python's lock. Workers are for what
kills a process. Each loads the model and follows the champion by itself; uvicorn's supervisor starts them.
"""

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from twinrun.base.errors import DataError, TrackingError, TwinrunError
from twinrun.base.printing import print

if TYPE_CHECKING:
    from fastapi import FastAPI

    from twinrun.serving.answer_log import AnswerLog
    from twinrun.serving.engine import Engine
    from twinrun.serving.feedback import Quarantine
    from twinrun.serving.json_lines import JsonLines

_LAST_PORT = 65_535
_FIRST_OPEN_PORT = 1024  # those below need a permission
_OTHER_PORT = 8080
_LOCAL = ("127.0.0.1", "localhost", "::1")
_DRAIN_S = 30  # for requests that have begun when the server is to end
_NOT_STARTED = 3  # exit code by which uvicorn's supervisor sees that it is no use to try again


@dataclass(frozen=True)
class Settings:
    """What a person asked for. `model` is as for `twinrun predict`; an app begins with the waste model instead.

    `names` are host names of a proxy. `counts` is a folder in which workers leave what they counted, for /metrics; None
    for a single process.
    """

    host: str
    port: int
    token: str | None
    log: Path | None
    feedback: bool
    watch: Path | None
    model: str | None
    is_app: bool
    names: tuple[str, ...] = ()
    workers: int = 1
    counts: Path | None = None


def run(settings: Settings, *, browser: bool) -> None:
    """Serve until a signal ends it. Raises TrackingError, BundleError or DataError where it cannot begin."""
    with _listening(settings) as listening:
        if settings.workers == 1:
            stop = threading.Event()
            app, engine = _make_app(settings, stop)
            print(_described(engine))
            _announce(settings, browser=browser)
            try:
                uvicorn.Server(_config(app)).run(sockets=[listening])
            finally:
                stop.set()
        else:
            _run_workers(settings, listening)


def _run_workers(settings: Settings, listening: socket.socket) -> None:
    _files(settings)  # which each worker opens itself: here it is refused once, and before any of them starts
    counts = Path(tempfile.mkdtemp(prefix="twinrun-serve-"))
    try:
        make = partial(_worker_app, replace(settings, counts=counts), os.getpid())
        _announce(settings, browser=False)
        group = Multiprocess(_config(make, factory=True, workers=settings.workers), [listening])
        group.run()
    finally:
        shutil.rmtree(counts, ignore_errors=True)
    if any(process.exitcode == _NOT_STARTED for process in group.processes):
        raise SystemExit(1)  # the worker said why


def _worker_app(settings: Settings, parent: int) -> "FastAPI":
    """The application of one worker, which ends with its parent."""

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        app, engine = _make_app(settings, threading.Event())
    except TwinrunError as error:
        print(str(error), file=sys.stderr)
        raise SystemExit(_NOT_STARTED) from None
    print(f"Worker {os.getpid()}: {_described(engine)}", flush=True)
    return app


def _make_app(settings: Settings, stop: threading.Event) -> "tuple[FastAPI, Engine]":
    log, watch, feedback = _files(settings)  # first, since to load the model takes seconds
    from twinrun.core.params import load_params
    from twinrun.serving.app import make_app
    from twinrun.serving.follow import open_app, open_model
    from twinrun.serving.rules import read_regions
    from twinrun.serving.traffic import TrafficWatch
    from twinrun.serving.waste import waste_engine
    from twinrun.tracking.store import find_tracker

    def name() -> str:
        return load_params().register.model_name

    if settings.is_app:
        served = open_app(find_tracker(), name, waste_engine, stop)
    else:
        served = open_model(find_tracker(), settings.model, name, stop)
    app = make_app(
        served,
        read_regions(served.engine.model.classes),
        host=settings.host,
        token=settings.token,
        names=settings.names,
        log=log,
        feedback=feedback,
        traffic=TrafficWatch(file=watch),
        counts=settings.counts,
    )
    return app, served.engine


def _files(settings: Settings) -> "tuple[AnswerLog | None, JsonLines | None, Quarantine | None]":
    """The files of answers, windows and feedback. Raises DataError where one cannot be written or has two uses."""
    from twinrun.serving.answer_log import AnswerLog
    from twinrun.serving.feedback import FEEDBACK, ITEMS, Quarantine
    from twinrun.serving.json_lines import JsonLines

    items = FEEDBACK / ITEMS if settings.feedback else None
    used = {"--log": settings.log, "--watch": settings.watch, "--feedback": items}
    for (option, path), (other, same) in combinations(used.items(), 2):
        if path is not None and same is not None and _is_one_file(path, same):
            raise DataError(f"{path} is the file of {option} and of {other}. Name another file for one of them.")
    log = None if settings.log is None else AnswerLog(settings.log)
    watch = None if settings.watch is None else JsonLines(settings.watch, "--watch")
    return log, watch, Quarantine(FEEDBACK) if settings.feedback else None


def _is_one_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # not there yet
        return one.resolve() == other.resolve()


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    host, port, target = settings.host, settings.port, "app" if settings.is_app else "serve"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # what follows repeats the address
        other = port + 1 if port < _LAST_PORT else port - 1
        if error.errno == errno.EACCES and port < _FIRST_OPEN_PORT:
            other = _OTHER_PORT
        advice = (
            f"Choose another port: twinrun {target} --port {other} (make {target} PORT={other})"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "Name an address of this machine, or 0.0.0.0 for all: --host"
        )
        raise TrackingError(f"The server cannot listen on {host}:{port}: {reason}. {advice}") from None
    with listening:
        # For its connections, as asyncio sees no TCP in a socket that was created this way and leaves it unset.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listening


def _config(app: object, *, factory: bool = False, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        factory=factory,
        workers=workers,
        log_level="warning",
        timeout_graceful_shutdown=_DRAIN_S,
        server_header=False,
        lifespan="off",  # not used; at a second Ctrl-C, uvicorn would print its traceback
        ws="none",
    )


def _described(engine: "Engine") -> str:
    facts = engine.facts()
    which = f"version {facts['version']} of {facts['name']}" if facts["version"] else facts["name"]
    return f"Model: {which}, weights {facts['weights_hash'][:8]}"


def _announce(settings: Settings, *, browser: bool) -> None:
    host, port = settings.host, settings.port
    if (host not in _LOCAL or settings.names) and settings.token is None:
        print(
            "Everybody who can reach this machine or its proxy can use this server. Ask for a token: --token-file FILE"
        )
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"Page: {address}   API: {address}/docs   (Ctrl-C ends it)", flush=True)
    if browser and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        import webbrowser

        webbrowser.open(address)  # which waits: connections are accepted, and answered in a moment
