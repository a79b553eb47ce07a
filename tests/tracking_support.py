"""A project with a real MLflow store of its own for each test; the store is made once and copied."""

import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from training_support import made_once

from twinrun.base.files import read_json, replacing_folder, write_json, write_table, write_text
from twinrun.core.params import load_params
from twinrun.dataset.prediction_table import prediction_table
from twinrun.models.stored import tensors_hash
from twinrun.record.journal import Journal
from twinrun.tracking.stage_journals import journal_evaluation, journal_validation
from twinrun.tracking.store import find_tracker, open_client

REPOSITORY = Path(__file__).parents[1]
_SHAPES = {"1": (256, 64), "3": (128, 256), "5": (2, 128)}  # the linear layers of an mlp for 8 x 8 gray pixels


def _weights(seed: str) -> bytes:
    """The weights of a small network, all of them one number that follows from `seed`."""
    number = np.float32(zlib.crc32(seed.encode()) / 2**34)
    layers = {f"{name}.weight": shape for name, shape in _SHAPES.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in _SHAPES.items()}
    return save({name: np.full(shape, number) for name, shape in (layers | biases).items()})


class _Hashes(dict[str, str]):
    """The weights hash of each seed, as it is asked for."""

    def __missing__(self, seed: str) -> str:
        self[seed] = tensors_hash(_weights(seed))
        _SEEDS[self[seed]] = seed
        return self[seed]


_SEEDS: dict[str, str] = {}
HASHES = _Hashes()
AB, CD = HASHES["ab"], HASHES["cd"]


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, as MLflow makes it in seconds; to be copied."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.chdir(folder)
            open_client(find_tracker(folder))

    return made_once(tmp_path_factory, "store", make) / "mlruns"


@pytest.fixture
def tracked_project(tmp_path: Path, new_store: Path, preloaded: None, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """The working folder: a project with an empty store."""
    folder = tmp_path / "my project"
    shutil.copytree(new_store, folder / "mlruns")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    return folder


def project_with_store(tracked_project: Path) -> Path:
    """What `project` is in the tests of these folders: one with a store of its own."""
    return tracked_project


def train(project: Path, *, epochs: int = 3, weights_hash: str = AB, end: bool = True) -> Journal:
    """Leave what the train stage leaves: a bundle, a card, a history, a journal that waits."""
    out = project / "data/out/train"
    with replacing_folder(out / "bundle") as temp:
        (temp / "weights.safetensors").write_bytes(_weights(_SEEDS.get(weights_hash, weights_hash)))
        description = {
            "format": 2,
            "architecture": "mlp",
            "classes": ["0", "1"],
            "preprocessing": {
                **{"size_px": [8, 8], "channels": "gray", "fit": "pad", "resample": "bilinear", "max_pixels": 10**6},
                **{"mean": [0.3], "std": [0.3]},
            },
            "weights_hash": weights_hash,
        }
        write_json(description, temp / "model.json")
    journal = Journal.create(project, name="lenet5 on digits", experiment="twinrun-digits")
    journal.params({"train": {"epochs": epochs, "model": "lenet5"}})
    journal.dataset(name="digits", digest="0123456789abcdef", source="digits", images=10)
    for epoch in range(epochs):
        journal.metrics(epoch, {"train_loss": 1 / (epoch + 1), "val_accuracy": 0.9})
    journal.include(project / "data/out/validate/journal.jsonl")
    card: dict[str, Any] = {
        "weights_hash": weights_hash,
        "fingerprint": "f" * 64,
        "journal_id": journal.id,
        "commit": "c0ffee",
    }
    write_json(card, out / "card.json")
    journal.tags({"twinrun.weights_hash": weights_hash, "twinrun.fingerprint": card["fingerprint"]})
    journal.artifact(out / "card.json")
    journal.artifact(out / "bundle")
    if end:
        journal.end()
        journal.copy_to(out / "journal.jsonl")
    return journal


def save_lenet5(folder: Path, *, certain: bool = False) -> str:
    """A bundle of a LeNet-5 for digits with its first weights; returns their hash.

    Where it is `certain`, its probabilities round to 0 and 1.
    """
    from twinrun.models.architectures import build_network
    from twinrun.models.bundle import Preprocessing, save_bundle

    preprocessing = Preprocessing(
        size_px=(32, 32),
        channels="gray",
        fit="pad",
        resample="bilinear",
        max_pixels=10**6,
        mean=(0.3,),
        std=(0.3,),
    )
    weights = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=0).state_dict()
    head = [*weights][-2:]
    weights |= {name: weights[name] * (1e6 if certain else 1) for name in head}
    return save_bundle(folder, weights, architecture="lenet5", classes=tuple("0123456789"), preprocessing=preprocessing)


