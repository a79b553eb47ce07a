"""Where a project keeps its diary, and which process is alive. Light: no MLflow, nothing is created."""

import hashlib
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STATE = ".twinrun"
TWIN_VARIABLE, TWIN_OF = "TWINRUN_TWIN_OF", "twinrun.twin_of"  # marks a training as a twin; tag of its run
TWINS = Path(STATE, "twins")
_EXPERIMENTS = Path(".dvc", "tmp", "exps")


def home(folder: Path | None = None) -> Path:
    """The project's folder, absolute; for a workspace that is removed afterwards the outer project's.

    Such are .dvc/tmp/exps/<name>/, where DVC runs `dvc exp run --temp` or `--queue`, and .twinrun/twins/<name>/.
    """
    folder = (folder or Path.cwd()).resolve()
    for outer in folder.parents:
        if any(folder.is_relative_to(outer / inner) for inner in (_EXPERIMENTS, TWINS)):
            return outer
    return folder


def journals_folder(folder: Path | None = None) -> Path:
    """The folder that holds one folder for each journal that is not fully published."""
    return home(folder) / STATE / "journals"


def journal_folders(folder: Path | None = None) -> list[Path]:
    """The folders of the journals that are not fully published; not one that is being written (its name is hidden)."""
    journals = journals_folder(folder)
    entries = journals.iterdir() if journals.is_dir() else ()
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def may_be_resumed(journal_id: str, folder: Path | None = None) -> bool:
    """Whether a journal's training has checkpoints without a copy of the journal, so that the journal must stay.

    It may have said that it finished and been killed before dvc could record that.
    """
    project = home(folder)
    trials = project.glob(f"data/sweeps/*/*/*/resume/*/owner-{journal_id}")
    owners = [*(project / STATE / "resume").glob(f"*/owner-{journal_id}"), *trials]
    return any(not (owner.parent / "journal.jsonl").exists() for owner in owners)


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process, distinguishable from every later one with the same number."""

    host: str
    boot_id: str
    namespace: str
    pid: int
    started: float
    machine: str = ""

    def dead(self, here: "Process | None" = None) -> bool:
        """Whether this process has certainly ended; a process of another machine or container is never called dead.

        A host's name says little: two containers on a shared folder may have the same. After a restart only the
        machine's own id shows that it is this one. `here` is the process that asks, by default the running one.
        """
        here = here or this_process()
        if self.host != here.host or self.namespace != here.namespace:
            return False
        if self.boot_id != here.boot_id:
            return self.machine == here.machine != ""
        try:
            started = _started(self.pid)
        except ProcessLookupError:
            return True
        return started is not None and started != self.started


def this_process() -> Process:
    """The identity of the running process."""
    return Process(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0.0,
        machine=_machine(),
    )


def _machine() -> str:
    """The same after a restart, and another on each machine; empty where the machine does not say."""
    try:
        own = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
    # The id itself is not to be published: whoever knows it may derive others from it.
    return hashlib.sha256(f"twinrun {own}".encode()).hexdigest()[:16] if own else ""


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return str(int(psutil.boot_time()))


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _started(pid: int) -> float | None:
    """When the process started, in the machine's own unit, or None if this user may not read it.

    Raises ProcessLookupError if there is no such process or it is a zombie.
    """
    try:
        # After the name, which may hold spaces and brackets: state is the first field, the start, in ticks, the 20th.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except PermissionError:  # /proc is mounted with hidepid=1, and the process is another user's
        return None
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            _require_process(pid)  # with hidepid=2 it looks as if it did not exist
            return None
    else:
        if after_name[0] in "ZX":
            raise ProcessLookupError(f"process {pid} is a zombie")
        return float(after_name[19])
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.AccessDenied:
        return None
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(str(error)) from None


def _require_process(pid: int) -> None:
    """Raise ProcessLookupError unless the process exists, of whichever user it is."""
    with suppress(PermissionError):
        os.kill(pid, 0)
