"""Requests that Schemathesis makes from the OpenAPI description: the server may refuse them, and never fails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving_support import digits_engine

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
