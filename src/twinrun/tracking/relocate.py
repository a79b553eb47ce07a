"""Fixing the local MLflow store after the project's folder was moved or copied: `python -m twinrun.tracking.relocate`.

MLflow keeps absolute places of artifacts in its database; in a moved project they point nowhere, and the artifacts seem
to be gone, with no error. Here they are rewritten: whenever Twinrun opens the store, and before an `mlflow` of the
project's environment starts (`before_dvc.py`).
"""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from twinrun.base.errors import PublishError
from twinrun.base.files import is_read_only
from twinrun.base.printing import print
from twinrun.tracking.addresses import quoted, sqlite_to_read

DATABASE = "mlflow.db"
LOCATION = ".location"
_COLUMNS = ("artifact_location", "artifact_uri", "source", "storage_location")


def relocate(mlruns: Path) -> int:
    """Make every place in `mlruns`/mlflow.db that lay in this folder's former location lie in its present one.

    Returns the number of places that were rewritten. Does nothing where there is no database or nothing was moved.
    Raises PublishError for a folder that was moved and is read-only.
    """
    mlruns = mlruns.resolve()
    database = mlruns / DATABASE
    record = mlruns / LOCATION
    if not database.is_file() or _recorded(mlruns) == str(mlruns):
        return 0
    if is_read_only(mlruns):
        if not moved_from(mlruns):
            return 0
        raise PublishError(
            f"{mlruns} was moved here and is read-only, so the artifacts of its runs cannot be found. Make it writable "
            "and run: python -m twinrun.tracking.relocate"
        )
    rewritten = 0
    # Autocommit, so that the one transaction is ours: a reader sees all places moved or none.
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        columns = _place_columns(connection)
        for old in _former_locations(connection, columns, mlruns):
            for table, column in columns:
                for old_form, new_form in {(old, str(mlruns)), (quoted(old), quoted(mlruns))}:
                    for start in (old_form, f"file://{old_form}"):
                        new_start = start.removesuffix(old_form) + new_form
                        rewritten += connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new_start, len(start) + 1, start, len(start) + 1, f"{start}/"),
                        ).rowcount
        connection.execute("COMMIT")
    temp = record.with_suffix(".new")
    temp.write_text(f"{mlruns}\n", encoding="utf-8")
    temp.replace(record)
    return rewritten


def moved_from(mlruns: Path) -> set[str]:
    """The former locations of `mlruns` that places in its database still lie in. Changes nothing."""
    mlruns = mlruns.resolve()
    if _recorded(mlruns) == str(mlruns):
        return set()
    with closing(sqlite3.connect(sqlite_to_read(mlruns / DATABASE), uri=True, timeout=30)) as connection:
        return _former_locations(connection, _place_columns(connection), mlruns)


def _recorded(mlruns: Path) -> str:
    try:
        return (mlruns / LOCATION).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _place_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return [
        (table, column)
        for table in ("experiments", "runs", "model_versions", "logged_models")
        if table in tables
        for _, column, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall()
        if column in _COLUMNS
    ]


def _former_locations(connection: sqlite3.Connection, columns: list[tuple[str, str]], mlruns: Path) -> set[str]:
    """Where the store was, as it recorded; without a record, folders of its name in the database that are gone."""
    if before := _recorded(mlruns):
        return {before} - {str(mlruns)}
    former = set()
    for table, column in columns:
        for (place,) in connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL"):
            path = unquote(place.removeprefix("file://")) if place.startswith("file://") else place
            head, name, _ = path.partition(f"/{mlruns.name}/")
            if name and head.startswith("/") and not Path(head, mlruns.name).exists():
                former.add(f"{head}/{mlruns.name}")
    return former


def main() -> None:
    """Fix the store of the project in the working folder, and say so if it was moved."""
    try:
        rewritten = relocate(Path("mlruns"))
    except (OSError, sqlite3.Error, PublishError) as error:
        print(f"mlruns was moved, and its artifacts could not be found again: {error}", file=sys.stderr)
        return
    if rewritten:
        print(f"This project was moved: {rewritten} places in mlruns/{DATABASE} now point here.", file=sys.stderr)


if __name__ == "__main__":
    main()
