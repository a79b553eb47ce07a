"""Bits that flip on disk: in checkpoints, which must be passed over, and in bundles, which must not load.

Most are tried inside one process (flip_worker.py): a training is stopped after an epoch, one bit of its checkpoints is
flipped, and it goes on. A few are whole runs.
"""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.cases import Lab, Outcome, Row, repeat
from benchmarks.chaos.stacks import EPOCHS, REPOSITORY, child_environment

_WHOLE_RUNS = 6
_STOPPED_AFTER = EPOCHS - 1


def flip_bits(lab: Lab, n: int) -> Row:
    """Flip n single bits: half in checkpoints and half in finished models, a few of the first by whole runs."""
    fault = "a bit flips in a checkpoint or a model"
    whole = min(_WHOLE_RUNS, max(1, n // 20))
    row = lab.try_all(fault, [_whole_case(lab, number) for number in range(whole)])
    row.outcomes += flip_bits_inside(lab, n - whole).outcomes
    lab.say(f"{lab.stack.name:8} {fault}: {row.held} of {len(row.outcomes)} held")
    return row


def flip_bits_inside(lab: Lab, n: int) -> Row:
    """Those that are tried inside one process."""
    return Row(fault="a bit flips", stack=lab.stack.name, seed=lab.seed, outcomes=_inside(lab, n))


def flip_bit(file: Path, draws: random.Random) -> str:
    """Flip one bit of a file, and say which."""
    content = bytearray(file.read_bytes())
    place, bit = draws.randrange(len(content)), draws.randrange(8)
    content[place] ^= 1 << bit
    # Anew, since the old bytes may be shared by hard links.
    file.unlink()
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {file.name}"


def _whole_case(lab: Lab, number: int) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        project = lab.stack.project(folder)
        run = lab.stack.start(project, lab.stack.train)
        run.wait_until(lambda: _STOPPED_AFTER in run.epochs())
        run.signal_group(signal.SIGKILL)
        ended = run.finish()
        draws = lab.random("whole flips", number)
        moment = f"{flip_bit(draws.choice(_newest_checkpoint(lab, project)), draws)} and kill -9"
        # The epoch that the kill interrupted, and the one whose checkpoint the flip spoiled.
        return repeat(lab, project, [ended], moment, lab.stack.train, most_recomputed=2)

    return attempt


def _newest_checkpoint(lab: Lab, project: Path) -> list[Path]:
    if lab.stack.name == "plain":
        return [project / "checkpoints/last.ckpt"]
    return sorted(sorted(project.glob(".twinrun/resume/*/epoch-*"))[-1].iterdir())


def _inside(lab: Lab, n: int) -> list[Outcome]:
    project = lab.stack.project(lab.folder / "flips" / lab.stack.name / "project")
    worker = "flip_worker" if lab.stack.name == "twinrun" else "plain_flip_worker"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.chaos.{worker}", str(n), str(lab.seed)],
        cwd=project,
        env=child_environment() | {"PYTHONPATH": f"{project / 'src'}:{project}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"moment"')]
    return [Outcome(moment=f["moment"], faults=tuple(f["faults"]), recomputed_epochs=f["recomputed"]) for f in found]
