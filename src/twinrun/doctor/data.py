"""Whether the outputs of the stages are complete and unchanged, in the workspace and in DVC's cache."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import RecordError
from twinrun.doctor.findings import Finding, Result, counted, shown
from twinrun.record.card import collect_dvc_lock, lock_faults, recorded_size
from twinrun.record.objects import Objects, file_md5, has_remote
from twinrun.record.records import folder_members

_UNFINISHED = ".tmp"  # the end of a name to which DVC copies a file that is to be in its cache
_COMPUTE = "dvc repro --force {0}"


def check(root: Path, deep: bool) -> Result:
    cache = Objects(root).cache
    if cache is None:
        return "", [Finding("this is not a DVC project", "dvc init")]
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
        return "" if findings else "no outputs in dvc.lock yet", findings
    findings += [*_gone(root, cache, outs), *_changed_source(root)]
    findings += _of_outputs(root, cache, outs, deep)
    if not deep:
        return "what dvc.lock names (--deep hashes it again)", findings
    files = [file for file in sorted(cache.glob("??/*")) if file.is_file() and not file.name.endswith(".changed")]
    makers = {md5: out.stage for out in outs for md5 in (out.md5, *out.members(cache).values())}
    damaged: dict[str | None, list[str]] = {}  # stage -> files
    for file in files:
        md5 = file.parent.name + file.name.removesuffix(".dir")
        if not file.name.endswith(_UNFINISHED) and file_md5(file) != md5:
            damaged.setdefault(makers.get(file.parent.name + file.name), []).append(shown(file, root))
    findings += [
        Finding(
            f"{name} in the DVC cache is damaged: its content is not what its name says",
            # Moved and not removed: images may be links to it.
            f"{_aside(names)}; "
            + ("dvc fetch --all-commits" if stage is None else _again(root).format(shlex.quote(stage))),
        )
        for stage, names in damaged.items()
        for name in names
    ]
    if left := [shown(file, root) for file in files if file.name.endswith(_UNFINISHED)]:
        problem = f"{counted(left, 'file')} left in the DVC cache by a dvc that was interrupted or found the disk full"
        findings.append(Finding(problem, f"rm -f {shlex.join(left)} (while no dvc is running)", harmless=True))
    return f"{len(files)} files hashed again", findings


def _aside(names: list[str]) -> str:
    if len(names) == 1:
        return shlex.join(["mv", names[0], f"{names[0]}.changed"])
    return f'for file in {shlex.join(names)}; do mv "$file" "$file.changed"; done'


@dataclass(frozen=True)
class _Out:
    """An output of a stage in dvc.lock: a file or a folder."""

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
    """Outputs that are in the cache and not in the workspace: DVC deleted them before a run that then failed."""
    gone = [out for out in outs if not os.path.lexists(root / out.path) and _cached(cache, out.md5).exists()]
    if gone:
        problem = f"{counted([out.path for out in gone], 'output')} in dvc.lock and not in the workspace"
        yield Finding(problem, shlex.join(["dvc", "checkout", *dict.fromkeys(out.stage for out in gone)]))


def _changed_source(root: Path) -> Iterator[Finding]:
    """Whether the number and the size of the images are still those that ingest read."""
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


def _of_outputs(root: Path, cache: Path, outs: list[_Out], deep: bool) -> Iterator[Finding]:
    """Outputs that the cache lacks or, if `deep`, that were changed; one command fixes all of a kind."""
    problems: dict[str, list[tuple[str, str]]] = {}  # command -> its targets and what is wrong with them
    for out in outs:
        for command, target, problem in _out_problems(root, cache, out, deep):
            problems.setdefault(command, []).append((target, problem))
    for command, affected in problems.items():
        fix = command.format(shlex.join(dict.fromkeys(target for target, _ in affected)))
        yield from (Finding(problem, fix) for _, problem in affected)


def _out_problems(root: Path, cache: Path, out: _Out, deep: bool) -> Iterator[tuple[str, str, str]]:
    """The command that fixes an output, with a place for its target; the target; the problem."""
    members = out.members(cache)
    changed = _changed_files(root / out.path, out.md5, members) if deep and (root / out.path).exists() else []
    lost = [name for name, md5 in members.items() if not _cached(cache, md5).exists()]
    if lost or not _cached(cache, out.md5).exists():
        affected = f"{counted([f'{out.path}/{name}' for name in lost], 'file')}" if lost else f"{out.path} is"
        here = (root / out.path).exists() and not changed
        problem = f"{affected} in dvc.lock and not in the DVC cache, so a twin would lack it"
        yield "dvc commit {}" if here else _again(root), out.stage, problem
    elif changed:
        affected = out.path if changed == [""] else f"{out.path} ({counted(changed, 'file').removesuffix(' is')})"
        yield "dvc checkout --force {}", out.path, f"{affected} was changed since {out.stage} wrote it"


def _changed_files(place: Path, md5: str, members: dict[str, str]) -> list[str]:
    """Names of changed, missing or additional files of an output by dvc.lock; "" is the output itself."""
    if not md5.endswith(".dir"):
        return [] if place.is_file() and file_md5(place) == md5 else [""]
    present = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()} if members else set()
    return sorted(
        name
        for name in present | members.keys()
        if name not in present or name not in members or file_md5(place / name) != members[name]
    )


def _cached(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _again(root: Path) -> str:
    """The commands that bring a stage's outputs back, with a place for its name."""
    return f"dvc pull {{0}}, or {_COMPUTE}" if has_remote(root) else _COMPUTE
