"""A check of the whole set-up. It looks and changes nothing; every finding names the command that fixes it."""

import os
import platform
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from twinrun.core.errors import RecordError, TwinrunError, os_problem
from twinrun.core.files import read_json
from twinrun.project.environment import CODE, outdated, stands_alone
from twinrun.record.card import (
    LOCK,
    NAMED_AS_SECRET,
    REINSTALL,
    collect_code,
    collect_dvc_lock,
    installed_versions,
    lock_faults,
    locked_versions,
    recorded_size,
)
from twinrun.record.home import STATE, journals_folder
from twinrun.record.journal import FILE, summarize
from twinrun.record.objects import Objects, file_md5
from twinrun.record.records import CardRecord, RegisteredRecord, folder_members, read_record
from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.left_running import left_running, running
from twinrun.tracking.lost import lost_from_database, published_states
from twinrun.tracking.presentation import short, titled
from twinrun.tracking.relocate import moved_from
from twinrun.tracking.replay import LOCK as PUBLISHER_LOCK
from twinrun.tracking.replay import Published, unpublished
from twinrun.tracking.store import (
    MLRUNS,
    URI_VARIABLE,
    Tracker,
    explaining,
    find_tracker,
    look_client,
    require_reachable,
)
from twinrun.tracking.translation import describe
from twinrun.twins.difference import compare_packages
from twinrun.twins.worktree import abandoned

CARD = Path("data/out/train/card.json")
REGISTERED = Path("data/out/register/registered.json")
_SHOWN = 6
_GIVEN_UP_S = 7 * 86400


@dataclass(frozen=True)
class Finding:
    """What is wrong, or, where it is `harmless`, only worth knowing; and the command that fixes it."""

    problem: str
    fix: str
    harmless: bool = False


@dataclass(frozen=True)
class Check:
    """One part of the set-up: what was looked at, and what was found."""

    name: str
    seen: str
    findings: tuple[Finding, ...]


def examine(root: Path, *, deep: bool = False) -> Iterator[Check]:
    """Check the project at `root`, part by part. `deep` hashes the DVC cache and data/out again, which takes its time.

    A part that cannot be looked at is a finding itself and does not keep the others from being looked at.
    """
    root = root.resolve()
    tracker = find_tracker(root)
    parts: list[tuple[str, Callable[[], tuple[str, list[Finding]]]]] = [
        ("code", lambda: _code(root)),
        ("params", lambda: _params(root)),
        ("source", lambda: _source(root)),
        ("environment", lambda: _environment(root)),
        ("dvc.yaml", lambda: _dependencies(root)),
        ("tracker", lambda: _tracker(tracker)),
        ("store", lambda: _store(tracker)),
        ("journals", lambda: _journals(tracker)),
        ("runs", lambda: _runs(tracker)),
        ("registry", lambda: _registry(root, tracker)),
        ("promotions", lambda: _promotions(tracker)),
        ("locks", lambda: _locks(root, tracker)),
        ("twins", lambda: _twins(root)),
        ("resume", lambda: _resume(root)),
        ("data", lambda: _data(root, deep)),
    ]
    for name, look in parts:
        try:
            seen, findings = look()
        except TwinrunError as error:
            seen, findings = "", [Finding(str(error).splitlines()[0], str(error).splitlines()[-1])]
        except Exception as error:  # one broken part must not hide the rest
            seen, findings = "", [_unseen(name, error, tracker)]
        yield Check(name, seen, tuple(findings))


def _unseen(name: str, error: Exception, tracker: Tracker) -> Finding:
    """A part that could not be looked at: the system and the store have remedies, the rest is our mistake."""
    if isinstance(error, OSError) and error.errno is not None:
        problem, _, remedy = os_problem(error).partition(". ")
        return Finding(problem, remedy or "check the disk (dmesg), then run again")
    if isinstance(error, sqlite3.Error):
        problem, _, remedy = describe(error, tracker.uri).partition(". ")
        return Finding(problem, remedy or "twinrun sync")
    kind = f"{type(error).__name__}: {error}"
    return Finding(f"{name} could not be looked at: {kind}", "report this line: it is a mistake of Twinrun, not yours")


