"""A registered model answers for images as people have them, and its server gives nothing of the machine away."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tracking_support import free_port, wait_for

from twinrun.models.bundle import load_bundle
from twinrun.models.predict import probabilities
from twinrun.tracking.registry import Registry
from twinrun.tracking.store import find_tracker


@pytest.fixture(scope="module")
def model(registered: Path) -> Iterator[Any]:
    """Version 1, as `mlflow.pyfunc.load_model` loads it; the working folder is the project."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(registered)
        mlflow.set_tracking_uri(find_tracker(registered).uri)
        yield mlflow.pyfunc.load_model("models:/twinrun-digits/1")
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def photos(registered: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(registered)
    return [Path(f"{number}.png") for number in range(4)]


def _files(photos: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in photos]


def _texts(photos: list[Path]) -> list[str]:
    return [base64.b64encode(data).decode() for data in _files(photos)]


def _arrays(photos: list[Path]) -> Any:
    return np.stack([np.asarray(Image.open(path)) for path in photos])


def _frame(values: Any, name: object = "image", **others: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(dict([(name, list(values)), *others.items()]))


def _series(values: Any) -> Any:
    import pandas as pd

    return pd.Series(list(values))


# Each makes, of four photos, what a person may pass for all of them, or for the first.
FORMS: dict[str, Callable[[list[Path]], Any]] = {
    "a table of bytes": lambda photos: _frame(_files(photos)),
    "a table of base64 text": lambda photos: _frame(_texts(photos)),
    "a table of paths": lambda photos: _frame(photos),
    "a table of paths as text": lambda photos: _frame(map(str, photos)),
    "a table of images": lambda photos: _frame(map(Image.open, photos)),
    "a table of arrays": lambda photos: _frame(_arrays(photos)),
    "a column of another name": lambda photos: _frame(_files(photos), "picture"),
    "a column without a name": lambda photos: _frame(_texts(photos), 0),
    "a named column beside others": lambda photos: _frame(_files(photos), "image", id=[7, 8, 9, 10]),
    "rows out of a table": lambda photos: _frame(_files(photos)[::-1]).iloc[::-1],
    "a series": lambda photos: _series(_texts(photos)),
    "a dictionary of a column": lambda photos: {"image": _files(photos)},
    "a dictionary of arrays": lambda photos: {"image": _arrays(photos)[..., None]},
    "a list of bytes": _files,
    "a list of bytearrays": lambda photos: [bytearray(data) for data in _files(photos)],
    "a list of base64 text": _texts,
    "a list of data URLs": lambda photos: [f"data:image/png;base64,{text}" for text in _texts(photos)],
    "a list of wrapped base64": lambda photos: [base64.encodebytes(data).decode() for data in _files(photos)],
    "a list of base64 for URLs": lambda photos: [base64.urlsafe_b64encode(data).decode() for data in _files(photos)],
    "a list of paths": lambda photos: photos,
    "a list of paths as text": lambda photos: [str(path.absolute()) for path in photos],
    "a list of images": lambda photos: [Image.open(path) for path in photos],
    "a list of arrays": lambda photos: list(_arrays(photos)),
    "a mixed list": lambda photos: [photos[0], str(photos[1]), _files(photos)[2], Image.open(photos[3])],
    "a tuple": lambda photos: tuple(photos),
    "an array of text": lambda photos: np.array(_texts(photos)),
    "an array (N, 1) of paths": lambda photos: np.array([[str(path)] for path in photos]),
    "an array NHWC": lambda photos: _arrays(photos)[..., None],
    "an array NHWC of RGB": lambda photos: np.repeat(_arrays(photos)[..., None], 3, axis=3),
    "an array of floats": lambda photos: _arrays(photos)[..., None].astype(np.float32) / np.float32(255),
    "an array of large integers": lambda photos: _arrays(photos)[..., None].astype(np.int64),
    "one path": lambda photos: photos[0],
    "one path as text": lambda photos: str(photos[0]),
    "one image's bytes": lambda photos: _files(photos)[0],
    "one base64 text": lambda photos: _texts(photos)[0],
    "one image": lambda photos: Image.open(photos[0]),
    "one image in RGB": lambda photos: Image.open(photos[0]).convert("RGB"),
    "an array HW": lambda photos: _arrays(photos)[0],
    "an array HWC": lambda photos: np.repeat(_arrays(photos)[0][..., None], 3, axis=2),
    "an array HWC of floats": lambda photos: np.repeat(_arrays(photos)[0][..., None], 3, axis=2) / 255,
    "an array as lists": lambda photos: _arrays(photos)[0].tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_gets_the_same_answer_in_every_form(
    form: str, model: Any, photos: list[Path], registered: Path
) -> None:
    bundle = load_bundle(registered / "data/out/train/bundle")
    wanted = probabilities(bundle, _arrays(photos)[..., None])

    answer = model.predict(FORMS[form](photos))

    assert len(answer) == (1 if form.startswith("one ") or form in _SINGLE else 4)
    for row, shares in zip(answer.to_dict("records"), wanted, strict=False):
        assert list(row["probabilities"].values()) == shares.tolist()
        assert row["label"] == bundle.classes[shares.argmax()]
        assert row["probability"] == shares.max()
        assert row["error"] is None


_SINGLE = ("an array HW", "an array HWC", "an array HWC of floats", "an array as lists")


def _two_columns() -> Any:
    return _frame(["a"], "left", right=["b"])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda: 12, r"An int is not understood as images\. Pass paths, such as predict\(\[\"photo\.jpg\"\]\)"),
        (lambda: None, r"A NoneType is not understood .* Pass paths"),
        (lambda: io.BytesIO(b""), r"A BytesIO is not understood .* Pass paths"),
        (lambda: np.zeros((3, 28, 28)), r"shape \(3, 28, 28\) .* Channels first: np\.moveaxis\(array, -3, -1\)"),
        (lambda: np.zeros(5), r"shape \(5,\) is not understood"),
        (lambda: np.full((4, 4), 16.0), r"row 0: has floats from 16 to 16, not 0 to 1: divide them, or pass uint8"),
        (lambda: np.full((4, 4), np.nan), r"row 0: has floats from nan to nan"),
        (lambda: np.full((4, 4), 4095, np.uint16), r"row 0: has pixels from 4095 to 4095, .* scale them to uint8"),
        (_two_columns, r"the columns are: 'left', 'right'\. Rename that column, or pass it alone"),
        (lambda: "missing.jpg", r"row 0: 'missing\.jpg' is neither a file that exists nor base64 text"),
        (lambda: Path("missing.jpg"), r"row 0: cannot be read: No such file"),
        (lambda: ".", r"row 0: is a folder"),
        (lambda: [3.5, None], r"An array of shape|row 0: is a float, not an image\. Pass paths"),
    ],
    ids=range(13),
)
def test_what_is_no_image_gets_a_sentence_that_shows_what_is(
    form: Callable[[], Any], message: str, model: Any, photos: list[Path]
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=f"(?s){message}") as raised:
        model.predict(form())

    assert raised.value.error_code == "INVALID_PARAMETER_VALUE"
    assert photos


