"""The environment in which git is run."""

import os

# Set by git for hooks, aliases and `git rebase --exec`: they name the repository, working tree and index of that git,
# in part relative to its folder, and not those of the folder that is asked about.
_OF_A_RUNNING_GIT = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_NAMESPACE"})


def git_environment(**more: str) -> dict[str, str]:
    """The environment, and `more`, for a git that finds its repository by its folder and answers in English."""
    kept = {name: value for name, value in os.environ.items() if name not in _OF_A_RUNNING_GIT}
    return {**kept, "LC_ALL": "C", **more}
