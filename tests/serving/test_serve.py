"""`twinrun serve` over real HTTP: one server, started once, for a project with a registered model."""

import errno
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from data_support import run_twinrun
from PIL import Image
from tracking_support import free_port, wait_for

from twinrun.base.errors import DataError, RegistryError, TrackingError
from twinrun.models.architectures import build_network
from twinrun.models.bundle import load_bundle, save_bundle
from twinrun.prediction.classifier import ImageClassifier
from twinrun.serving import follow
from twinrun.serving.follow import open_app, open_model
from twinrun.serving.running import Settings, run
from twinrun.serving.waste import waste_engine
from twinrun.tracking.registry import Registry
from twinrun.tracking.store import find_tracker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BUNDLE = "data/out/train/bundle"


@dataclass
class Server:
    """A running server and the project that it serves."""

    project: Path
    port: int
    process: "subprocess.Popen[bytes]"
    seconds: float

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        is_json = content and "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if is_json else content, answer.headers


@pytest.fixture(scope="module")
def server(registered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served") / "project"
    shutil.copytree(registered, folder)
    port, began = free_port(), time.monotonic()
    with (folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-m", "twinrun", "serve", "--port", str(port)]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for(port, "/health", process, folder / "serve.log")
        yield Server(folder, port, process, time.monotonic() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_the_server_imports_no_pytorch_and_answers_with_the_model_that_it_names(server: Server) -> None:
    stored = load_bundle(server.project / BUNDLE)

    status, version, _ = server.ask("GET", "/version")
    _, file, headers = server.ask("GET", f"/model/{version['onnx_sha256']}.onnx")

    libraries = Path(f"/proc/{server.process.pid}/maps")
    assert status == 200
    assert (version["name"], version["version"]) == ("twinrun-digits", 1)
    assert version["weights_hash"] == stored.weights_hash
    assert "immutable" in headers["Cache-Control"]
    assert file == (server.project / "data/out/register/onnx/model.onnx").read_bytes()
    assert not libraries.exists() or "libtorch" not in libraries.read_text()


def test_with_a_token_only_requests_that_carry_it_are_answered(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token.txt").write_text("a-token-of-twenty-four-c\n")
    (tmp_path / "short.txt").write_text("abc\n")
    command = [sys.executable, "-m", "twinrun", "serve", "--token-file"]
    photo, port, log = _photo(np.random.default_rng(1), 0), free_port(), tmp_path / "serve.log"

    short = subprocess.run(
        [*command, tmp_path / "short.txt"], cwd=server.project, capture_output=True, text=True, check=False
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, tmp_path / "token.txt", "--port", str(port)], cwd=server.project, stdout=output, stderr=output
        )
    guarded = Server(server.project, port, process, 0)
    try:
        wait_for(port, "/health", process, log)
        answers = [
            guarded.ask("POST", "/classify", photo, **headers)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer a-token-of-twenty-four-c"})
        ]
        description = guarded.ask("GET", "/openapi.json")[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)

    assert [status for status, _, _ in answers] == [401, 401, 200]
    assert description["components"]["securitySchemes"]["HTTPBearer"] == {"type": "http", "scheme": "bearer"}
    open_to_all = {path for path, entry in description["paths"].items() if "security" not in next(iter(entry.values()))}
    assert open_to_all == {"/health", "/version", "/regions"}
    assert "Authorization: Bearer TOKEN" in json.dumps(answers[0][1])
    assert short.returncode == 1
    assert "needs at least 16 printable ASCII characters" in short.stdout + short.stderr


def test_twenty_photos_get_the_labels_and_probabilities_of_predict(server: Server) -> None:
    rng = np.random.default_rng(3)
    photos = [_photo(rng, at) for at in range(20)]

    answers = [server.ask("POST", "/classify", photo)[1] for photo in photos]

    classifier = ImageClassifier(load_bundle(server.project / BUNDLE))
    expected = list(classifier.answers(photos, classifier.read))
    for answer, one in zip(answers, expected, strict=True):
        assert one.probabilities is not None
        assert answer["label"] == classifier.bundle.classes[one.probabilities.argmax()]
        np.testing.assert_allclose(list(answer["probabilities"].values()), one.probabilities, atol=1e-6)


def test_a_body_and_a_form_give_one_answer_and_a_batch_has_a_row_for_each_file(server: Server) -> None:
    photo = (server.project / "0.png").read_bytes()
    form, kind = _form(photo)
    several, _ = _form(photo, b"no image", photo)

    raw = server.ask("POST", "/classify", photo)
    sent = server.ask("POST", "/classify", form, Content_Type=kind)
    status, batch, _ = server.ask("POST", "/classify-batch", several, Content_Type=kind)

    assert raw[0] == sent[0] == status == 200
    assert raw[1] == sent[1] == batch["rows"][0] == batch["rows"][2]
    assert "is not an image" in batch["rows"][1]["error"]


def test_what_cannot_be_classified_is_refused_with_a_reason_and_the_server_goes_on(server: Server) -> None:
    photo = (server.project / "0.png").read_bytes()
    huge = io.BytesIO()
    Image.new("1", (2000, 2000)).save(huge, "PNG")  # the model takes at most a million pixels
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    port = str(server.port)

    found = {
        "empty": server.ask("POST", "/classify"),
        "text": server.ask("POST", "/classify", b"hello"),
        "cut off": server.ask("POST", "/classify", whole.getvalue()[:2000]),
        "pixels": server.ask("POST", "/classify", huge.getvalue()),
        "bytes": server.ask("POST", "/classify", b"", Content_Length="900000000"),
        "no form": server.ask("POST", "/classify", b"xx", Content_Type="multipart/form-data"),
        "host": server.ask("GET", "/version", Host="bad.example"),
        "origin": server.ask("POST", "/classify", photo, Origin="http://bad.example"),
        "old model": server.ask("GET", f"/model/{'0' * 64}.onnx"),
        "nothing": server.ask("GET", "/classify"),
        "method": server.ask("DELETE", "/health"),
    }

    statuses = {name: answer[0] for name, answer in found.items()}
    assert statuses == {
        **{"empty": 400, "text": 415, "cut off": 422, "pixels": 413, "bytes": 413, "no form": 400},
        **{"host": 421, "origin": 403, "old model": 404, "nothing": 404, "method": 405},
    }
    assert all(isinstance(answer[1]["error"], str) for answer in found.values())
    assert "params.yaml" not in json.dumps([answer[1] for answer in found.values()])
    assert server.ask("POST", "/classify", photo, Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert b'path="/classify",status="415"' in server.ask("GET", "/metrics")[1]


def test_whoever_watches_the_server_may_ask_by_head(server: Server) -> None:
    found = {path: server.ask("HEAD", path) for path in ("/health", "/version", "/", "/nothing")}

    assert [status for status, *_ in found.values()] == [200, 200, 200, 404]
    assert not any(body for _, body, _ in found.values())


def test_an_answer_on_a_connection_that_is_kept_does_not_wait_for_its_acknowledgement(server: Server) -> None:
    """Unless TCP_NODELAY is set, an answer in two parts takes 40 ms: its second part waits for that of the first."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        connection.request("GET", "/version")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)

    assert min(seconds[30:]) < 0.03


def test_a_client_made_from_the_description_sends_files(server: Server) -> None:
    description = server.ask("GET", "/openapi.json")[1]
    paths = description["paths"]

    forms = {
        path: entry["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["file"]
        for path, entry in paths.items()
        if path in ("/classify", "/classify-batch", "/explain", "/feedback")
    }

    refusals = {status: entry for status, entry in paths["/classify"]["post"]["responses"].items() if status >= "400"}
    answers = [server.ask("POST", path, b"no image") for path in ("/classify", "/explain")]
    several = forms.pop("/classify-batch")
    assert several["type"] == "array"
    assert [*forms.values(), several["items"]] == [{"type": "string", "format": "binary"}] * 4
    assert set(refusals) == {"400", "403", "408", "413", "415", "421", "422", "503"}
    (body,) = {entry["content"]["application/json"]["schema"]["$ref"] for entry in refusals.values()}
    described = description["components"]["schemas"][body.rpartition("/")[2]]
    assert [answer[0] for answer in answers] == [415, 415]
    assert all(set(answer[1]) >= set(described["required"]) for answer in answers)


@pytest.mark.skipif(CHROMIUM is None, reason="There is no Chromium here; Debian has it: apt-get install chromium")
def test_the_page_loads_in_a_browser_and_names_the_model(server: Server, tmp_path: Path) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]

    page = subprocess.run(
        [*command, "--virtual-time-budget=8000", "--dump-dom", f"http://127.0.0.1:{server.port}/"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    ).stdout

    assert 'data-ready="yes"' in page
    assert re.search(r"Model: twinrun-digits, version 1, weights [0-9a-f]{12}", page)


def test_a_promotion_takes_over_unless_its_files_were_changed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(server.project)
    registry, photo = Registry(find_tracker(), "twinrun-digits"), (server.project / "0.png").read_bytes()
    first, second, third = (_register(server.project, seed) for seed in (0, 1, 2))
    files = server.project.glob(f"mlruns/artifacts/*/models/{_model_id(third)}/artifacts/model.onnx")
    next(files).write_bytes(b"changed")

    registry.promote(second, force=True, reason="a test")
    took_over = _until(lambda: server.ask("POST", "/classify", photo)[1]["model"]["version"] == second)
    registry.promote(third, force=True, reason="a test")
    said = _until(lambda: server.ask("GET", "/health")[1]["problem"])

    assert first == 1
    assert took_over
    assert f"Version {third}" in said
    assert "the registry says" in said
    assert server.ask("POST", "/classify", photo)[1]["model"]["version"] == second


def test_a_champion_that_cannot_be_loaded_is_tried_again_after_a_minute_and_another_at_once(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stop = tmp_path / "project", threading.Event()
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    registry = Registry(find_tracker(), "twinrun-digits")
    good, other = (_register(folder, seed) for seed in (1, 2))
    (file,) = folder.glob(f"mlruns/artifacts/*/models/{_model_id(other)}/artifacts/model.onnx")
    content = file.read_bytes()
    registry.promote(1, force=True, reason="a test")
    model = open_model(find_tracker(), None, lambda: "twinrun-digits", stop)

    def promote_damaged() -> str | None:
        file.write_bytes(b"changed")
        registry.promote(other, force=True, reason="a test")
        problem: str | None = _until(lambda: model.problem)
        file.write_bytes(content)
        return problem

    problem = promote_damaged()
    waits = not _until(lambda: model.engine.version == other, 3)
    still = model.problem
    registry.promote(good, force=True, reason="a test")
    at_once = _until(lambda: model.engine.version == good, 3)
    solved = _until(lambda: model.problem is None)
    monkeypatch.setattr(follow, "_RETRY_S", 2)
    promote_damaged()
    later = _until(lambda: model.engine.version == other)
    stop.set()

    assert problem is not None
    assert f"Version {other}" in problem
    assert (waits, still) == (True, problem)
    assert at_once
    assert solved
    assert later


def test_a_killed_worker_three_promotions_and_a_rollback_under_load_cost_at_most_the_workers_own_requests(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port, log = tmp_path / "project", free_port(), tmp_path / "serve.log"
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    registry = Registry(find_tracker(), "twinrun-digits")
    versions = [_register(folder, seed) for seed in (0, 1, 2)]
    registry.promote(versions[0], force=True, reason="a test")
    photo, answers, lost = (folder / "0.png").read_bytes(), [], []
    with log.open("wb") as output:
        command = [sys.executable, "-m", "twinrun", "serve", "--workers", "2", "--port", str(port)]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    group = Server(folder, port, process, 0)

    def ask(_: int) -> None:
        try:
            answers.append(group.ask("POST", "/classify", photo)[:2])
        except (OSError, http.client.HTTPException) as error:  # the second where a part of the answer had come
            lost.append(error)

    try:
        wait_for(port, "/health", process, log)
        assert _until(lambda: log.read_text().count("Worker") == 2, 60)
        with ThreadPoolExecutor(4) as pool:
            pool.map(ask, range(100))
            psutil.Process(process.pid).children(recursive=True)[-1].kill()
            pool.map(ask, range(200))
            for version in (versions[1], versions[2], versions[1]):
                registry.promote(version, force=True, reason="a test")
                pool.map(ask, range(50))
            registry.rollback(reason="a test")
        assert _until(lambda: log.read_text().count("Worker") == 3, 60)
        last = _until(
            lambda: {group.ask("POST", "/classify", photo)[1]["model"]["version"] for _ in range(8)} == {3}, 20
        )
        for _ in range(50):
            ask(0)
        counted = group.ask("GET", "/metrics")[1].decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    by_version = {(answer["model"]["version"], answer["logits_sha256"]) for _, answer in answers}
    assert len(lost) <= 4  # as many as were under way
    assert {status for status, _ in answers} == {200}
    assert len(answers) + len(lost) == 500
    assert len(by_version) == len({version for version, _ in by_version})
    assert last
    assert int(re.findall(r"twinrun_images_total (\d+)", counted)[0]) >= 250


def test_the_app_begins_with_the_waste_model_and_the_first_champion_replaces_it(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(registered, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    stop = threading.Event()

    alone = open_app(find_tracker(tmp_path), _no_project, waste_engine, stop)
    model = open_app(find_tracker(), lambda: "twinrun-digits", waste_engine, stop)
    before, problem = model.engine, model.problem
    Registry(find_tracker(), "twinrun-digits").promote(1, force=True, reason="a test")
    took_over = _until(lambda: model.engine.version == 1)
    stop.set()

    assert (
        alone.engine.model.classes
        == before.model.classes
        == ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
    )
    assert problem is None
    assert took_over
    assert model.engine.model.classes == list("0123456789")


def test_in_a_clone_that_pulled_the_results_the_command_that_registers_them_is_named(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(registered, tmp_path / "clone", ignore=shutil.ignore_patterns("mlruns"))
    monkeypatch.chdir(tmp_path / "clone")
    Path("dvc.lock").write_text("stages:\n  register:\n    cmd: python -m pipeline.register\n")

    with pytest.raises(RegistryError, match=r"There is no model 'twinrun-digits'.*\n.*dvc repro -f -s register"):
        open_model(find_tracker(), None, lambda: "twinrun-digits", threading.Event())


@pytest.mark.usefixtures("real_processes")
def test_a_second_ctrl_c_while_the_server_starts_is_no_traceback_and_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "twinrun", "app", "--port", str(port)]
    options: Any = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}

    with subprocess.Popen(command, start_new_session=True, **options) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if line.startswith("Page: "):
                refused = subprocess.run(command, check=False, **options)
                break
        for _ in range(2):
            os.killpg(server.pid, signal.SIGINT)
            time.sleep(0.02)
        said, _ = server.communicate(timeout=30)

    assert "Stopped by Ctrl-C" in said
    assert "Traceback" not in said
    assert refused.returncode == 1
    assert f"Choose another port: twinrun app --port {port + 1} (make app PORT={port + 1})" in refused.stdout


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused_without_the_advice_to_choose_another_port(
    host: str, tmp_path: Path
) -> None:
    refused = run_twinrun(tmp_path, "app", "--host", host)

    assert refused.code == 1
    assert f"cannot listen on {host}:5001: " in refused.said
    assert "Name an address of this machine, or 0.0.0.0 for all: --host" in refused.said
    assert "port:" not in refused.said


def test_a_port_that_needs_a_permission_is_refused_with_one_that_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", deny)  # root, and some systems, permit every port

    with pytest.raises(TrackingError, match=r"Choose another port: twinrun app --port 8080 \(make app PORT=8080\)$"):
        run(Settings("127.0.0.1", 80, None, None, False, None, model=None, is_app=True), browser=False)


def _no_project() -> str:
    raise DataError("There is no params.yaml")


def _photo(rng: np.random.Generator, at: int) -> bytes:
    """Colour or gray, in several formats, upright or not, of several sizes."""
    shape = (int(rng.integers(20, 200)), int(rng.integers(20, 200)), 3)
    image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    image = image.resize((8, 8)).resize(image.size).convert(("RGB", "L", "CMYK")[at % 3])
    kind = "JPEG" if image.mode == "CMYK" else ("PNG", "JPEG", "TIFF", "BMP")[at % 4]
    exif = Image.Exif()
    exif[0x0112] = 1 + at % 8
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return file.getvalue()


def _form(*files: bytes) -> tuple[bytes, str]:
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="photo"\r\n\r\n' + file + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def _register(project: Path, seed: int) -> int:
    """The number of the version of a network with the weights of `seed`."""
    from twinrun.evaluation.onnx_file import onnx_file

    before = load_bundle(project / BUNDLE)
    network = build_network("lenet5", channels=1, size_px=(32, 32), classes=10, seed=seed)
    folder = project / f"bundle {seed}"
    names = {"architecture": "lenet5", "classes": before.classes, "preprocessing": before.preprocessing}
    save_bundle(folder, network.state_dict(), **names)  # type: ignore[arg-type]
    metrics = json.loads((project / "data/out/evaluate/metrics.json").read_text())
    onnx = onnx_file(load_bundle(folder))
    registry = Registry(find_tracker(), "twinrun-digits")
    return registry.register(folder, metrics, passed=True, fingerprint="f" * 64, run_id=None, onnx=onnx).version


def _model_id(number: int) -> str:
    from twinrun.tracking.store import open_client

    version = open_client(find_tracker()).get_model_version("twinrun-digits", str(number))
    return str(version.source).removeprefix("models:/")


def _until(found: Any, seconds: float = 5) -> Any:
    """What `found` answers as soon as it is true, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := found()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer
