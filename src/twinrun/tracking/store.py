"""Opening the MLflow store: a server named by MLFLOW_TRACKING_URI, or SQLite at mlruns/mlflow.db with mlruns/artifacts.

Finding out which store it is costs nothing; only `open_client` imports MLflow. Two processes that create a new SQLite
store at once would break it, so creation stands behind a lock.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.errors import TrackingError
from twinrun.publish import explained
from twinrun.tracking.home import home
from twinrun.tracking.presentation import RUN_LIST_TAG, run_list_view, without_password
from twinrun.tracking.relocate import relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLRUNS = "mlruns"
DATABASE = "mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A tracker that hangs must not hold up anybody for MLflow's own two minutes and seven retries.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # A request that makes something must not be sent twice behind our back; we look first, and then try again.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password, where the address holds one
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Tracker:
    """Which store this project's runs go to."""

    home: Path
    uri: str
    database: Path | None

    @property
    def state(self) -> Path:
        """The folder that remembers what was published to this store; it goes when a local store is removed."""
        key = (
            "local"
            if self.database == self.home / MLRUNS / DATABASE
            else hashlib.sha256(self.uri.encode()).hexdigest()[:12]
        )
        return self.home / MLRUNS / "published" / key

    @property
    def artifacts(self) -> Path | None:
        """Where a local store keeps artifacts; None where a server decides."""
        return self.database.parent / "artifacts" if self.database else None


def find_tracker(folder: Path | None = None) -> Tracker:
    """The store that `folder` (the working folder) uses. Creates and imports nothing."""
    project = home(folder)
    uri = os.environ.get(URI_VARIABLE, "").strip()
    if not uri:
        database = project / MLRUNS / DATABASE
        return Tracker(project, f"sqlite:///{database}", database)
    if uri.startswith("sqlite:///"):
        # Absolute, since a stage of `dvc exp run --temp` works in a folder that is removed afterwards.
        database = (project / uri.removeprefix("sqlite:///")).resolve()
        return Tracker(project, f"sqlite:///{database}", database)
    return Tracker(project, uri, None)


def require_reachable(tracker: Tracker, timeout_s: float = 5) -> None:
    """Raise TrackingError, with what to do, where a server does not answer. Costs one small request and no MLflow."""
    if not tracker.uri.startswith(("http://", "https://")):
        return
    from urllib.error import HTTPError
    from urllib.request import urlopen

    try:
        with urlopen(f"{without_password(tracker.uri).rstrip('/')}/health", timeout=timeout_s):
            return
    except HTTPError as error:
        # It answers; whether it lets us in is for MLflow, which knows the credentials, to find out.
        if error.code < 500:
            return
        found = f"it answers with {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        found = str(getattr(error, "reason", error))
    raise TrackingError(
        f"The tracker at {tracker.uri} ({URI_VARIABLE}) cannot be reached: {found}.\n"
        f"Start it, correct {URI_VARIABLE}, or unset it to use {MLRUNS}/{DATABASE}; nothing that was trained is lost."
    )


def open_client(tracker: Tracker) -> "MlflowClient":
    """A client of the store, which is created, or fixed where the project was moved. Imports MLflow (3 s).

    Raises TrackingError, naming the store, where it refuses; a server is not asked anything yet.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if tracker.database is None:
        return _client(tracker)
    from filelock import FileLock

    with explained(tracker.database):
        tracker.database.parent.mkdir(parents=True, exist_ok=True)
        # A database elsewhere may speak of folders that are not ours to move.
        ours = tracker.database.parent.name == MLRUNS
        with FileLock(tracker.database.with_suffix(".lock")):
            if ours:
                relocate(tracker.database.parent)
            client = _client(tracker)
            client.search_experiments(max_results=1)
            if ours:
                relocate(tracker.database.parent)
    return client


def look_client(tracker: Tracker) -> "MlflowClient":
    """A client of a store that is there, for whoever only looks: nothing is created or changed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    return _client(tracker)


def _client(tracker: Tracker) -> "MlflowClient":
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"MLflow cannot open {tracker.uri}: {error}") from error


@contextmanager
def as_default(tracker: Tracker) -> Iterator[None]:
    """Make it MLflow's own default store for a while: what resolves a models:/ address asks no client."""
    import mlflow

    before = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(tracker.uri)
    try:
        yield
    finally:
        # It wrote the environment too, and that decides for whoever asks after us.
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ[URI_VARIABLE] = before


@contextmanager
def explaining(tracker: Tracker) -> Iterator[None]:
    """Turn what MLflow raises into a TrackingError that names the store."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {tracker.uri} refused: {error.message}") from error


# MLflow's pages open on the training runs of such an experiment, not on those of a language model.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development", RUN_LIST_TAG: run_list_view()}


def experiment_id(client: "MlflowClient", tracker: Tracker, name: str) -> str:
    """The experiment's id; it is created where there is none, with its artifacts in the project."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        where = tracker.artifacts
        options: dict[str, Any] = {} if where is None else {"artifact_location": (where / _folder_name(name)).as_uri()}
        try:
            return str(client.create_experiment(name, tags=_EXPERIMENT_TAGS, **options))
        except MlflowException:
            # Another process was first.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _folder_name(name: str) -> str:
    plain = "".join(character if character.isalnum() or character in "-_" else "-" for character in name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
