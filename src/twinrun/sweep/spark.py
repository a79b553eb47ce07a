"""Workers as tasks of Spark, on the cluster that SPARK_REMOTE or spark-defaults.conf names or else on this machine.

The working folder has to be on a file system that the machines share, and Twinrun installed on each.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from pyspark.sql import SparkSession

from twinrun.sweep.launcher import command, run_command
from twinrun.sweep.worker import LOG

if TYPE_CHECKING:
    import pandas as pd


class Spark:
    """A job of one task for each worker, up to `slots` at a time; `module` is what a worker runs."""

    def __init__(self, slots: int, module: str) -> None:
        """Join a cluster, or start one on this machine without its page and its progress bars."""
        self.slots = slots
        self._module = module
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.appName("twinrun")
        self._is_remote = "SPARK_REMOTE" in os.environ  # a session of Spark Connect, which has no context here
        if not {"SPARK_REMOTE", "SPARK_CONF_DIR", "MASTER"} & os.environ.keys():
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            builder = builder.master(f"local[{slots}]").config("spark.ui.enabled", "false")
        self._session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
        if not self._is_remote:
            self._session.sparkContext.setLogLevel("ERROR")
        self._threads = ThreadPoolExecutor(slots, "spark")
        self._running: dict[Future[str], Path] = {}

    def submit(self, folder: Path) -> None:
        """Hand the worker of `folder` to Spark."""
        project = Path.cwd()
        log = project / folder / LOG
        self._running[self._threads.submit(self._run, command(folder, self._module), str(project), str(log))] = folder

    def ended(self) -> list[tuple[Path, str]]:
        """Wait for one or more of the tasks."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        return [(self._running.pop(task), task.result()) for task in done]

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster."""
        if self._is_remote:
            self._session.interruptAll()
        else:
            self._session.sparkContext.cancelAllJobs()
        self._threads.shutdown()
        self._session.stop()

    def _run(self, arguments: list[str], project: str, log: str) -> str:
        def run(tables: "Iterator[pd.DataFrame]") -> "Iterator[pd.DataFrame]":
            for table in tables:
                yield table.assign(code=[run_command(arguments, project, log) for _ in range(len(table))])

        frame = self._session.createDataFrame([(0,)], "code int").coalesce(1)
        try:
            return f"it ended with exit code {frame.mapInPandas(run, 'code int').collect()[0]['code']}"
        except Exception as error:  # Py4J's and Spark's own, whose classes differ between versions
            return f"Spark ended it: {str(error).splitlines()[0]}"
