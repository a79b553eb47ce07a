"""Trials as tasks of Ray, on the cluster that RAY_ADDRESS names or else on this machine.

The project's folder has to be on a file system that the machines share.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from twinrun.core.errors import SweepError
from twinrun.core.printing import one_line
from twinrun.sweep.launcher import command, run_command
from twinrun.sweep.worker import LOG

_ATTEMPTS = 3  # to start Ray, which gives up after half a minute: too early for a machine at work


class Ray:
    """A task of one CPU for each worker, up to `slots` at a time; `module` is what a worker runs."""

    def __init__(self, slots: int, module: str) -> None:
        """Join a cluster, or start one on this machine without dashboard and usage statistics.

        Raises SweepError where Ray does not start.
        """
        self.slots = slots
        self._module = module
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
        self._task = ray.remote(num_cpus=1, max_retries=0)(run_command)

    def _start(self) -> None:
        if self._folder is None:
            ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
        else:  # in a folder with a short path, which its sockets need
            ray.init(num_cpus=self.slots, include_dashboard=False, log_to_driver=False, _temp_dir=self._folder)

    def submit(self, folder: Path) -> None:
        """Hand the worker of `folder` to Ray."""
        project = Path.cwd()
        task = self._task.remote(command(folder, self._module), str(project), str(project / folder / LOG))
        self._running[task] = folder

    def ended(self) -> list[tuple[Path, str]]:
        """Wait for one or more of the tasks."""
        if not self._running:
            return []
        done, _ = ray.wait(list(self._running), num_returns=1)
        return [(self._running.pop(task), _how(task)) for task in done]

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


def _how(task: Any) -> str:
    try:
        return f"it ended with exit code {ray.get(task)}"
    except ray.exceptions.RayError as error:
        return f"Ray ended it: {str(error).splitlines()[0]}"
