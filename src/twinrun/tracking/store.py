"""Opening the MLflow store: a server named by MLFLOW_TRACKING_URI, or SQLite at mlruns/mlflow.db with mlruns/artifacts.

Finding out which store it is costs nothing; only `open_client` imports MLflow. Two processes that create a new SQLite
store at once would break it, so creation stands behind a lock.
"""

import hashlib
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import TrackingError, TwinrunError, duration
from twinrun.base.files import explained, is_read_only
from twinrun.record.home import home
from twinrun.tracking.addresses import SQLITE, file_uri, sqlite_path, sqlite_uri
from twinrun.tracking.presentation import RUN_LIST_TAG, run_list_view, user_of
from twinrun.tracking.relocate import relocate
from twinrun.tracking.translation import database_trouble, describe, shown, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLRUNS = "mlruns"
DATABASE = "mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
_REGISTRY_VARIABLE = "MLFLOW_REGISTRY_URI"
_DEFAULT_VARIABLE = "_TWINRUN_DEFAULT_URI"
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A tracker that hangs must not delay anyone for MLflow's own two minutes and seven retries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # MLflow must not repeat by itself a request that creates something; we check whether it succeeded, then retry.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password, where the address holds one
    "GIT_PYTHON_REFRESH": "quiet",
}
_ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"  # read by MLflow itself wherever it opens a store
_PAGE = 1000  # runs
_OPENING_S = 120.0  # a new store takes 10 s; a process that is stopped would hold the lock without end
_OLDEST_SERVER = 3  # earlier ones have no logged models
_MADE_A_READ = frozenset({301, 302, 303})  # redirections after which a client repeats a POST as a GET
_DATABASES = ("postgresql", "mysql", "mssql", "oracle")
_RAISING = frozenset({"mlflow", "sqlalchemy", "alembic", "requests", "urllib3"})


@dataclass(frozen=True)
class Tracker:
    """Which store this project's runs go to."""

    home: Path
    uri: str
    database: Path | None

    @property
    def state(self) -> Path:
        """The folder that records what was published to this store; it is removed together with a local store."""
        key = (
            "local"
            if self.database == self.home / MLRUNS / DATABASE
            else hashlib.sha256(self.shown.encode()).hexdigest()[:12]  # without the password: it may change
        )
        return self.home / MLRUNS / "published" / key

    @property
    def shown(self) -> str:
        """The address for a person, without a password."""
        return shown(self.uri)

    @property
    def is_new(self) -> bool:
        """Whether it is a local store that has no database yet, or an empty one: to open it would create the tables."""
        return self.database is not None and not (self.database.is_file() and self.database.stat().st_size)

    @property
    def is_read_only(self) -> bool:
        """Whether it is a local store in a folder that nothing can be written to."""
        return self.database is not None and not self.is_new and is_read_only(self.database.parent)

    @property
    def artifacts(self) -> Path | None:
        """Where a local store keeps artifacts; None where a server decides."""
        return self.database.parent / "artifacts" if self.database else None


def find_tracker(folder: Path | None = None) -> Tracker:
    """The store that `folder` (the working folder) uses. Creates and imports nothing."""
    project = home(folder)
    uri = os.environ.get(URI_VARIABLE, "").strip()
    # An activated environment names the store of its own project, which does not apply to another project.
    is_the_default = uri == os.environ.get(_DEFAULT_VARIABLE) and (project / "dvc.yaml").is_file()
    if not uri or is_the_default:
        database = project / MLRUNS / DATABASE
        return Tracker(project, sqlite_uri(database), database)
    if (named := sqlite_path(uri)) is not None:
        # Absolute, since a stage of `dvc exp run --temp` works in a folder that is removed afterwards.
        database = (project / named[0]).resolve()
        return Tracker(project, sqlite_uri(database) + named[1], database)
    return Tracker(project, uri, None)


def require_reachable(tracker: Tracker, timeout_s: float = 5) -> None:
    """Raise TrackingError, with what to do, where a server or its database does not answer or is too old.

    A server is contacted by MLflow's own client, which handles credentials, certificates and proxies; that imports
    MLflow. A local store is not contacted.
    """
    if tracker.database is not None:
        _require_a_file(tracker)
    elif tracker.uri.startswith(("http://", "https://")):
        _require_quoted(tracker)
        _require_server(tracker, timeout_s)
    elif tracker.uri.startswith(_DATABASES):
        _require_database(tracker, timeout_s)
    elif re.fullmatch(r"[\w.-]+:\d{1,5}(/\S*)?", tracker.uri):
        raise TrackingError(
            f"{URI_VARIABLE} is {tracker.uri}, which does not begin with http:// or https://. "
            f"Correct it: export {URI_VARIABLE}=http://{tracker.uri}"
        )


