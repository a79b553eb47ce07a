"""A trainer stops when the dvc that it works for is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from twinrun.training.interruption import StopRequest

SCRIPT = """
import os, pathlib, time
while os.getppid() == int(os.environ["STARTED_BY"]):
    time.sleep(0.02)
from twinrun.base.errors import InterruptedTraining
from twinrun.training.interruption import StopRequest
stop = StopRequest()
stop.watch_parent()
try:
    stop.check()
    said = "it goes on"
except InterruptedTraining as error:
    said = str(error)
temp = pathlib.Path("said.tmp")
temp.write_text(said)
temp.rename("said")
"""


def test_a_trainer_that_a_dvc_started_stops_though_the_dvc_ended_before_it_could_look(tmp_path: Path) -> None:
    if "python" in " ".join(psutil.Process(1).cmdline()):
        pytest.skip("the first process here is a Python, which might be calling dvc")
    environment = {**os.environ, "DVC_STAGE": "train", "DVC_ROOT": str(tmp_path), "SCRIPT": SCRIPT}

    command = f'STARTED_BY=$$ {sys.executable} -c "$SCRIPT" &'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=True)

    deadline = time.monotonic() + 60
    while not (tmp_path / "said").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "the dvc that it worked for ended" in (tmp_path / "said").read_text()


def test_a_trainer_that_a_python_program_started_through_dvc_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setenv("DVC_ROOT", ".")
    stop = StopRequest()

    stop.watch_parent()

    stop.check()


def test_a_process_whose_first_one_takes_time_to_end_says_nothing_of_the_lost_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = StopRequest()
    threading.Timer(2.0, stop._request, (signal.SIGTERM, "the process that it worked for ended")).start()

    with pytest.raises(SystemExit), stop.quietly():
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("twinrun.training.interruption._FIRST_ENDS_S", 0.1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), StopRequest().quietly():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
