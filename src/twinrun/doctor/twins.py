"""Worktrees that a killed `twinrun reproduce` left."""

import shlex
from pathlib import Path

from twinrun.doctor.findings import Finding, Result, shown
from twinrun.twins.worktree import abandoned


def check(root: Path) -> Result:
    folders = [shlex.quote(shown(folder, root)) for folder in abandoned(root)]
    return f"{len(folders)} left behind", [
        Finding(
            f"{folder} was left by a `twinrun reproduce` that was killed; the next one removes it",
            f"git worktree remove --force {folder}; rm -f {folder}.json",
        )
        for folder in folders
    ]
