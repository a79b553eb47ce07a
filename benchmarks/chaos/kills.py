"""Processes that are killed: at random moments, by SIGKILL and SIGTERM, dvc alone, and after every epoch."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.cases import Lab, Outcome, Row, repeat, spread
from benchmarks.chaos.stacks import EPOCHS, Ended, Run

# Share of the kills that wait for training to begin: importing takes longer than this training.
_IN_TRAINING = 0.6


def kill_group(lab: Lab, n: int) -> Row:
    """SIGKILL for dvc and all that it started in its process group, at random moments."""
    return lab.try_all("kill -9 of the process group", _at_random(lab, n, signal.SIGKILL))


def terminate_group(lab: Lab, n: int) -> Row:
    """SIGTERM for the process group, as a service manager or a container's stop sends it."""
    return lab.try_all("SIGTERM to the process group", _at_random(lab, n, signal.SIGTERM))


def kill_while_training(lab: Lab, n: int) -> Row:
    """The first of these, at moments after training has begun."""
    return lab.try_all("kill -9 while training", _at_random(lab, n, signal.SIGKILL, in_training=1))


def terminate_while_training(lab: Lab, n: int) -> Row:
    """The same with SIGTERM."""
    return lab.try_all("SIGTERM while training", _at_random(lab, n, signal.SIGTERM, in_training=1))


def kill_dvc(lab: Lab, n: int) -> Row:
    """SIGKILL for dvc alone, so that its trainer is left behind, and the command again at once."""

    def case(share: float) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            run = lab.stack.start(project, lab.stack.train)
            delay = share * lab.undisturbed.train_s
            run.wait_until(lambda: run.seconds >= delay)
            if not run.over:
                os.kill(run.process.pid, signal.SIGKILL)
            return repeat(lab, project, [run.finish()], f"{delay:.1f} s after the start", lab.stack.train)

        return attempt

    shares = spread(n, lab.random("dvc"))
    return lab.try_all("dvc alone killed, repro again at once", [case(share) for share in shares])


def kill_unrecorded(lab: Lab, n: int) -> Row:
    """SIGKILL for the group when the training is finished and its model written, before dvc has recorded it."""

    def case(delay: float) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            run = lab.stack.start(project, lab.stack.train)
            run.wait_until(lambda: lab.stack.written(run))
            ended = _interrupt(run, run.seconds + delay, signal.SIGKILL)
            return repeat(lab, project, [ended], f"{delay:.1f} s after the model was written", lab.stack.train)

        return attempt

    return lab.try_all("kill -9 before dvc records the result", [case(0.2 * number) for number in range(n)])


def stop_after_epochs(lab: Lab, n: int) -> Row:
    """SIGKILL as soon as an epoch was told of: after each, and after all of them in one training."""

    def case(stops: list[int]) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project, runs = lab.stack.project(folder), []
            for epoch in stops:
                run = lab.stack.start(project, lab.stack.train)
                run.wait_until(lambda epoch=epoch, run=run: epoch in run.epochs())  # type: ignore[misc]
                run.signal_group(signal.SIGKILL)
                runs.append(run.finish())
            moment = f"after epoch {' and '.join(map(str, stops))}"
            return repeat(lab, project, runs, moment, lab.stack.train)

        return attempt

    singles = [[epoch] for epoch in range(1, EPOCHS + 1)]
    stops = [*singles, list(range(1, EPOCHS + 1))][-n:]
    return lab.try_all("resume after every epoch", [case(each) for each in stops])


def _at_random(lab: Lab, n: int, number: int, in_training: float = _IN_TRAINING) -> list[Callable[[Path], Outcome]]:
    wanted = lab.undisturbed
    waiting = round(n * in_training)
    draws = lab.random("moments", number)
    inside, anywhere = list(spread(waiting, draws)), list(spread(n - waiting, draws))

    def while_training(share: float) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            run = lab.stack.start(project, lab.stack.train)
            run.wait_until(lambda: lab.stack.began(run))
            delay = share * (wanted.train_s - wanted.began_s)
            ended = _interrupt(run, run.seconds + delay, number)
            return repeat(lab, project, [ended], f"{delay:.2f} s into training", lab.stack.train)

        return attempt

    def at_any_time(share: float) -> Callable[[Path], Outcome]:
        def attempt(folder: Path) -> Outcome:
            project = lab.stack.project(folder)
            run = lab.stack.start(project, lab.stack.everything)
            delay = share * wanted.everything_s
            ended = _interrupt(run, delay, number)
            return repeat(lab, project, [ended], f"{delay:.1f} s after the start", lab.stack.everything)

        return attempt

    return [*map(while_training, inside), *map(at_any_time, anywhere)]


def _interrupt(run: Run, at_s: float, number: int) -> Ended:
    """Signal the group when the run is `at_s` seconds old, and see it end."""
    run.wait_until(lambda: run.seconds >= at_s)
    run.signal_group(number)
    while not run.over and number != signal.SIGKILL and run.seconds < at_s + 60:
        time.sleep(0.05)
    run.signal_group(signal.SIGKILL)
    return run.finish()
