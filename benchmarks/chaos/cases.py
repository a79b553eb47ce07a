"""What a fault must leave behind, and whether it did. Knows no particular fault.

A case is held where the command, given again, ends with the weights of the undisturbed run, at most one epoch was
computed again, MLflow has every metric of every epoch once, and no run there is still called RUNNING.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chaos.stacks import EPOCHS, Ended, Record, Stack, read_record

# A fault may leave something that a second attempt mends; a third one would not be "repro again".
_MOST_ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a stack does when nothing is wrong; times are of runs beside as many others as the cases have."""

    weights: str
    record: Record
    began_s: float
    train_s: float
    everything_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one case; `faults` is empty where it was held."""

    moment: str
    faults: tuple[str, ...]
    recomputed_epochs: int = 0
    extra_s: float | None = None
    log: str = ""

    @property
    def held(self) -> bool:
        return not self.faults


@dataclass(kw_only=True)
class Row:
    """All cases of one fault on one stack."""

    fault: str
    stack: str
    seed: int
    outcomes: list[Outcome] = field(default_factory=list)
    left_out: str = ""

    @property
    def held(self) -> int:
        return sum(outcome.held for outcome in self.outcomes)

    @property
    def worst_recomputed(self) -> int:
        return max((outcome.recomputed_epochs for outcome in self.outcomes), default=0)

    @property
    def extra_s(self) -> float | None:
        """The median; None where the fault cannot cost time."""
        extra = [outcome.extra_s for outcome in self.outcomes if outcome.extra_s is not None]
        return median(extra) if extra else None

    def facts(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "fault": self.fault,
            "stack": self.stack,
            "n": len(self.outcomes),
            "held": self.held,
            "seed": self.seed,
            "worst_recomputed_epochs": self.worst_recomputed,
            "extra_time_s": self.extra_s,
            "left_out": self.left_out,
            "cases": [{**asdict(outcome), "held": outcome.held} for outcome in self.outcomes],
        }


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where cases are tried: a stack, what it does undisturbed, a folder, and how many cases run at once."""

    stack: Stack
    undisturbed: Undisturbed
    folder: Path
    seed: int
    jobs: int
    say: Callable[[str], None]

    def random(self, *key: object) -> random.Random:
        """Draws that depend on the seed and the key alone."""
        return random.Random(f"{self.seed}/{self.stack.name}/{'/'.join(map(str, key))}")

    def try_all(self, fault: str, tries: Sequence[Callable[[Path], Outcome]], jobs: int | None = None) -> Row:
        """Try all cases of one fault, each in a folder of its own, some at once, and tell of each."""
        row = Row(fault=fault, stack=self.stack.name, seed=self.seed)
        lock = threading.Lock()

        def one(numbered: tuple[int, Callable[[Path], Outcome]]) -> Outcome:
            number, attempt = numbered
            try:
                outcome = attempt(self.folder / _folder_name(fault) / f"{self.stack.name}-{number:03d}" / "project")
            except Exception as error:  # a case that cannot be judged is not held
                outcome = Outcome(moment=f"case {number}", faults=(f"{type(error).__name__}: {error}",))
            with lock:
                row.outcomes.append(outcome)
                verdict = "held" if outcome.held else "NOT HELD: " + "; ".join(outcome.faults)
                self.say(f"{self.stack.name:8} {fault} {len(row.outcomes)}/{len(tries)}  {outcome.moment}: {verdict}")
            return outcome

        with ThreadPoolExecutor(jobs or self.jobs) as pool:
            row.outcomes = list(pool.map(one, enumerate(tries)))
        return row


def warm_up(stack: Stack, folder: Path) -> None:
    """Run a stack once, so that what it imports is compiled: cases write no bytecode, a new environment has none."""
    project = stack.project(folder / f"{stack.name}-warm-up" / "project")
    stack.start(project, stack.everything, {"PYTHONDONTWRITEBYTECODE": ""}).finish()


def measure(stack: Stack, folder: Path, at_once: int) -> Undisturbed:
    """Run a stack undisturbed, as often at once as cases will run, and see that it agrees with itself."""

    def one(number: int) -> Undisturbed:
        project = stack.project(folder / f"{stack.name}-{number}" / "project")
        run = stack.start(project, stack.train)
        run.wait_until(lambda: stack.began(run))
        began = run.seconds
        ended = run.finish()
        if ended.code:
            raise RuntimeError(f"The undisturbed run of {stack.name} failed:\n{ended.output()}")
        everything = ended.seconds
        if stack.everything != stack.train:
            rest = stack.start(project, stack.everything).finish()
            if rest.code:
                raise RuntimeError(f"The undisturbed run of {stack.name} failed:\n{rest.output()}")
            everything += rest.seconds
        weights = stack.weights(project)
        assert weights is not None
        record = read_record(project / stack.database)
        return Undisturbed(
            weights=weights, record=record, began_s=began, train_s=ended.seconds, everything_s=everything
        )

    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(one, range(at_once)))
    if len({each.weights for each in found}) != 1:
        raise RuntimeError(f"Two undisturbed runs of {stack.name} gave different weights.")
    return found[0]


