"""Python processes that begin with their libraries imported: `python -m pipeline.STAGE`, `twinrun`, `dvc`.

Most of the time of a test that runs the pipeline is the import of PyTorch, MLflow and Great Expectations, in every
process anew. Here one process of the session imports them, begun by the first that needs it, and forks for each later
one. The code of the project is not among what it imports, so a fork runs the code of the folder that it is started in.
A program that stands in for Python passes its arguments, environment and files on, forwards signals, and ends as the
fork does. What this hides: a fork is no child of its caller, has not its limits and permissions, and all have the hash
seed of one process. Projects with a store and those to train in have it (`preloaded`); a test about processes, kills
or launchers takes the fixture `real_processes`.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest
from filelock import FileLock

_LIBRARIES = (
    *("pipeline.train", "pipeline.evaluate", "pipeline.register", "pipeline.validate", "pipeline.ingest"),
    *("mlflow", "mlflow.pyfunc", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic.command"),
    *("great_expectations", "great_expectations.expectations", "great_expectations.render.renderer"),
    *("sklearn.metrics", "sklearn.linear_model", "cleanlab.filter", "matplotlib.figure"),
    *("matplotlib.backends.backend_agg", "onnx", "pandas", "dvc.repo", "dvc.repo.experiments"),
    *("pyarrow.parquet", "pyarrow.compute", "rich.table", "typer", "timm", "detect_secrets.core.scan"),
    # Those that DVC's commands import while they run.
    *("dvc.cli.parser", "dvc.utils.hydra", "dvc.analytics", "dvc.compare", "dvc.cachemgr", "dvc.data_cloud"),
    *("dvc.repo.experiments.queue.celery", "dvc.repo.experiments.executor.local", "networkx", "scmrepo.git"),
    *("hydra", "pygit2", "dvc_render"),
)
_OF_THE_PROJECT = ("twinrun", "pipeline", "_twinrun", "dvc.cli", "dvc.__main__")

# What stands in for python, twinrun and dvc; reads only the standard library.
_PROGRAM = """#!{python} -IS
import array, json, os, signal, socket, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name in ("twinrun", "dvc"):
    arguments = ["-m", name, *arguments]
module = arguments[1] if arguments[:1] == ["-m"] and len(arguments) > 1 else ""

def connected():
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect({address!r})
        return server
    except OSError:
        server.close()

def start():
    import fcntl, subprocess
    with open({address!r} + ".lock", "w") as lock, open({address!r} + ".log", "ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another one has begun to
            return
        subprocess.Popen({server!r}, env={environment!r}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True)

server = None
if module.split(".")[0] in ("dvc", "pipeline", "twinrun"):
    server = connected()
    if server is None:  # until it is ready, real ones
        start()
if server is None:
    os.execv({python!r}, [{python!r}, *arguments])
program = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "python")
asked = json.dumps([program, arguments, os.getcwd(), dict(os.environ)]).encode()
files = array.array("i", [0, 1, 2])
server.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
server.sendall(asked)
pid = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(pid, number))
ended = server.recv(8, socket.MSG_WAITALL)
code = int.from_bytes(ended, "big", signed=True) if ended else 1
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
_OURS = ("python", "python3", "twinrun", "dvc")
REAL = sys.executable


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the environment whose `python`, `twinrun` and `dvc` begin with their libraries imported."""
    if not hasattr(os, "pidfd_open"):  # not on Linux: real ones
        return Path(REAL).parent
    base, session = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base, session = base.parent, os.getppid()
    folder = base / "bin"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            folder.mkdir()
            for program in Path(REAL).parent.iterdir():
                if not program.name.startswith(_OURS):
                    (folder / program.name).symlink_to(program)
            address = str(folder.with_name("preloaded"))
            server = [REAL, str(Path(__file__).resolve()), address, str(session)]
            text = _PROGRAM.format(python=REAL, address=address, server=server, environment=_environment())
            for name in _OURS:
                (folder / name).write_text(text, encoding="utf-8")
                (folder / name).chmod(stat.S_IRWXU)
    return folder


@contextlib.contextmanager
def in_use(programs: Path) -> Iterator[None]:
    """Have this process start those programs where it starts its own Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(programs / "python"))
        yield


@pytest.fixture
def preloaded(programs: Path) -> Iterator[None]:
    """Meanwhile this process starts those programs."""
    with in_use(programs):
        yield


