"""Addresses of files and folders for SQLite, SQLAlchemy and MLflow. Only the standard library.

In an address `#`, `?` and `%` mean something of their own: a name that holds them must be quoted, or a database is
created elsewhere.
"""

import os
from pathlib import Path
from urllib.parse import quote, unquote

SQLITE = "sqlite:///"


def sqlite_uri(database: Path) -> str:
    """What names `database`, absolute, to SQLAlchemy and so to MLflow, which quote nothing but `%` and `?`."""
    return SQLITE + str(database).replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> tuple[Path, str] | None:
    """The file that a `uri` names to SQLAlchemy, perhaps relative, and its options; None where it names no file."""
    path, mark, options = uri.removeprefix(SQLITE).partition("?")
    if not uri.startswith(SQLITE) or not path or path.startswith((":memory:", "file:")):
        return None
    return Path(unquote(path)), mark + options


def sqlite_to_read(database: Path) -> str:
    """What names `database` to sqlite3.connect(..., uri=True), which then can neither create nor change it."""
    return f"file:{quoted(database)}?mode=ro"


def file_uri(path: Path) -> str:
    """The file:// address of an absolute `path`."""
    return f"file://{quoted(path)}"


def quoted(path: Path | str) -> str:
    """A path as it stands in an address."""
    return quote(os.fsencode(path))