def _code(root: Path) -> tuple[str, list[Finding]]:
    code = collect_code(root)
    findings = []
    secret = [name for name in code.secrets if code.secrets[name] == NAMED_AS_SECRET]
    others = [name for name in code.left_out if name not in code.secrets]
    if secret:  # first, so that no `git add -A` comes before it
        lines = " ".join(shlex.quote(f"/{name}") for name in secret)
        findings.append(
            Finding(
                f"{_counted(secret, 'file')} untracked, not ignored, and named as secrets are",
                f"printf '%s\\n' {lines} >> .gitignore",
            )
        )
    findings += [
        Finding(
            f"{name} is not in a run's card: {reason}",
            "move the secret out of it, or end the line with a comment: pragma: allowlist secret",
        )
        for name, reason in code.secrets.items()
        if name not in secret
    ]
    if code.diff:
        changed = sorted(
            {line.split(" b/", 1)[-1] for line in code.diff.splitlines() if line.startswith("diff --git ")}
        )
        findings.append(
            Finding(
                f"{_counted(changed, 'file')} not committed; a run's card keeps them as a patch",
                'git add -A && git commit -m "..."',
            )
        )
    if others:
        findings.append(
            Finding(
                f"{_counted(others, 'file')} untracked and no source, or too large for a card, so a twin would lack "
                "them",
                f"git add {' '.join(map(shlex.quote, others[:_SHOWN]))}, or list in .gitignore what no run needs",
            )
        )
    return f"commit {code.commit[:12]}", findings


def _params(root: Path) -> tuple[str, list[Finding]]:
    from twinrun.core.params import load_params

    params = load_params(root / "params.yaml")
    return f"{params.train.model} on {params.ingest.source}", []


def _source(root: Path) -> tuple[str, list[Finding]]:
    """Whether DVC can read, watch and share the images."""
    from twinrun.core.params import load_params
    from twinrun.ingest.sharing import OF_FILES, nearby, not_shared, obstacles, outside_advice

    ingest = load_params(root / "params.yaml").ingest
    if not (root / ingest.path).exists():
        remedy = "put the images there, fetch them with dvc pull, or set ingest.path"
        problem = f"{ingest.path} (params.yaml: ingest.path) does not exist.{nearby(root, ingest.path)}".rstrip(".")
        return ingest.path, [Finding(problem, remedy)]
    findings = [Finding(each.problem, each.remedy) for each in obstacles(root / ingest.path)]
    if ingest.source in OF_FILES:
        unshared = not_shared(root, ingest.path) or outside_advice(root, ingest.path)
        findings += [Finding(unshared.problem, unshared.remedy, harmless=True)] if unshared else []
    return ingest.path, findings


def _environment(root: Path) -> tuple[str, list[Finding]]:
    if stands_alone(root):
        findings = [Finding(f"{name} is not of what is installed", "dvc status") for name in outdated(root)]
        return f"{CODE} and {LOCK}", [*findings, *_python(root)]
    lock = root / LOCK
    if not lock.is_file():
        return "", [Finding(f"{LOCK} is missing, so no run can name its environment", "make lock")]
    locked = locked_versions(lock.read_text(encoding="utf-8"))
    changes = compare_packages(locked, installed_versions())
    findings = []
    if differing := [c for c in changes if c.before is not None]:
        text = _counted([f"{c.name} {c.after or 'missing'} (locked: {c.before})" for c in differing], "package")
        findings.append(Finding(f"{text} not as {LOCK} says", REINSTALL))
    if extra := [c for c in changes if c.before is None]:
        text = _counted([f"{c.name} {c.after}" for c in extra], "package")
        findings.append(Finding(f"{text} installed and not in {LOCK}", REINSTALL))
    return f"{len(locked)} packages in {LOCK}", [*findings, *_python(root)]


