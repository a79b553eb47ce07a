"""Ten thousand requests that are wrong in every way: `make fuzz`, or `python -m benchmarks.fuzz --requests 500`.

`twinrun app --feedback` runs in a process of its own. It gets images that break decoders (those of TWINRUN_TEST_DATA,
where they are), photos with bytes changed, random bytes, forms that are cut off, JSON that is none, odd headers and
raw bytes that are no HTTP. No answer may be 5xx but 503, no exception may reach the log (but h11's own, on chunks
that are none), the process must live, and its memory must not grow: what it uses after the last tenth is compared
with what it used after the first third. tests/serving/test_fuzz.py sends what Schemathesis makes of the OpenAPI
description.
"""

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

_REPOSITORY = Path(__file__).parents[1]
_PATHS = (
    "/classify",
    "/classify-batch",
    "/invocations",
    "/feedback",
    "/model/x.onnx",
    "/version",
    "/%00",
    "/../x",
    "//",
)
_KINDS = ("", "image/jpeg", "multipart/form-data; boundary=b", "multipart/form-data", "application/json", "\x7f;=")
_ODD = (
    {"Host": "bad.example"},
    {"Origin": "null"},
    {"Content-Length": "99999999999"},
    {"Content-Length": "-1"},
    {"Transfer-Encoding": "chunked"},
    {"Expect": "100-continue"},
    {"Authorization": "Bearer \xff"},
    {"X-Long": "x" * 60_000},
    {"Range": "bytes=0-0,-1"},
    {"Content-Encoding": "gzip"},
    {"If-None-Match": '"' * 99},
)
_MOST_BYTES = 3_000_000
_MOST_GROWTH_MB = 40
_AT_ONCE = 8


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="twinrun-fuzz-") as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "twinrun", "app", "--no-open", "--feedback", "--port", str(port)]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            _wait(port)
            statuses, memory = _fuzz(port, server.pid, options.requests)
        finally:
            lived = server.poll() is None
            server.terminate()
            server.wait(60)
        said = Path(folder, "log").read_text(errors="replace")
    early, late = memory[len(memory) // 3], memory[-1]
    failed = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    found = {
        "requests": options.requests,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "failed": failed,
        "lived": lived,
        "tracebacks": sorted(set(re.findall(r"^(?!h11)[\w.]+(?:Error|Exception|Disconnect)\b.*$", said, re.MULTILINE))),
        "memory_mb": [round(value) for value in memory],
    }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(int(bool(failed or found["tracebacks"]) or not lived or late - early > _MOST_GROWTH_MB))


def _fuzz(port: int, pid: int, requests: int) -> tuple[Counter[int], list[float]]:
    """How often each status came, 0 for a connection that was closed, and the memory after each tenth, MB."""
    files, statuses, memory = _files(), Counter[int](), []
    process = psutil.Process(pid)
    for tenth in range(10):
        numbers = range(tenth * requests // 10, (tenth + 1) * requests // 10)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            statuses.update(pool.map(lambda number: _send(port, random.Random(number), files), numbers))
        memory.append(process.memory_info().rss / 1e6)
        print(f"{numbers.stop:,} requests, {memory[-1]:.0f} MB", file=sys.stderr)
    return statuses, memory


def _send(port: int, rng: random.Random, files: list[Path]) -> int:
    if rng.random() < 0.02:
        return _send_raw(port, rng)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": rng.choice(_KINDS)} | (rng.choice(_ODD) if rng.random() < 0.15 else {})
    method = rng.choice(["POST"] * 8 + ["GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    try:
        connection.request(method, rng.choice(_PATHS[:4] if method == "POST" else _PATHS), _body(rng, files), headers)
        if headers.get("Content-Length") or headers.get("Transfer-Encoding"):
            connection.sock.shutdown(socket.SHUT_WR)  # the rest never comes
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException, ValueError):
        return 0
    finally:
        connection.close()


def _send_raw(port: int, rng: random.Random) -> int:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        try:
            connection.sendall(rng.choice([rng.randbytes(200), b"POST /classify HTTP/1.1\r\nHost: localhost\r\nCont"]))
            connection.shutdown(socket.SHUT_WR)
            start = connection.recv(20)
        except OSError:
            return 0
    return int(start[9:12]) if start[9:12].isdigit() else 0


def _body(rng: random.Random, files: list[Path]) -> bytes:
    kind = rng.random()
    body = bytearray(rng.choice(files).read_bytes()) if kind < 0.7 else bytearray(rng.randbytes(rng.randrange(3000)))
    for _ in range(rng.choice([0, 0, 1, 5, 50]) if body else 0):
        body[rng.randrange(len(body))] = rng.randrange(256)
    if rng.random() < 0.2:
        del body[rng.randrange(len(body) + 1) :]
    if rng.random() < 0.4:
        fields = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
        head = fields % (b"label", rng.choice([b"glass", b"\xff", b"x" * 5000])) + fields % (b"consent", b"yes")
        body[:0] = head + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body += rng.choice([b"\r\n--b--\r\n", b"\r\n--b", b""])
    elif kind > 0.9:
        body[:] = rng.choice(
            [b'{"instances": [', b'{"inputs": {"a": [1e999]}}', b"[" * 9999, b'{"instances": [{}, 3]}']
        )
    return bytes(body)


def _files() -> list[Path]:
    """Photos, and files that break decoders where there are some."""
    photos = sorted((_REPOSITORY / "src/twinrun/serving/page/examples").glob("*.jpg"))
    folder = os.environ.get("TWINRUN_TEST_DATA", "")
    hostile = sorted(Path(folder, "hostile-images").rglob("*")) if folder else []
    return photos + [file for file in hostile if file.is_file() and file.stat().st_size < _MOST_BYTES]


def _wait(port: int) -> None:
    for _ in range(1200):
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("The server does not answer")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    parser.add_argument("--requests", type=int, default=10_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
