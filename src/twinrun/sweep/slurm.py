"""Trials as jobs of Slurm, through submitit; without Slurm, submitit's local executor runs them on this machine.

The project's folder has to be on a file system that the nodes share. What a job asks for (partition, time, memory) are
submitit's parameters, such as slurm_partition, in the file that TWINRUN_SLURM names, as YAML.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import submitit
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from twinrun.base.errors import SweepError
from twinrun.base.printing import print
from twinrun.sweep.launcher import command, run_command
from twinrun.sweep.worker import LOG

SETTINGS_VARIABLE = "TWINRUN_SLURM"
_FILE = f"{SETTINGS_VARIABLE} names a YAML file with submitit's parameters; see docs/sweeps.md."
_POLL_S = 1.0


class Slurm:
    """A job for each worker, up to `slots` at a time."""

    def __init__(self, slots: int, jobs: Path, module: str) -> None:
        """Ask nothing of Slurm yet; its files go to `jobs`."""
        self.slots = slots
        self._module = module
        has_slurm = shutil.which("sbatch") is not None
        if not has_slurm:
            print("There is no sbatch here: submitit's local executor runs the jobs on this machine.", flush=True)
        self._executor = submitit.AutoExecutor(folder=jobs, cluster="slurm" if has_slurm else "local")
        settings = {"name": "twinrun", "timeout_min": 24 * 60, **_settings()}
        try:
            self._executor.update_parameters(**settings)
        except (TypeError, ValueError, NameError) as error:
            raise SweepError(f"submitit does not take these settings: {error}. {_FILE}") from None
        self._running: dict[Path, Any] = {}

    def submit(self, folder: Path) -> None:
        """Submit the worker of `folder`."""
        project = Path.cwd()
        arguments = command(folder, self._module)
        self._running[folder] = self._executor.submit(run_command, arguments, str(project), str(project / folder / LOG))

    def ended(self) -> list[tuple[Path, str]]:
        """Wait for one or more of the jobs."""
        while True:
            over = [folder for folder, job in self._running.items() if job.done()]
            if over or not self._running:
                return [(folder, self._how(self._running.pop(folder))) for folder in over]
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Cancel what still runs."""
        for job in self._running.values():
            job.cancel()
        for job in self._running.values():
            job.wait()

    def _how(self, job: Any) -> str:
        return f"job {job.job_id} ended as {job.state}" + (f", see {job.paths.stderr}" if job.exception() else "")


def _settings() -> dict[str, Any]:
    """What the file of settings says; raises SweepError where it is not a YAML mapping of names."""
    file = os.environ.get(SETTINGS_VARIABLE)
    if not file:
        return {}
    try:
        settings = YAML(typ="safe", pure=True).load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, YAMLError) as error:
        raise SweepError(f"{file} cannot be read: {str(error).splitlines()[0]}. {_FILE}") from None
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise SweepError(f"{file} should hold lines such as slurm_partition: gpu. {_FILE}")
    return settings
