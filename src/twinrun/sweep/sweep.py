"""Running a sweep: generations of trials, judged at rungs, whatever the number of workers and after any kill.

Every step is a function of the plan and of the results before it, which are files in the trials' folders. So going on
after a kill is starting again: what is done is read, and the rest is computed. A generation is proposed as soon as the
first rung of the one before it is judged and all before that are over; so workers have work while few trials of a
generation are left. While the last ones are trained, params.yaml is trained with the new seeds.
"""

import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from twinrun.base.errors import InterruptedTraining, LockHeldError, SweepError, deaf_children
from twinrun.base.files import canonical_json, read_json, write_json, write_text
from twinrun.core.params import Params, load_params, parse_params
from twinrun.core.yaml import read_yaml
from twinrun.record.home import journals_folder
from twinrun.record.journal import Journal
from twinrun.record.trial import DRIVER, SWEEP_TAG, SWEEPS, Trial
from twinrun.sweep.launcher import Launcher
from twinrun.sweep.plan import Plan, Scalar, here, require_settable, set_values, trial_params
from twinrun.sweep.proposals import Result, propose, write_study
from twinrun.sweep.table import Row, Standing, best_row, promoted, table_csv
from twinrun.sweep.worker import LOG, RESULT, read_ending

IDENTITY, TABLE, BEST, STUDY = "sweep.json", "trials.csv", "best.yaml", "study.log"
PAGE = "sweep.html"
_LOCK, _JOBS = "sweep.lock", "jobs"
LOCK_S = 20.0
_ATTEMPTS = 3  # of a worker that was killed or refused: another one may be luckier

Say = Callable[[str], None]


@dataclass
class _Trial:
    """A trial of a generation; `rung` is the number of the rung that it works for, counted from 0."""

    number: int
    generation: int
    values: dict[str, Scalar]
    folder: Path
    rung: int = 0
    standing: Standing = field(default_factory=Standing)
    over: bool = False
    scores: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Confirmation:
    """The metric of new seeds, in order: of the best trial's settings, and of those of params.yaml.

    None where a training failed, such as one whose loss became infinite.
    """

    seeds: tuple[int, ...]
    best: tuple[float | None, ...]
    base: tuple[float | None, ...]


@dataclass(frozen=True)
class Outcome:
    """What a sweep ended with.

    `idle` is the share of the workers' time that had no work in it, since this process began; None: all was done.
    """

    name: str
    folder: Path
    plan: Plan
    rows: tuple[Row, ...]
    best: Row | None
    confirmation: Confirmation | None
    idle: float | None