def train_really(project: Path, *, certain: bool = False) -> None:
    """The outputs of the train stage with a network that can be loaded, its weights as they begin."""

    def save() -> str:
        return save_lenet5(project / "data/out/train/bundle", certain=certain)

    train(project, weights_hash=save())  # which puts another network there
    digest = save()
    evaluate(project, weights_hash=digest)


def evaluate_really(project: Path) -> None:
    """Digits to test the network of `train_really` on, and what it answers."""
    import torch
    from sklearn.datasets import load_digits

    from twinrun.dataset.manifest import write_manifest
    from twinrun.models.bundle import load_bundle
    from twinrun.models.predict import probabilities

    digits, out = load_digits(), project / "data/out"
    small = torch.tensor(digits.images[:40, None] * (255 / 16), dtype=torch.float32)
    larger = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear")
    images = larger.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    ids, targets = [f"{row:016x}" for row in range(40)], digits.target[:40].astype(np.int64)
    (out / "ingest").mkdir(parents=True)
    np.save(out / "ingest/images.npy", images)
    labels = [str(target) for target in targets]
    write_manifest(out / "validate/manifest.parquet", ids=ids, labels=labels, splits=["test"] * 40, dropped=[None] * 40)
    bundle = load_bundle(out / "train/bundle")
    table = prediction_table(ids, targets, probabilities(bundle, images), bundle.classes)
    write_table(table, out / "evaluate/predictions.parquet")
    _journal_again(out / "evaluate")


