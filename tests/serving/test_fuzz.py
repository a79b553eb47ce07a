"""Requests that Schemathesis makes from the OpenAPI description: the server may refuse them, and never fails."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving_support import digit_png, digits_engine, serving

from twinrun.serving.app import make_app
from twinrun.serving.feedback import Quarantine
from twinrun.serving.follow import ModelInService

EXAMPLES = int(os.environ.get("TWINRUN_TEST_ROUNDS", "15"))
BREAKABLE = ("/feedback",)  # what others take may be anything, so that no request is against their description
HOST = "testserver"  # what a client inside the process calls itself


def test_no_request_of_the_description_makes_the_server_fail(tmp_path: Path) -> None:
    app = make_app(ModelInService(digits_engine()), [], host=HOST, token=None, feedback=Quarantine(tmp_path))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses: dict[str, set[int]] = {}

    operations: Any = schema.get_all_operations()
    for result in operations:
        operation = result.ok()
        for mode in (
            schemathesis.GenerationMode if operation.path in BREAKABLE else [schemathesis.GenerationMode.POSITIVE]
        ):
            _sender(operation.as_strategy(generation_mode=mode), statuses.setdefault(operation.label, set()))()

    assert {label.split()[1] for label in statuses} >= {"/classify", "/classify-batch", "/feedback", "/invocations"}
    assert all(status < 500 or status == 503 for seen in statuses.values() for status in seen), statuses
    assert 200 in statuses["GET /health"]


def test_a_client_that_goes_away_in_the_middle_of_a_photo_is_no_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None)) as served:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                client.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n\x89PNG")
        answered = served.ask("POST", "/classify", digit_png(0))[0]
        counts = served.ask("GET", "/metrics")[1].decode()

    assert answered == 200
    assert 'path="/classify",status="500"' not in counts
    assert "Traceback" not in caplog.text


def _sender(cases: Any, seen: set[int]) -> Callable[[], None]:
    """Sends so many requests and adds the statuses of the answers to `seen`."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def send(case: Any) -> None:
        seen.add(case.call().status_code)

    return send
