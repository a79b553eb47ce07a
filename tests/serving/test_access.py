"""Who may ask the server what: host names, pages of other sites, proxies, WebSockets."""

import asyncio
import http.client
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving_support import digit_png, digits_engine, serving
from tracking_support import free_port, wait_for

from twinrun.base.errors import DataError
from twinrun.cli.main import app as commands
from twinrun.serving.app import make_app
from twinrun.serving.follow import ModelInService

NAME = "bins.example.org"


def test_a_malformed_host_or_origin_is_refused_and_is_no_error_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    hosts = ["[", "]", "[::1", "[::g]", "::1", "", "x@localhost", "localhost?x", "localhost/x", "localhost:x", "\xe4"]
    origins = ["http://[", "http://[::1", "http://", "null", "", "localhost", "http://x@localhost", "file://localhost"]
    with serving(_app()) as served:
        of_hosts = {host: served.ask("GET", "/metrics", Host=host)[:2] for host in hosts}
        of_origins = {
            origin: served.ask("POST", "/classify", digit_png(0), Host="localhost", Origin=origin)[:2]
            for origin in origins
        }
        good = [served.ask("GET", "/version", Host=host)[0] for host in ("LOCALHOST:80", "[::1]:5001", "127.0.0.1")]

    assert {host: status for host, (status, _) in of_hosts.items()} == dict.fromkeys(hosts, 421)
    assert {origin: status for origin, (status, _) in of_origins.items()} == dict.fromkeys(origins, 403)
    assert all("--name" in answer["error"] for _, answer in [*of_hosts.values(), *of_origins.values()])
    assert good == [200, 200, 200]
    assert "Traceback" not in caplog.text


def test_behind_a_proxy_with_a_name_its_requests_and_its_page_are_answered_and_no_others() -> None:
    def asked(names: list[str]) -> list[int]:
        with serving(_app(names=names)) as served:
            here = f"127.0.0.1:{served.port}"  # what nginx sends by default
            return [
                served.ask("POST", "/classify", digit_png(0), Host=host, Origin=origin)[0]
                for host, origin in (
                    (NAME, f"https://{NAME}"),
                    (NAME.upper() + ":443", f"https://{NAME}:8443"),
                    (here, f"https://{NAME}"),
                    (here, f"http://{here}"),
                    ("other.example.org", "https://other.example.org"),
                    (f"{NAME}.evil.example", f"https://{NAME}.evil.example"),
                    (here, "https://other.example.org"),
                    (NAME, f"https://{NAME}.evil.example"),
                    (NAME, f"https://{NAME}@evil.example"),
                )
            ]

    assert asked([NAME, "second.example"]) == [200, 200, 200, 200, 421, 421, 403, 403, 403]
    assert asked([]) == [421, 421, 403, 200, 421, 421, 403, 421, 421]


def test_serve_gives_its_names_to_every_worker(registered: Path, tmp_path: Path) -> None:
    folder, port, log = tmp_path / "project", free_port(), tmp_path / "serve.log"
    shutil.copytree(registered, folder)
    command = [sys.executable, "-m", "twinrun", "serve", "--workers", "2", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--name", "a.example", "--name", NAME], cwd=folder, stdout=output)
    try:
        wait_for(port, "/health", process, log)
        statuses = [_status(port, host) for host in ("a.example", NAME, "b.example") * 4]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    assert statuses == [200, 200, 421] * 4


@pytest.mark.parametrize(
    "name",
    ["", "*", "http://a.example", "a.example:443", "a..b", "-a", ".a", "a/b", "[::1]", "ä.example", "a\n", "a" * 64],
)
def test_a_name_that_is_no_host_name_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(DataError, match="is not a host name"):
        commands(["serve", "--name", NAME, "--name", name], standalone_mode=False)


def test_a_websocket_is_turned_away() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": [(b"host", b"localhost")]}
    asyncio.run(_app()(scope, receive, keep))

    assert sent == [{"type": "websocket.close"}]


def _app(**more: Any) -> Any:
    return make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None, **more)


def _status(port: int, host: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/version", headers={"Host": host})
    return connection.getresponse().status
