"""What MLflow, its database or its server raises becomes a sentence that a person can act on."""

import socket
import sqlite3

import pytest
from requests import HTTPError

from twinrun.base.errors import TrackingError
from twinrun.tracking.translation import database_trouble, describe, unreachable

SERVER, STORE = "https://me:secret@mlflow.example:5000", "sqlite:////p/mlruns/mlflow.db"


@pytest.mark.parametrize(
    ("error", "uri", "sentence"),
    [
        (TrackingError("as it is"), SERVER, "as it is"),
        (sqlite3.OperationalError("attempt to write a readonly database"), STORE, "read-only for this user"),
        (sqlite3.DatabaseError("file is not a database"), STORE, "twinrun sync` creates a new one"),
        (ModuleNotFoundError("no", name="psycopg2"), SERVER, "pip install 'psycopg2-binary'"),
        (Exception("error code 401"), SERVER, "MLFLOW_TRACKING_USERNAME"),
        (HTTPError("403 Client Error: Forbidden for url: https://me:secret@h/a"), SERVER, "the right to write"),
        (HTTPError("502 Server Error: Bad Gateway for url: https://h/a"), SERVER, "answers with an error (502)"),
        (Exception("error code 404"), SERVER, "older than MLflow 3"),
        (Exception("<html><title>Sign in</title>"), SERVER, "answers with a page (Sign in)"),
        (Exception("detected out-of-date database schema"), STORE, "mlflow db upgrade"),
        (Exception("Can't locate revision identified by 'x'"), STORE, "a newer MLflow"),
    ],
)
def test_an_error_names_the_store_and_what_to_do_and_no_password(error: Exception, uri: str, sentence: str) -> None:
    described = describe(error, uri)

    assert sentence in described
    assert "secret" not in described


def test_the_reason_why_a_server_cannot_be_asked_is_found_behind_what_wraps_it() -> None:
    wrapped = RuntimeError("HTTPSConnectionPool: Max retries exceeded")
    wrapped.__cause__ = socket.gaierror(-2, "Name or service not known")

    assert unreachable(wrapped) == "its name could not be resolved (Name or service not known)"
    assert unreachable(TimeoutError()) == "it does not answer in time"
    assert database_trouble(Exception("password of me:secret@mlflow.example:5000 is wrong."), SERVER) == (
        "password of mlflow.example:5000 is wrong"
    )
