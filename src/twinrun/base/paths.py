"""Paths as a person writes them."""

from pathlib import Path


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
