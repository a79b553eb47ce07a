"""The HTTP side of `twinrun serve`: images in, JSON out, every refusal in JSON with what to do."""

import asyncio
import hashlib
import html
import ipaddress
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.staticfiles import StaticFiles

from twinrun.core.cores import available_cores
from twinrun.core.errors import DataError, DecodeError
from twinrun.decoding.decode import BrokenImage
from twinrun.prediction.inputs import Given
from twinrun.serving.answer_log import AnswerLog
from twinrun.serving.engine import Answer, Engine
from twinrun.serving.follow import ModelInService
from twinrun.serving.invocations import read_request
from twinrun.serving.rules import Region

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 20_000_000  # of one request
MOST_IMAGES = 64  # of one request
READ_S = 30.0  # for the body of a request
_WAITING = 8  # images for each core
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_ONE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
_FILES = {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": {"type": "string"}}}}}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _ONE | _FILES}}
_BATCH_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _FILES}}
_JSON_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}


class Refused(Exception):
    """A request that is answered with `status` and a sentence."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass
class _State:
    """What changes while the server runs; touched by the event loop alone."""

    images: int = 0
    seconds: float = 0.0
    in_flight: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)


def make_app(
    model: ModelInService, regions: Sequence[Region], *, host: str, token: str | None, log: AnswerLog | None = None
) -> FastAPI:
    """The application: it answers with `model.engine`, whichever that is at the time, and records answers in `log`."""
    app = FastAPI(title="Twinrun", docs_url=None, redoc_url=None, description="Classifies images with one model.")
    state, cores = _State(), available_cores()
    pool = ThreadPoolExecutor(cores, "classify")

    async def classify(images: Sequence[Given]) -> list[dict[str, Any]]:
        if state.in_flight and state.in_flight + len(images) > _WAITING * cores:
            raise Refused(503, "The server is busy. Try again in a second.", {"Retry-After": "1"})
        engine, began = model.engine, time.perf_counter()  # one for the whole request
        state.in_flight += len(images)
        try:
            loop = asyncio.get_running_loop()
            tasks = [loop.run_in_executor(pool, _row, engine, image, log) for image in images]
            return list(await asyncio.gather(*tasks))
        except OSError as error:
            message = f"The answer could not be recorded, and so is not given: {error.strerror or error}"
            raise Refused(503, message, {"Retry-After": "60"}) from None
        finally:
            state.in_flight -= len(images)
            state.images += len(images)
            state.seconds += time.perf_counter() - began

    @app.post("/classify", openapi_extra=_BODY, summary="Classify one image: its bytes as the body, or a form's file")
    async def classify_one(request: Request) -> JSONResponse:
        images = await _images(request)
        if len(images) != 1:
            raise Refused(400, f"/classify takes one image, found {len(images)}. Several: POST /classify-batch")
        (row,) = await classify(images)
        return JSONResponse(row, status_code=int(row.pop("status", 200)))

    @app.post("/classify-batch", openapi_extra=_BATCH_BODY, summary="Classify the files of a form, a row for each")
    async def classify_batch(request: Request) -> JSONResponse:
        rows = await classify(await _images(request))
        return JSONResponse({"rows": [{k: v for k, v in row.items() if k != "status"} for row in rows]})

    @app.post("/invocations", openapi_extra=_JSON_BODY, summary="The same in the forms of MLflow's server")
    async def invocations(request: Request) -> JSONResponse:
        body = await _body(request)
        try:
            images = await asyncio.get_running_loop().run_in_executor(pool, read_request, body, MOST_IMAGES)
        except DataError as error:
            raise Refused(400, str(error)) from None
        names = ("label", "probability", "probabilities", "error")
        rows = [{name: row.get(name) for name in names} for row in await classify(images)]
        if all(row["error"] is not None for row in rows):
            raise Refused(400, f"No image can be read. The first: {rows[0]['error']}")
        return JSONResponse({"predictions": rows})

    @app.get("/health", summary="Whether the server answers, and why a newer champion has not taken over")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "problem": model.problem}

    @app.get("/version", summary="The model that answers now, its classes and hashes")
    async def version() -> dict[str, Any]:
        return model.engine.facts() | model.engine.how_it_answers()

    @app.get("/metrics", summary="Counts for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(state, model), media_type="text/plain; version=0.0.4")

    @app.get("/model/{sha256}.onnx", summary="The model itself; it never changes under one address")
    async def file(sha256: str) -> Response:
        engine = model.engine
        if sha256 != engine.sha256:
            raise Refused(404, f"This model is not in service; now it is /model/{engine.sha256}.onnx")
        caching = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(engine.file, media_type="application/octet-stream", headers=caching)

    @app.get("/regions", summary="Rules for waste of the regions that cover every class of the model")
    async def rules() -> list[dict[str, Any]]:
        return [region.model_dump(mode="json") for region in regions if region.covers(model.engine.model.classes)]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Exception) -> JSONResponse:
        assert isinstance(refused, Refused)
        return _refusal(refused)

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _problem(request, host, token)
        response = _refusal(refused) if refused else await answer(request)
        response.headers.update(_HEADERS)
        route = request.scope.get("route")
        state.answers[getattr(route, "path", "other"), response.status_code] += 1
        return response

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _row(engine: Engine, image: Given, log: AnswerLog | None) -> dict[str, Any]:
    """One answer as plain values, recorded in `log`; `error` and `status` where the image cannot be read."""
    row = _answered(engine, image)
    if log is not None:
        log.add(row)
    return row


def _answered(engine: Engine, image: Given) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": engine.facts()}
    if isinstance(image, bytes):
        facts = {"image_sha256": hashlib.sha256(image).hexdigest(), **facts}
    try:
        answer: Answer = engine.classify(image)
    except DecodeError as error:
        reason = re.sub(r" \(params\.yaml: [\w.]+\)", "", str(error))  # a served model's limits are its own
        return {"error": f"This file {reason}", "status": _status(error, engine), **facts}
    probabilities = dict(zip(engine.model.classes, answer.probabilities.tolist(), strict=True))
    return {
        "label": answer.label,
        "probability": probabilities[answer.label],
        "confidence": answer.confidence,
        "kind": answer.kind,
        "labels": answer.labels,
        "probabilities": probabilities,
        "logits_sha256": answer.logits_sha256,
        **facts,
    }


def _status(error: DecodeError, engine: Engine) -> int:
    header = error.header if isinstance(error, BrokenImage) else None
    if header is None:
        return 415
    return 413 if header.width * header.height > engine.model.preprocessing.max_pixels else 422


async def _images(request: Request) -> list[bytes]:
    """The images of a request, read within the limits."""
    body = await _body(request)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        images = [body] if body else []
    else:
        images = await _files(request, body)
    if not images:
        raise Refused(400, "There is no image. Send one: curl --data-binary @photo.jpg, or curl -F file=@photo.jpg")
    return images


async def _body(request: Request) -> bytes:
    too_large = Refused(413, f"The body has more than {MOST_BYTES:,} bytes. Send a smaller image, or fewer.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MOST_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {READ_S:.0f} s. Send it again.") from None
    return bytes(body)


async def _files(request: Request, body: bytes) -> list[bytes]:
    from starlette.formparsers import MultiPartParser

    async def once() -> Any:
        yield body

    try:
        form = await MultiPartParser(request.headers, once(), max_files=MOST_IMAGES, max_fields=10).parse()
    except (MultiPartException, ValueError, KeyError) as error:
        message = getattr(error, "message", None) or str(error)
        raise Refused(400, f"The form cannot be read: {message} At most {MOST_IMAGES} files are read.") from None
    try:
        return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    finally:
        await form.close()


def _problem(request: Request, host: str, token: str | None) -> Refused | None:
    """Why a request is not to be answered; None where it is."""
    named = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not _is_ours(named, host):
        return Refused(421, f"This server is not {named!r}. Use the address that it printed at its start.")
    origin = request.headers.get("origin")
    crossed = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if request.method not in ("GET", "HEAD") and crossed:
        return Refused(403, "A page of another site may not send images here.")
    is_open = request.method in ("GET", "HEAD") and not request.url.path.startswith(("/model/", "/metrics"))
    if token is None or is_open:
        return None
    sent = request.headers.get("authorization", "")
    if secrets.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        return None
    message = "A token is needed: the header Authorization: Bearer TOKEN, with that of --token-file."
    return Refused(401, message, {"WWW-Authenticate": "Bearer"})


def _is_ours(name: str, host: str) -> bool:
    """A name that another site's DNS could point here is none of ours; a plain address is not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in {"localhost", host.lower(), socket.gethostname().lower()}
    return True


