"""What the server makes of requests: MLflow's forms, an overload, hostile files, nonsense, and its log of answers."""

import asyncio
import base64
import http.client
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image
from serving_support import digit_png, digits_engine, serving
from tracking_support import free_port, save_lenet5, wait_for

from twinrun.cli.main import app as commands
from twinrun.core.cores import available_cores
from twinrun.evaluation.onnx_file import onnx_file
from twinrun.models.bundle import load_bundle
from twinrun.serving import app as serving_app
from twinrun.serving.answer_log import AnswerLog
from twinrun.serving.app import make_app
from twinrun.serving.engine import Engine, load_engine
from twinrun.serving.follow import ModelInService
from twinrun.serving.waste import NAME, waste_engine

DATA = Path(os.environ.get("TWINRUN_TEST_DATA", ""))
PHOTO = (Path(__file__).parents[2] / "docs/report.png").read_bytes()
SIMILAR = b"Similar training images are not shown"  # a note where they were looked for in a folder without any
Answered = tuple[int, Any, http.client.HTTPMessage]


class Served:
    """The waste model in a server in this process."""

    def __init__(self, log: Path) -> None:
        self.port, self.log = free_port(), log
        app = make_app(ModelInService(waste_engine()), [], host="127.0.0.1", token=None, log=AnswerLog(log))
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if is_json and content else content, answer.headers


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served") / "answers.jsonl")
    served.thread.start()
    while not served.server.started:
        time.sleep(0.05)
    yield served
    served.server.should_exit = True
    served.thread.join(30)


def test_every_form_of_mlflow_gives_the_answer_of_classify(served: Served) -> None:
    text = base64.b64encode(PHOTO).decode()
    forms = [
        {"dataframe_split": {"columns": ["image"], "data": [[text], ["bm9uZQ=="]]}},
        {"dataframe_records": [{"image": text}, {"image": None}]},
        {"instances": [text, "!"]},
        {"inputs": {"image": [text, ""]}},
    ]

    label = served.ask("POST", "/classify", PHOTO)[1]
    answers = [served.ask("POST", "/invocations", json.dumps(form).encode()) for form in forms]

    for status, answer, _ in answers:
        good, bad = answer["predictions"]
        assert status == 200
        assert good == {**{name: label[name] for name in ("label", "probability", "probabilities")}, "error": None}
        assert bad["label"] is None
        assert bad["error"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{", "The body is not JSON"),
        ("[]", "one of dataframe_split, dataframe_records, instances, inputs; found 0"),
        ('{"instances": []}', "There are no images"),
        ('{"instances": ["bm9uZQ=="]}', "No image can be read"),
        ('{"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}', "dataframe_split cannot be read"),
        ('{"dataframe_split": 3}', "a list of rows"),
        ('{"dataframe_records": [1]}', "a list of objects"),
        ('{"inputs": ' + "[" * 20_000 + "]" * 20_000 + "}", "The body is not JSON"),
        ('{"instances": ' + json.dumps(["x"] * 65) + "}", "at most 64"),
    ],
)
def test_an_invocation_that_is_wrong_is_refused_with_the_reason(served: Served, body: str, reason: str) -> None:
    status, answer, _ = served.ask("POST", "/invocations", body.encode())

    assert status == 400
    assert reason in answer["message"]
    assert "/" not in answer["message"].replace("photo.jpg", "")


def test_a_full_server_answers_503_at_once_with_when_to_come_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_app, "_WAITING", 1)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: served.ask("POST", "/classify", PHOTO), range(48)))

    refused = [headers for status, _, headers in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert all(headers["Retry-After"] == "1" for headers in refused)
    assert served.ask("POST", "/classify", PHOTO)[0] == 200


def test_of_small_images_that_arrive_together_a_small_model_answers_some_and_refuses_the_rest_before() -> None:
    app = make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None)
    most = 4 * available_cores()

    ended = asyncio.run(_at_once(app, [("POST", "/classify", digit_png(row)) for row in range(most + 20)]))

    assert [status for _, status, _ in ended] == [503] * 20 + [200] * most
    for row, _, answer in ended[20:]:
        assert answer["logits_sha256"] == digits_engine().classify(digit_png(row)).logits_sha256


