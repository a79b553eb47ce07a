"""A second workspace at a run's commit, in .twinrun/twins/, that goes away again."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from twinrun.base.errors import RepositoryError
from twinrun.base.files import explained, read_json, write_json
from twinrun.record.card import run_git
from twinrun.record.home import TWINS, Process, this_process
from twinrun.record.records import process_from


def require_commit(root: Path, commit: str) -> None:
    """Raise RepositoryError, with what to do, where the repository does not hold `commit`."""
    if run_git(root, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise RepositoryError(
            f"The commit {commit} is not in this repository, so the run's code is missing.\n"
            f"It may be in another clone: git fetch --all (or git fetch REMOTE {commit}), and run again."
        )


def file_at(root: Path, commit: str, name: str) -> bytes | None:
    """The content of the project's file `name` as of `commit`; None where there is none."""
    answer = run_git(root, "show", f"{commit}:./{name}")
    return None if answer.returncode else answer.stdout.encode("utf-8", "surrogateescape")


def changed_files(root: Path, before: str, after: str) -> list[str] | None:
    """Files that differ between two commits, dvc.lock left out: "M src/a.py (+3 -1)", with the lines added and removed.

    None where one of the commits is gone.
    """
    if before == after:
        return []
    place = (before, after, "--", ".", ":(exclude,glob)**/dvc.lock")
    names, counts = (run_git(root, "diff", kind, "--no-renames", *place) for kind in ("--name-status", "--numstat"))
    if names.returncode or counts.returncode:
        return None
    statuses = (line.partition("\t")[0] for line in names.stdout.split("\n") if line)
    return [f"{status} {file}" for status, file in zip(statuses, _counted(counts.stdout), strict=True)]


def patched_files(root: Path, patch: str) -> list[str]:
    """Files that a patch changes, with the lines added and removed; empty where git cannot read it."""
    listing = ("apply", "--whitespace=nowarn", "--numstat", "-")
    answer = run_git(root, *listing, stdin=patch.encode("utf-8", "surrogateescape"))
    return [] if answer.returncode else _counted(answer.stdout)


def _counted(numstat: str) -> list[str]:
    """Each line of `git diff --numstat` for a person; a binary file has no lines that could be counted."""
    rows = [line.split("\t", 2) for line in numstat.split("\n") if line]
    return [f"{path} (binary)" if added == "-" else f"{path} (+{added} -{gone})" for added, gone, path in rows]


@contextmanager
def worktree(root: Path, *, name: str, commit: str, diff: str, keep: bool) -> Iterator[Path]:
    """Check out `commit` with the patch `diff` below .twinrun/twins/ and yield the project's folder in it.

    It is always removed afterwards, unless `keep`. Raises RepositoryError where the patch does not apply.
    """
    sweep(root)
    folder = root / TWINS / f"{name}-{uuid.uuid4().hex[:6]}"
    with explained(folder):
        write_json({"process": asdict(this_process()), "keep": keep}, _owner_file(folder))
    try:
        added = run_git(
            root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force", str(folder), commit
        )
        if added.returncode:
            raise RepositoryError(f"git could not check out {commit} in {folder}: {added.stderr.strip()}")
        if diff:
            patch = diff.encode("utf-8", "surrogateescape")
            applied = run_git(folder, "apply", "--whitespace=nowarn", "-", stdin=patch)
            if applied.returncode:
                raise RepositoryError(
                    f"The run's uncommitted changes do not apply to its commit {commit[:12]}: {applied.stderr.strip()}"
                )
        yield folder / run_git(root, "rev-parse", "--show-prefix").stdout.removesuffix("\n")
    finally:
        if not keep or not folder.exists():
            remove(root, folder)


def remove(root: Path, folder: Path) -> None:
    """Remove a worktree and git's memory of it.

    No `git worktree prune`, which forgets all worktrees that are not there now, such as one on a disk that is not
    mounted. Twice forced, since git locks a worktree while it is created.
    """
    forget = ("worktree", "remove", "--force", "--force", str(folder))
    run_git(root, *forget)
    shutil.rmtree(folder, ignore_errors=True)
    run_git(root, *forget)  # where git could not remove the folder
    _owner_file(folder).unlink(missing_ok=True)


def sweep(root: Path) -> None:
    """Remove the worktrees whose process died before it could."""
    for folder in abandoned(root):
        remove(root, folder)


def abandoned(root: Path) -> list[Path]:
    """Worktrees that nobody keeps and whose process is dead."""
    worktrees = []
    for file in sorted((root / TWINS).glob("*.json")):
        owner = _owner(file)
        if owner is not None and owner.dead():
            worktrees.append(file.with_suffix(""))
    return worktrees


def _owner_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _owner(file: Path) -> Process | None:
    """The process that removes a worktree; None where a person keeps it, or that is unknown."""
    owner = read_json(file)
    return process_from(owner.get("process")) if owner.get("keep") is False else None
