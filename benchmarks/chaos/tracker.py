"""A tracker that is in trouble: a real MLflow server, behind a proxy that breaks in six ways.

While the fault lasts, training must go on as if nothing were; when the tracker is back, `twinrun sync` must bring it up
to date. The control gets its command again.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.cases import Lab, Outcome, Row, judge
from benchmarks.chaos.stacks import child_environment, set_param

_SLOW_S = 2.0
_LONG_EPOCHS = 60
_PAIRS = 6
# What a person waits for a run of half a minute.
_PATIENCE_S = 120.0
# Share of the time that trouble may cost.
_MOST_MORE = 0.02
_HEALTHY, _ERROR, _SLOW, _HANG, _LOST = "healthy", "error", "slow", "hang", "lost"


@dataclass(frozen=True)
class Trouble:
    """What the tracker does wrong; `half_way` troubles begin after the first epoch."""

    what: str
    mode: str
    down: bool = False
    half_way: bool = False


TROUBLES = (
    Trouble("down from the start", _HEALTHY, down=True),
    Trouble("down half way", _HEALTHY, down=True, half_way=True),
    Trouble("2 s for every answer", _SLOW),
    Trouble("answers 500", _ERROR, half_way=True),
    Trouble("accepts and never answers", _HANG, half_way=True),
    Trouble("does as asked and loses the answer", _LOST),
)


_SOUND = Trouble("nothing, beside the same", _HEALTHY)


def trouble_tracker(lab: Lab, n: int) -> Row:
    """Every kind of trouble once."""
    with _server(lab.folder / f"server-{lab.stack.name}", lab.stack.template / lab.stack.database) as (port, database):
        cases = [_case(lab, trouble, port, database) for trouble in TROUBLES[:n]]
        return lab.try_all("MLflow server fails", cases)


def _case(lab: Lab, trouble: Trouble, port: int, database: Path) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        project = lab.stack.project(folder)
        experiment = f"chaos {trouble.what}"
        if lab.stack.name == "twinrun":
            set_param(project, "register.model_name", experiment)
        proxy = Proxy(port)
        environment = {"MLFLOW_TRACKING_URI": proxy.uri, "MLFLOW_EXPERIMENT_NAME": experiment}
        try:
            if not trouble.half_way:
                proxy.break_down(trouble.mode, down=trouble.down)
            run = lab.stack.start(project, lab.stack.train, environment)
            if trouble.half_way:
                run.wait_until(lambda: bool(run.epochs()))
                proxy.break_down(trouble.mode, down=trouble.down)
            ended = run.finish(_PATIENCE_S)
            proxy.mend()
            runs = [ended]
            if ended.code:
                runs.append(lab.stack.start(project, lab.stack.train, environment).finish())
            outcome = judge(
                lab, project, runs, trouble.what, database=database, experiment=experiment, environment=environment
            )
        finally:
            proxy.close()
        faults = outcome.faults
        if ended.code == -signal.SIGKILL:
            faults = (f"training was held up for {_PATIENCE_S:.0f} s", *faults)
        elif ended.code:
            faults = ("training failed", *faults)
        return Outcome(**{**vars(outcome), "faults": faults, "log": str(ended.log) if faults else ""})

    return attempt


def time_in_trouble(lab: Lab, n: int) -> Row:
    """How much longer a training of some length takes in each trouble: medians of pairs that run side by side.

    A pair is one training with the trouble and one with a sound tracker, begun together, each on a core of its own, so
    that both meet the same machine; every second pair has the cores exchanged. First, two sound ones are paired, which
    shows how far the figures can be trusted. Not part of the whole: it means something on a quiet machine only.
    """
    fault = "time of training with a tracker in trouble"
    if lab.stack.name == "plain":
        return Row(fault=fault, stack="plain", seed=lab.seed, left_out="not tried")
    row = Row(fault=fault, stack=lab.stack.name, seed=lab.seed)
    place = lab.folder / "tracker-time"
    with _server(place / "server", lab.stack.template / lab.stack.database) as (port, _):
        for number, trouble in enumerate((_SOUND, *TROUBLES[:n])):
            pairs = [_pair_s(lab, place / f"{number}-{pair}", trouble, port, pair % 2) for pair in range(_PAIRS)]
            more = [found / sound - 1 for found, sound in pairs]
            told = f"{trouble.what}: {median(more):+.1%} ({min(more):+.1%} to {max(more):+.1%})"
            lab.say(f"{fault}: {told}, {median(found for found, _ in pairs):.1f} s")
            if trouble is not _SOUND:
                faults = ("more than 2% more time",) if median(more) > _MOST_MORE else ()
                extra = median(found - sound for found, sound in pairs)
                row.outcomes.append(Outcome(moment=told, faults=faults, extra_s=extra))
    return row


def _pair_s(lab: Lab, place: Path, trouble: Trouble, port: int, exchanged: int) -> tuple[float, float]:
    """Seconds with the trouble and with a sound tracker."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    cores = cores[::-1] if exchanged else cores
    with ThreadPoolExecutor(2) as pool:
        found = pool.submit(_command_s, lab, place / "trouble" / "project", trouble, port, cores[0])
        sound = pool.submit(_command_s, lab, place / "sound" / "project", _SOUND, port, cores[-1])
        return found.result(), sound.result()


