"""The run card: all that is needed to train a model again elsewhere. No MLflow, no torch.

Training passes in what only it knows: GPU, precision, fingerprint.
"""

import errno
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from twinrun.base.errors import RepositoryError, os_problem
from twinrun.base.files import file_sha256
from twinrun.base.git import git_environment
from twinrun.base.printing import one_line
from twinrun.core.yaml import conflict_line, read_yaml
from twinrun.record.records import read_lock
from twinrun.record.secret_scan import find_secret, is_secret

LOCK = "requirements.lock"
DVC_LOCK = "dvc.lock"
_UNREADABLE = object()
# Without the file .made-from, `make setup` installs again.
REINSTALL = "rm -f .venv/.made-from && make setup"
LARGEST_TAKEN_BYTES = 1_000_000
ALL_TAKEN_BYTES = 5_000_000

# Untracked files that a patch includes: of these kinds, below these folders or named in dvc.yaml.
_SOURCES = {".py", ".pyi", ".ipynb", ".yaml", ".yml", ".toml", ".lock", ".cfg", ".ini", ".json"}
_SOURCES |= {".sh", ".jinja", ".html", ".css", ".js", ".md", ".txt"}
_SOURCE_FOLDERS = ("pipeline", "src", "networks")
_SOURCE_FILES = frozenset({"dvc.yaml", "params.yaml"})
_NAMED = 100
NAMED_AS_SECRET = "it is named as secrets are"
_CHANGED_AND_NAMED_AS_SECRET = f"{NAMED_AS_SECRET} and its changes are not committed"
_NVIDIA_SMI_S = 20

# `git diff` in the form that `git apply` reads, whatever the user's settings and the attributes of files say.
_DIFF = (
    *("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--submodule=short"),
    *("--src-prefix=a/", "--dst-prefix=b/", "-U3"),
)

# Those that decide which kernels a numeric library picks, and so the last bits of a result.
_NUMERIC_FLAGS = re.compile(r"avx\w*|amx_\w+|fma|f16c|sse4_[12]|asimd\w*|bf16|i8mm|sve\w*|sme2?")


@dataclass(frozen=True)
class Code:
    """The source of a run: a commit and what differed from it.

    `diff` is a patch for `git apply`, of changed files and of the untracked source files in `taken`, without dvc.lock.
    `secrets` maps files that look like secrets to the reason; their changes are not in the patch. `left_out` names
    these, tracked files with too large changes, and the other untracked files. `tracked` names those of them that git
    knows. All names are relative to the top folder of the repository.
    """

    commit: str
    dirty: bool
    diff: str
    left_out: tuple[str, ...]
    taken: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    tracked: frozenset[str] = frozenset()

    def lines(self) -> list[str]:
        """For a person: what goes into the card, and what does not."""
        lines = []
        if self.taken:
            lines.append(f"Untracked code that goes into the run's card: {_some(self.taken)}.")
        for name, reason in self.secrets.items():
            lines.append(
                f"Not in the run's card: {one_line(name)}, since {reason}. A twin will lack this change. Move the "
                "secret out of the file, or commit the change if it has none."
            )
        if large := [name for name in self.left_out if name in self.tracked and name not in self.secrets]:
            lines.append(
                f"Too large for the run's card: the changes of {_some(large)}. A twin will lack them; commit them."
            )
        return lines


def collect_code(root: Path, untracked: Literal["none", "code"] = "code") -> Code:
    """Read the state of the git repository at `root`; `untracked` says whether the patch includes untracked code.

    Raises RepositoryError, with what to do, where git is missing, `root` is not a repository or has no commit.
    """
    place = run_git(root, "rev-parse", "--git-dir")
    if place.returncode and "not a git repository (" not in place.stderr:
        is_lost = "not a git repository: " in place.stderr  # the file .git of a worktree or submodule names a folder
        remedy = f"\nIf that was moved, run in its new place: git worktree repair {shlex.quote(str(root.resolve()))}"
        raise RepositoryError(
            f"git cannot read the repository at {root.resolve()}, so the code of a model could not be recorded.\n"
            f"It says: {place.stderr.strip()}{remedy if is_lost else ''}"
        )
    if place.returncode:
        git_error = place.stderr.strip()
        raise RepositoryError(
            f"{root.resolve()} is not a git repository, so the code of a model could not be recorded ({git_error}).\n"
            'Make it one: git init && git add -A && git commit -m "Begin"'
        )
    head = run_git(root, "rev-parse", "--verify", "HEAD")
    if head.returncode:
        raise RepositoryError(
            f"The git repository at {root.resolve()} has no commit yet, so the code of a model could not be recorded.\n"
            'Make one: git add -A && git commit -m "Begin"'
        )
    top = repository_top(root)
    others = run_git(top, "ls-files", "--others", "--exclude-standard", "-z").stdout
    prefix = run_git(root, "rev-parse", "--show-prefix").stdout.removesuffix("\n")
    taken, left_out, secrets = _choose(top, prefix, sorted(filter(None, others.split("\0"))), untracked)
    with full_index(top) as index:
        changed, large = _changes_to_leave_out(top, index)
        diff = _patch(top, taken, [*changed, *large], index)
    # After `git rm --cached` a file is both: deleted from the index, and untracked.
    tracked = frozenset([*changed, *large])
    taken = [name for name in taken if name not in tracked]
    secrets, left_out = {**changed, **secrets}, list(dict.fromkeys([*changed, *large, *left_out]))
    return Code(head.stdout.strip(), bool(diff or left_out), diff, tuple(left_out), tuple(taken), secrets, tracked)


