"""Requests in the forms of MLflow's server."""

import base64
import contextlib
import json
import tracemalloc
from typing import Any

import pytest

from twinrun.base.errors import DataError
from twinrun.serving.invocations import read_request

PHOTO = base64.b64encode(b"\xff\xd8 a photo").decode()


@pytest.mark.parametrize(
    "content",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[PHOTO], [PHOTO]]}},
        {"dataframe_split": {"data": [[PHOTO], [PHOTO]]}},
        {"dataframe_records": [{"image": PHOTO}, {"image": PHOTO}]},
        {"instances": [PHOTO, PHOTO]},
        {"inputs": {"image": [PHOTO, PHOTO]}},
        {"instances": [[[[1]] * 4] * 4] * 2},
        {"dataframe_split": {"columns": ["image"], "data": [[[[1, 2, 3]] * 3], [[[1, 2, 3]] * 3]]}},
        {"dataframe_records": [{"image": [[1] * 4] * 4}, {"image": [[1] * 5] * 5}]},
    ],
)
def test_every_form_gives_the_images_that_it_holds(content: Any) -> None:
    assert len(read_request(json.dumps(content).encode(), 2)) == 2


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "found 0 of them"),
        (b'{"instances": [], "inputs": []}', "found 2 of them"),
        (b'{"instances": []}', "no images|cannot be read"),
        (b'{"dataframe_split": [1]}', "an object with columns and data"),
        (b'{"dataframe_split": {"columns": ["image", "b"], "data": [["x"]]}}', "cannot be read as images"),
        (b'{"dataframe_records": [1]}', "a list of objects"),
        (json.dumps({"instances": [PHOTO] * 3}).encode(), "There are 3 images, and at most 2"),
        (json.dumps({"instances": [[[[1]]]] * 3}).encode(), "There are 3 images, and at most 2"),
        (json.dumps({"dataframe_records": [{"image": PHOTO}] * 3}).encode(), "There are 3 images, and at most 2"),
        (b'{"inputs": ' + b"[" * 900 + b"0" + b"]" * 900 + b"}", "more than 4 levels"),
        (b'{"inputs": [[[1, 2], [3]]]}', "rows of different lengths"),
    ],
)
def test_a_body_of_another_form_is_refused_with_what_is_wrong(body: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_request(body, 2)


@pytest.mark.parametrize("texts", [["x" * 200_000] + ["a"] * 200, [["x" * 200_000] + [1] * 200]])
def test_one_long_text_among_many_takes_no_more_memory_for_the_others(texts: list[Any]) -> None:
    body = json.dumps({"inputs": [texts]}).encode()

    tracemalloc.start()
    with contextlib.suppress(DataError):
        read_request(body, 2)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 10 * len(body)
