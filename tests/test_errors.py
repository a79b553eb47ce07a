"""What a person's shell sees of a stage or command that ends early."""

import subprocess
import sys


def test_a_reader_that_went_away_ends_a_command_without_a_traceback() -> None:
    script = "from twinrun.errors import run_main\nrun_main(lambda: [print(line, flush=True) for line in range(10**6)])"
    command = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None

    assert command.stdout.readline() == "0\n"
    command.stdout.close()

    assert (command.wait(30), command.stderr.read()) == (141, "")
