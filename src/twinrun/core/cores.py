"""The processor cores that this process may use."""

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def available_cores() -> int:
    """Number of processor cores that this process may use: those it may run on, and what its container may spend."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota(_GROUPS, _OWN_GROUP)
    return allowed if quota is None else min(allowed, quota)


def core_quota(groups: Path, own_group: Path) -> int | None:
    """How many cores' time Linux lets a process spend, rounded up (`docker --cpus`, a limit of Kubernetes); None: any.

    `groups` is where control groups are mounted, `own_group` the list of those that the process is in. A group's limit
    counts for the groups in it too.
    """
    quotas = [
        math.ceil(quota / period)
        for folder in _folders(groups, own_group)
        if (limit := _limit(folder)) is not None
        for quota, period in (limit,)
    ]
    return max(1, min(quotas)) if quotas else None


def _folders(groups: Path, own_group: Path) -> list[Path]:
    """The folders of the process's groups that may limit its time, of both versions of control groups."""
    folders = [groups, groups / "cpu", groups / "cpu,cpuacct"]  # inside a container, its own group
    try:
        lines = own_group.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return folders
    for line in lines:
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if controllers == "" or "cpu" in controllers.split(","):
            folder = Path(name.lstrip("/"))
            folders += [groups / controllers / each for each in (folder, *folder.parents)]
    return folders


def _limit(folder: Path) -> tuple[int, int] | None:
    """Time and period of a group, microseconds; None where it has no limit."""
    try:
        if (file := folder / "cpu.max").is_file():
            quota, period = file.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        limit = int(quota), int(period)
    except (OSError, ValueError):  # no such files, or "max"
        return None
    return limit if min(limit) > 0 else None