def _python(root: Path) -> Iterator[Finding]:
    """Whether the model in data/out was trained with the Python that runs here."""
    card = read_record(CardRecord, root / CARD, root) or {}
    if (trained := card.get("environment", {}).get("python")) is None:
        return
    here, series = platform.python_version(), ".".join(trained.split(".")[:2])
    if trained != here:
        yield Finding(
            f"the model in data/out/train was trained with Python {trained}; this is {here}",
            f"install Twinrun for python{series}"
            if stands_alone(root)
            else f"rm -rf .venv && make setup PYTHON=python{series}",
            harmless=here.startswith(f"{series}."),
        )


def _dependencies(root: Path) -> tuple[str, list[Finding]]:
    from twinrun.core.dependencies import unlisted_imports

    findings = []
    for stage, (missing, superfluous) in unlisted_imports(root).items():
        wrong = [f"add {', '.join(missing)}"] if missing else []
        wrong += [f"remove {', '.join(superfluous)}"] if superfluous else []
        findings.append(
            Finding(
                f"the deps of {stage} are not what pipeline/{stage}.py imports: {'; '.join(wrong)}", "edit dvc.yaml"
            )
        )
    return "deps and imports", findings


def _tracker(tracker: Tracker) -> tuple[str, list[Finding]]:
    try:
        require_reachable(tracker)
    except TwinrunError as error:
        return tracker.shown, [Finding(str(error).splitlines()[0], f"unset {URI_VARIABLE}, or start the server")]
    if tracker.database is not None and tracker.database.is_file():
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            fix = f"sqlite3 {tracker.database} .recover | sqlite3 recovered.db"
            return tracker.shown, [Finding(f"{tracker.database} is damaged: {found}", fix)]
    return tracker.shown, []


def _store(tracker: Tracker) -> tuple[str, list[Finding]]:
    """Whether the local store still lies where its database says."""
    if tracker.database is None or not tracker.database.is_file():
        return "nothing local", []
    folder = tracker.database.parent
    return str(folder), [
        Finding(
            f"the store was moved here from {before}, so MLflow cannot find its artifacts",
            "python -m twinrun.tracking.relocate",
        )
        for before in sorted(moved_from(folder))
    ]


def _journals(tracker: Tracker) -> tuple[str, list[Finding]]:
    folders = _journal_folders(tracker)
    findings = []
    for folder in folders:
        try:
            summary, fault = summarize(folder / FILE), "it holds no event"
        except RecordError as error:
            summary, fault = None, str(error).splitlines()[0]
        if summary is None:
            problem = f"{_shown(folder, tracker.home)} holds no journal that can be read: {fault}"
            findings.append(Finding(problem, f"rm -r {shlex.quote(_shown(folder, tracker.home))}"))
            continue
        state = Published.load(tracker, folder.name)
        title = state.title(summary.name)
        if summary.dead() and state.killed_at is None:
            findings.append(
                Finding(f"the training {title} was left by process {summary.process.pid}, dead", "twinrun sync")
            )
        elif (waiting := unpublished(folder, tracker)) and summary.ended is not None:
            findings.append(Finding(f"{waiting} events of {title} are not yet in MLflow", "twinrun sync"))
    return f"{len(folders)} waiting", [*findings, *_refused(tracker)]


def _refused(tracker: Tracker) -> Iterator[Finding]:
    """Events that MLflow would not take."""
    for file in sorted(tracker.state.glob("*.json")):
        state = Published.load(tracker, file.stem)
        if state.refused and not state.deleted:
            events = f"{state.refused} event{'' if state.refused == 1 else 's'}"
            yield Finding(
                f"MLflow refused {events} of run {short(state.run_id or '')}; to send all of it again:",
                f"rm {shlex.quote(_shown(file, tracker.home))}; twinrun sync",
                harmless=True,
            )