@pytest.fixture(scope="module")
def preloaded_module(programs: Path) -> Iterator[None]:
    """The same for a whole file of tests, and for its fixtures."""
    with in_use(programs):
        yield


@pytest.fixture
def real_processes(preloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - it comes first
    """For a test about processes: what it starts is Python itself, its child."""
    monkeypatch.setattr(sys, "executable", REAL)


def _environment() -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "COV"))}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GX_ANALYTICS_ENABLED": "false"}


def _serve(address: str, session: int) -> list[str]:
    """Fork for each request, and return in the forks only: the arguments of their module. Ends with the session."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(listening, selectors.EVENT_READ)
    over = os.pidfd_open(session)
    waiting.register(over, selectors.EVENT_READ)
    ending = False
    forks: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that reports the end: process, caller
    while not ending or forks:
        (key, _), *_ = waiting.select()
        if key.fileobj is listening:
            caller, _ = listening.accept()
            size, files, _, _ = socket.recv_fds(caller, 8, 3, socket.MSG_WAITALL)
            if not size:  # it only looked whether there is a server, or is gone
                caller.close()
                continue
            waiting.register(caller, selectors.EVENT_READ)
            request = json.loads(_received(caller, int.from_bytes(size, "big")))
            if (pid := os.fork()) == 0:
                for kept in list(waiting.get_map().values()):
                    os.close(kept.fd)
                waiting.close()
                return _become(request, files)
            for file in files:
                os.close(file)
            end = os.pidfd_open(pid)
            forks[end] = pid, caller
            waiting.register(end, selectors.EVENT_READ)
            with contextlib.suppress(OSError):
                caller.sendall(pid.to_bytes(8, "big"))
        elif key.fd in forks:
            pid, caller = forks.pop(key.fd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            waiting.unregister(key.fd)
            os.close(key.fd)
            if caller.fileno() >= 0:
                waiting.unregister(caller)
                with contextlib.suppress(OSError):
                    caller.sendall(status.to_bytes(8, "big", signed=True))
                caller.close()
        elif key.fd == over:
            waiting.unregister(over)
            ending = True
        else:  # a caller is gone
            assert isinstance(key.fileobj, socket.socket)
            waiting.unregister(key.fileobj)
            key.fileobj.close()
            for pid, caller in forks.values():
                if caller is key.fileobj:
                    os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _received(caller: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = caller.recv(size - len(content))
        if not part:
            break
        content += part
    return content


def _become(request: list[Any], files: list[int]) -> list[str]:
    """Make this fork the process that was asked for; returns its arguments after `-m`."""
    program, arguments, folder, environment = request
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, sys.orig_argv = program, [program, *arguments]
    given = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [folder, *map(os.path.abspath, given), *_PATH]
    importlib.invalidate_caches()
    return list(arguments[1:])


def _forget_the_project() -> None:
    for name in list(sys.modules):
        if any(name == each or name.startswith(f"{each}.") for each in _OF_THE_PROJECT):
            del sys.modules[name]


def _run(arguments: list[str]) -> NoReturn:
    """Run the module, and end as Python does, but for taking apart what was imported: that takes seconds."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        importlib.import_module("coverage").process_startup(force=True)  # as a1_coverage.pth does
    importlib.import_module("twinrun.before_dvc").watch()  # as _twinrun.pth does
    sys.argv[:] = arguments
    code: Any = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _the_only_one(address: str) -> IO[bytes]:
    """Hold this for as long as the process serves."""
    lock = Path(f"{address}.lock").open("wb")  # noqa: SIM115 - until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit()
    Path(address).unlink(missing_ok=True)
    return lock


if __name__ == "__main__":
    _lock = _the_only_one(sys.argv[1])
    _PATH = sys.path[1:]  # without the folder of this file
    sys.path[0] = os.fspath(Path(__file__).parents[1])
    gc.set_threshold(50_000, 20, 20)  # as in conftest.py
    for _library in _LIBRARIES:
        importlib.import_module(_library)
    _forget_the_project()
    for _cleanup in getattr(weakref.finalize, "_registry"):  # noqa: B009 - unknown to mypy
        _cleanup.atexit = False  # what libraries take apart when Python ends takes each fork a while
    gc.collect()
    gc.freeze()  # or the first search for garbage in each fork would copy all of it
    _run(_serve(sys.argv[1], int(sys.argv[2])))