def _command_s(lab: Lab, folder: Path, trouble: Trouble, port: int, core: int) -> float:
    """What a person waits for: `dvc repro train` from its start to its prompt."""
    project = lab.stack.project(folder)
    set_param(project, "train.epochs", _LONG_EPOCHS)
    set_param(project, "train.threads", 1)
    proxy = Proxy(port)
    try:
        if not trouble.half_way:
            proxy.break_down(trouble.mode, down=trouble.down)
        run = lab.stack.start(project, lab.stack.train, {"MLFLOW_TRACKING_URI": proxy.uri})
        os.sched_setaffinity(run.process.pid, {core})
        if trouble.half_way:
            run.wait_until(lambda: _LONG_EPOCHS // 2 in run.epochs())
            proxy.break_down(trouble.mode, down=trouble.down)
        ended = run.finish()
    finally:
        proxy.mend()
        proxy.close()
    if ended.code:
        raise RuntimeError(f"A training with a tracker in trouble failed:\n{ended.output()}")
    return ended.seconds


class Proxy:
    """Stands before the server on a port of its own, which it keeps when it is down."""

    def __init__(self, behind: int) -> None:
        self.behind, self.mode, self.released = behind, _HEALTHY, threading.Event()
        self._server: _Server | None = _Server(("127.0.0.1", 0), self)
        self._address = self._server.server_address

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._address[1]}"

    def break_down(self, mode: str, *, down: bool) -> None:
        self.mode = mode
        if down:
            self.close()

    def mend(self) -> None:
        self.mode = _HEALTHY
        self.released.set()
        if self._server is None:
            self._server = _Server(("127.0.0.1", int(self._address[1])), self)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        super().__init__(address, _Relay)
        self.proxy = proxy
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what this is about."""


class _Relay(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        mode = proxy.mode
        if mode == _ERROR:
            self.send_error(500)
            return
        if mode == _HANG:
            proxy.released.wait()
            self.close_connection = True
            return
        if mode == _SLOW:
            time.sleep(_SLOW_S)
        upstream = http.client.HTTPConnection("127.0.0.1", proxy.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        if mode == _LOST:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in ("content-type", "content-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *arguments: Any) -> None:
        """Silence."""


@contextmanager
def _server(folder: Path, store: Path) -> Iterator[tuple[int, Path]]:
    """A real MLflow server on a copy of an empty store: its port and its database."""
    folder.mkdir(parents=True)
    database = Path(shutil.copy(store, folder / "mlflow.db"))
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = child_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_for(port, process, folder / "server.log")
        yield port, database
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise RuntimeError(f"The MLflow server did not come up:\n{log.read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
