"""Trials as tasks of Ray, on the cluster that RAY_ADDRESS names or else on this machine.

A machine that does not share the project's folder needs a clone of the project in the folder of the same path, or in
the one that TWINRUN_PROJECT names there. The files of a training go there and come back through Ray.
"""

import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from twinrun.base.errors import SweepError
from twinrun.base.files import write_text
from twinrun.base.printing import one_line
from twinrun.sweep.carrying import pack, unpack_result, unpack_task
from twinrun.sweep.launcher import TRIAL, command, run_command
from twinrun.sweep.worker import LOG

PROJECT_VARIABLE = "TWINRUN_PROJECT"
_TOKEN = "driver"  # a file that a machine sees only where it shares the project's folder
_ATTEMPTS = 3  # to start Ray, which gives up after half a minute: too early for a machine at work


class Ray:
    """A task of one CPU for each worker, up to `slots` at a time; `module` is what a worker runs."""

    def __init__(self, slots: int, jobs: Path, module: str) -> None:
        """Join a cluster, or start one on this machine without dashboard and usage statistics; its file goes to `jobs`.

        Raises SweepError where Ray does not start.
        """
        self.slots = slots
        self._module = module
        self._token = jobs / _TOKEN, uuid.uuid4().hex
        write_text(self._token[1], self._token[0])
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._folder = None if "RAY_ADDRESS" in os.environ else tempfile.mkdtemp(prefix="tr-", dir="/tmp")
        self._running: dict[Any, Path] = {}
        for attempt in range(1, _ATTEMPTS + 1):
            others = psutil.Process().children(recursive=True)
            try:
                self._start()
                break
            except Exception as error:  # a plain one where a process of Ray's does not come up in time
                ray.shutdown()
                _end([each for each in psutil.Process().children(recursive=True) if each not in others])
                if attempt == _ATTEMPTS:
                    self.close()
                    problem = one_line(str(error))
                    raise SweepError(f"Ray did not start: {problem} Run again, or without --on ray.") from None
        self._task = ray.remote(num_cpus=1, max_retries=0)(_run)

    def _start(self) -> None:
        if self._folder is None:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        else:  # in a folder with a short path, which its sockets need
            ray.init(num_cpus=self.slots, include_dashboard=False, log_to_driver=False, _temp_dir=self._folder)

    def submit(self, folder: Path) -> None:
        """Hand the worker of `folder` to Ray."""
        # In a list, so that only a machine that needs the files fetches them.
        files = [ray.put(pack(Path(), folder))] if self._module == TRIAL else []
        token = os.fspath(self._token[0]), self._token[1]
        task = self._task.remote(command(folder, self._module), str(Path.cwd()), str(folder), token, files)
        self._running[task] = folder

    def ended(self) -> list[tuple[Path, str]]:
        """Wait for one or more of the tasks."""
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), num_returns=1)
        return [(folder, _how(task, folder)) for task in done if (folder := self._running.pop(task))]

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        for task in self._running:
            ray.cancel(task)
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _end(processes: list[psutil.Process]) -> None:
    """End what Ray leaves behind where it does not start; it would slow the next attempt down."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def _run(
    arguments: list[str], project: str, folder: str, token: tuple[str, str], files: Sequence[Any]
) -> tuple[int, bytes | None]:
    """On the machine that Ray chose: run a worker. Its exit code, and its files where the driver does not see them."""
    here, (file, text) = Path(os.environ.get(PROJECT_VARIABLE, project)), token
    if not here.is_dir():
        raise SweepError(f"{here} is missing on {socket.gethostname()}: clone the project, or set {PROJECT_VARIABLE}")
    shared = not files or ((here / file).is_file() and (here / file).read_text(encoding="utf-8") == text)
    if not shared:
        unpack_task(ray.get(files[0]), here, Path(folder))
        arguments = [sys.executable, *arguments[1:]]
    code = run_command(arguments, os.fspath(here), os.fspath(here / folder / LOG))
    return code, None if shared else pack(here, Path(folder))


def _how(task: Any, folder: Path) -> str:
    try:
        code, files = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return f"the task failed: {one_line(str(error.cause))}"
    except ray.exceptions.RayError as error:
        return f"Ray ended it: {str(error).splitlines()[0]}"
    if files is not None:
        unpack_result(files, Path(), folder)
    return f"it ended with exit code {code}"
