"""Requests per core of `twinrun serve` and of MLflow's server: `python -m benchmarks.serving`; five minutes on 2 cores.

Both serve one version of one registry, and get the same photos: digits for a LeNet-5 (32 pixels, gray), and photos of
waste for a MobileNetV3 (224 pixels). Twinrun's server gets their files. MLflow's gets base64 text, which the models
read, or pixels as numbers in JSON, as MLflow's clients send arrays. They take turns. What counts is requests per second
of processor time of a server and all its processes, so that a busy machine changes little. Then Twinrun's server alone
gets 0.8 times and twice what it can do, at random times.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil

_REPOSITORY = Path(__file__).parents[1]
_AT_ONCE = 4
_LONGEST_WAIT_S = 300
_METRICS = {"accuracy": 0.1, "images": 10}
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class _Server:
    """A server that runs; `request` makes the path, the body and the headers for a photo."""

    port: int
    process: psutil.Process
    request: Callable[[bytes], tuple[str, bytes, dict[str, str]]]
    start_s: float
    start_cpu_s: float

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu_s(self) -> float:
        """Seconds of processor time of the server, so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def memory_mb(self) -> float:
        """Memory that the server alone uses, and its share of what it has in common with others."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 1e6

    def send(self, connection: http.client.HTTPConnection, photo: bytes) -> int:
        path, body, headers = self.request(photo)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status


def main() -> None:
    options = _options()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="twinrun-bench-") as folder:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlruns/mlflow.db"
        for name, (network, size, channels, photos) in _models().items():
            if options.only not in (None, name):
                continue
            version = _register(name, network, size, channels)
            found[name] = _compared(name, version, photos, options)
    for name, result in found.items():
        _print(name, result)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _models() -> dict[str, tuple[str, int, str, list[bytes]]]:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = []
    for pixels in load_digits().images[:50]:
        file = io.BytesIO()
        Image.fromarray((pixels * (255 / 16)).astype("uint8")).resize((32, 32)).save(file, "PNG")
        digits.append(file.getvalue())
    photos = [file.read_bytes() for file in sorted((_REPOSITORY / "src/twinrun/serving/page/examples").glob("*.jpg"))]
    return {"digits": ("lenet5", 32, "gray", digits), "photos": ("mobilenet_v3_small", 224, "rgb", photos)}


def _register(name: str, network: str, size: int, channels: Any) -> int:
    """A version with the weights that the network begins with: they change no time."""
    from twinrun.evaluation.onnx_file import onnx_file
    from twinrun.models.architectures import build_network
    from twinrun.models.bundle import Preprocessing, load_bundle, save_bundle
    from twinrun.tracking.registry import Registry
    from twinrun.tracking.store import find_tracker

    depth = 1 if channels == "gray" else 3
    built = build_network(network, channels=depth, size_px=(size, size), classes=10, seed=0)
    preprocessing = Preprocessing(
        size_px=(size, size),
        channels=channels,
        fit="pad",
        resample="bilinear",
        max_pixels=10**7,
        mean=(0.4,) * depth,
        std=(0.3,) * depth,
    )
    bundle = Path(name)
    classes = tuple("0123456789")
    save_bundle(bundle, built.state_dict(), architecture=network, classes=classes, preprocessing=preprocessing)
    registry = Registry(find_tracker(), name)
    onnx = onnx_file(load_bundle(bundle))
    return registry.register(bundle, _METRICS, passed=True, fingerprint="f" * 64, run_id=None, onnx=onnx).version


def _compared(name: str, version: int, photos: Sequence[bytes], options: argparse.Namespace) -> dict[str, Any]:
    ours = [str(_BIN / "twinrun"), "serve", "--model", f"{name}/{version}", "--port"]
    theirs = [
        str(_BIN / "mlflow"),
        "models",
        "serve",
        "-m",
        f"models:/{name}/{version}",
        "--env-manager",
        "local",
        "--port",
    ]
    ways = ("twinrun", "mlflow", "mlflow-numbers")
    per_core: dict[str, list[float]] = {way: [] for way in ways}
    per_second: dict[str, list[float]] = {way: [] for way in ways}
    with _running(ours, _raw, photos[0]) as twinrun, _running(theirs, _mlflow, photos[0]) as mlflow:
        for turn in range(options.turns):
            for way, server, count in (
                ("twinrun", twinrun, options.requests),
                ("mlflow", mlflow, options.requests // 4),
                ("mlflow-numbers", replace(mlflow, request=cache(_numbers)), options.requests // 10),
            ):
                began, cpu = time.perf_counter(), server.cpu_s()
                _closed(server, photos, count)
                per_core[way].append(count / (server.cpu_s() - cpu))
                per_second[way].append(count / (time.perf_counter() - began))
                print(f"{name} {turn + 1}: {way} {per_core[way][-1]:.1f} requests per core second", file=sys.stderr)
        result: dict[str, Any] = {
            "requests_per_core_second": per_core,
            "requests_per_second": per_second,
            "ratio": {way: median(per_core["twinrun"]) / median(per_core[way]) for way in ways[1:]},
            "start": {
                way: {"s": server.start_s, "cpu_s": server.start_cpu_s, "memory_mb": server.memory_mb()}
                for way, server in (("twinrun", twinrun), ("mlflow", mlflow))
            },
        }
    with _running(ours, _raw, photos[0]) as twinrun:
        began = time.perf_counter()
        _closed(twinrun, photos, options.requests)
        capacity = options.requests / (time.perf_counter() - began)
        result["load"] = {
            f"{share:g}": _open(twinrun, photos, share * capacity, options.load_s) for share in (0.8, 2.0)
        }
    return result


@contextlib.contextmanager
def _running(
    command: list[str], request: Callable[[bytes], tuple[str, bytes, dict[str, str]]], photo: bytes
) -> Iterator[_Server]:
    """A server that has answered one request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    with Path(f"{Path(command[0]).name}.log").open("wb") as log:
        started = subprocess.Popen([*command, str(port)], stdout=log, stderr=log, start_new_session=True)
    process = psutil.Process(started.pid)
    try:
        server = _Server(port, process, request, 0, 0)
        while True:
            try:
                if server.send(http.client.HTTPConnection("127.0.0.1", port, timeout=60), photo) == 200:
                    break
            except OSError:
                pass
            if started.poll() is not None or time.perf_counter() > began + _LONGEST_WAIT_S:
                raise RuntimeError(Path(f"{Path(command[0]).name}.log").read_text())
            time.sleep(0.05)
        yield _Server(port, process, request, time.perf_counter() - began, server.cpu_s())
    finally:
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                each.terminate()
        started.wait(60)


