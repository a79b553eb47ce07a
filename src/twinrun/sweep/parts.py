"""The seeds and folds of a training by a launcher, side by side; `dvc repro` then puts them together.

Each is trained to its last checkpoint, in the folder in which the stage `train` looks for it.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from twinrun.base.errors import LockHeldError, SweepError
from twinrun.base.files import write_json
from twinrun.core.params import Params
from twinrun.record.home import STATE
from twinrun.record.trial import DRIVER
from twinrun.sweep.launcher import Launcher
from twinrun.sweep.sweep import LOCK_S, Say, describe_driver
from twinrun.sweep.worker import LOG, PART, RESULT, read_ending

FOLDER = Path(STATE, "parts")
_LOCKS = "train."  # files of a worker's lock, which a job of an engine may hold though its driver was killed
_ATTEMPTS = 3  # of a worker that was killed or refused: another one may be luckier


def part_names(params: Params) -> list[str]:
    """The seeds and folds of a training; none where it is a single one."""
    train = params.train
    seeds = [f"seed-{(train.seed + number) % 2**63}" for number in range(train.seeds)] if train.seeds > 1 else []
    return [*seeds, *(f"fold-{number}" for number in range(train.folds))]


def train_parts(params: Params, launch: Callable[[Path], Launcher], say: Say) -> None:
    """Train all seeds and folds.

    Raises SweepError where one fails; what the others have done is kept. Raises LockHeldError where another process
    trains them.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER / "parts.lock")
    try:
        held = lock.acquire(timeout=LOCK_S)  # workers of a driver that was killed hold it until they have stopped
    except Timeout:
        raise LockHeldError("Another process trains the seeds and folds. Wait for it to end, or stop it.") from None
    with held:
        for file in FOLDER.glob("runs/*/*"):
            if file.is_file() and not file.name.startswith(_LOCKS):
                file.unlink()
        shutil.rmtree(FOLDER / "jobs", ignore_errors=True)
        _train_parts(params, launch(FOLDER / "jobs"), say)


def _train_parts(params: Params, launcher: Launcher, say: Say) -> None:
    try:
        shutil.copyfile("params.yaml", FOLDER / "params.yaml")
        write_json(describe_driver(params), FOLDER / DRIVER)
        waiting = [FOLDER / "runs" / name for name in part_names(params)]
        attempts = dict.fromkeys(waiting, 0)
        for folder in waiting:
            write_json({"name": folder.name}, folder / PART)
        running = 0
        while waiting or running:
            while waiting and running < launcher.slots:
                folder = waiting.pop(0)
                (folder / RESULT).unlink(missing_ok=True)
                attempts[folder] += 1
                launcher.submit(folder)
                running += 1
            for folder, how in launcher.ended():
                running -= 1
                ending = read_ending(folder)
                if (ending is None or ending.state == "refused") and attempts[folder] < _ATTEMPTS:
                    say(f"  {folder.name} ended early, and is started again")
                    waiting.append(folder)
                elif ending is None or ending.state != "finished":
                    reason = ending.reason if ending else f"{how}; see {folder / LOG}"
                    raise SweepError(f"{folder.name} was not trained: {reason}")
                else:
                    say(f"  {folder.name} is trained")
    finally:
        launcher.close()
