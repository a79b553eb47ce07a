"""What a person's shell sees of a stage or command that ends."""

import subprocess
import sys

import pytest

from twinrun.core.errors import duration


def test_a_reader_that_went_away_ends_a_command_without_a_traceback() -> None:
    script = (
        "from twinrun.core.errors import run_main\nrun_main(lambda: [print(line, flush=True) for line in range(10**6)])"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None

    assert command.stdout.readline() == "0\n"
    command.stdout.close()

    assert (command.wait(30), command.stderr.read()) == (141, "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (3.24, "3.2 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (130, "2 min 10 s"), (3_900, "1 h 5 min")],
)
def test_a_time_is_written_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
