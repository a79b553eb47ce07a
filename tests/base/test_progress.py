"""How long work makes itself heard."""

import os
import pty
import subprocess
import sys
import time

import pytest

from twinrun.base import progress as module
from twinrun.base.progress import fraction, phase, progress


def test_a_phase_tells_now_and_then_that_it_goes_on_and_a_short_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("Looking", every_s=30):
        pass
    short = capsys.readouterr()
    with phase("Looking for long", every_s=0.05):
        time.sleep(0.3)
    long = capsys.readouterr()

    assert short.out + short.err + long.out == ""
    assert long.err.splitlines()[0] == "Looking for long: 0 s"
    assert 1 < len(long.err.splitlines()) < 7


def test_a_share_is_shown_in_percent_and_a_count_as_a_count_and_nothing_for_no_things(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)

    with fraction("Searching") as to, progress("Reading", 1500) as advance, progress("Nothing", 0) as idle:
        to(0.85)
        advance(1200)
        idle(0)

    assert capsys.readouterr().err.splitlines() == ["Searching: 85%", "Reading: 1,200 of 1,500"]


def test_a_phase_that_fails_ends_with_its_error_and_says_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="stopped"), phase("Looking", every_s=0.05):
        raise RuntimeError("stopped")
    time.sleep(0.15)

    assert capsys.readouterr().err == ""


def test_a_phase_on_a_terminal_is_seen_at_once_and_leaves_no_line() -> None:
    ours, theirs = pty.openpty()
    code = "import time; from twinrun.base.progress import phase\nwith phase('Looking'): time.sleep(0.3)\nprint('done')"

    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, text=True, check=True)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()

    assert "Looking" in seen
    assert done.stdout == "done\n"
    assert "Looking" not in seen.rpartition("\x1b[2K")[2]