def _runs(tracker: Tracker) -> tuple[str, list[Finding]]:
    """Runs that MLflow believes to be running and whose process is dead, without a journal that says so."""
    findings = []
    if lost := lost_from_database(tracker, published_states(tracker)):
        number = len({state.run_id for state in lost})
        runs = "1 run that was" if number == 1 else f"{number} runs that were"
        problem = f"{tracker.shown} lacks {runs} published to it: the database was replaced, or runs were removed"
        findings.append(Finding(problem, "twinrun sync"))
    if tracker.database is not None and not tracker.database.is_file():
        return "none yet", findings
    require_reachable(tracker)
    with explaining(tracker):
        client = look_client(tracker)
        number = len(running(client, tracker))
        findings += [
            Finding(
                f"MLflow shows {titled(run.info.run_name, run.info.run_id)} as running, but its process {process.pid} "
                "is dead",
                "twinrun sync",
            )
            for run, process in left_running(client, tracker)
        ]
    return f"{number} running", findings


def _registry(root: Path, tracker: Tracker) -> tuple[str, list[Finding]]:
    """Whether the version that DVC believes registered is in the registry."""
    from twinrun.tracking.registry import Registry, how_to_register

    if not (root / REGISTERED).is_file():
        return "nothing registered yet", []
    facts = read_record(RegisteredRecord, root / REGISTERED, root) or {}
    versions = []
    if tracker.database is None or tracker.database.is_file():
        versions = Registry(tracker, facts["name"], only_looking=True).versions()
    if any(each.version == facts["version"] and each.weights_hash == facts["weights_hash"] for each in versions):
        return f"version {facts['version']} of {facts['name']}", []
    problem = f"{REGISTERED} names version {facts['version']} of {facts['name']}, which {tracker.shown} lacks"
    return "", [Finding(problem, how_to_register(root))]


def _promotions(tracker: Tracker) -> tuple[str, list[Finding]]:
    """Whether the journal of promotions can be read, and every change in it was ended."""
    from twinrun.tracking.promotions import PROMOTIONS, Promotions

    entries, problems = Promotions(tracker.home / MLRUNS / PROMOTIONS).read()
    findings = [Finding(problem, f"remove that line from {MLRUNS}/{PROMOTIONS}") for problem in problems]
    for each in entries:
        if each.outcome is None:
            problem = f"the {each.action} of {each.model} to version {each.after} ({each.time}) was cut off"
            fix = f"twinrun history --model {shlex.quote(each.model)}"  # which asks the registry how it ended
            findings.append(Finding(problem, fix))
    return f"{len(entries)} recorded", findings


def _locks(root: Path, tracker: Tracker) -> tuple[str, list[Finding]]:
    """Locks that a process holds just now."""
    files = [
        root / STATE / "train.lock",
        tracker.home / MLRUNS / "registry.lock",
        tracker.state / "sync.lock",
        *(folder / PUBLISHER_LOCK for folder in _journal_folders(tracker)),
    ]
    held = [(file, _holder(file)) for file in files if file.is_file()]
    findings = [Finding(f"{_shown(file, root)} is held {by[1]}", _ending(by[0])) for file, by in held if by is not None]
    for pid, command in _dvc_holders(root):
        findings.append(Finding(f"DVC's lock is held by process {pid} ({command}){_age(pid)}", _ending(pid)))
    return f"{len(files)} looked at", findings