def _choose(
    top: Path, prefix: str, untracked: list[str], policy: Literal["none", "code"]
) -> tuple[list[str], list[str], dict[str, str]]:
    """The untracked files that a patch includes, those that it leaves out, and why some of these look like secrets."""
    taken, left_out, secrets, total = [], [], {}, 0
    named = _named_in_dvc_yaml(top / prefix)
    for name in untracked:
        file = top / name
        if name.endswith("/") and not _is_worktree(top, file):  # a repository of which git lists no files
            left_out.append(name)
        if file.name == DVC_LOCK or not file.is_file():
            continue
        size = 0 if file.is_symlink() else file.stat().st_size
        fits = size <= LARGEST_TAKEN_BYTES and total + size <= ALL_TAKEN_BYTES
        inside = name.startswith(prefix) and _is_source(name.removeprefix(prefix), named)
        if is_secret(name):
            secrets[name] = NAMED_AS_SECRET
        elif policy == "code" and inside and fits and not file.is_symlink() and os.access(file, os.R_OK):
            if (reason := find_secret(file)) is None:
                taken.append(name)
                total += size
                continue
            secrets[name] = reason
        left_out.append(name)
    return taken, left_out, secrets


def _is_worktree(top: Path, folder: Path) -> bool:
    """Whether `folder` is a worktree of the repository at `top`, as `git worktree add` creates."""
    try:
        place = (folder / ".git").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # a folder
        return False
    of_repository = top / run_git(top, "rev-parse", "--git-common-dir").stdout.removesuffix("\n")
    own = folder / place.removeprefix("gitdir: ").removesuffix("\n")
    return own.resolve().parent == of_repository.resolve() / "worktrees"


def _is_source(name: str, named: frozenset[str]) -> bool:
    """Whether a stage could have used the file of this name in the project."""
    if PurePosixPath(name).suffix.lower() not in _SOURCES:
        return False
    folders = {str(parent) for parent in PurePosixPath(name).parents}
    return name in named | _SOURCE_FILES or bool(folders & {*_SOURCE_FOLDERS, *named})


def _named_in_dvc_yaml(root: Path) -> frozenset[str]:
    """The files and folders that stages depend on in dvc.yaml, except data, which DVC stores itself."""
    from ruamel.yaml.error import YAMLError

    try:
        content = read_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
        stages = content["stages"].values()
        deps = {dep for stage in stages for dep in stage.get("deps", []) if isinstance(dep, str)}
    except (OSError, ValueError, YAMLError, KeyError, TypeError, AttributeError):
        return frozenset()
    return frozenset(dep for dep in deps if not dep.startswith(("data/", "$")))