def _refusal(refused: Refused) -> JSONResponse:
    # MLflow's clients read `message`
    return JSONResponse(
        {"error": refused.message, "message": refused.message}, status_code=refused.status, headers=refused.headers
    )


def _metrics(state: _State, model: ModelInService) -> str:
    facts = model.engine.facts()
    labels = ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in facts.items())
    lines = [
        "# TYPE twinrun_requests_total counter",
        *(
            f'twinrun_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(state.answers.items())
        ),
        "# TYPE twinrun_images_total counter",
        f"twinrun_images_total {state.images}",
        "# TYPE twinrun_classify_seconds_total counter",
        f"twinrun_classify_seconds_total {state.seconds:.6f}",
        "# TYPE twinrun_images_in_flight gauge",
        f"twinrun_images_in_flight {state.in_flight}",
        "# TYPE twinrun_model_info gauge",
        f"twinrun_model_info{{{labels}}} 1",
        "# TYPE twinrun_newer_champion_refused gauge",
        f"twinrun_newer_champion_refused {int(model.problem is not None)}",
    ]
    return "\n".join(lines) + "\n"


_ESCAPES = {ord("\\"): r"\\", ord('"'): r"\"", ord("\n"): r"\n"}


def _docs(description: dict[str, Any]) -> str:
    """The description as a plain page: the usual ones load their code from another site."""
    rows = "".join(
        f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code><td>{html.escape(entry['summary'])}"
        for path, entries in description["paths"].items()
        for method, entry in entries.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Twinrun: requests</title>"
        f"<h1>Requests</h1><table>{rows}</table><p><a href=/openapi.json>openapi.json</a></p></html>"
    )