def test_while_a_large_image_is_decoded_for_a_small_model_others_are_answered() -> None:
    app = make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None)
    large = io.BytesIO()
    Image.new("L", (999, 999)).save(large, "PNG")  # in few bytes

    ended = asyncio.run(_at_once(app, [("POST", "/classify", large.getvalue()), ("GET", "/health", b"")]))

    assert len(large.getvalue()) < 50_000
    assert [(place, status) for place, status, _ in ended] == [(1, 200), (0, 200)]


def test_the_server_makes_the_page_of_explain_for_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    engine = _lenet(tmp_path / "bundle")
    with serving(make_app(ModelInService(engine), [], host="127.0.0.1", token=None)) as server:
        status, page, headers = server.ask("POST", "/explain", digit_png(3))
        refused = server.ask("POST", "/explain", b"no image")
        _, seen, kinds = server.ask("POST", "/explain", b"no image", Accept="text/html,*/*")

    assert status == 200
    assert f"weights {engine.model.weights_hash[:12]}".encode() in page
    assert SIMILAR in page
    assert "sandbox allow-scripts" in headers["Content-Security-Policy"]
    assert refused[0] == 415
    assert refused[1]["error"].startswith("This file ")
    assert b"<p>This file " in seen  # what a browser shows
    assert kinds["Content-Type"].startswith("text/html")


def test_a_form_that_can_send_no_header_has_the_token_in_a_cookie_for_explain_alone(tmp_path: Path) -> None:
    model = ModelInService(_lenet(tmp_path / "bundle"))
    with serving(make_app(model, [], host="127.0.0.1", token="a token; of 24 characters")) as server:
        given = {"Cookie": "other=1; token=a%20token%3B%20of%2024%20characters"}
        statuses = {
            path: server.ask("POST", path, b"no image", **given)[0] for path in ("/explain", "/classify", "/feedback")
        }
        wrong = server.ask("POST", "/explain", b"no image", Cookie="token=another")[0]
        foreign = server.ask("POST", "/explain", b"no image", Origin="http://example.org", **given)[0]
        guarded = server.ask("GET", "/version")[1]["guarded"]

    assert statuses == {"/explain": 415, "/classify": 401, "/feedback": 401}
    assert (wrong, foreign, guarded) == (401, 403, True)


def test_no_training_image_is_looked_for_where_a_proxy_lets_others_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ModelInService(_lenet(tmp_path / "bundle"))
    with serving(make_app(model, [], host="127.0.0.1", token=None, names=["bins.example.org"])) as server:
        status, page, _ = server.ask("POST", "/explain", digit_png(3))

    assert status == 200
    assert SIMILAR not in page