def _changes_to_leave_out(top: Path, index: Path) -> tuple[dict[str, str], list[str]]:
    """Tracked files with uncommitted changes, deleted files included, that a patch does not hold.

    Those that look like secrets, and why; and those whose changes are too large.
    """
    names = _compared(run_git(top, "diff", "--name-only", "--no-renames", "-z", "HEAD", "--", index=index))
    counts = _compared(run_git(top, *_DIFF, "--numstat", "--no-renames", "-z", "HEAD", "--", index=index)).split("\0")
    binary = {count.removeprefix("-\t-\t") for count in counts if count.startswith("-\t-\t")}
    secrets: dict[str, str] = {}
    large, total = [], 0  # bytes of binary files
    for name in filter(None, names.split("\0")):
        file = PurePosixPath(name)
        if file.name == DVC_LOCK:
            continue
        if is_secret(name) and file.suffix not in (".py", ".pyi"):  # code of that name is judged by what it holds
            secrets[name] = _CHANGED_AND_NAMED_AS_SECRET
            continue
        if total > ALL_TAKEN_BYTES and name in binary and file.suffix.lower() not in _SOURCES:
            large.append(name)  # without a git for each of thousands of images
            continue
        # As text, whatever its attributes say: a binary patch would hold it all the same.
        compare = ("--literal-pathspecs", *_DIFF, "--text", "HEAD", "--", name)
        patch = _compared(run_git(top, *compare, index=index))
        is_binary = "\0" in patch
        total += len(patch) if is_binary else 0
        if len(patch) > LARGEST_TAKEN_BYTES or (is_binary and total > ALL_TAKEN_BYTES):
            large.append(name)
        elif not is_binary and (reason := _secret_in(patch, file.name)) is not None:
            secrets[name] = reason
    return secrets, large


def _secret_in(patch: str, name: str) -> str | None:
    """Where the patch of a file called `name` looks like a secret, in removed lines and in context too."""
    with tempfile.TemporaryDirectory() as folder:
        changes = Path(folder, name)
        changes.write_text("\n".join(line[1:] for line in patch.splitlines()), "utf-8", "surrogateescape")
        reason = find_secret(changes)
    return None if reason is None else reason.replace("looks", "of its changes looks", 1)


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(one_line, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _patch(top: Path, untracked: list[str], without: list[str], index: Path) -> str:
    """What differs from HEAD, the given untracked files included, which are marked in `index`."""
    excluded = [f":(exclude,glob)**/{DVC_LOCK}", *(f":(exclude,literal){name}" for name in without)]
    if untracked:
        names = "\0".join(untracked).encode("utf-8", "surrogateescape")
        marking = ("add", "--intent-to-add", "--pathspec-from-file=-", "--pathspec-file-nul")
        marked = run_git(top, "--literal-pathspecs", *marking, stdin=names, index=index)
        if marked.returncode:
            raise RepositoryError(f"git could not compare the untracked files in {top}: {marked.stderr.strip()}")
    return _compared(run_git(top, *_DIFF, "--binary", "HEAD", "--", ".", *excluded, index=index))


def repository_top(folder: Path) -> Path:
    """The top folder of the repository that `folder` lies in."""
    return Path(run_git(folder, "rev-parse", "--show-toplevel").stdout.removesuffix("\n"))


@contextmanager
def full_index(top: Path) -> Iterator[Path]:
    """A temporary copy of the index of the repository at `top`, with which git sees the changes of all files.

    In the index itself, `git update-index --assume-unchanged` or `--skip-worktree` may hide the changes of some.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        with suppress(FileNotFoundError):
            # With its time: git uses it to notice files that changed in the second in which the index was written.
            shutil.copy2(top / run_git(top, "rev-parse", "--git-path", "index").stdout.rstrip("\n"), index)
        names = "\0".join(hidden := hidden_files(top)).encode("utf-8", "surrogateescape")
        for flag in ("--no-assume-unchanged", "--no-skip-worktree") if hidden else ():  # git uses one for each call
            _compared(run_git(top, "update-index", flag, "-z", "--stdin", stdin=names, index=index))
        yield index


def hidden_files(folder: Path) -> list[str]:
    """Tracked files below `folder`, relative to it, that are marked in the index so that git ignores their changes.

    In a sparse checkout, git itself marks files that are not in the folder; they are not among these.
    """
    entries = (entry.partition(" ") for entry in _compared(run_git(folder, "ls-files", "-v", "-z")).split("\0"))
    return [name for tag, _, name in entries if tag == "h" or (tag in ("S", "s") and os.path.lexists(folder / name))]


def path_to_top(folder: Path) -> str:
    """What leads from `folder` to the top folder of its repository: empty, or "../" for each folder between them."""
    return run_git(folder, "rev-parse", "--show-cdup").stdout.removesuffix("\n")


def committing(folder: Path, names: Collection[str]) -> str:
    """The command that commits the files of these `names`, hidden ones too, to which `git add` does nothing.

    It is for `folder`; the names are relative to the top folder of the repository.
    """
    up = path_to_top(folder)
    hidden = " ".join(shlex.quote(up + name) for name in hidden_files(repository_top(folder)) if name in names)
    flags = ("--no-assume-unchanged", "--no-skip-worktree") if hidden else ()
    return "".join(f"git update-index {flag} {hidden} && " for flag in flags) + 'git add -A && git commit -m "..."'


def _compared(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        raise RepositoryError(f"git could not list what is not committed: {done.stderr.strip()}")
    return done.stdout


def collect_dvc_lock(root: Path) -> dict[str, Any]:
    """The hashes in dvc.lock, `{stage: {deps: {path: md5}, outs: {path: md5}}}`; empty where there is none yet.

    Invalid entries, such as an output outside the project, are left out; `lock_faults` names them.
    """
    return read_lock(_lock_content(root))[0]


def lock_faults(root: Path) -> list[str]:
    """What is wrong with dvc.lock: that it cannot be read at all, or its invalid entries."""
    content = _lock_content(root)
    if content is _UNREADABLE:
        line = conflict_line((root / DVC_LOCK).read_text(encoding="utf-8", errors="replace"))
        return ["it is not YAML" if line is None else "git left a merge conflict in it"]
    return [f"an entry that DVC does not write: {entry}" for entry in read_lock(content)[1]]


def recorded_size(root: Path, stage: str, path: str) -> tuple[int, int] | None:
    """Size in bytes and number of files of a dep when `stage` last read it, from dvc.lock; None if not recorded."""
    content = _lock_content(root)
    try:
        entry = next(dependency for dependency in content["stages"][stage]["deps"] if dependency["path"] == path)
        size, files = entry["size"], entry["nfiles"]
    except (KeyError, TypeError, StopIteration):
        return None
    return (size, files) if isinstance(size, int) and isinstance(files, int) else None


def _lock_content(root: Path) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        return read_yaml((root / DVC_LOCK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, YAMLError):
        return _UNREADABLE


def collect_environment(root: Path) -> dict[str, Any]:
    """Python, the platform, the hash of requirements.lock, and the packages that differ from it.

    `differing` maps a package's name to its locked and its installed version, None where there is none.
    """
    lock = root / LOCK
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "lock_sha256": file_sha256(lock) if lock.is_file() else None,
        "differing": _differing(lock.read_text(encoding="utf-8", errors="replace")) if lock.is_file() else {},
    }


def collect_hardware(gpus: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The processor, the instructions that decide numerics, cores and memory.

    `gpus` are as training describes them; each gets its `driver`, where nvidia-smi reports it.
    """
    import psutil

    drivers = dict(installed_gpus()) if gpus else {}
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu_flags": sorted(filter(_NUMERIC_FLAGS.fullmatch, (_cpu_field("flags") or _cpu_field("Features")).split())),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [_with_driver(gpu, drivers) for gpu in gpus],
    }