class Sweep:
    """One sweep in its folder, data/sweeps/<name>; use as `open_sweep(...)`."""

    def __init__(
        self, folder: Path, plan: Plan, params_text: str, launcher: Launcher, journal: Journal, say: Say, again: str
    ) -> None:
        """Go on with what is in the folder; `again` is the command that does so."""
        self.folder, self.plan, self._text, self._launcher = folder, plan, params_text, launcher
        self._params = _parsed(params_text)
        self._journal, self._say, self._again = journal, say, again
        self._generations: list[list[_Trial]] = []
        self._stops: list[int | None] = [*plan.rungs, None]
        self._attempts: dict[Path, int] = {}
        self._submitted: dict[Path, float] = {}  # when each began, in seconds
        self._busy_s = 0.0
        self._began: float | None = None
        self._publisher: subprocess.Popen[bytes] | None = None

    def run(self) -> Outcome:
        """Run all trials and the seeds at the end."""
        base = self._with_new_seeds("params", {})
        while True:
            self._judge()
            self._open()
            waiting = self._waiting()
            if not waiting and self._submitted.keys() <= set(base):
                break
            self._work([(trial.folder, self._stops[trial.rung]) for trial in waiting] + self._ahead(base))
        rows = self._rows()
        best = best_row(rows, maximise=self.plan.maximise)
        write_study(self.plan, [_of_past(trial) for trial in self._all()], self.folder / STUDY)
        if best is not None:
            write_text(set_values(self._text, best.values), self.folder / BEST)
        confirmation = self._confirm(best, base) if best is not None else None
        return Outcome(self.folder.name, self.folder, self.plan, rows, best, confirmation, self._idle())

    def keep(self, *files: Path) -> None:
        """Give files of the result to the sweep's run."""
        for file in files:
            if file.exists():
                self._journal.artifact(file, "sweep")

    def publish(self, *, wait: bool = False) -> None:
        """Have `twinrun sync` publish the journals that wait, in a process of its own and one at a time."""
        if self._publisher is not None and self._publisher.poll() is None:
            if not wait:
                return
            self._publisher.wait()
        with (self.folder / "sync.log").open("ab") as log:
            self._publisher = subprocess.Popen(
                [sys.executable, "-m", "twinrun", "sync"], stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self._publisher.wait()

    def _open(self) -> None:
        """Propose the next generation where what it depends on is known."""
        while True:
            begun = sum(map(len, self._generations))
            number, count = len(self._generations), min(self.plan.width, self.plan.trials - begun)
            earlier, last = self._generations[:-1], self._generations[-1:]
            if count <= 0 or not all(trial.over for each in earlier for trial in each):
                return
            if not all(trial.over or trial.scores for each in last for trial in each):
                return
            past = [_of_past(trial) for each in earlier for trial in each]
            past += [_of_first_rung(trial, self._stops[0]) for each in last for trial in each]
            proposed = propose(self.plan, past, number, count)
            if number == 0 and (point := here(self.plan, self._params)) is not None:
                proposed[0] = point  # so that what is known to work takes part
            generation = [
                _Trial(begun + i, number, values, self.folder / "trials" / f"{begun + i:04d}")
                for i, values in enumerate(proposed)
            ]
            for trial in generation:
                self._prepare(trial)
            self._generations.append(generation)
            write_study(self.plan, [_of_past(trial) for each in earlier for trial in each], self.folder / STUDY)
            self._judge()

    def _prepare(self, trial: _Trial) -> None:
        text, file = trial_params(self._text, trial.values), trial.folder / "params.yaml"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise SweepError(
                f"{file} is not what the sweep proposed for trial {trial.number}: it was changed. Remove "
                f"{trial.folder}, and go on: {self._again}"
            )
        if not file.is_file():
            write_text(text, file)
        trial.standing = Standing.read(trial.folder)

    def _judge(self) -> None:
        """Judge every rung that is complete."""
        for generation in self._generations:
            for rung, stop in enumerate(self._stops):
                rivals = [trial for trial in generation if trial.rung == rung and not trial.over]
                if not rivals or not all(trial.standing.reached(stop) for trial in rivals):
                    continue
                if any(trial.rung < rung and not trial.over for trial in generation):
                    continue
                self._judge_rung(rivals, rung, stop)

    def _judge_rung(self, rivals: list[_Trial], rung: int, stop: int | None) -> None:
        keep = self._params.train.keep
        scores = {trial.number: trial.standing.score(stop, self.plan.metric, keep) for trial in rivals}
        for trial in rivals:
            if (score := scores[trial.number]) is not None:
                trial.scores[self._epoch(trial, stop)] = score
        going_on = promoted(scores, self.plan.keep, maximise=self.plan.maximise) if stop is not None else set()
        for trial in rivals:
            trial.over = trial.number not in going_on
            trial.rung += not trial.over
            if trial.over and stop is not None and not trial.standing.finished and trial.standing.failed is None:
                self._end_stopped(trial, stop)
        self._tell(rivals, rung, stop, going_on)

    def _epoch(self, trial: _Trial, stop: int | None) -> int:
        """The epoch that a judgement is about; a trial may end before a rung (train.patience)."""
        epochs = len(trial.standing.epochs)
        return epochs if stop is None else min(stop, epochs)

    def _end_stopped(self, trial: _Trial, stop: int) -> None:
        """Say in the run of a trial that does not go on why it ended; its checkpoint is no longer needed."""
        resume = trial.folder / "resume"
        owners = [owner.name.removeprefix("owner-") for owner in resume.glob("*/owner-*")]
        for owner in owners:
            folder = journals_folder() / owner
            if folder.is_dir():
                journal = Journal(folder)
                journal.tags(
                    {"twinrun.trial_ended": f"stopped after epoch {stop}: not among the best {self.plan.keep:g}"}
                )
                journal.ended = False
                journal.end("FINISHED")
                journal.close()
        shutil.rmtree(resume, ignore_errors=True)

    def _tell(self, rivals: list[_Trial], rung: int, stop: int | None, going_on: set[int]) -> None:
        rows = self._rows()
        write_text(table_csv(rows, self.plan.metric), self.folder / TABLE)
        best = best_row(rows, maximise=self.plan.maximise)
        failed = sum(trial.standing.failed is not None for trial in rivals)
        text = f"generation {rivals[0].generation}, " + (
            "trained to the end" if stop is None else f"rung {rung + 1} after epoch {stop}"
        )
        text += f": {len(rivals)} trial{'' if len(rivals) == 1 else 's'}"
        text += f", {failed} failed" if failed else ""
        if stop is not None:
            numbers = ", ".join(map(str, sorted(going_on)))
            of_several = f", trials {numbers} go on" if numbers else ", no trial goes on"
            text += f", trial {numbers} goes on" if len(going_on) == 1 else of_several
        text += f"; best so far: {self._number(best.metric)}, trial {best.number}" if best else ""
        self._say(text)
        if best is not None and best.metric is not None:
            self._journal.metrics(
                sum(row.state != "waiting" for row in rows), {f"best_{self.plan.metric}": best.metric}
            )
        self.publish()

    def _waiting(self) -> list[_Trial]:
        """The trials that have to be trained, older generations first."""
        waiting = [
            trial
            for generation in self._generations
            for trial in generation
            if not trial.over
            and trial.folder not in self._submitted
            and not trial.standing.reached(self._stops[trial.rung])
        ]
        # The first training of a frozen network computes the features that all others read.
        if self._params.train.freeze == "backbone" and not any(trial.standing.finished for trial in self._all()):
            return [] if self._submitted else waiting[:1]
        return waiting

    def _ahead(self, base: Sequence[Path]) -> list[tuple[Path, int | None]]:
        """Trainings of params.yaml with new seeds, for slots that the last trials leave free."""
        if sum(map(len, self._generations)) < self.plan.trials:
            return []
        return [(each, None) for each in base if each not in self._submitted and not Standing.read(each).reached(None)]

    def _work(self, tasks: Sequence[tuple[Path, int | None]]) -> None:
        """Fill the free slots, then wait until a worker ends, and read its result."""
        self._began = self._began or time.monotonic()
        for folder, stop in tasks[: self._launcher.slots - len(self._submitted)]:
            Trial(sweep=self.folder.name, name=_name(folder), parent=self._journal.id, pause_after=stop).write(folder)
            (folder / RESULT).unlink(missing_ok=True)
            self._submitted[folder] = time.monotonic()
            self._launcher.submit(folder)
        for folder, how in self._launcher.ended():
            self._busy_s += time.monotonic() - self._submitted.pop(folder)
            self._read(folder, how)

    def _idle(self) -> float | None:
        if self._began is None:
            return None
        return max(0.0, 1 - self._busy_s / (self._launcher.slots * (time.monotonic() - self._began)))

    def _read(self, folder: Path, how: str) -> None:
        ending = read_ending(folder)
        if ending is None or ending.state == "refused":
            self._attempts[folder] = self._attempts.get(folder, 0) + 1
            if self._attempts[folder] >= _ATTEMPTS:
                reason = ending.reason if ending else f"{how}, {_ATTEMPTS} times; see {folder / LOG}"
                raise SweepError(f"{_name(folder)} was not trained: {reason}\nWhen that is fixed: {self._again}")
        elif ending.state == "stopped":
            raise SweepError(f"{_name(folder)} stopped: {ending.reason}\nWhen that is fixed: {self._again}")
        standing = Standing.read(folder)
        for trial in self._all():
            if trial.folder == folder:
                trial.standing = standing
                self._say(f"  {_name(folder)}: {self._described(trial)}")
                return
        failed = None if standing.failed is None else f"failed, {standing.failed.splitlines()[0]}"
        self._say(f"  {_name(folder)}: {failed or self._number(self._final_score(folder))}")

    def _described(self, trial: _Trial) -> str:
        values = ", ".join(f"{name.removeprefix('train.')} {value}" for name, value in trial.values.items())
        if trial.standing.failed is not None:
            return f"failed, {trial.standing.failed.splitlines()[0]} ({values})"
        stop = self._stops[trial.rung]
        if not trial.standing.reached(stop):
            return "ended early, and is started again"
        score = trial.standing.score(stop, self.plan.metric, self._params.train.keep)
        epochs = len(trial.standing.epochs)
        return f"{self._number(score)} after {epochs} epoch{'' if epochs == 1 else 's'} ({values})"

    def _with_new_seeds(self, kind: str, values: Mapping[str, Scalar]) -> list[Path]:
        """The folders of trainings with new seeds, prepared: of the `best` settings, or those of params.yaml."""
        folders = []
        for seed in self._seeds():
            folders.append(self.folder / "seeds" / f"{kind}-{seed}")
            write_text(trial_params(self._text, {**values, "train.seed": seed}), folders[-1] / "params.yaml")
        return folders

    def _seeds(self) -> tuple[int, ...]:
        return tuple((self._params.train.seed + 1 + i) % 2**63 for i in range(self.plan.seeds))

    def _confirm(self, best: Row, base: Sequence[Path]) -> Confirmation | None:
        """Train the best settings with new seeds, and finish those of params.yaml in `base`, which have the same."""
        if not base:
            return None
        seeds = f"{len(base)} new seed{'' if len(base) == 1 else 's'}"
        self._say(f"trial {best.number} is the best; training it and params.yaml with {seeds}")
        folders = [*self._with_new_seeds("best", best.values), *base]
        while left := [each for each in folders if not Standing.read(each).reached(None)]:
            self._work([(each, None) for each in left if each not in self._submitted])
        scores = [self._final_score(folder) for folder in folders]
        return Confirmation(self._seeds(), tuple(scores[: len(base)]), tuple(scores[len(base) :]))

    def _final_score(self, folder: Path) -> float | None:
        return Standing.read(folder).score(None, self.plan.metric, self._params.train.keep)

    def _rows(self) -> tuple[Row, ...]:
        return tuple(self._row(trial) for trial in self._all())

    def _row(self, trial: _Trial) -> Row:
        state = "waiting" if not trial.over else "failed" if trial.standing.failed is not None else "stopped"
        if trial.over and trial.standing.finished:
            state = "finished"
        result = list(trial.scores.values())
        return Row(
            trial.number,
            trial.generation,
            state,
            len(result),
            max(trial.scores, default=0),
            result[-1] if result else None,
            result[0] if result else None,
            trial.values,
            trial.standing.weights_hash if trial.over else None,
            trial.standing.failed,
        )

    def _all(self) -> Iterator[_Trial]:
        for generation in self._generations:
            yield from generation

    def _number(self, score: float | None) -> str:
        return "none" if score is None else f"{score:.2%}" if self.plan.maximise else f"{score:.4f}"


@contextmanager
def open_sweep(
    file: Path, plan: Plan, *, resume: bool, launch: Callable[[Path], Launcher], say: Say
) -> Iterator[Sweep]:
    """The sweep of `file`, which holds the plan, in the project in the working folder; ingest and validate are done.

    Raises SweepError where it exists and is not to be resumed, or where `resume` and space, seed, data, code,
    environment or machine are not those that it began with; ParamsError where params.yaml cannot take its values.
    """
    from filelock import FileLock, Timeout

    text = Path("params.yaml").read_text(encoding="utf-8")
    params, folder, again = load_params(), SWEEPS / file.stem, resuming(file)
    require_settable(text, plan)
    _ignore_in_git()
    known = read_json(folder / IDENTITY)
    if known and not resume:
        raise SweepError(
            f"The sweep {folder} exists. Go on with it: {again}\nA sweep has the name of its file: for another one, "
            f"rename {file}, or remove the folder."
        )
    if not known and (folder / "trials").is_dir():
        raise SweepError(
            f"{folder / IDENTITY} is missing or damaged, so nothing says what the trials in {folder} were trained with."
            " Remove the folder, and begin again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    others = [name for name in (TABLE, BEST, STUDY, PAGE, DRIVER) if (folder / name).exists()]
    if others and not (folder / IDENTITY).exists():  # which is written first
        raise SweepError(
            f"{folder / others[0]} does not belong to a sweep, and would be lost. A sweep has the name of its "
            f"file: rename {file}, or move what is in {folder} away."
        )
    lock = FileLock(folder / _LOCK)
    try:
        held = lock.acquire(timeout=LOCK_S)  # trials of a driver that was killed hold it until they have stopped
    except Timeout:
        raise LockHeldError(f"Another process runs the sweep {folder}. Wait for it to end, or stop it.") from None
    with held:
        launcher = launch(folder / _JOBS)
        try:
            worker = describe_driver(params)
            identity = _identity(plan, params, worker)
            if changed := [part for part in identity if known and known.get("parts", {}).get(part) != identity[part]]:
                raise SweepError(
                    f"The sweep {folder} began with another {' and '.join(changed)}, so what it has computed does not "
                    f"belong to this one.{_details(known.get('worker', {}), worker, changed)}\n"
                    f"Put that back, or begin a new sweep: rename {file}, or remove the folder."
                )
            journal_id = str(known.get("journal") or uuid.uuid4().hex)
            write_json({"journal": journal_id, "parts": identity, "worker": worker}, folder / IDENTITY)
            write_text(text, folder / "params.yaml")
            write_json(worker, folder / DRIVER)
            journal = _open_journal(journal_id, file.stem, plan, params)
            try:
                sweep = Sweep(folder, plan, text, launcher, journal, say, again)
                yield sweep
                journal.end("FINISHED")
            except BaseException as error:
                journal.end("KILLED" if isinstance(error, InterruptedTraining | KeyboardInterrupt) else "FAILED")
                raise
            finally:
                journal.close()
            sweep.publish(wait=True)
        finally:
            launcher.close()


def _open_journal(journal_id: str, name: str, plan: Plan, params: Params) -> Journal:
    journal = Journal.resume(Path(), journal_id, name=f"sweep {name}", experiment=params.register.model_name)
    journal.params({"sweep": {**plan.decisive(), "space": {k: json.dumps(v) for k, v in plan.space.items()}}})
    journal.tags({SWEEP_TAG: name})
    return journal


def describe_driver(params: Params) -> dict[str, str]:
    """What decides bits here, found out in another process: this one is forked from, and must have computed nothing."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with deaf_children():
            described = pool.submit(_describe_here, params)
        return described.result()


def _describe_here(params: Params) -> dict[str, str]:
    from twinrun.sweep.checks import describe_worker

    return describe_worker(params.train)


def resuming(file: Path) -> str:
    """The command that goes on with the sweep of `file`."""
    return f"twinrun sweep --resume {shlex.quote(os.fspath(file))}"


def _identity(plan: Plan, params: Params, worker: Mapping[str, str]) -> dict[str, str]:
    """Hashes of what decides a sweep, by the word that a person would use."""
    from importlib.metadata import version

    decisive = plan.decisive()
    seed = decisive.pop("seed")
    train = {name: value for name, value in asdict(params.train).items() if name not in ("threads", "devices")}
    parts: dict[str, Any] = {
        "space": {**decisive, "space": list(plan.space.items())},  # settings are drawn in their order
        "seed": seed,
        "params.yaml": [asdict(params.ingest), train],
        "data": [worker["images"], worker["manifest"], worker["pretrained weights"]],
        "code": worker["code"],
        "environment": [worker["requirements.lock"], worker["packages"], version("optuna")],
        "machine": [worker["numerics"], worker["numeric self-test"]],
    }
    return {name: sha256(canonical_json(value)).hexdigest() for name, value in parts.items()}


def _details(before: Any, now: Mapping[str, str], changed: Sequence[str]) -> str:
    if "environment" not in changed or not isinstance(before, dict):
        return ""
    return f"\npackages then: {before.get('packages')}\npackages now: {now['packages']}"


def _of_past(trial: _Trial) -> Result:
    if trial.standing.failed is not None:
        return Result(trial.values, "failed", trial.scores)
    return Result(trial.values, "finished" if trial.standing.finished else "stopped", trial.scores)


def _of_first_rung(trial: _Trial, stop: int | None) -> Result:
    """What is known when the first rung is judged, whether or not more is known by now."""
    if stop is None or not trial.scores:
        return _of_past(trial)
    epoch, score = next(iter(trial.scores.items()))
    return Result(trial.values, "stopped", {epoch: score})


def _name(folder: Path) -> str:
    return f"trial {int(folder.name)}" if folder.name.isdigit() else folder.name.replace("-", " with seed ")


def _parsed(text: str) -> Params:
    return parse_params(read_yaml(text))


def _ignore_in_git() -> None:
    """Keep sweeps out of git, also in projects whose .gitignore is older than sweeps."""
    ignore = SWEEPS / ".gitignore"
    if not ignore.exists():
        write_text("*\n", ignore)
