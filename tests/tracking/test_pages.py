"""MLflow's own pages: where the list of runs is, what it shows, and that it is served."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from tracking_support import FaultyTracker, evaluate, free_port, runs, train, wait_for

from twinrun.base.errors import TrackingError
from twinrun.tracking.pages import require_free, run_list, serve
from twinrun.tracking.presentation import describe_run
from twinrun.tracking.store import Tracker, find_tracker, open_client
from twinrun.tracking.sync import sync

_MODEL = "twinrun-digits"


pytestmark = pytest.mark.usefixtures("real_processes")


def test_the_command_prints_the_address_of_the_run_list_and_serves_it(project: Path) -> None:
    train(project)
    evaluate(project)
    port, log = free_port(), project / "ui.log"

    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "twinrun", "ui", "--port", str(port)],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(port, "/health", server, log)
        address = next(word for word in log.read_text().split() if word.startswith("http"))
        page = address.partition("#")[2]
        experiment = urlsplit(page).path.split("/")[2]
        asked = urllib.request.Request(  # as the page asks
            f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/get?experiment_id={experiment}"
        )
        with urllib.request.urlopen(asked) as answer:
            found = json.loads(answer.read())["experiment"]
    finally:
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does at Ctrl-C
        server.wait(30)

    assert "Traceback" not in log.read_text()
    (run,) = runs(project)
    key = parse_qs(urlsplit(page).query)["viewStateShareKey"][0]
    view = json.loads(next(tag["value"] for tag in found["tags"] if tag["key"] == f"mlflow.sharedViewState.{key}"))
    assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/{run.info.info.experiment_id}/runs?")
    assert found["name"] == _MODEL
    assert view["columnOrder"][2:6] == [
        *("metrics.`accuracy`", "params.`train.model`", "params.`train.seed`", "params.`train.learning_rate`")
    ]
    assert {"metrics.`accuracy`", "params.`train.model`", "attributes.`Dataset`"} <= set(view["selectedColumns"])


def test_an_experiment_of_an_earlier_version_gets_the_columns_too(project: Path) -> None:
    tracker = find_tracker(project)
    client = open_client(tracker)
    experiment = client.create_experiment(_MODEL)

    address = run_list(tracker, _MODEL, 5000)

    assert f"/#/experiments/{experiment}/runs?" in address
    assert "mlflow.sharedViewState.twinrun" in client.get_experiment(experiment).tags


def test_where_a_server_holds_the_runs_its_own_page_is_named_and_nothing_is_served(
    tracker: FaultyTracker, project: Path
) -> None:
    train(project)
    sync()
    address = tracker.uri.replace("http://", "http://anna:secret@")

    printed = subprocess.run(
        [sys.executable, "-m", "twinrun", "ui"],
        env={**os.environ, "MLFLOW_TRACKING_URI": address},
        capture_output=True,
        text=True,
        cwd=project,
    )

    client = open_client(find_tracker(project))
    experiment = client.get_experiment_by_name(_MODEL)
    assert experiment is not None
    assert printed.returncode == 0, printed.stderr
    assert f"MLflow: {tracker.uri}/#/experiments/{experiment.experiment_id}/runs?" in printed.stdout
    assert "secret" not in printed.stdout


def test_a_port_that_is_taken_is_named_with_another_to_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(TrackingError, match=f"{port}: Address already in use.*twinrun ui --port {port + 1}"):
            require_free(port)


@pytest.mark.parametrize("test", [{}, {"test_accuracy": None}])
def test_an_accuracy_from_cross_validation_is_described_without_that_of_the_test_split(
    test: dict[str, None], tmp_path: Path
) -> None:
    metrics = {"accuracy": 0.9, "accuracy_from": "cross-validation", "images": 20, **test}

    text = describe_run(metrics, tmp_path / "confusion.csv", "birds", "#/")

    assert text.startswith("**Accuracy 90.0% of 20 images, out of fold.**")


def test_of_many_classes_the_description_lists_the_commonest_mistakes(tmp_path: Path) -> None:
    pairs = [(f"class {number}", f"class {number}") for number in range(40)]
    pairs += [("class 1", "class 2")] * 3 + [("class 3", "class 2")]
    confusion = tmp_path / "confusion.csv"
    confusion.write_text("actual,predicted\n" + "".join(f"{actual},{predicted}\n" for actual, predicted in pairs))

    text = describe_run({"accuracy": 0.9}, confusion, "birds", "#/")

    assert text.index("| class 1 | class 2 | 3 |") < text.index("| class 3 | class 2 | 1 |")
    assert "class 17" not in text


def test_the_password_of_a_database_is_in_no_argument_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments are in the list of processes, for every user of the machine."""
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: started.extend(arguments))
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
        monkeypatch.setenv(name, "false")  # and restored afterwards
    uri = "postgresql://joe:s3cret@db.example/mlflow"

    serve(Tracker(tmp_path, uri, None), 5000)

    assert "ui" in started
    assert not any("s3cret" in argument for argument in started)
    assert os.environ["MLFLOW_BACKEND_STORE_URI"] == uri
