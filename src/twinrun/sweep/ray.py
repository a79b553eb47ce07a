"""Trials as tasks of Ray, on the cluster that RAY_ADDRESS names or else on this machine.

The project's folder has to be on a file system that the machines share.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray

from twinrun.core.errors import SweepError
from twinrun.core.printing import one_line
from twinrun.sweep.launcher import command, run_command
from twinrun.sweep.worker import LOG

_START_S = "180"  # a machine at work takes longer than Ray's own limit of half a minute


class Ray:
    """A task of one CPU for each worker, up to `slots` at a time; `module` is what a worker runs."""

    def __init__(self, slots: int, module: str) -> None:
        """Join a cluster, or start one on this machine without dashboard and usage statistics.

        Raises SweepError where Ray does not start.
        """
        self.slots = slots
        self._module = module
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_raylet_start_wait_time_s", _START_S)
        self._folder: str | None = None
        self._running: dict[Any, Path] = {}
        try:
            if "RAY_ADDRESS" in os.environ:
                ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
            else:
                self._folder = tempfile.mkdtemp(prefix="tr-", dir="/tmp")  # its sockets need a short path
                ray.init(num_cpus=slots, include_dashboard=False, log_to_driver=False, _temp_dir=self._folder)
        except Exception as error:  # a plain one where a process of Ray's does not come up in time
            self.close()
            raise SweepError(f"Ray did not start: {one_line(str(error))} Run again, or without --on ray.") from None
        self._task = ray.remote(num_cpus=1, max_retries=0)(run_command)

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


def _how(task: Any) -> str:
    try:
        return f"it ended with exit code {ray.get(task)}"
    except ray.exceptions.RayError as error:
        return f"Ray ended it: {str(error).splitlines()[0]}"