def _holder(file: Path) -> tuple[int | None, str] | None:
    """Who holds a lock file, and for how long, as far as that can be told; None where nobody does."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(file, timeout=0):
            return None
    except Timeout:
        pass
    holder = file.with_name("train.holder.json")
    if file.name == "train.lock":
        facts = read_json(holder)
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            trainer, age_s = int(facts["pid"]), time.time() - float(facts["started"])
            return trainer, f"by the training of process {trainer}, for {_duration(age_s)}"
    pid = _who_has_open(file)
    return pid, f"by process {pid}{_age(pid)}" if pid else "by another process"


def _who_has_open(file: Path) -> int | None:
    import psutil

    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(psutil.Error, OSError):
            if any(each.path == str(file.resolve()) for each in process.open_files()):
                return int(process.pid)
    return None


def _dvc_holders(root: Path) -> set[tuple[int, str]]:
    import psutil

    lock = read_json(root / ".dvc" / "tmp" / "rwlock")
    try:
        infos = [*lock.get("write", {}).values(), *(info for infos in lock.get("read", {}).values() for info in infos)]
        return {(int(i["pid"]), str(i.get("cmd"))) for i in infos if i and psutil.pid_exists(int(i["pid"]))}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):  # not what DVC writes
        return set()


def _twins(root: Path) -> tuple[str, list[Finding]]:
    folders = [shlex.quote(_shown(folder, root)) for folder in abandoned(root)]
    return f"{len(folders)} left behind", [
        Finding(
            f"{folder} was left by a `twinrun reproduce` that was killed; the next one removes it",
            f"git worktree remove --force {folder}; rm -f {folder}.json",
        )
        for folder in folders
    ]


def _resume(root: Path) -> tuple[str, list[Finding]]:
    """Checkpoints of trainings that nobody has gone on with."""
    resume = root / STATE / "resume"
    folders = sorted(each for each in resume.iterdir() if each.is_dir()) if resume.is_dir() else []
    findings: list[Finding] = []
    lock = root / STATE / "train.lock"
    if lock.is_file() and _holder(lock) is not None:  # whatever the clock says, its checkpoints are in use
        return f"{len(folders)} to go on with, a training is running", findings
    for folder in folders:
        stats = [path.stat() for path in (folder, *folder.rglob("*"))]
        age_s = time.time() - max(each.st_mtime for each in stats)
        if age_s > _GIVEN_UP_S:
            size = sum(each.st_size for each in stats) / 1e6
            shown = shlex.quote(_shown(folder, root))
            problem = f"{shown} ({size:.1f} MB) is of a training that was left {_duration(age_s)} ago"
            findings.append(Finding(problem, f"rm -r {shown}", harmless=True))
    unfinished = [folder for folder in folders if not (folder / FILE).exists()]
    if not unfinished:
        return "none to go on with", findings
    shown = shlex.quote(_shown(unfinished[0] if len(unfinished) == 1 else resume, root))
    what = f"{len(unfinished)} stopped training{'' if len(unfinished) == 1 else 's'}"
    return f"{what}; with its settings dvc repro goes on; to forget: rm -r {shown}", findings


def _data(root: Path, deep: bool) -> tuple[str, list[Finding]]:
    cache = Objects(root).cache
    if cache is None:
        return "", [Finding("this is no DVC project", "dvc init")]
    outs = [
        _Out(stage, path, md5)
        for stage, facts in collect_dvc_lock(root).items()
        for path, md5 in facts.get("outs", {}).items()
        if md5
    ]
    findings = [
        Finding(f"dvc.lock cannot be used: {fault}", "git checkout --ours dvc.lock (or --theirs), then dvc repro")
        for fault in lock_faults(root)
    ]
    if not outs:
        return "no outputs in dvc.lock yet", findings
    findings += [*_gone(root, cache, outs), *_changed_source(root)]
    findings += [finding for out in outs for finding in _out_findings(root, cache, out, deep)]
    if not deep:
        return "what dvc.lock names (--deep hashes it again)", findings
    files = [file for file in sorted(cache.glob("??/*")) if file.is_file() and not file.name.endswith(".changed")]
    makers = {md5: out.stage for out in outs for md5 in (out.md5, *out.members(cache).values())}
    findings += [
        Finding(
            f"{_shown(file, root)} in the DVC cache is damaged: its content is not what its name says",
            f"rm -f {shlex.quote(_shown(file, root))}; {_again(makers.get(file.parent.name + file.name))}",
        )
        for file in files
        if file_md5(file) != file.parent.name + file.name.removesuffix(".dir")
    ]
    return f"{len(files)} files hashed again", findings


@dataclass(frozen=True)
class _Out:
    """What a stage wrote, as dvc.lock has it: a file or a folder."""

    stage: str
    path: str
    md5: str

    def members(self, cache: Path) -> dict[str, str]:
        """Path below the folder -> MD5 of each of its files; empty for a file, and where the list itself is damaged."""
        if not self.md5.endswith(".dir"):
            return {}
        try:
            return folder_members(_cached(cache, self.md5).read_bytes(), self.path)
        except (OSError, RecordError):
            return {}


def _gone(root: Path, cache: Path, outs: list[_Out]) -> Iterator[Finding]:
    """Outs that the cache has and the workspace lacks: DVC had deleted them for a run that failed."""
    gone = [out for out in outs if not os.path.lexists(root / out.path) and _cached(cache, out.md5).exists()]
    if gone:
        problem = f"{_counted([out.path for out in gone], 'output')} in dvc.lock and not in the workspace"
        yield Finding(problem, f"dvc checkout {' '.join(dict.fromkeys(out.stage for out in gone))}")


def _changed_source(root: Path) -> Iterator[Finding]:
    """Whether the images are still as many, and as many bytes, as when ingest read them."""
    from twinrun.core.params import load_params
    from twinrun.ingest.sharing import OF_FILES

    ingest = load_params(root / "params.yaml").ingest
    path, recorded = ingest.path, recorded_size(root, "ingest", ingest.path)
    if ingest.source not in OF_FILES or recorded is None or not (root / path).is_dir():
        return
    files = [Path(folder, name) for folder, _, names in os.walk(root / path) for name in names]
    sizes = [file.stat().st_size for file in files if file.is_file()]
    if (sum(sizes), len(sizes)) != recorded:
        before, now = _files(*recorded), _files(sum(sizes), len(sizes))
        problem = f"{path} was changed since ingest read it: it had {before}, and has {now}"
        yield Finding(problem, "dvc repro", harmless=True)


def _files(size: int, number: int) -> str:
    return f"{number:,} file{'' if number == 1 else 's'} of {size:,} bytes"


def _out_findings(root: Path, cache: Path, out: _Out, deep: bool) -> Iterator[Finding]:
    """Whether an out is whole in the cache, and, if `deep`, whether it still is in the workspace what it was."""
    members = out.members(cache)
    changed = _changed_files(root / out.path, out.md5, members) if deep and (root / out.path).exists() else []
    lost = [name for name, md5 in members.items() if not _cached(cache, md5).exists()]
    if lost or not _cached(cache, out.md5).exists():
        what = f"{_counted([f'{out.path}/{name}' for name in lost], 'file')}" if lost else f"{out.path} is"
        here = (root / out.path).exists() and not changed
        yield Finding(
            f"{what} not in the DVC cache, as dvc.lock names it, so no twin can have it",
            f"dvc commit {out.stage}" if here else _again(out.stage),
        )
    elif changed:
        what = out.path if changed == [""] else f"{out.path} ({_counted(changed, 'file').removesuffix(' is')})"
        yield Finding(f"{what} was changed since {out.stage} wrote it", f"dvc checkout --force {out.path}")


def _changed_files(place: Path, md5: str, members: dict[str, str]) -> list[str]:
    """Names of files below an out that are not what dvc.lock says, or should not be there; "" is the out itself."""
    if not md5.endswith(".dir"):
        return [] if place.is_file() and file_md5(place) == md5 else [""]
    found = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()} if members else set()
    return sorted(
        name
        for name in found | members.keys()
        if name not in found or name not in members or file_md5(place / name) != members[name]
    )


def _cached(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _again(stage: str | None) -> str:
    return f"dvc pull {stage}, or dvc repro --force {stage}" if stage else "dvc fetch --all-commits"


def _journal_folders(tracker: Tracker) -> list[Path]:
    folder = journals_folder(tracker.home)
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _ending(pid: int | None) -> str:
    return "wait for it to end" if pid is None else f"wait for it to end, or: kill {pid}"


def _age(pid: int | None) -> str:
    import psutil

    if pid is None:
        return ""
    try:
        return f", which began {_duration(time.time() - psutil.Process(pid).create_time())} ago"
    except psutil.Error:
        return ""


def _duration(seconds: float) -> str:
    seconds = max(0.0, seconds)  # a clock that was set back
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _counted(names: list[str], noun: str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    verb = "is" if len(names) == 1 else "are"
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({', '.join(names[:_SHOWN])}{more}) {verb}"


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
