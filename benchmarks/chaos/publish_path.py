"""A kill at every rename and fsync of the train stage: strace counts them, then kills at each in turn.

At such a point a power cut or a kill is at its worst: a file is written and not yet in place. To spare the imports, a
trainer is forked for each case from a process that has imported the stage (forked_stage.py); what it runs is the stage.
The control has few such calls and is run whole, by dvc.
"""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.chaos.cases import Lab, Outcome, Row, judge, repeat
from benchmarks.chaos.stacks import REPOSITORY, Ended, child_environment, next_log

_CALLS = ("rename", "renameat", "renameat2", "fsync", "fdatasync")

Point = tuple[str, int]
"""A system call and its number among the process's calls of that name, from 1."""


def kill_at_every_point(lab: Lab, n: int) -> Row:
    """SIGKILL just before each rename and fsync; n limits how many, 0 for all."""
    fault = "kill at a rename or fsync of the publish path"
    if shutil.which("strace") is None:
        return Row(fault=fault, stack=lab.stack.name, seed=lab.seed, left_out="strace is not installed")
    if lab.stack.name == "plain":
        return _plain_row(lab, fault, n)
    forks = [ForkedStage(lab.stack.template) for _ in range(lab.jobs)]
    try:
        points = _points(forks[0], lab.stack.project(lab.folder / "points" / "project"))
        chosen = _chosen(lab, points, n)
        lab.say(f"{len(points)} renames and fsyncs, {len(chosen)} of them are tried")
        return lab.try_all(fault, [_case(lab, forks, point, what) for point, what in chosen])
    finally:
        for fork in forks:
            fork.close()


class ForkedStage:
    """Runs the train stage in forks of a process that has imported it, one at a time."""

    def __init__(self, template: Path) -> None:
        self.busy = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.chaos.forked_stage"],
            cwd=template,
            env=child_environment()
            | {"DVC_STAGE": "train", "PYTHONPATH": f"{template / 'src'}:{template}:{REPOSITORY}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, project: Path, strace: Sequence[str] = ()) -> Ended:
        """Run the stage in a project, under strace with these options where there are any."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        log = next_log(project)
        request = {"project": str(project), "log": str(log), "strace": list(strace)}
        started = time.monotonic()
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        begun = any(project.glob(".twinrun/resume/*/owner-*"))
        return Ended(code=code, seconds=time.monotonic() - started, log=log, had_begun=begun)

    def close(self) -> None:
        """End the process that is forked from."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _case(lab: Lab, forks: list[ForkedStage], point: Point, what: str) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        project = lab.stack.project(folder)
        fork = _free(forks)
        try:
            killed = fork.run(project, _killing(point))
            # As dvc does before it runs a stage.
            shutil.rmtree(project / "data/out/train", ignore_errors=True)
            runs = [killed, fork.run(project)]
        finally:
            fork.busy.release()
        outcome = judge(lab, project, runs, f"{point[0]} {point[1]} ({what})")
        if killed.code != -9:
            return Outcome(moment=outcome.moment, faults=(f"not killed: it ended with {killed.code}",))
        return Outcome(**{**vars(outcome), "extra_s": None})

    return attempt


def _plain_row(lab: Lab, fault: str, n: int) -> Row:
    """The control: strace stands before python in its dvc.yaml for the run that is killed."""
    counting = lab.stack.project(lab.folder / "points-plain" / "project")
    trace = counting.parent / "trace"
    _plain_run(lab, counting, _tracing(trace))
    chosen = _chosen(lab, _read_trace(trace, counting), n)

    def case(point: Point, what: str) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            ended = _plain_run(lab, project, _killing(point))
            return repeat(lab, project, [ended], f"{point[0]} {point[1]} ({what})", lab.stack.train)

        return attempt

    return lab.try_all(fault, [case(point, what) for point, what in chosen])


def _plain_run(lab: Lab, project: Path, strace: Sequence[str]) -> Ended:
    pipeline = project / "dvc.yaml"
    whole = pipeline.read_text(encoding="utf-8")
    pipeline.write_text(whole.replace("cmd: python", f"cmd: strace {' '.join(strace)} python"), encoding="utf-8")
    ended = lab.stack.start(project, lab.stack.train).finish()
    pipeline.write_text(whole, encoding="utf-8")
    return ended


def _points(fork: ForkedStage, project: Path) -> list[tuple[Point, str]]:
    trace = project.parent / "trace"
    ended = fork.run(project, _tracing(trace))
    if ended.code:
        raise RuntimeError(f"The undisturbed run under strace failed:\n{ended.output()}")
    return _read_trace(trace, project)


def _tracing(trace: Path) -> list[str]:
    return ["-y", "-s", "300", "-o", str(trace), "-e", f"trace={','.join(_CALLS)}"]


def _killing(point: Point) -> list[str]:
    call, number = point
    return ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]


def _read_trace(trace: Path, project: Path) -> list[tuple[Point, str]]:
    """The calls that concern the project's files, each with its number and the name of its file."""
    found, counts = [], dict.fromkeys(_CALLS, 0)
    for line in trace.read_text(errors="replace").splitlines():
        call = line.partition("(")[0].split()[-1]
        if call not in counts:
            continue
        counts[call] += 1
        names = re.findall(r'[<"]([^<>"]+)[>"]', line)
        inside = [name for name in names if name.startswith(str(project)) or not name.startswith("/")]
        if inside:
            found.append(((call, counts[call]), _plain_name(inside[-1])))
    return found


def _plain_name(name: str) -> str:
    parts = Path(name).parts[-2:]
    return re.sub(r"\.unfinished-[0-9a-f]{8}-|[0-9a-f]{32,64}", "", "/".join(parts))


def _chosen(lab: Lab, points: list[tuple[Point, str]], n: int) -> list[tuple[Point, str]]:
    if not 0 < n < len(points):
        return points
    return sorted(lab.random("points").sample(points, n))


def _free(forks: list[ForkedStage]) -> ForkedStage:
    while True:
        for fork in forks:
            if fork.busy.acquire(blocking=False):
                return fork
        time.sleep(0.02)