def _require_a_file(tracker: Tracker) -> None:
    """Raise where no file is named, or an unquoted `?` ends its name, so that the store would be created elsewhere."""
    if tracker.database is not None and not tracker.database.name:
        raise TrackingError(f"{URI_VARIABLE} ({tracker.uri}) names no file, such as sqlite:///{MLRUNS}/{DATABASE}")
    _, _, options = tracker.uri.partition("?")
    if "/" in options.partition("=")[0]:
        raise TrackingError(
            f"{URI_VARIABLE} has a `?` in the name of a folder, which ends the name there: {tracker.uri}\n"
            f"Write %3F for it, or unset {URI_VARIABLE} to use {MLRUNS}/{DATABASE} of the project."
        )


def _require_quoted(tracker: Tracker) -> None:
    """Raise where a character of the password ends the address, so that a part of it would be the host, and printed."""
    if set("/?#[]") & set(user_of(tracker.uri)):
        raise TrackingError(
            f"The user or password in {URI_VARIABLE} ({tracker.shown}) has one of the characters / ? # [ ], which no "
            "address may hold.\n"
            "Write %2F, %3F, %23, %5B or %5D for it, or leave both out and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; nothing that was trained is lost."
        )


def _require_server(tracker: Tracker, timeout_s: float) -> None:
    _be_quiet()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        host = get_default_host_creds(tracker.uri)  # type: ignore[no-untyped-call]
        once = {"max_retries": 0, "timeout": timeout_s, "raise_on_status": False}
        answer = http_request(host, "/version", "GET", **once)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise _away(tracker, unreachable(error)) from error
    if answer.status_code in (401, 403):
        raise TrackingError(describe(MlflowException(f"error code {answer.status_code}"), tracker.uri))
    if answer.status_code >= 500:
        raise _away(tracker, f"it answers with {answer.status_code} {answer.reason}")
    if answer.url.endswith("/version") and any(step.status_code in _MADE_A_READ for step in answer.history):
        there = shown(answer.url.removesuffix("/version"))
        raise TrackingError(
            f"The tracker at {tracker.shown} ({URI_VARIABLE}) redirects to {there}, by which nothing can be written.\n"
            f"Name that address: export {URI_VARIABLE}={shlex.quote(there)}; nothing that was trained is lost."
        )
    version = re.fullmatch(r"(\d{1,4})\.\d[\w.]*", answer.text.strip()[:40]) if answer.ok else None
    if version is not None and int(version[1]) < _OLDEST_SERVER:
        raise TrackingError(
            f"The tracker at {tracker.shown} ({URI_VARIABLE}) is MLflow {version[0]}: the server is older than "
            f"{_OLDEST_SERVER}, the oldest that Twinrun can publish to.\n"
            f"Upgrade the server (its database too: mlflow db upgrade), or unset {URI_VARIABLE}; nothing is lost."
        )


def _require_database(tracker: Tracker, timeout_s: float) -> None:
    """Connect once; MLflow itself would try for two minutes."""
    import sqlalchemy

    waiting = {"connect_timeout": int(timeout_s)} if tracker.uri.startswith(("postgresql", "mysql")) else {}
    try:
        engine = sqlalchemy.create_engine(tracker.uri, connect_args=waiting)
        with engine.connect():
            pass
        engine.dispose()
    except ImportError as error:
        raise TrackingError(describe(error, tracker.uri)) from error
    except ValueError:
        raise _away(tracker, "its port is not a number") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _away(tracker, database_trouble(error, tracker.uri)) from error


def _away(tracker: Tracker, reason: str) -> TrackingError:
    return TrackingError(
        f"The tracker at {tracker.shown} ({URI_VARIABLE}) cannot be reached: {reason}.\n"
        f"Start it, correct {URI_VARIABLE}, or unset it to use {MLRUNS}/{DATABASE}; nothing that was trained is lost."
    )


def open_client(tracker: Tracker) -> "MlflowClient":
    """A client of the store, which is created, or adapted where the project was moved, unless its folder is read-only.
    Imports MLflow (3 s).

    Raises TrackingError, naming the store, where it cannot be opened; a server is not contacted yet.
    """
    _be_quiet()
    if tracker.database is None:
        return _client(tracker)
    _require_a_file(tracker)
    if tracker.is_read_only:
        return look_client(tracker)  # with which a change fails, with a message
    with explained(tracker.database), explaining(tracker):
        tracker.database.parent.mkdir(parents=True, exist_ok=True)
        # A database elsewhere may name folders that are not this project's.
        ours = tracker.database.parent.name == MLRUNS
        with _locked(tracker.database):
            if ours:
                relocate(tracker.database.parent)
            # Fails at once where MLflow would retry for two minutes.
            with closing(sqlite3.connect(tracker.database, timeout=10)) as connection:
                connection.execute("PRAGMA schema_version")
            client = _client(tracker)
            client.search_experiments(max_results=1)
            if ours:
                relocate(tracker.database.parent)
    return client


