"""Turns errors of MLflow, its database and its server into messages that say what to do. Sends no requests."""

import re
import shlex
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path

from twinrun.base.errors import TwinrunError, os_problem
from twinrun.tracking.addresses import sqlite_path
from twinrun.tracking.presentation import without_password

# Python package of a database's driver -> the package to install for it
_DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "PyMySQL", "psycopg": "psycopg[binary]"}
_SQLITE = (
    ("readonly database", "it is read-only for this user. Make the file and its folder writable."),
    ("unable to open", "it cannot be opened. Make its folder readable and writable for this user."),
    ("disk is full", "the disk is full. Free some space and run again; nothing is lost."),
    ("disk I/O error", "its disk reports an I/O error. Check the disk (dmesg), and restore the file from a backup."),
    ("malformed", "it is damaged. Move it away, and `twinrun sync` publishes again what is in data/out."),
    ("not a database", "it is not a SQLite database. Move it away, and `twinrun sync` creates a new one."),
    (
        "is locked",
        "another process has been writing to it for a long time. Wait for it, or stop it; see `twinrun doctor`.",
    ),
)


def describe(error: BaseException, uri: str) -> str:
    """One or two sentences: what failed at the store `uri`, why, and what to do. No traceback, no SQL, no HTML."""
    if isinstance(error, TwinrunError):
        return str(error)
    store = shown(uri)
    chain, text = list(_chain(error)), _text(error)
    if missing := next((cause for cause in chain if isinstance(cause, ModuleNotFoundError)), None):
        package = str(missing.name).partition(".")[0]
        return (
            f"{store} needs the Python package {package}, which is not installed. Install it: "
            f"pip install '{_DRIVERS.get(package, package)}' (and add it to pyproject.toml, so that it stays)."
        )
    if problem := _of_schema(text, uri):
        return problem
    for reason, advice in _SQLITE:
        if reason in text and (uri.startswith("sqlite") or any(isinstance(cause, sqlite3.Error) for cause in chain)):
            return f"The database {store} failed: {advice}"
    if problem := _of_answer(text, store):
        return problem
    if "API request to" in text and " failed with " in text:
        return f"MLflow at {store} cannot be reached: {unreachable(error)}."
    if isinstance(error, OSError):
        return os_problem(error)
    return f"MLflow at {store} failed: {_redacted(_first_lines(text), uri)}"


def shown(uri: str) -> str:
    """A store's address for a person, without user and password."""
    return without_password(uri)


def unreachable(error: BaseException) -> str:
    """Why a server could not be reached, from the exceptions of the network; without a full stop."""
    chain = list(_chain(error))
    for cause in chain:
        match cause:
            case ssl.SSLCertVerificationError():
                return (
                    f"its certificate is not trusted ({cause.verify_message}); name the file that it can be checked "
                    "with in MLFLOW_TRACKING_SERVER_CERT_PATH"
                )
            case ssl.SSLError():
                return f"no encrypted connection could be made ({cause.reason or cause})"
            case socket.gaierror():
                return f"its name could not be resolved ({cause.strerror})"
    for cause in chain:
        if type(cause).__name__ == "ProxyError":
            return "the proxy (HTTP_PROXY, HTTPS_PROXY) does not let it through"
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "it does not answer in time"
    reasons = [cause.strerror for cause in chain if isinstance(cause, OSError) and cause.strerror]
    return reasons[-1] if reasons else _first_lines(_text(chain[-1]))


def database_trouble(error: BaseException, uri: str) -> str:
    """Why a database could not be connected to, from the first line of its driver; without a full stop."""
    original = getattr(error, "orig", None) or error
    return _redacted(_first_lines(str(original)), uri).rstrip(".?")


def _of_schema(text: str, uri: str) -> str | None:
    """The message for a database of another MLflow version, which MLflow reports in terms of alembic."""
    store, version = shown(uri), re.search(r"found version (\w+)", text)
    if "Can't locate revision" in text or (version is not None and not _is_known_revision(version[1])):
        return (
            f"{store} was written by a newer MLflow than the one installed here; nothing was changed.\n"
            "Install the environment that wrote it (its requirements.lock): git pull && make setup, or, in a project "
            "from `twinrun init`, git pull && pip install -r requirements.lock"
        )
    if "out-of-date database schema" in text:
        named = sqlite_path(uri)
        copy = "" if named is None else f"cp {shlex.quote(str(named[0]))} {shlex.quote(f'{named[0]}.backup')} && "
        return (
            f"{store} was written by an older MLflow than the one installed here; nothing was changed.\n"
            f"Bring it up to date, a copy first: {copy}mlflow db upgrade '{uri if copy else store}'"
        )
    return None


def _is_known_revision(name: str) -> bool:
    """Whether the installed MLflow has a database migration of that name; a newer one's is not among its own."""
    from importlib.util import find_spec

    spec = find_spec("mlflow")
    places = [] if spec is None else spec.submodule_search_locations or []
    return any(any(Path(place, "store", "db_migrations", "versions").glob(f"{name}*")) for place in places)


def _of_answer(text: str, store: str) -> str | None:
    """The message for refused credentials, the 404 of an old server, or the page of a proxy."""
    status = re.search(r"error code (\d{3})|^(\d{3}) (?:Client|Server) Error: ", text)  # as MLflow or requests put it
    code = int(status[1] or status[2]) if status else None
    if code in (401, 403) or "PERMISSION_DENIED" in text or "UNAUTHENTICATED" in text:
        return (
            f"MLflow at {store} refuses this user ({code or 'permission denied'}). Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or ask its administrator for the right to write."
        )
    page = re.search(r"<(?:!doctype|html|head|title)", text, re.IGNORECASE)
    if page is None and code is None:
        return None
    title = re.search(r"<title[^>]*>\s*(.*?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
    said = f"{code or ''} {title[1] if title else ''}".split()
    if code == 404:
        return (
            f"MLflow at {store} does not know a request that Twinrun needs (404): it is older than MLflow 3, or "
            "the address is not that of an MLflow server. Upgrade it, or correct MLFLOW_TRACKING_URI."
        )
    if page is not None:
        return (
            f"{store} answers with a page ({' '.join(said) or 'no title'}) and not as an MLflow server does. Correct "
            "MLFLOW_TRACKING_URI, or ask whoever runs the proxy in front of it."
        )
    return f"MLflow at {store} answers with an error ({code}). Look into the server's log, and run again."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the outermost first."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        cause = todo.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), getattr(cause, "orig", None)]
        todo += list(cause.args)


def _text(error: BaseException) -> str:
    return str(getattr(error, "message", None) or error)


def _first_lines(text: str) -> str:
    lines = (line.strip() for line in text.splitlines() if not line.startswith(("(Background", "[SQL", "[parameters")))
    return " ".join([line for line in lines if line][:3])[:500]


def _redacted(text: str, uri: str) -> str:
    credentials = uri.partition("://")[2].rpartition("@")[0]
    text = text.replace(f"{credentials}@", "") if credentials else text
    return re.sub(r"(://)[^/\s@]+:[^/\s@]+@", r"\1", text)