def installed_gpus() -> list[tuple[str, str]]:
    """Name and driver version of each GPU, as nvidia-smi reports them; empty where it is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_NVIDIA_SMI_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if answer.returncode:
        return []
    rows = (line.rpartition(",") for line in answer.stdout.splitlines())
    return [(name.strip(), driver.strip()) for name, comma, driver in rows if comma]


def build_card(
    *,
    code: Code,
    params: Mapping[str, Any],
    environment: Mapping[str, Any],
    hardware: Mapping[str, Any],
    dvc_lock: Mapping[str, Any],
    weights_hash: str,
    fingerprint: str,
    fingerprint_parts: Mapping[str, Any],
    threads: int,
    shards: int,
    processes: int,
    machines: int,
    precision: str,
    started: datetime,
    wall_time_s: float,
    energy_j: float | None,
    gpu_energy_j: float | None,
    journal_id: str,
) -> dict[str, Any]:
    """Build the card, in the order in which a person reads it.

    `params` are nested as in params.yaml. `wall_time_s` includes the time before interruptions. `energy_j` is that of
    the processors, `gpu_energy_j` that of the GPUs.
    """
    return {
        "weights_hash": weights_hash,
        "fingerprint": fingerprint,
        "fingerprint_parts": dict(fingerprint_parts),
        "params": dict(params),
        "commit": code.commit,
        "dirty": code.dirty,
        "diff": code.diff,
        "untracked_taken": _shortened(code.taken),
        "untracked_left_out": _shortened(code.left_out),
        # During a run, dvc.lock still has the later stages of the run before.
        "dvc_lock": {stage: dvc_lock[stage] for stage in ("ingest", "validate") if stage in dvc_lock},
        "environment": dict(environment),
        "hardware": dict(hardware),
        "threads": threads,
        "shards": shards,
        "processes": processes,
        "machines": machines,
        "precision": precision,
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "wall_time_s": round(wall_time_s, 3),
        "energy_j": None if energy_j is None else round(energy_j, 1),
        "gpu_energy_j": None if gpu_energy_j is None else round(gpu_energy_j, 1),
        "journal_id": journal_id,
    }


def diff_hash(diff: str) -> str:
    """Sha256 of a patch, in hexadecimal."""
    return hashlib.sha256(diff.encode("utf-8", "surrogateescape")).hexdigest()


def locked_versions(lock: str) -> dict[str, str]:
    """Package -> version in the text of a requirements.lock, of those that this platform needs."""
    from packaging.utils import canonicalize_name

    locked: dict[str, str] = {}
    for name, version, marker in re.findall(
        r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)\s*(?:;\s*([^\\\n]+))?", lock, re.M
    ):
        if not marker or _applies(marker.strip()):
            locked[canonicalize_name(name)] = version
    return locked


def _applies(marker: str) -> bool:
    """Whether the marker of a package includes this platform; yes where it is not one that pip understands."""
    from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName

    try:
        return Marker(marker).evaluate()
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName):
        return True


def installed_versions() -> dict[str, str]:
    """Package -> version as installed here, except twinrun itself."""
    from email.parser import HeaderParser
    from importlib.metadata import distributions

    from packaging.utils import canonicalize_name

    installed: dict[str, str] = {}
    for distribution in distributions():  # whose `name` and `version` each parse the whole description
        try:
            text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        except UnicodeDecodeError as error:  # in a description of another encoding; name and version are ASCII
            text = error.object.decode("utf-8", "replace")
        header = HeaderParser().parsestr(text.partition("\n\n")[0])
        installed.setdefault(canonicalize_name(str(header["Name"])), str(header["Version"]))
    installed.pop("twinrun", None)
    return installed


def run_git(
    folder: Path, *arguments: str, stdin: bytes | None = None, index: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git in `folder`, with names as they are and messages in English; the caller looks at the exit code.

    `index` replaces the repository's index.
    """
    own_index = {} if index is None else {"GIT_INDEX_FILE": os.fspath(index)}
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), "-c", "core.quotePath=false", *arguments],
            capture_output=True,
            input=stdin,
            env=git_environment(folder, GIT_OPTIONAL_LOCKS="0", GIT_DIFF_OPTS="", **own_index),
            check=False,
        )
    except FileNotFoundError:
        raise RepositoryError(
            "git is not installed (or not on PATH), so the code of a model could not be recorded.\n"
            "Install it (Debian: apt install git; macOS: xcode-select --install) and run again."
        ) from None
    except OSError as error:
        if error.errno == errno.E2BIG:  # git diff takes names to leave out as arguments alone
            raise RepositoryError(
                f"The git repository at {folder.resolve()} has more uncommitted changes of large or secret files than "
                "git can leave out of a run's card.\n"
                "Commit the change or deletion of these files, or restore them (git status lists them)."
            ) from error
        raise RepositoryError(f"git could not be run in {folder}: {os_problem(error)}") from error
    # Decoded here, since subprocess would change the line ends of a patch.
    stdout, stderr = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    if done.returncode:
        require_trust(folder, stderr)
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


