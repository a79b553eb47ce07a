"""Whether DVC can watch and share a source's folder: found from names alone, before anything is hashed or decoded."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from twinrun.base.git import git_environment
from twinrun.base.printing import escaped

OF_FILES = ("folder", "trashnet")  # the sources whose files a person puts there
_SHOWN = 3


@dataclass(frozen=True)
class Obstacle:
    """Entries of a folder that DVC ignores or, if `fatal`, fails on; and what to do."""

    problem: str
    remedy: str
    fatal: bool

    def __str__(self) -> str:
        return f"{self.problem}.\n  {self.remedy}"

    def sentence(self) -> str:
        """Problem and remedy on one line, which ends with the remedy."""
        return f"{self.problem}: {self.remedy}"


@dataclass(frozen=True)
class _Kind:
    noun: str
    consequence: str
    remedy: str
    fatal: bool


_FOLDER_LINK, _BROKEN, _NAME, _UNREADABLE, _SPECIAL = (
    _Kind(
        "link to a folder",
        "DVC does not follow it: it notices no change there, and no clone gets those images",
        "Replace it by a copy of what it points to, or name that folder in ingest.path (params.yaml).",
        fatal=False,
    ),
    _Kind(
        "link that points to no file",
        "DVC ends with an error on it",
        "Restore its target, or delete it: find {folder} -xtype l -delete",
        fatal=True,
    ),
    _Kind(
        "name that is not UTF-8",
        "DVC ends with an error on it",
        "Rename it: mv {first} NEW_NAME",
        fatal=True,
    ),
    _Kind(
        "file or folder that cannot be read",
        "DVC ends with an error on it",
        "Make it readable: chmod -R u+rX {folder}",
        fatal=True,
    ),
    _Kind(
        "special file, such as a pipe or a device",
        "DVC would wait for it forever",
        "Delete it: rm {first}",
        fatal=True,
    ),
)


def obstacles(folder: Path) -> list[Obstacle]:
    """What in `folder` DVC ignores or fails on, one entry for each kind; [] if the folder is missing.

    The folder itself may be a link: DVC follows that one.
    """
    paths_of: dict[_Kind, list[str]] = {}
    for kind, path in _walk(os.fspath(folder)):
        paths_of.setdefault(kind, []).append(path)
    return [_obstacle(kind, sorted(paths), folder) for kind, paths in paths_of.items()]


Tracked = Literal["added", "not committed", "git", "outside", "link", "no"]


def tracked(root: Path, path: str) -> Tracked:
    """How the folder `path`, as ingest.path names it, reaches another clone of the project at `root`.

    "added": by DVC, and git tracks its .dvc file; "not committed": the same, but git does not track that file; "git":
    git tracks files in it; "outside": not at all, since DVC does not share folders outside the project; "link": not at
    all, since DVC cannot add a link; "no": not at all.
    """
    folder = Path(os.path.normpath(root / path))
    if not folder.is_relative_to(root):
        return "outside"
    files = [place.with_name(f"{place.name}.dvc") for place in (folder, *folder.parents) if place.is_relative_to(root)]
    files = [file for file in files if file.is_file()] or _covering(folder)
    if files:
        return "added" if all(_git_tracks(root, file) for file in files) else "not committed"
    if _git_tracks(root, folder) and not _untracked(root, folder):
        return "git"
    return "link" if folder.is_symlink() else "no"


def not_shared(root: Path, path: str) -> Obstacle | None:
    """Advice on a folder that clones and experiments outside the workspace would lack; None for any other folder."""
    path = os.path.normpath(path)
    add = f"git add {shlex.quote(path)}.dvc {shlex.quote((Path(path).parent / '.gitignore').as_posix())}"
    result = "so no clone, no `dvc exp run --temp` and no `--queue` has its images"
    match tracked(root, path):
        case "no":
            return Obstacle(
                f"{path} is neither in DVC nor in git, {result}: add it to DVC, not to git",
                f"dvc add {shlex.quote(path)} && {add}",
                fatal=False,
            )
        case "not committed":
            return Obstacle(
                f"{path} is in DVC, but git does not track {path}.dvc, {result}", f"{add} && git commit", fatal=False
            )
        case "link":
            target = os.path.realpath(root / path)
            return Obstacle(
                f"{path} is a link, which `dvc add` refuses, {result}: name its target",
                f"ingest.path: {target}",
                fatal=False,
            )
    return None


def in_full(root: Path, path: str) -> str | None:
    """The full path of a folder outside the project that `path` names relative to it; None for any other folder."""
    outside = not (root / path).resolve().is_relative_to(root.resolve())
    return os.path.normpath(root / path) if outside and not Path(path).is_absolute() else None


def outside_advice(root: Path, path: str) -> Obstacle | None:
    """Advice on a folder outside the project, which only this machine has; None for one inside it."""
    if tracked(root, path) != "outside":
        return None
    full = in_full(root, path)
    written = f", and write its path in full, which experiments in a temporary folder need: {full}" if full else ""
    return Obstacle(
        f"{path} is outside the project, so DVC notices changes in it, but no clone gets its images",
        f"to share them, copy the folder to data/raw and add it (dvc add); or keep it there{written}",
        fatal=False,
    )


def nearby(root: Path, path: str) -> str:
    """A sentence, with a space before it, that names folders near `path`, which does not exist; "" if there are none.

    Those with a similar name come first; empty folders are left out.
    """
    parents = dict.fromkeys([Path(os.path.normpath(root / path)).parent, root / "data/raw"])
    folders = [folder for parent in parents for folder in _filled_folders(parent)]
    shown = [folder.relative_to(root) if folder.is_relative_to(root) else folder for folder in folders]
    name = Path(path).name.lower()
    alike = sorted(shown, key=lambda place: -SequenceMatcher(None, name, place.name.lower()).ratio())[:_SHOWN]
    names = [escaped(place.as_posix()) for place in alike]
    if not names:
        return ""
    return f" There is {names[0]}." if len(names) == 1 else f" There are {', '.join(names[:-1])} and {names[-1]}."


def _filled_folders(parent: Path) -> list[Path]:
    try:
        folders = [folder for folder in parent.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
        return sorted(folder for folder in folders if any(not inner.name.startswith(".") for inner in folder.iterdir()))
    except OSError:
        return []


def advice(root: Path, path: str) -> list[str]:
    """Advice on the source folder `path`, for the end of ingest; [] where the folder `root` is not a DVC project."""
    if not (root / ".dvc").is_dir():
        return []
    unshared = not_shared(root, path) or outside_advice(root, path)
    return [*map(str, obstacles(root / path)), *([unshared.sentence()] if unshared else [])]


def _walk(folder: str) -> Iterator[tuple[_Kind, str]]:
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            entries = list(os.scandir(current))
        except FileNotFoundError:
            continue
        except OSError:
            yield _UNREADABLE, current
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            if kind := _kind(entry):
                yield kind, entry.path


def _kind(entry: "os.DirEntry[str]") -> _Kind | None:
    if not entry.name.isascii() and not _is_utf8(entry.name):
        return _NAME
    if entry.is_dir(follow_symlinks=False):
        return None
    if entry.is_symlink():
        if entry.is_dir():
            return _FOLDER_LINK
        if not Path(entry.path).exists():
            return _BROKEN
    if not entry.is_file():
        return _SPECIAL
    return None if os.access(entry.path, os.R_OK) else _UNREADABLE


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _obstacle(kind: _Kind, paths: list[str], folder: Path) -> Obstacle:
    place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    names = [escaped(os.path.relpath(path, folder)) for path in paths[:_SHOWN]]
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    count = f"{len(paths):,} times: " if len(paths) > 1 else ""
    return Obstacle(
        f"{place} has a {kind.noun} ({count}{', '.join(names)}{more}), and {kind.consequence}",
        kind.remedy.format(
            folder=shlex.quote(os.fspath(place)),
            first=_in_a_shell(str(place / Path(paths[0]).relative_to(folder))),
        ),
        kind.fatal,
    )


def _in_a_shell(path: str) -> str:
    """A path as bash reads it on one line, whatever its bytes."""
    if path.isprintable():
        return shlex.quote(path)
    return (
        "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in os.fsencode(path)) + "'"
    )


def _covering(folder: Path) -> list[Path]:
    """The .dvc files in a folder if each of its other entries belongs to one of them, and [] otherwise."""
    if not folder.is_dir():
        return []
    names = {entry.name for entry in folder.iterdir()} - {".gitignore", ".DS_Store"}
    files = {name for name in names if name.endswith(".dvc")}
    return (
        sorted(folder / name for name in files)
        if names <= files | {name.removesuffix(".dvc") for name in files}
        else []
    )


def _untracked(root: Path, folder: Path) -> bool:
    """Whether a folder holds a file that git does not track."""
    return _git_lists(root, "--others", "--directory", "--no-empty-directory", "--", os.fspath(folder))


def _git_tracks(root: Path, path: Path) -> bool:
    """Whether git tracks a file, or any file in a folder, staged or committed."""
    return _git_lists(root, "--", os.fspath(path))


def _git_lists(root: Path, *arguments: str) -> bool:
    """Whether `git ls-files` lists something; False where there is no git."""
    command, env = ["git", "ls-files", *arguments], git_environment(root)
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=False, timeout=60, env=env)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout)
