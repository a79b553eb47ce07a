"""The launcher that `--on` names. Its package is imported here alone, and only where it is asked for."""

from pathlib import Path

from twinrun.base.errors import SweepError
from twinrun.sweep.launcher import TRIAL, Launcher, Local


def open_launcher(engine: str, slots: int, jobs: Path, *, forks: bool = False, module: str = TRIAL) -> Launcher:
    """The launcher of an engine: local, slurm, ray or spark. `jobs` is a folder for the engine's own files.

    The worker of a folder is `python -m MODULE FOLDER`; processes on this machine train trials alone.

    Raises SweepError, with what to install, where the engine's package is missing.
    """
    if engine == "local":
        return Local(slots, forks=forks)
    package = {"slurm": "submitit", "ray": "ray", "spark": "pyspark"}[engine]
    try:
        if engine == "slurm":
            from twinrun.sweep.slurm import Slurm

            return Slurm(slots, jobs, module)
        if engine == "spark":
            from twinrun.sweep.spark import Spark

            return Spark(slots, module)
        from twinrun.sweep.ray import Ray

        return Ray(slots, jobs, module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise SweepError(
            f"--on {engine} needs the package {package}, which is not installed. Install it: "
            f"pip install 'twinrun[{engine}]' (or pip install {package})"
        ) from None