def test_an_unreadable_image_costs_its_own_row_alone(model: Any, photos: list[Path]) -> None:
    files = _files(photos)

    answer = model.predict([files[0], files[1][:60], None, "gone.png", files[3]]).to_dict("records")

    assert [row["error"] is None for row in answer] == [True, False, False, False, True]
    assert [row["label"] is None for row in answer] == [False, True, True, True, False]
    assert "is empty" in answer[2]["error"]
    assert answer[4]["probability"] == model.predict(files[3])["probability"][0]


def test_no_images_are_an_empty_table(model: Any) -> None:
    assert list(model.predict([]).columns) == ["label", "probability", "probabilities", "error"]
    assert len(model.predict(_frame([]))) == 0


def test_a_model_may_be_loaded_so_that_text_is_never_a_path(photos: list[Path]) -> None:
    import mlflow

    mlflow.set_tracking_uri(find_tracker().uri)
    model = mlflow.pyfunc.load_model("models:/twinrun-digits/1", model_config={"paths": False})

    answer = model.predict([str(photos[0].absolute()), _texts(photos)[0]])

    assert answer["error"][0].startswith("is text that is not base64")
    assert answer["error"][1] is None


def test_a_version_of_an_earlier_twinrun_is_loaded_and_answers(
    photos: list[Path], registered: Path, tmp_path: Path
) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

    mlflow.pyfunc.save_model(
        tmp_path / "earlier",
        loader_module="twinrun.models.serving",
        data_path=str(registered / "data/out/train/bundle"),
        signature=ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")])),
        pip_requirements=[],
    )
    earlier = mlflow.pyfunc.load_model(str(tmp_path / "earlier"))

    answer = earlier.predict(_frame(_files(photos)))

    assert answer["error"].tolist() == [None] * 4
    assert all(label in "0123456789" for label in answer["label"])


