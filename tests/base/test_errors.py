"""What a person's shell sees of a stage or command that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest

from twinrun.base.errors import deaf_children, duration

STOPPED = "\nStopped by Ctrl-C; nothing half-written was left behind.\n"


@pytest.mark.parametrize("closed", [1, 2])
def test_a_command_whose_output_or_errors_are_closed_does_its_work(closed: int) -> None:
    script = "import os, sys\nos.close(int(sys.argv[1]))\nos.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    command = [sys.executable, "-c", script, str(closed), "-m", "twinrun", "preset"]

    done = subprocess.run(command, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert ("twinrun preset photos" in done.stdout) is (closed == 2)


@pytest.mark.parametrize("closed", [1, 2])
def test_streams_that_are_closed_are_open_in_programs_that_are_started(closed: int) -> None:
    script = f"""
import os, subprocess, sys
from twinrun.base.printing import open_closed_streams
os.close({closed})
open_closed_streams()
sys.exit(subprocess.run([sys.executable, "-c", "import os; os.fstat({closed})"], close_fds=False).returncode)
"""

    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_a_reader_that_went_away_ends_a_command_without_a_traceback() -> None:
    script = (
        "from twinrun.base.errors import run_main\nrun_main(lambda: [print(line, flush=True) for line in range(10**6)])"
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


@pytest.mark.parametrize("stage", ["ingest", "validate", "train", "evaluate", "register"])
def test_ctrl_c_while_a_stage_imports_its_libraries_is_a_sentence(tmp_path: Path, stage: str) -> None:
    repository = Path.cwd()
    process = subprocess.Popen(
        [preloaded.REAL, "-m", f"pipeline.{stage}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 60
    while "_multiarray_umath" not in Path(f"/proc/{process.pid}/maps").read_text():  # NumPy, the first of them
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.001)

    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)

    assert (process.returncode, said) == (130, STOPPED)


@pytest.mark.parametrize("command", [("pipeline.evaluate",), ("twinrun", "data", "check", ".")])
def test_a_ctrl_c_that_a_module_in_c_replaces_by_an_error_of_its_own_is_a_sentence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "numpy.py").write_text(  # as NumPy, where Ctrl-C hits its import of datetime
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
        "raise ImportError(\"PyCapsule_Import could not import module 'datetime'\") from None\n"
    )
    repository = Path.cwd()

    done = subprocess.run(
        [preloaded.REAL, "-m", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, repository / "src", repository)))},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout + done.stderr) == (130, STOPPED)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("DataError('no champion')", 2),
        ("OSError(errno.ENOSPC, 'No space left on device', 'x')", 2),
        ("BrokenPipeError(errno.EPIPE, 'Broken pipe')", 141),
    ],
)
def test_a_command_whose_1_is_a_result_ends_with_another_code_where_it_fails(error: str, code: int) -> None:
    script = (
        "import errno\nfrom twinrun.base.errors import DataError, failing_with, run_main\n"
        f"def main():\n    with failing_with(2):\n        raise {error}\nrun_main(main)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_children_do_not_hear_ctrl_c_and_the_process_that_starts_them_does() -> None:
    with deaf_children():
        child = subprocess.Popen(["sleep", "60"])

    child.send_signal(signal.SIGINT)
    time.sleep(0.1)
    still_works = child.poll() is None
    child.kill()
    child.wait()

    assert still_works
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_the_server_that_forks_workers_does_not_hear_ctrl_c_either() -> None:
    code = (
        "import signal; from multiprocessing import forkserver; from twinrun.base.errors import deaf_children\n"
        "with deaf_children():\n"
        "    forkserver.ensure_running()  # its first step starts a process that tracks resources\n"
        "    print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ended.stdout == "True\n"
