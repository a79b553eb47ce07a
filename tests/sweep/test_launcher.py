"""Workers as processes of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinrun.sweep import launcher
from twinrun.sweep.launcher import Local


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_an_interruption_when_the_end_of_a_worker_is_read_leaves_no_other_one_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> str:
        raise KeyboardInterrupt

    workers = [subprocess.Popen(["sleep", seconds]) for seconds in ("0", "60")]
    local = Local(2, forks=False)
    local._running = {process.pid: (tmp_path, slot) for slot, process in enumerate(workers)}
    monkeypatch.setattr(launcher, "_how", interrupt)

    with pytest.raises(KeyboardInterrupt):
        local.ended()
    local._running.setdefault(workers[0].pid, (tmp_path, 0))  # as where it came a moment earlier
    local.close()

    with pytest.raises(ProcessLookupError):
        os.kill(workers[1].pid, 0)