class Server:
    """`mlflow models serve`, and what it answers."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log

    def post(self, body: Any, kind: str = "application/json") -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/invocations", data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def predictions(self, *rows: object) -> list[dict[str, Any]]:
        status, body = self.post(_split(*rows))
        assert status == 200, body
        answer = json.loads(body, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        return list(answer["predictions"])


def _split(*rows: object, column: str = "image") -> dict[str, Any]:
    return {"dataframe_split": {"columns": [column], "data": [[row] for row in rows]}}


@pytest.fixture(scope="module")
def server(registered: Path) -> Iterator[Server]:
    """The candidate, served by MLflow as README says."""
    port, log = free_port(), registered / "serve.log"
    command = ["mlflow", "models", "serve", "-m", "models:/twinrun-digits@candidate", "--env-manager", "local"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=registered,
            env={**os.environ, "MLFLOW_TRACKING_URI": find_tracker(registered).uri},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(port, "/ping", process, log)
        yield Server(port, log)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_served_model_gives_the_bits_of_the_loaded_one_in_every_json_form(
    server: Server, model: Any, photos: list[Path]
) -> None:
    texts = _texts(photos)
    wanted = model.predict(photos)["probabilities"].tolist()
    bodies: list[Any] = [
        _split(*texts),
        _split(*texts, column="picture"),
        {"dataframe_split": {"data": [[text] for text in texts]}},
        {"dataframe_split": {"columns": ["image", "id"], "data": [[text, 7] for text in texts]}},
        {"dataframe_records": [{"image": text} for text in texts]},
        {"inputs": texts},
        {"inputs": {"image": texts}},
        {"instances": [{"image": text} for text in texts]},
        {"inputs": _arrays(photos)[..., None].tolist()},
        {**_split(*texts), "params": {"top_k": 3}},
    ]

    answers = [server.post(body) for body in bodies]
    csv = server.post("\n".join(["image", *texts]).encode(), "text/csv")

    for status, body in [*answers, csv]:
        assert status == 200, body
        assert [row["probabilities"] for row in json.loads(body)["predictions"]] == wanted


def test_a_bad_image_in_a_request_has_its_reason_and_the_others_their_answer(
    server: Server, photos: list[Path]
) -> None:
    good = _texts(photos)[0]

    rows = server.predictions(good, good[:80], None, 12, "hello world!!", good)

    assert [row["error"] is None for row in rows] == [True, False, False, False, False, True]
    assert rows[0]["label"] == rows[5]["label"]
    assert rows[1]["label"] is None
    assert "not base64" in rows[4]["error"]


def _parquet(values: list[Any]) -> bytes:
    file = io.BytesIO()
    _frame(values).to_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (_split(base64.b64encode(b"<html>").decode()), "application/json", "row 0: is an HTML page"),
        (_split(None), "application/json", "row 0: is empty"),
        (_split(12), "application/json", "row 0: is an int, not an image"),
        (_split(""), "application/json", "row 0: is empty"),
        (_split("hello world!!"), "application/json", "row 0: is text that is not base64"),
        (_split("/etc/hostname"), "application/json", "row 0: is "),
        (_split("0.png"), "application/json", "row 0: is text that is not base64"),
        (_split("1", "x!"), "application/json", "row 1: is text that is not base64"),
        (_split(), "application/json", "There are no images in this request"),
        (_split({"a": 1}), "application/json", "row 0: is a dict, not an image"),
        ({"dataframe_records": []}, "application/json", "There are no images"),
        ({"inputs": "0.png"}, "application/json", "row 0: is text that is not base64"),
        ({"inputs": 5}, "application/json", "An array of shape ()"),
        ({"inputs": [[[1, 2], [3]]]}, "application/json", ""),
        ({"inputs": {}}, "application/json", "the columns are: none"),
        ({"nothing": 1}, "application/json", "must be a JSON dictionary"),
        ({**_split("x!"), "params": [1]}, "application/json", "row 0"),
        (b"{oops", "application/json", "valid JSON"),
        (b"\xff\xd8\xff", "application/json", "valid JSON"),
        (b"\xff\xd8\xff", "image/jpeg", "content types"),
        (b"", "text/csv", "Failed to parse"),
        (b'a,b\n1,2,3\n"', "text/csv", "Failed to parse"),
        (b"no parquet", "application/vnd.apache.parquet", "Failed to parse"),
        (_parquet([b"no image"]), "application/vnd.apache.parquet", "row 0: is not an image"),
    ],
    ids=range(24),
)
def test_a_request_that_cannot_be_answered_is_told_why_and_nothing_of_the_machine(
    server: Server, registered: Path, body: Any, kind: str, reason: str
) -> None:
    status, answer = server.post(body, kind)

    assert 400 <= status < 500, answer
    assert reason in answer
    for secret in ("Traceback", "stack_trace", "site-packages", str(registered), str(Path.home())):
        assert secret not in answer


def test_the_reason_of_a_large_request_is_short(server: Server) -> None:
    noise = base64.b64encode(np.random.default_rng(0).bytes(200_000)).decode()

    status, answer = server.post({"inputs": [noise] * 40})

    assert status == 400
    assert len(answer) < 4000


def test_clients_at_once_get_the_answers_of_one(server: Server, photos: list[Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    texts = _texts(photos)
    wanted = server.predictions(*texts)

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda number: server.predictions(texts[number % 4])[0], range(24)))

    assert answers == [wanted[number % 4] for number in range(24)]


def test_the_registry_shows_what_a_model_answers_and_an_example_that_works(model: Any, registered: Path) -> None:
    outputs = model.metadata.get_output_schema().input_names()

    answer = model.predict(model.input_example)

    assert outputs == ["label", "probability", "probabilities", "error"]
    assert answer["error"].tolist() == [None]
    assert [each.version for each in Registry(find_tracker(registered), "twinrun-digits").versions()] == [1]
