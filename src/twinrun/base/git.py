"""The environment in which git is run."""

import os
import subprocess
from pathlib import Path

# Set by git for hooks, aliases and `git rebase --exec`: they name the repository, working tree and index of that git,
# in part relative to its folder, and not those of the folder that is asked about. As `git rev-parse --local-env-vars`
# lists them, without the settings in GIT_CONFIG_*.
_OF_A_REPOSITORY = frozenset(
    {
        *("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE", "GIT_PREFIX"),
        *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_IMPLICIT_WORK_TREE", "GIT_GRAFT_FILE"),
        *("GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_SHALLOW_FILE"),
    }
)


def git_environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment, and `more`, for a git that finds its repository by `folder` and answers in English.

    Where the folder lies in none, a repository that the environment names remains.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}
    if "GIT_DIR" in os.environ and not _lies_in_a_repository(folder, kept):
        kept = dict(os.environ)
        # Git would look for them from the folder in which it is run.
        kept |= {name: os.fspath(Path(kept[name]).resolve()) for name in ("GIT_DIR", "GIT_WORK_TREE") if name in kept}
    return {**kept, "LC_ALL": "C", **more}


def _lies_in_a_repository(folder: Path, env: dict[str, str]) -> bool:
    """Whether git finds one from the folder, even one that it cannot read."""
    command = ["git", "rev-parse", "--git-dir"]
    try:
        done = subprocess.run(command, cwd=folder, env={**env, "LC_ALL": "C"}, capture_output=True, check=False)
    except OSError:
        return True
    return b"not a git repository (" not in done.stderr
