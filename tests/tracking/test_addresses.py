"""Addresses of files and databases, whatever their names hold."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from twinrun.tracking.addresses import file_uri, sqlite_path, sqlite_to_read, sqlite_uri


@pytest.mark.parametrize("name", ["plain.db", "100%25 of it?.db", "a #1 + b.db", "caf\u00e9.db"])
def test_sqlalchemy_and_sqlite_open_the_database_that_is_meant(name: str, tmp_path: Path) -> None:
    database = tmp_path / name

    engine = sqlalchemy.create_engine(sqlite_uri(database))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE runs (id INTEGER)"))
    engine.dispose()

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sqlite_path(sqlite_uri(database)) == (database, "")
    with closing(sqlite3.connect(sqlite_to_read(database), uri=True)) as store:
        assert store.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.execute("DROP TABLE runs")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlruns/mlflow.db", (Path("mlruns/mlflow.db"), "")),
        ("sqlite:////a%20b/mlflow.db?timeout=3", (Path("/a b/mlflow.db"), "?timeout=3")),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:x.db?uri=true", None),
        ("sqlite://", None),
        ("postgresql:///mlflow", None),
    ],
)
def test_an_address_names_a_file_or_none(uri: str, expected: tuple[Path, str] | None) -> None:
    assert sqlite_path(uri) == expected


def test_an_address_of_a_file_is_quoted() -> None:
    assert file_uri(Path("/a b/50%#?")) == "file:///a%20b/50%25%23%3F"
