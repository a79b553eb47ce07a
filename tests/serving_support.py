"""A server in this process with a small model of digits, which is made in milliseconds."""

import http.client
import io
import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tracking_support import free_port

from twinrun.models.stored import MODEL, StoredModel
from twinrun.serving.engine import Engine, start_engine

SIDE = 16


def digit_png(row: int) -> bytes:
    """One of scikit-learn's digits as a PNG of 16 x 16 pixels."""
    file = io.BytesIO()
    Image.fromarray(digit_pixels(row)).save(file, "PNG")
    return file.getvalue()


def digit_pixels(row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Its pixels, (16, 16)."""
    pixels = np.rint(_digits().images[row] * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE)))


@cache
def _digits() -> Any:
    return load_digits()


@cache
def digits_engine(seed: int = 0, version: int | None = 1, calibration: str = "null") -> Engine:
    """A linear classifier of digits as a model in service; other weights for each seed."""
    from onnx import TensorProto, helper, numpy_helper

    pixels = np.stack([digit_pixels(row) for row in range(300)]).reshape(300, -1)
    fitted = LogisticRegression(C=0.1 * (1 + seed), max_iter=300).fit(pixels / 255, _digits().target[:300])
    weights_hash = f"{seed:064x}"
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["numbers", "flat"], ["features"]),
            helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"], transB=1),
        ],
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(np.array([-1, SIDE * SIDE]), "flat"),
            numpy_helper.from_array((fitted.coef_ / 255).astype(np.float32), "weight"),
            numpy_helper.from_array(fitted.intercept_.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="weights_hash", value=weights_hash)
    model.metadata_props.add(key="calibration", value=calibration)
    stored = StoredModel.model_validate(
        {
            **{"format": 2, "architecture": "mlp", "classes": list("0123456789"), "weights_hash": weights_hash},
            "preprocessing": {
                **{"size_px": [SIDE, SIDE], "channels": "gray", "fit": "pad", "resample": "bilinear"},
                **{"max_pixels": 10**6, "mean": [0.0], "std": [1.0]},
            },
        }
    )
    return start_engine("digits", version, stored, model.SerializeToString(), Path(MODEL))


class Served:
    """An application that is served, and the requests to it."""

    def __init__(self, app: FastAPI) -> None:
        self.port = free_port()
        self.server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, content (JSON as values) and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        is_json = "json" in answer.headers.get("Content-Type", "")
        return answer.status, json.loads(content) if is_json and content else content, answer.headers

    def teach(self, photo: bytes, label: str, consent: str = "yes") -> tuple[int, Any, http.client.HTTPMessage]:
        """Send a photo with the label that it should have."""
        parts = [("label", label.encode()), ("consent", consent.encode()), ('file"; filename="photo', photo)]
        body = b"".join(
            b'--edge\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + content + b"\r\n"
            for name, content in parts
        )
        return self.ask("POST", "/feedback", body + b"--edge--\r\n", Content_Type="multipart/form-data; boundary=edge")


@contextmanager
def serving(app: FastAPI) -> Iterator[Served]:
    """Serve `app` until the end of the block."""
    served = Served(app)
    served.thread.start()
    try:
        while not served.server.started:
            time.sleep(0.02)
        yield served
    finally:
        served.server.should_exit = True
        served.thread.join(30)


@contextmanager
def full_after(file: Path, size: int) -> Iterator[None]:
    """Let this process write `size` more bytes to `file`, and no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
