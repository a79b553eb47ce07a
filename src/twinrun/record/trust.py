"""Which code may run on this machine: that of the current branch, what ran here before, and what a person agreed to.

A run's commit and patch may be someone else's. Consent is remembered inside .git, where no commit and no `dvc pull`
can put anything.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from twinrun.base.errors import RepositoryError, TwinError
from twinrun.base.printing import one_line
from twinrun.record.card import diff_hash, repository_top, run_git

Ask = Callable[[str], bool]

_RECORD = "twinrun-code-that-ran-here"
_SHOWN = 20
# What Python, PyTorch and git need to find their files and to compute. No password, token or key of any service.
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLUMNS", "NO_COLOR"),
    *("TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT"),
    *("CUDA_*", "NVIDIA_*", "CUBLAS_*", "CUDNN_*", "NCCL_*", "OMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "ATEN_*"),
    *("DNNL_*", "ONEDNN_*", "PYTORCH_*", "TORCH_HOME", "HF_HOME", "PYTHONHASHSEED", "PYTHONUNBUFFERED"),
    *("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"),
    *("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


def require_trust(root: Path, commit: str, diff: str, user: str | None, ask: Ask | None) -> None:
    """Return where the code may run: it is known here, or `ask`, which gets a description, says yes.

    Raises TwinError where it may not; without `ask` that is all code that is not known.
    """
    if is_known(root, commit, diff):
        return
    text = _description(root, commit, diff, user)
    if ask is None:
        raise TwinError(
            f"{text}\nNothing was run. If you trust it, agree at a terminal, or add --trust; see SECURITY.md."
        )
    if not ask(text):
        raise TwinError("Nothing was run.")
    remember(root, commit, diff)


def is_known(root: Path, commit: str, diff: str) -> bool:
    """Whether the code is in the history of the current branch without a patch, or ran or was agreed to here before."""
    return (not diff and _is_of_branch(root, commit)) or _key(commit, diff) in _recorded(_record(root))


def remember(root: Path, commit: str, diff: str) -> None:
    """Remember that this code has run here. Where that fails, consent will be asked for again."""
    record = _record(root)
    with suppress(OSError):
        if record is not None and _key(commit, diff) not in _recorded(record):
            with record.open("a", encoding="utf-8") as file:
                file.write(f"{_key(commit, diff)}\n")


def minimal_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of the environment only what a training needs, so that no foreign code gets a key of this user."""
    given = os.environ if environment is None else environment
    return {name: value for name, value in given.items() if any(fnmatch(name, known) for known in _ENVIRONMENT)}


def _key(commit: str, diff: str) -> str:
    return hashlib.sha256(f"{commit} {diff_hash(diff)}".encode()).hexdigest()


def _record(root: Path) -> Path | None:
    answer = run_git(root, "rev-parse", "--git-common-dir")
    return None if answer.returncode else root / answer.stdout.rstrip("\n") / _RECORD


def _recorded(record: Path | None) -> list[str]:
    return record.read_text("utf-8", "replace").split() if record is not None and record.is_file() else []


def _is_of_branch(root: Path, commit: str) -> bool:
    return run_git(root, "merge-base", "--is-ancestor", commit, "HEAD").returncode == 0


def _description(root: Path, commit: str, diff: str, user: str | None) -> str:
    answer = run_git(root, "show", "--no-patch", "--no-show-signature", "--format=%an <%ae>%n%as%n%s", commit)
    if answer.returncode:
        raise RepositoryError(f"git cannot show the commit {commit}: {answer.stderr.strip()}")
    author, date, subject = map(one_line, answer.stdout.split("\n")[:3])
    inside = _is_of_branch(root, commit)
    lines = [
        "This runs code that is not in the history of the current branch, with your rights:",
        f"  commit  {commit[:12]} of {author}, {date}: {subject}" + ("" if inside else " (not in this branch)"),
        f"  run by  {one_line(user or 'unknown')}",
    ]
    if diff:
        files = _files(root, diff)
        lines.append(f"  patch   {len(files)} file{'' if len(files) == 1 else 's'}, not committed when it was trained:")
        lines += [f"          {name}" for name in files[:_SHOWN]]
        lines += [f"          and {len(files) - _SHOWN} more"] if len(files) > _SHOWN else []
        lines.append("  `twinrun show --diff` prints the patch.")
    return "\n".join(lines)


def _files(root: Path, diff: str) -> list[str]:
    """The files that a patch changes, as git understands it."""
    patch = diff.encode("utf-8", "surrogateescape")
    listed = run_git(repository_top(root), "apply", "--whitespace=nowarn", "--numstat", "-z", "-", stdin=patch)
    if listed.returncode:
        raise TwinError(f"git does not understand the run's patch: {listed.stderr.strip()}")
    return [one_line(entry.split("\t", 2)[-1]) for entry in listed.stdout.split("\0") if entry]
