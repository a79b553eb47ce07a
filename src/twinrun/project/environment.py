"""What stands for Twinrun's code and packages in a project that has no src/twinrun of its own.

Stages there depend on code.yaml, with a hash of each folder of the installed code, and on requirements.lock, with the
version of every package that Twinrun needs. Both are written again before a command of DVC that compares, so that an
upgrade makes the stages that it concerns run again, and no others.
"""

import hashlib
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from twinrun.base.files import file_sha256, write_text
from twinrun.record.card import LOCK

CODE = Path("code.yaml")

_MEMORY = Path(".twinrun/environment")
_PACKAGE = Path(__file__).parents[1]
_HEADER = (
    "# Hashes of the folders of the installed Twinrun, by which stages run again after an upgrade. "
    "Written before DVC runs.\n"
)


def stands_alone(root: Path) -> bool:
    """Whether the project at `root` runs the installed code, and has none of its own."""
    return (root / CODE).is_file() and not (root / "src/twinrun").is_dir()


def outdated(root: Path) -> list[str]:
    """Which of the files that `refresh` writes are not of what is installed."""
    texts = {CODE.as_posix(): code_text(), LOCK: lock_text()}
    return [name for name, text in texts.items() if _read(root / name) != text]


def refresh(root: Path) -> None:
    """Write code.yaml and requirements.lock of the project at `root` where what is installed has changed.

    What packages need is read again only when another set of them is installed: that takes half a second.
    """
    _write_if_other(code_text(), root / CODE)
    memory, lock = root / _MEMORY, root / LOCK
    if _read(memory) != _state(lock):
        _write_if_other(lock_text(), lock)
        write_text(_state(lock), memory)


def code_text() -> str:
    """A line for each folder of the installed code: its name and a hash of its files, 16 hexadecimal digits."""
    rooms = sorted(path.parent for path in _PACKAGE.glob("*/__init__.py"))
    return _HEADER + "".join(f'{room.name}: "{_folder_hash(room)}"\n' for room in rooms)


def lock_text() -> str:
    """name==version of every package that Twinrun needs, directly or not, as installed here; of extras too."""
    versions = closure(["twinrun"], frozenset({"dicom"}))
    versions.pop("twinrun", None)
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def closure(names: Iterable[str], extras: frozenset[str] = frozenset()) -> dict[str, str]:
    """Package -> version, as installed here, of packages with these extras and of all that they need."""
    versions: dict[str, str] = {}
    seen = {(name, extras) for name in names}
    waiting = [*seen]
    while waiting:
        name, extras = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # an extra that is not installed, or another platform's
            continue
        versions[name] = package.version
        needed = _requirements(package, extras) - seen
        seen |= needed
        waiting += needed
    return versions


def _state(lock: Path) -> str:
    """A hash of which packages are installed, in which version, and of what `lock` says."""
    infos = sorted(path.name for entry in sys.path for path in Path(entry).glob("*.dist-info"))
    return hashlib.sha256("\n".join([*infos, _read(lock)]).encode("utf-8", "replace")).hexdigest()


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _write_if_other(text: str, file: Path) -> None:
    if _read(file) != text:
        write_text(text, file)


def _requirements(package: Distribution, extras: frozenset[str]) -> set[tuple[str, frozenset[str]]]:
    """Names and extras of what a package needs on this platform."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    requirements = set()
    for text in package.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            requirements.add((str(canonicalize_name(requirement.name)), frozenset(requirement.extras)))
    return requirements


def _folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
