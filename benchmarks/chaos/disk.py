"""A disk that fills up: projects on small file systems in memory. Needs a user that may mount one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.cases import Lab, Outcome, Row, repeat

_LARGE = "256m"
_BALLAST = "ballast"


def fill_disk(lab: Lab, n: int) -> Row:
    """Half of the cases begin on a disk of a given size, half on one that something else fills as training begins."""
    fault = "disk full"
    if os.geteuid() != 0 or not _may_mount(lab.folder / "mount"):
        return Row(fault=fault, stack=lab.stack.name, seed=lab.seed, left_out="needs a user that may mount a tmpfs")
    before = _size(lab.stack.template)
    after = _size(lab.folder / "undisturbed" / f"{lab.stack.name}-0" / "project")
    grown = max(after - before, 1)
    small = (n + 1) // 2
    tries = [_small_disk(lab, before + grown * (k + 1) // (small + 1)) for k in range(small)]
    tries += [_filled_disk(lab, before + 4 * grown, grown * k // max(n - small, 1)) for k in range(n - small)]
    return lab.try_all(fault, tries)


def _small_disk(lab: Lab, size: int) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        _mount(folder.parent, f"{_pages(size)}")
        try:
            project = lab.stack.project(folder)
            return _fail_then_repeat(lab, project, f"a disk of {size / 1e6:.2f} MB", left=None)
        finally:
            _unmount(folder.parent)

    return attempt


def _filled_disk(lab: Lab, size: int, left: int) -> Callable[[Path], Outcome]:
    def attempt(folder: Path) -> Outcome:
        _mount(folder.parent, f"{_pages(size)}")
        try:
            project = lab.stack.project(folder)
            return _fail_then_repeat(lab, project, f"{left / 1e6:.2f} MB left as training begins", left=left)
        finally:
            _unmount(folder.parent)

    return attempt


def _fail_then_repeat(lab: Lab, project: Path, moment: str, left: int | None) -> Outcome:
    # The log of the run is not to share the disk.
    logs = lab.folder / "logs"
    logs.mkdir(exist_ok=True)
    run = lab.stack.start(project, lab.stack.train, log=logs / f"{project.parent.name}-full.log")
    ballast = project.parent / _BALLAST
    if left is not None:
        run.wait_until(lambda: lab.stack.began(run))
        _fill(ballast, left)
    ended = run.finish()
    subprocess.run(["mount", "-o", f"remount,size={_LARGE}", str(project.parent)], check=True)
    ballast.unlink(missing_ok=True)
    outcome = repeat(lab, project, [ended], f"{moment}, exit code {ended.code}", lab.stack.train)
    if "Traceback" in ended.output() and lab.stack.name == "twinrun":
        return Outcome(**{**vars(outcome), "faults": (*outcome.faults, "a traceback"), "log": str(ended.log)})
    return outcome


def _fill(ballast: Path, left: int) -> None:
    system = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, system.f_bavail * system.f_frsize - left))
        except OSError:
            return


def _size(folder: Path) -> int:
    """Bytes that a folder takes in pages of 4 KiB, as in a tmpfs."""
    files = [path for path in folder.rglob("*") if not path.is_symlink()]
    return sum(_pages(path.stat().st_size) if path.is_file() else 4096 for path in files)


def _pages(size: int) -> int:
    return -(-size // 4096) * 4096


def _may_mount(folder: Path) -> bool:
    try:
        _mount(folder, "1m")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False
    _unmount(folder)
    return True


def _mount(folder: Path, size: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "chaos", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