def _raw(photo: bytes) -> tuple[str, bytes, dict[str, str]]:
    return "/classify", photo, {}


def _mlflow(photo: bytes) -> tuple[str, bytes, dict[str, str]]:
    text = base64.b64encode(photo).decode()
    body = {"dataframe_split": {"columns": ["image"], "data": [[text]]}}
    return "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}


def _numbers(photo: bytes) -> tuple[str, bytes, dict[str, str]]:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    return "/invocations", json.dumps({"inputs": pixels.tolist()}).encode(), {"Content-Type": "application/json"}


def _closed(server: _Server, photos: Sequence[bytes], count: int) -> None:
    """So many requests over a few connections, the next as soon as one is answered."""

    def connected(share: range) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for number in share:
            if (status := server.send(connection, photos[number % len(photos)])) != 200:
                raise RuntimeError(f"status {status}")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(connected, [range(first, count, _AT_ONCE) for first in range(_AT_ONCE)]))


@dataclass(frozen=True)
class _Load:
    """Latencies in milliseconds."""

    requests: int
    accepted: int
    accepted_p50_ms: float
    accepted_p99_ms: float
    refused_p99_ms: float | None
    other: int


def _open(server: _Server, photos: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Requests at random times, `rate` a second, whether earlier ones were answered or not."""
    generator, done, lock = random.Random(0), [], threading.Lock()
    local = threading.local()

    def send(number: int, due: float) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            status = server.send(local.connection, photos[number % len(photos)])
        except (OSError, http.client.HTTPException):
            local.connection.close()
            status = 0
        with lock:
            done.append((status, 1000 * (time.perf_counter() - due)))

    with ThreadPoolExecutor(128) as pool:
        due, number = time.perf_counter(), 0
        end = due + seconds
        while (due := due + generator.expovariate(rate)) < end:
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(send, number, time.perf_counter())
            number += 1
    accepted = [ms for status, ms in done if status == 200]
    refused = [ms for status, ms in done if status == 503]
    return asdict(
        _Load(
            len(done),
            len(accepted),
            median(accepted),
            quantiles(accepted, n=100)[98],
            quantiles(refused, n=100)[98] if len(refused) > 1 else None,
            len(done) - len(accepted) - len(refused),
        )
    )


def _print(name: str, result: dict[str, Any]) -> None:
    for way, values in result["requests_per_core_second"].items():
        start = result["start"][way.partition("-")[0]]
        speed = f"{median(values):7.1f} ({min(values):.0f} to {max(values):.0f}) requests per core second"
        begin = f"up after {start['s']:.1f} s ({start['cpu_s']:.1f} s of a core)"
        print(f"{name:7} {way:14} {speed}, {begin}, {start['memory_mb']:.0f} MB")
    for way, ratio in result["ratio"].items():
        print(f"{name:7} twinrun is {ratio:.1f}x {way}")
    for share, load in result["load"].items():
        print(f"{name:7} load {share}: {json.dumps(load)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    parser.add_argument("--requests", type=int, default=400, help="to each server in a turn; to MLflow's a quarter")
    parser.add_argument("--only", choices=["digits", "photos"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--load-s", type=float, default=30.0, help="length of each load, seconds")
    options = parser.parse_args()
    options.json = options.json.resolve() if options.json else None
    return options


if __name__ == "__main__":
    main()
