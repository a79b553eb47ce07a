"""MLflow's own pages: the address of an experiment's run list, and the server that shows a store on this machine."""

import os
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from twinrun.base.errors import TrackingError
from twinrun.tracking.addresses import SQLITE
from twinrun.tracking.presentation import RUN_LIST_TAG, run_list_address, run_list_view
from twinrun.tracking.store import Tracker, experiment_id, explaining, open_client, require_reachable

HOST = "127.0.0.1"


def is_server(tracker: Tracker) -> bool:
    """Whether the tracker has pages of its own, so that none need be served here."""
    return tracker.uri.startswith(("http://", "https://"))


def run_list(tracker: Tracker, name: str, port: int) -> str:
    """The address of the runs of the experiment `name`: on the tracker's server, or where `serve` shows the store.

    Raises TrackingError, naming the store, where it cannot be read.
    """
    from mlflow.exceptions import MlflowException

    require_reachable(tracker)
    with explaining(tracker):
        client = open_client(tracker)
        experiment = experiment_id(client, tracker, name)
        if client.get_experiment(experiment).tags.get(RUN_LIST_TAG) != run_list_view():
            with suppress(MlflowException):  # without the right to write, the list has MLflow's own columns
                client.set_experiment_tag(experiment, RUN_LIST_TAG, run_list_view())
    return run_list_address(tracker.uri if is_server(tracker) else f"http://{HOST}:{port}", experiment)


def require_free(port: int) -> None:
    """Raise TrackingError, with what to do, where another program listens at `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise TrackingError(
                f"MLflow cannot listen at {HOST}:{port}: {error.strerror}. Choose another port: "
                f"twinrun ui --port {port + 1} (make ui PORT={port + 1})"
            ) from None


def serve(tracker: Tracker, port: int) -> NoReturn:
    """Become MLflow's server of the store, until Ctrl-C."""
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # its job API asks for no password
    sys.stdout.flush()
    uri = tracker.uri
    if tracker.database is not None and tracker.database.is_relative_to(tracker.home):
        # Relative, since MLflow creates folders elsewhere for a quoted name.
        os.chdir(tracker.home)
        uri = f"{SQLITE}{tracker.database.relative_to(tracker.home)}"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = (
        uri  # no argument, since everybody may read those, and it may hold a password
    )
    server = ("mlflow", "ui", "--host", HOST, "--port", str(port))
    # uvicorn prints a traceback at Ctrl-C where an application is told about its start and its end; MLflow uses that
    # for an assistant in a container, of which there is none here.
    os.execv(sys.executable, [sys.executable, "-m", *server, "--workers", "1", "--uvicorn-opts", "--lifespan off"])
