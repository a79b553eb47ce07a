"""Which process is called dead: one that certainly is, and no other."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from twinrun.record.home import Process, this_process

HERE = replace(this_process(), machine="this machine")


@pytest.mark.parametrize(
    ("difference", "dead"),
    [
        ({}, False),
        ({"started": 1.0}, True),  # another process has the number now
        ({"boot_id": "before the restart"}, True),
        ({"boot_id": "before the restart", "machine": "another of this name"}, False),
        ({"boot_id": "before the restart", "machine": ""}, False),
        ({"boot_id": "before the restart", "namespace": "a container's"}, False),
        ({"started": 1.0, "namespace": "a container's"}, False),
        ({"started": 1.0, "host": "another"}, False),
    ],
)
def test_a_process_is_dead_only_where_that_can_be_told_from_here(difference: dict[str, Any], dead: bool) -> None:
    process = replace(HERE, **difference)

    assert process.dead(HERE) is dead


def test_after_a_restart_nothing_is_told_of_machines_without_an_id() -> None:
    nameless = replace(HERE, machine="")

    assert not replace(nameless, boot_id="before the restart").dead(nameless)


def test_a_process_of_another_program_is_alive_until_it_ends() -> None:
    code = (
        "import json; from dataclasses import asdict; from twinrun.record.home import this_process\n"
        "print(json.dumps(asdict(this_process())), flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    process = Process(**json.loads(child.stdout.readline()))

    while_it_runs = process.dead()
    child.communicate("\n")

    assert (while_it_runs, process.dead()) == (False, True)


@pytest.mark.parametrize(
    ("opened", "signalled", "dead"),
    [
        (FileNotFoundError, PermissionError, False),  # /proc is mounted with hidepid=2, and another user's lives
        (FileNotFoundError, None, False),
        (FileNotFoundError, ProcessLookupError, True),
        (PermissionError, PermissionError, False),  # hidepid=1
        (ProcessLookupError, ProcessLookupError, True),  # it ended while its file was open
    ],
)
def test_a_process_whose_start_is_hidden_is_dead_only_if_no_signal_reaches_it(
    opened: type[OSError], signalled: type[OSError] | None, dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, read = replace(HERE, pid=os.getppid(), started=1.0), Path.read_text

    def hidden(path: Path, *arguments: Any, **named: Any) -> str:
        if str(path) == f"/proc/{process.pid}/stat":
            raise opened
        return read(path, *arguments, **named)

    def kill(pid: int, signal: int) -> None:
        assert (pid, signal) == (process.pid, 0)
        if signalled is not None:
            raise signalled

    monkeypatch.setattr(Path, "read_text", hidden)
    monkeypatch.setattr(os, "kill", kill)

    assert process.dead(HERE) is dead


def test_a_process_that_ended_and_was_not_waited_for_is_dead() -> None:
    code = (
        "import json; from dataclasses import asdict; from twinrun.record.home import this_process\n"
        "print(json.dumps(asdict(this_process())))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    process = Process(**json.loads(child.stdout.readline()))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    dead = process.dead()
    child.communicate()

    assert dead


def test_what_was_recorded_before_machines_had_an_id_is_read() -> None:
    recorded = {name: value for name, value in asdict(this_process()).items() if name != "machine"}

    assert not Process(**recorded).dead()
