"""Paths as a person writes them."""

from pathlib import Path

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~`; as it is where there is none, as for a file called ~$photo.jpg."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or none whose home folder is known
        return Path(path)


def is_missing(path: Path) -> bool:
    """Whether nothing has this name; a file in a folder that cannot be entered may be there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def not_a_folder(path: Path) -> str:
    """What is wrong with a path that should be a folder, and with an archive what to do."""
    if not path.exists():
        return "does not exist"
    return "is an archive: unpack it first" if path.suffix.lower() in _ARCHIVES else "is not a folder"