@pytest.fixture(scope="session")
def registered(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Path:
    """A project with one registered model, the candidate, and photos of digits: 0.png to 3.png. Not to be changed."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from pipeline import register

    folder = tmp_path_factory.mktemp("registered")
    shutil.copytree(new_store, folder / "mlruns")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        train_really(folder)
        register.main()
    for number in range(4):
        pixels = (load_digits().images[number] * 255 / 16).astype("uint8")
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.png")
    return folder


def validate(project: Path, report: str = "<html></html>", *, passed: bool = True) -> None:
    """Leave what the validate stage leaves."""
    out = project / "data/out/validate"
    status = "passed" if passed else "failed"
    check = {
        "name": "no_leaks",
        "severity": "critical",
        "status": status,
        "passed": passed,
        "stops": not passed,
        "found": report,
    }
    unsure = {"name": "label_search", "severity": "warning", "status": "not judged", "passed": False, "stops": False}
    unsure["found"] = "The labels could not be judged"
    images = {"total": 12, "kept": 10, "dropped": {"no_blur": 2}}
    write_text(report, out / "report/index.html")
    write_text(report, out / "data_docs/index.html")
    counts = {"no_leaks": 0 if passed else 2, "no_blur": 2, "label_search": 1}
    result = {"passed": passed, "images": images, "counts": counts, "expectations": [check, unsure]}
    write_json(result, out / "result.json")
    journal_validation(out, result, load_params())
    (out / "manifest.parquet").unlink(missing_ok=True)
    if passed:
        write_text(f"manifest of {report}", out / "manifest.parquet")


def evaluate(project: Path, *, weights_hash: str = AB, accuracy: float = 0.99, **more: Any) -> dict[str, Any]:
    """Leave what the evaluate stage leaves; `more` are further metrics."""
    metrics = {
        **more,
        "accuracy": accuracy,
        "balanced_accuracy": 0.98,
        "macro_f1": 0.97,
        "log_loss": 0.1,
        "calibration_error": 0.01,
        "images": 10,
        "intervals": {"accuracy": [0.95, 1.0]},
        "per_class": [{"label": "0", "precision": 1.0, "recall": 0.9, "f1": 0.95, "images": 5}],
    }
    write_json({"weights_hash": weights_hash}, project / "data/out/evaluate/model.json")
    write_json(metrics, project / "data/out/evaluate/metrics.json")
    write_text("actual,predicted\n0,0\n0,0\n0,1|<b>\n1|<b>,1|<b>\n", project / "data/out/evaluate/confusion.csv")
    write_text("<html></html>", project / "data/out/evaluate/report/index.html")
    predict(project, wrong=round(300 * (1 - accuracy)))
    return metrics


def predict(project: Path, *, wrong: int, prefix: str = "", groups: int | None = None) -> None:
    """The predictions of an evaluation that classifies the first `wrong` of 300 test images wrongly."""
    targets = np.arange(300) % 2
    said = (targets + (np.arange(300) < wrong)) % 2
    probabilities = np.where(np.arange(2) == said[:, None], 0.9, 0.1)
    ids = [f"{prefix}{at}" for at in range(300)]
    units = None if groups is None else [f"{at * groups // 300}" for at in range(300)]
    table = prediction_table(ids, targets, probabilities, ("0", "1"), units=units)
    write_table(table, project / "data/out/evaluate/predictions.parquet")
    _journal_again(project / "data/out/evaluate")


def _journal_again(out: Path) -> None:
    journal_evaluation(out, read_json(out / "metrics.json"), read_json(out / "model.json")["weights_hash"])


@dataclass(frozen=True)
class StoredRun:
    """One run, read back."""

    id: str
    status: str
    metrics: dict[str, float]
    tags: dict[str, str]
    info: Any
    history: dict[str, list[tuple[int, float]]]
    artifacts: list[str]

    def table(self, path: str) -> list[dict[str, Any]]:
        """The rows of an artifact that MLflow draws as a table."""
        table = json.loads(Path(open_client(find_tracker()).download_artifacts(self.id, path)).read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def runs(project: Path) -> list[StoredRun]:
    """Every run in the project's store, with the whole history of its metrics and all artifacts."""
    client = open_client(find_tracker(project))
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return [
        StoredRun(
            run.info.run_id,
            run.info.status,
            run.data.metrics,
            run.data.tags,
            run,
            {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
            _artifacts(client, run.info.run_id, None),
        )
        for run in found
    ]


def _artifacts(client: Any, run_id: str, folder: str | None) -> list[str]:
    found: list[str] = []
    for entry in client.list_artifacts(run_id, folder):
        found += _artifacts(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class FaultyTracker(ThreadingHTTPServer):
    """Stands before a real MLflow server and breaks in a chosen way.

    `fault`: None passes everything on; "error" answers 500; "plain http" answers 400 and "no entry" 403, both with a
    page, as what stands before a server does; "hang" never answers; "slow" answers after 2 s; "lost" lets
    the request through and loses the answer; "deadlock" answers requests to log_batch as MLflow does where PostgreSQL
    ended the transaction. `after` requests are passed on before the fault begins, and it ends after `times` of them.
    Requests without the text `only` in their path or body are passed on.
    """

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.behind = behind
        self.fault: str | None = None
        self.after, self.times, self.only = 0, math.inf, ""
        self.released = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def break_down(self, fault: str | None, after: int = 0, times: float = math.inf, only: str = "") -> None:
        self.fault, self.after, self.times, self.only = fault, after, times, only

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what these tests are about."""


_PAGES = {"plain http": 400, "no entry": 403}
_DEADLOCK = (
    "(psycopg2.errors.DeadlockDetected) deadlock detected\nDETAIL:  Process 71 waits for ShareLock on transaction 901; "
    "blocked by process 70.\n[SQL: INSERT INTO metrics ...]"
)


class _Relay(BaseHTTPRequestHandler):
    server: FaultyTracker

    def do_GET(self) -> None:
        self._relay()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault if self.server.only.encode() in self.path.encode() + body else None
        if fault and self.server.after > 0:
            self.server.after -= 1
            fault = None
        if fault == "error":
            self.send_error(500)
            return
        if fault in _PAGES:
            self.send_error(_PAGES[fault])
            return
        if fault == "deadlock" and "log-batch" in self.path and self.server.times > 0:
            self.server.times -= 1
            self._answer(503, json.dumps({"error_code": "TEMPORARILY_UNAVAILABLE", "message": _DEADLOCK}).encode())
            return
        if fault == "hang":
            self.server.released.wait(20)
            return
        if fault == "slow":
            self.server.released.wait(2)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, content, answer.headers.get("Content-Type", "application/json"))

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Silence."""


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Iterator[int]:
    """A real MLflow server; its port."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(new_store / "mlflow.db", folder)
    port = free_port()
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--workers",
                "1",
                "--backend-store-uri",
                f"sqlite:///{folder}/mlflow.db",
                "--artifacts-destination",
                str(folder / "a"),
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=_server_environment(),
        )
    try:
        wait_for(port, "/health", server, folder / "server.log")
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _server_environment() -> dict[str, str]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return {**{k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}, **quiet}


def wait_for(port: int, path: str, server: "subprocess.Popen[bytes]", log: Path, timeout_s: float = 90) -> None:
    """Until the server answers; fails with its log where it does not."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"The server did not come up:\n{log.read_text()}")


@pytest.fixture
def tracker(mlflow_server: int, monkeypatch: pytest.MonkeyPatch, tracked_project: Path) -> Iterator[FaultyTracker]:  # noqa: ARG001
    """A tracking server that MLFLOW_TRACKING_URI names and that can be broken."""
    server = FaultyTracker(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    yield server
    server.released.set()
    server.shutdown()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