def test_the_log_has_hashes_of_every_answer_and_verify_computes_one_again(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, other, file = tmp_path / "photo.png", tmp_path / "other.png", tmp_path / "answer.json"
    photo.write_bytes(PHOTO)
    other.write_bytes(PHOTO + b" ")
    before = served.log.read_text()

    answer = served.ask("POST", "/classify", PHOTO)[1]
    file.write_text(json.dumps(answer))
    said = [_verify(capsys, source, photo) for source in (file, served.log)]
    wrong = _verify(capsys, file, other)
    file.write_text(json.dumps({**answer, "label": "metal", "logits_sha256": "0" * 64}))
    changed = _verify(capsys, file, photo)
    file.write_text("{}")
    none = _verify(capsys, file, photo)
    os.truncate(file, 100_000_001)
    large = _verify(capsys, file, photo)

    line = json.loads(served.log.read_text().removeprefix(before))
    assert line["model"]["name"] == NAME
    assert {line[name] == answer[name] for name in ("label", "image_sha256", "logits_sha256")} == {True}
    assert [code for code, _ in said] == [0, 0]
    assert said[0][1].startswith(f"SAME: {answer['label']}, with the weights")
    assert wrong[0] == changed[0] == 4
    assert "but the answer is for" in wrong[1]
    assert f"The answer was metal, but the model now gives {answer['label']}" in changed[1]
    assert none[0] == large[0] == 1
    assert f"grep {answer['image_sha256']} {file} > answer-of-photo.jsonl" in large[1]


@pytest.mark.skipif(not (DATA / "hostile-images").is_dir(), reason="TWINRUN_TEST_DATA names no hostile-images/")
def test_files_that_break_decoders_are_answered_with_4xx_or_a_label(served: Served) -> None:
    files = sorted(file for file in (DATA / "hostile-images").rglob("*") if file.is_file())[::6]
    small = [file for file in files if file.stat().st_size < 3_000_000]

    statuses = Counter(served.ask("POST", "/classify", file.read_bytes())[0] for file in small)

    assert len(small) > 100
    assert set(statuses) <= {200, 400, 413, 415, 422}
    assert served.ask("GET", "/health")[0] == 200


def test_nonsense_never_makes_the_server_fail(served: Served) -> None:
    rng = random.Random(0)
    paths = ["/classify", "/classify-batch", "/invocations", "/model/x.onnx", "/version", "/lang/%2e%2e/app.js", "/%00"]
    kinds = ["", "image/png", "multipart/form-data; boundary=b", "multipart/form-data", "application/json", "\x7f"]
    text = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + PHOTO[:3000] + b"\r\n--b--\r\n"
    bodies = [b"", b"\0" * 99, PHOTO[:5000], text, b'{"instances": [[[1, 2], [3, 4]]]}', b'{"inputs": [1e999, {}]}']

    statuses: Counter[int] = Counter()
    for _ in range(400):
        body = bytearray(rng.choice(bodies))
        for _ in range(rng.randint(0, 3) if body else 0):
            body[rng.randrange(len(body))] = rng.randrange(256)
        method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
        statuses[served.ask(method, rng.choice(paths), bytes(body), Content_Type=rng.choice(kinds))[0]] += 1

    assert all(status < 500 or status == 503 for status in statuses), statuses
    assert served.ask("POST", "/classify", PHOTO)[0] == 200


def test_sigterm_lets_requests_that_have_begun_end_with_their_answer(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "app.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "twinrun", "app", "--no-open", "--port", str(port)],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    wait_for(port, "/health", process, log)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", str(len(PHOTO)))
    connection.endheaders(PHOTO[:1000])
    time.sleep(0.5)  # so that the server has read the head

    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    connection.send(PHOTO[1000:])
    answer = connection.getresponse()

    assert answer.status == 200
    assert json.loads(answer.read())["label"]
    assert process.wait(30) in (0, -signal.SIGTERM)
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
        http.client.HTTPConnection("127.0.0.1", port, timeout=5).request("GET", "/health")


def _lenet(folder: Path) -> Engine:
    """A model in service whose bundle is in `folder`."""
    save_lenet5(folder)
    onnx = folder.with_name("model.onnx")
    onnx.write_bytes(onnx_file(load_bundle(folder)))
    return load_engine(folder, onnx, name=str(folder), version=None, sha256=None)


async def _at_once(app: FastAPI, requests: list[tuple[str, str, bytes]]) -> list[tuple[int, int, Any]]:
    """Place, status and content of the answers to requests that are sent at the same time, in the order they came."""
    ended = []

    async def send(place: int, method: str, path: str, body: bytes) -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def keep(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        await app(scope, receive, keep)
        ended.append((place, sent[0]["status"], json.loads(sent[1]["body"])))

    await asyncio.gather(*(send(place, *request) for place, request in enumerate(requests)))
    return ended


def _verify(capsys: pytest.CaptureFixture[str], answer: Path, photo: Path) -> tuple[int, str]:
    from twinrun.base.errors import TwinrunError

    try:
        commands(["verify", str(answer), str(photo)], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0), capsys.readouterr().out
    except TwinrunError as error:
        return 1, str(error)
    raise AssertionError
