"""The process that trainers are forked from: `python -m benchmarks.chaos.forked_stage`.

It imports the train stage once. Each line of its input names a project, a log file and options for strace; a fork runs
the stage there, under strace where there are options, and its exit code, negative for a signal, is the answer.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.train import main as train
from twinrun.base.errors import run_main


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _become_stage(request["project"], request["log"], wait=bool(request["strace"]))
        tracer = _trace(child, request["strace"]) if request["strace"] else None
        _, status = os.waitpid(child, 0)
        if tracer is not None:
            tracer.wait()
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become_stage(project: str, log: str, *, wait: bool) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(project)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        if wait:
            os.kill(os.getpid(), signal.SIGSTOP)
        run_main(train)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _trace(child: int, options: list[str]) -> "subprocess.Popen[bytes]":
    """Attach strace to the stopped fork, and let it go on once strace holds it."""
    os.waitpid(child, os.WUNTRACED)
    # Its main thread alone: that is the one that publishes.
    tracer = subprocess.Popen(["strace", "-q", *options, "-p", str(child)], stdin=subprocess.DEVNULL, stderr=sys.stderr)
    status = Path(f"/proc/{child}/status")
    while "TracerPid:\t0\n" in status.read_text() and tracer.poll() is None:
        time.sleep(0.005)
    os.kill(child, signal.SIGCONT)
    return tracer


if __name__ == "__main__":
    main()