@contextmanager
def _locked(database: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(opening_lock(database))
    try:
        lock.acquire(timeout=_OPENING_S)
    except Timeout:
        raise TrackingError(
            f"Another process has been opening {database} for {duration(_OPENING_S)}. Wait for it, or stop it; "
            "`twinrun doctor` names it."
        ) from None
    try:
        yield
    finally:
        lock.release()


def opening_lock(database: Path) -> Path:
    """The file that a process locks while it opens a local store."""
    return database.with_suffix(".lock")


def look_client(tracker: Tracker) -> "MlflowClient":
    """A client of an existing store for reading: nothing is created or changed."""
    _be_quiet()
    return _client(tracker)


def _client(tracker: Tracker) -> "MlflowClient":
    import logging

    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it misses pip, which uv installs nowhere
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    with explaining(tracker), _own_artifact_root(tracker):
        if tracker.database is not None and tracker.uri != f"{SQLITE}{tracker.database}":
            # MLflow creates the folder of a database without unquoting its name; ours is there already.
            from mlflow.store.db import utils

            utils._make_parent_dirs_if_sqlite = lambda db_uri: None  # noqa: ARG005
        return MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)


@contextmanager
def _own_artifact_root(tracker: Tracker) -> Iterator[None]:
    """Have MLflow create its default folder of artifacts in the project.

    It quotes the path of the working folder and then creates a folder of that name: "my%20project" for "my project".
    """
    before = os.environ.get(_ARTIFACT_ROOT)
    if tracker.database is not None and before is None:
        os.environ[_ARTIFACT_ROOT] = file_uri(tracker.database.parent)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_ARTIFACT_ROOT, None)


def _be_quiet() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


@contextmanager
def as_default(tracker: Tracker) -> Iterator[None]:
    """Make it MLflow's own default store and registry for a while: what resolves a models:/ address asks no client."""
    import mlflow

    before = {name: os.environ.get(name) for name in (URI_VARIABLE, _REGISTRY_VARIABLE)}
    mlflow.set_tracking_uri(tracker.uri)
    mlflow.set_registry_uri(tracker.uri)
    try:
        yield
    finally:
        # They wrote the environment too, and that decides for whoever asks after us.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def explaining(tracker: Tracker) -> Iterator[None]:
    """Turn what MLflow, its database or its server raises into a TrackingError that names the store and what to do."""
    try:
        yield
    except TwinrunError:
        raise
    except Exception as error:
        if not _is_of_the_store(error):
            raise
        raise TrackingError(describe(error, tracker.uri)) from error


def _is_of_the_store(error: Exception) -> bool:
    """Whether the store or the connection failed, and not our code."""
    if isinstance(error, OSError | ImportError | sqlite3.Error):
        return True
    return any(kind.__module__.partition(".")[0] in _RAISING for kind in type(error).__mro__)


# MLflow's pages open on the training runs of such an experiment, not on those of a language model.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", RUN_LIST_TAG: run_list_view()}


def experiment_id(client: "MlflowClient", tracker: Tracker, name: str) -> str:
    """The experiment's id; it is created where there is none, with its artifacts in the project.

    MLflow keeps the name of a deleted experiment: that one is restored, and its runs stay deleted.
    """
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        where = tracker.artifacts
        options: dict[str, Any] = {} if where is None else {"artifact_location": file_uri(where / _folder_name(name))}
        try:
            return str(client.create_experiment(name, tags=_EXPERIMENT_TAGS, **options))
        except MlflowException:
            # Another process was first.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        deleted = [run.info.run_id for run in all_runs(client, [experiment.experiment_id], ViewType.DELETED_ONLY)]
        client.restore_experiment(experiment.experiment_id)
        for run_id in deleted:  # which MLflow restored as well
            client.delete_run(run_id)
    return str(experiment.experiment_id)


def all_runs(client: "MlflowClient", experiments: list[str], view: int = 1) -> Iterator[Any]:
    """Every run of the experiments, page by page; `view` is one of MLflow's ViewType, by default the active runs."""
    token: str | None = ""
    while token is not None and experiments:
        page = client.search_runs(experiments, run_view_type=view, max_results=_PAGE, page_token=token or None)
        yield from page
        token = page.token or None


def _folder_name(name: str) -> str:
    plain = "".join(character if character.isalnum() or character in "-_" else "-" for character in name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