def repeat(
    lab: Lab, project: Path, disturbed: Sequence[Ended], moment: str, command: Sequence[str], most_recomputed: int = 1
) -> Outcome:
    """Give the command again after the disturbed runs, undisturbed, and judge what it ends with."""
    runs = list(disturbed)
    for _ in range(_MOST_ATTEMPTS):
        runs.append(lab.stack.start(project, command).finish())
        if runs[-1].code == 0:
            break
    return judge(lab, project, runs, moment, attempts=len(runs) - len(disturbed), most_recomputed=most_recomputed)


def judge(
    lab: Lab,
    project: Path,
    runs: Sequence[Ended],
    moment: str,
    *,
    attempts: int = 1,
    most_recomputed: int = 1,
    database: Path | None = None,
    experiment: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Compare a project with the undisturbed one; the last of `runs` is the one that was to succeed."""
    stack, wanted = lab.stack, lab.undisturbed
    faults: list[str] = []
    if code := runs[-1].code:
        faults.append(f"the command failed with {code} again")
    elif attempts > 1:
        faults.append(f"the command succeeded only when given {attempts} times")
    if "Traceback" in runs[-1].output() and stack.name == "twinrun":
        faults.append("a traceback")
    if stack.weights(project) != wanted.weights:
        faults.append("other weights")
    recomputed = recomputed_epochs(runs)
    if recomputed > most_recomputed:
        faults.append(f"{recomputed} epochs computed again")
    faults += _store_faults(lab, project, database or project / stack.database, experiment, environment or {})
    normal = wanted.everything_s if "evaluate" in "".join(run.output() for run in runs) else wanted.train_s
    return Outcome(
        moment=moment,
        faults=tuple(faults),
        recomputed_epochs=recomputed,
        extra_s=sum(run.seconds for run in runs) - normal,
        log=str(runs[-1].log) if faults else "",
    )


def _store_faults(
    lab: Lab, project: Path, database: Path, experiment: str | None, environment: Mapping[str, str]
) -> list[str]:
    """What is wrong in MLflow after the next command, which for Twinrun is `twinrun sync`."""
    wanted = lab.undisturbed.record
    faults = _record_faults(read_record(database, experiment), wanted)
    if faults and lab.stack.after is not None:
        # A publisher may still be at it; it ends by itself.
        time.sleep(2)
        lab.stack.start(project, lab.stack.after, {**environment, "PYTHONPATH": "src"}).finish()
        faults = _record_faults(read_record(database, experiment), wanted)
    return faults


def _record_faults(record: Record, wanted: Record) -> list[str]:
    faults = []
    if running := record.statuses.count("RUNNING"):
        faults.append(f"{running} run left RUNNING")
    if lost := wanted.metrics - record.metrics:
        faults.append(f"{sum(lost.values())} metrics lost")
    if doubled := record.metrics - wanted.metrics:
        faults.append(f"{sum(doubled.values())} metrics doubled")
    if "FINISHED" not in record.statuses:
        faults.append("no run FINISHED")
    return faults


def recomputed_epochs(runs: Sequence[Ended]) -> int:
    """How many epochs were begun in one run and begun again in a later one, the worst of them.

    An epoch is begun where the one before it was told of, since it follows at once; the first where training began.
    """
    worst = 0
    for before, after in pairwise(runs):
        told = before.epochs()
        begun = min(told[-1] + 1, EPOCHS) if told else int(before.had_begun)
        again = after.epochs()
        if again:
            worst = max(worst, begun - again[0] + 1)
    return worst


def _folder_name(fault: str) -> str:
    # Short, since a temporary folder lies in it, and the path of a socket in that has at most 107 characters.
    return "".join(character if character.isalnum() else "-" for character in fault)[:20]


def spread(total: int, draws: random.Random) -> Iterator[float]:
    """`total` moments in [0, 1), one at random in each of as many equal parts, so that no part is missed."""
    for number in range(total):
        yield (number + draws.random()) / total