def require_trust(folder: Path, stderr: str) -> None:
    """Raise RepositoryError where `stderr` of a failed git says that another user owns the repository."""
    if "dubious ownership" in stderr:
        remedy = next((line.strip() for line in stderr.splitlines() if "safe.directory" in line), None)
        raise RepositoryError(
            f"git refuses to read the repository at {folder.resolve()}: another user owns it (dubious ownership).\n"
            f"If you trust it: {remedy or f'git config --global --add safe.directory {folder.resolve()}'}"
        )


def _with_driver(gpu: Mapping[str, Any], drivers: Mapping[str, str]) -> dict[str, Any]:
    driver = drivers.get(str(gpu.get("gpu") or gpu.get("name")))
    return dict(gpu) if driver is None else {**gpu, "driver": driver}


def _shortened(names: tuple[str, ...]) -> list[str]:
    return [*names[:_NAMED], *([f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else [])]


def _differing(lock: str) -> dict[str, dict[str, str | None]]:
    locked, installed = locked_versions(lock), installed_versions()
    return {
        name: {"locked": locked.get(name), "installed": installed.get(name)}
        for name in sorted(locked.keys() | installed.keys())
        if locked.get(name) != installed.get(name)
    }


def _cpu_field(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(rf"^{re.escape(field)}\s*:\s*(.*)$", text, re.M)
    return match.group(1) if match else ""
