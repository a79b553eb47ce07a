"""The HTTP side of `twinrun serve`: images in, JSON out, every refusal in JSON with what to do."""

import asyncio
import hashlib
import html
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twinrun.base.errors import DataError, DecodeError, PublishError, TwinrunError
from twinrun.core.cores import available_cores
from twinrun.decoding.decode import BrokenImage
from twinrun.prediction.inputs import Given
from twinrun.serving.answer_log import AnswerLog
from twinrun.serving.counts import Counts
from twinrun.serving.engine import Answer, Engine
from twinrun.serving.explaining import explained
from twinrun.serving.feedback import Quarantine, TooMuch
from twinrun.serving.follow import ModelInService
from twinrun.serving.invocations import read_request
from twinrun.serving.rules import Region
from twinrun.serving.traffic import TrafficWatch

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 20_000_000  # of one request
MOST_IMAGES = 64  # of one request
MOST_BYTES_AT_ONCE = 256_000_000  # of the bodies of all requests that wait for their answer
READ_S = 30.0  # for the body of a request
_WAITING = 4  # images for each core: with more, those that are accepted wait too long under overload
_SMALL_PIXELS, _SMALL_BYTES = 256 * 256, 50_000  # such an image is decoded in less time than a thread takes to start
_LABELS_NAMED = 30  # in a message
_PART = 1_000_000  # bytes of a form that are parsed at a time, of which the parser makes copies
_AUTHORITY = re.compile(
    r"(?:\[([0-9a-f:.]+)\]|([\w.-]+))(?::[0-9]*)?", re.ASCII | re.IGNORECASE
)  # a host, and its port
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]
# A page of `twinrun explain`, which holds its script and pictures, and gets at nothing of this server.
_EXPLANATION = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts"
)
_IN_A_SECOND = {"Retry-After": "1"}
_FILE = {"type": "string", "format": "binary"}
_ONE = {
    "image/*": {"schema": _FILE},
    "multipart/form-data": {"schema": {"type": "object", "properties": {"file": _FILE}, "required": ["file"]}},
}
_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _ONE}}
_LABEL = {"label": {"type": "string"}, "consent": {"type": "string", "enum": ["yes"]}}
_FEEDBACK_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": _FILE, **_LABEL},
                    "required": ["file", "label", "consent"],
                }
            }
        },
    }
}
_FILES = {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MOST_IMAGES}
_SEVERAL = {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}}}
_BATCH_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _SEVERAL}}
_JSON_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}


class _Problem(BaseModel):
    """The body of a refusal; `message` is for MLflow's clients."""

    error: str
    message: str


_ANYWHERE = {421: "Another host name"}
_WITH_TOKEN = {401: "The token is missing or wrong"}
_WITH_BODY = {
    400: "The request is malformed, or has no image",
    403: "It came from a page of another site",
    408: "The body did not arrive in time",
    413: "The body is too large, or the image has too many pixels",
    503: "The server is busy, or cannot store what it should; Retry-After says when to try again",
}
_OF_AN_IMAGE = {415: "The file is not an image of a known kind", 422: "The image is corrupt, or cannot be converted"}


def _refusals(*reasons: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """For the description: the answers with these statuses."""
    described = {status: reason for each in reasons for status, reason in each.items()}
    return {status: {"model": _Problem, "description": described[status]} for status in sorted(described)}


class Refused(Exception):
    """A request that is answered with `status` and a sentence."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def make_app(
    model: ModelInService,
    regions: Sequence[Region],
    *,
    host: str,
    token: str | None,
    names: Collection[str] = (),
    log: AnswerLog | None = None,
    feedback: Quarantine | None = None,
    traffic: TrafficWatch | None = None,
    counts: Path | None = None,
) -> FastAPI:
    """The application: it answers with `model.engine`, whichever that is at the time, and records answers in `log`.

    `names` are further host names under which it is reached, such as that of a proxy. What people say of their photos
    goes to `feedback`; without one, none is taken. `traffic` counts facts of answers.
    `counts` is the folder by which workers know what the others counted.
    """
    traffic = traffic or TrafficWatch()
    app = FastAPI(title="Twinrun", docs_url=None, redoc_url=None, description="Classifies images with one model.")
    # For the description; _Guard checks it.
    token_security = [] if token is None else [Security(HTTPBearer(auto_error=False))]
    guarded = _ANYWHERE if token is None else _ANYWHERE | _WITH_TOKEN
    of_an_image = _refusals(_OF_AN_IMAGE)
    plain = APIRouter(route_class=_PlainRoute, responses=_refusals(guarded, _WITH_BODY), dependencies=token_security)
    state, cores, explaining = Counts(counts), available_cores(), asyncio.Lock()
    pool = ThreadPoolExecutor(cores, "classify")
    ours = frozenset(name.lower() for name in ("localhost", host, socket.gethostname(), *names))
    app.add_middleware(_Guard, ours=ours, named=frozenset(map(str.lower, names)), token=token, state=state)

    def answered(engine: Engine, image: Given, *, counted: bool, max_pixels: int | None = None) -> dict[str, Any]:
        row, answer = _answered(engine, image, max_pixels)
        if log is not None:
            log.add(row)
        if counted and answer is not None:
            with suppress(OSError):  # a window that is lost, which the file reports, costs no answer
                traffic.add(engine, answer)
        return row

    async def classify(images: Sequence[Given], *, counted: bool = True) -> list[dict[str, Any]]:
        if state.in_flight and state.in_flight + len(images) > _WAITING * cores:
            raise Refused(503, "The server is busy. Try again in a second.", _IN_A_SECOND)
        engine, began = model.engine, time.perf_counter()  # one for the whole request
        state.in_flight += len(images)
        try:
            if log is None and not traffic.is_nearly_full and engine.is_small and _is_small(images):
                await asyncio.sleep(0)  # so that what has arrived with it is refused before, where it is too much
                with suppress(DecodeError):
                    return [answered(engine, images[0], counted=counted, max_pixels=_SMALL_PIXELS)]
            loop, work = asyncio.get_running_loop(), partial(answered, engine, counted=counted)
            tasks = [loop.run_in_executor(pool, work, image) for image in images]
            return list(await asyncio.gather(*tasks))
        except OSError as error:
            message = f"The answer could not be recorded, and so is not given: {error.strerror or error}"
            raise Refused(503, message, {"Retry-After": "60"}) from None
        finally:
            state.in_flight -= len(images)
            state.set("twinrun_traffic_windows_total", traffic.windows)
            state.set("twinrun_traffic_windows_drifted_total", traffic.alarms)
            state.add("twinrun_images_total", len(images))
            state.add("twinrun_classify_seconds_total", time.perf_counter() - began)

    @plain.post(
        "/classify",
        openapi_extra=_BODY,
        summary="Classify one image: its bytes as the body, or a form's file",
        responses=of_an_image,
    )
    async def classify_one(request: Request) -> JSONResponse:
        images = await _images(request)
        if len(images) != 1:
            raise Refused(400, f"/classify takes one image, found {len(images)}. Several: POST /classify-batch")
        (row,) = await classify(images)
        return JSONResponse(row, status_code=int(row.pop("status", 200)))

    @plain.post("/classify-batch", openapi_extra=_BATCH_BODY, summary="Classify the files of a form, a row for each")
    async def classify_batch(request: Request) -> JSONResponse:
        rows = await classify(await _images(request))
        return JSONResponse(
            {"rows": [{k: v for k, v in row.items() if k not in ("status", "message")} for row in rows]}
        )

    @plain.post(
        "/explain",
        openapi_extra=_BODY,
        summary="A page that shows what the network does with one image",
        responses=of_an_image,
    )
    async def explain(request: Request) -> Response:
        images = await _images(request)
        if len(images) != 1:
            raise Refused(400, f"/explain takes one image, found {len(images)}.")
        (row,) = await classify(images, counted=False)
        if "error" in row:
            raise Refused(int(row["status"]), row["error"])
        if explaining.locked():
            raise Refused(503, "Another page is being made. Try again in a minute.", {"Retry-After": "60"})
        async with explaining:
            make = partial(explained, images[0], model.engine.reference, similar=_is_this_machine(host) and not names)
            try:
                page = await asyncio.to_thread(make)
            except (OSError, TwinrunError) as error:
                raise Refused(503, str(error), {"Retry-After": "60"}) from None
        return HTMLResponse(page, headers={"Content-Security-Policy": _EXPLANATION})

    @plain.post(
        "/invocations", openapi_extra=_JSON_BODY, summary="Classify images given in the JSON forms of MLflow's server"
    )
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

    app.include_router(plain)

    @app.post(
        "/feedback",
        openapi_extra=_FEEDBACK_BODY,
        status_code=201,
        summary="Keep a photo and the label it should have",
        responses=_refusals(
            *(guarded, _WITH_BODY, _OF_AN_IMAGE),
            {404: "This server keeps no feedback", 429: "No more can be kept for now; see Retry-After"},
        ),
        dependencies=token_security,
    )
    async def teach(request: Request) -> dict[str, Any]:
        if feedback is None:
            raise Refused(404, "This server keeps no feedback. Start it with --feedback.")
        image, label = await _feedback(request, model.engine.model.classes)
        try:
            feedback.allow()
        except TooMuch as error:
            raise Refused(429, str(error), {"Retry-After": str(error.wait_s)}) from None
        settings = model.engine.model.preprocessing
        (row,) = await classify([image], counted=False)  # it was, when it was first classified
        if "error" in row:
            raise Refused(int(row["status"]), row["error"])
        loop = asyncio.get_running_loop()
        try:
            digest = await loop.run_in_executor(pool, feedback.add, image, label, row, settings)
        except (OSError, PublishError) as error:
            raise Refused(503, f"The photo could not be kept: {error}", {"Retry-After": "60"}) from None
        return {"sha256": digest, "label": label, "predicted": row["label"], "model": row["model"]}

    @app.get(
        "/health",
        responses=_refusals(_ANYWHERE),
        summary="Whether the server answers, and why a newer champion has not taken over",
    )
    async def health() -> dict[str, Any]:
        return {"status": "ok", "problem": model.problem}

    @app.get("/version", responses=_refusals(_ANYWHERE), summary="The model that answers now, its classes and hashes")
    async def version() -> dict[str, Any]:
        return (
            model.engine.facts()
            | model.engine.how_it_answers()
            | {"feedback": feedback is not None, "guarded": token is not None}
        )

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        response_class=PlainTextResponse,
        responses=_refusals(guarded),
        dependencies=token_security,
    )
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(state, model, traffic), media_type="text/plain; version=0.0.4")

    @app.get(
        "/model/{sha256}.onnx",
        summary="The model itself; it never changes under one address",
        responses=_refusals(guarded, {404: "Another model is in service"}),
        dependencies=token_security,
    )
    async def file(sha256: str) -> Response:
        engine = model.engine
        if sha256 != engine.sha256:
            raise Refused(404, f"This model is not in service; now it is /model/{engine.sha256}.onnx")
        caching = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(engine.file, media_type="application/octet-stream", headers=caching)

    @app.get(
        "/regions",
        responses=_refusals(_ANYWHERE),
        summary="Rules for waste of the regions that cover every class of the model",
    )
    async def rules() -> list[dict[str, Any]]:
        return [region.model_dump(mode="json") for region in regions if region.covers(model.engine.model.classes)]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app.openapi()))

    @app.exception_handler(Refused)
    async def refuse(request: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)
        is_page = request.scope["path"] == "/explain" and "text/html" in request.headers.get("accept", "")
        return _refusal_for_people(refused) if is_page else _refusal(refused)

    @app.exception_handler(HTTPException)
    async def no_such_request(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        message = f"{request.method} {request.scope['path']} is no request of this server. GET /docs lists them."
        return _refusal(Refused(problem.status_code, message, dict(problem.headers or {})))

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class _PlainRoute(APIRoute):
    """A route whose function takes the request and gives the response: there is nothing to look for in either."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


class _Guard:
    """Refuses requests that are not to be answered, adds headers to answers, and counts them.

    Plain ASGI: what Starlette makes of a function costs more than a digit's classification.
    """

    def __init__(
        self, app: ASGIApp, *, ours: frozenset[str], named: frozenset[str], token: str | None, state: Counts
    ) -> None:
        self._app, self._ours, self._named, self._token, self._state = app, ours, named, token, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # a WebSocket, of which there are none here
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0  # bytes of the body that are still in use

        def release() -> None:
            nonlocal received
            self._state.body_bytes -= received
            received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            if self._state.body_bytes + size > MOST_BYTES_AT_ONCE:
                raise Refused(503, "The server is receiving too much at once. Try again in a second.", _IN_A_SECOND)
            received += size
            self._state.body_bytes += size
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                release()  # a client may take its time to read the answer
                own = list(message.get("headers", ()))
                names = {name for name, _ in own}
                message["headers"] = own + [header for header in _HEADERS if header[0] not in names]
                path = getattr(scope.get("route"), "path", "other")
                self._state.add(f'twinrun_requests_total{{path="{path}",status="{message["status"]}"}}', 1)
            await send(message)

        if scope["method"] == "HEAD":  # which the server answers without the body
            scope = {**scope, "method": "GET"}
        refused = _problem(scope, self._ours, self._named, self._token)
        try:
            await (_refusal(refused) if refused else self._app)(scope, counted, sent)
        finally:
            release()


def _is_small(images: Sequence[Given]) -> bool:
    return len(images) == 1 and isinstance(images[0], bytes) and len(images[0]) <= _SMALL_BYTES


def _answered(engine: Engine, image: Given, max_pixels: int | None) -> tuple[dict[str, Any], Answer | None]:
    """One answer as plain values; `error` and `status` where the image cannot be read.

    With `max_pixels` that is a DecodeError, also where the image has more pixels than these.
    """
    facts: dict[str, Any] = {"model": engine.facts()}
    if isinstance(image, bytes):
        facts = {"image_sha256": hashlib.sha256(image).hexdigest(), **facts}
    try:
        answer = engine.classify(image, max_pixels)
    except DecodeError as error:
        if max_pixels is not None:
            raise
        reason = re.sub(r" \(params\.yaml: [\w.]+\)", "", str(error))  # a served model's limits are its own
        message = f"This file {reason}"
        return {"error": message, "message": message, "status": _status(error, engine), **facts}, None
    probabilities = dict(zip(engine.model.classes, answer.probabilities.tolist(), strict=True))
    row = {
        "label": answer.label,
        "probability": probabilities[answer.label],
        "confidence": answer.confidence,
        "kind": answer.kind,
        "labels": answer.labels,
        "probabilities": probabilities,
        "temperature": None if engine.calibration is None else engine.calibration.temperature,
        "logits_sha256": answer.logits_sha256,
        **facts,
    }
    return row, answer


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
        images = [part for _, part in await _form(request, body) if isinstance(part, bytes)]
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
    except ClientDisconnect:
        raise Refused(400, "The body was cut off. Send it again.") from None
    return bytes(body)


async def _feedback(request: Request, classes: Sequence[str]) -> tuple[bytes, str]:
    """The photo of a form and the label that a person gives it."""
    body = await _body(request)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(400, "Send a form: curl -F file=@photo.jpg -F label=glass -F consent=yes")
    parts = await _form(request, body)
    texts = {name: part for name, part in parts if isinstance(part, str)}
    images = [part for _, part in parts if isinstance(part, bytes)]
    if texts.get("consent") != "yes":
        raise Refused(400, "The person must agree that the photo is kept: consent=yes")
    if len(images) != 1 or not images[0]:
        raise Refused(400, f"/feedback takes one photo, found {len(images)}.")
    if (label := texts.get("label", "")) not in classes:
        known = ", ".join(classes[:_LABELS_NAMED]) + (" and more" if len(classes) > _LABELS_NAMED else "")
        raise Refused(400, f"The label {label[:80]!r} is none of the model's: {known}.")
    return images[0], label


class _ParserInMemory(MultiPartParser):
    """Keeps the files of a form in memory: no photo touches the disk, and no temporary folder is needed."""

    spool_max_size = MOST_BYTES


async def _form(request: Request, body: bytes) -> list[tuple[str, bytes | str]]:
    """The names and contents of a form's parts: the bytes of a file, the text of a field."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _PART):
            yield body[start : start + _PART]

    try:
        form = await _ParserInMemory(request.headers, chunks(), max_files=MOST_IMAGES, max_fields=10).parse()
    except (MultiPartException, ValueError, KeyError) as error:
        message = getattr(error, "message", None) or str(error)
        raise Refused(400, f"The form cannot be read: {message} At most {MOST_IMAGES} files are read.") from None
    try:
        return [
            (name, await part.read() if isinstance(part, UploadFile) else part) for name, part in form.multi_items()
        ]
    finally:
        await form.close()


def _problem(scope: Scope, ours: frozenset[str], named: frozenset[str], token: str | None) -> Refused | None:
    """Why a request is not to be answered; None where it is.

    `ours` are all names of this server, `named` those of --name. The path is the scope's own: an address that is put
    together with the header Host may have another.
    """
    headers, is_reading = Headers(scope=scope), scope["method"] in ("GET", "HEAD")
    host, origin = headers.get("host", ""), headers.get("origin")
    if not _is_ours(_host_name(host), ours):
        message = (
            f"This server is not {host[:80]!r}. Use the address that it printed at its start, or start the server "
        )
        return Refused(421, message + "with --name and this host name.")
    if not is_reading and origin is not None and not _is_own_page(origin, host, named):
        message = "A page of another site may not send images here. If this is the server's own page, behind a proxy: "
        return Refused(403, message + "start the server with --name and the host name of the page.")
    is_open = is_reading and not scope["path"].startswith(("/model/", "/metrics"))
    if token is None or is_open:
        return None
    sent = headers.get("authorization", "")
    if not sent and scope["path"] == "/explain":  # the page opens it by a form, which can send no header of its own
        sent = "Bearer " + unquote(HTTPConnection(scope).cookies.get("token", ""))
    if secrets.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        return None
    message = "A token is needed: the header Authorization: Bearer TOKEN, with that of --token-file."
    return Refused(401, message, {"WWW-Authenticate": "Bearer"})


def _is_this_machine(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(authority: str) -> str | None:
    """The host of `HOST:PORT` in lower case, without brackets; None where it is something else."""
    found = _AUTHORITY.fullmatch(authority)
    return None if found is None else (found[1] or found[2]).lower()


def _is_ours(name: str | None, ours: frozenset[str]) -> bool:
    """A name that another site's DNS could point here is none of ours; a plain address is not a name."""
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in ours
    return True


def _is_own_page(origin: str, host: str, named: frozenset[str]) -> bool:
    """Whether a page of `origin` came from here: from the host of the request, or through a proxy that has a name."""
    scheme, _, authority = origin.partition("://")
    return scheme in ("http", "https") and (authority == host or _host_name(authority) in named)


def _refusal(refused: Refused) -> JSONResponse:
    # MLflow's clients read `message`
    return JSONResponse(
        {"error": refused.message, "message": refused.message}, status_code=refused.status, headers=refused.headers
    )


def _refusal_for_people(refused: Refused) -> HTMLResponse:
    page = f"<!doctype html><title>Twinrun</title><p>{html.escape(refused.message)}</p>"
    return HTMLResponse(page, status_code=refused.status, headers=refused.headers)


def _metrics(state: Counts, model: ModelInService, traffic: TrafficWatch) -> str:
    facts = model.engine.facts()
    labels = ",".join(f'{name}="{str(value).translate(_ESCAPES)}"' for name, value in facts.items())
    gauges = {
        "twinrun_images_in_flight": state.in_flight,
        f"twinrun_model_info{{{labels}}}": 1,
        "twinrun_newer_champion_refused": int(model.problem is not None),
        **{f'twinrun_traffic_drift{{fact="{shift.name}"}}': int(shift.significant) for shift in traffic.last or ()},
    }
    lines, typed = [], set()
    for kind, values in (("counter", state.of_all()), ("gauge", gauges)):
        for name, value in sorted(values.items()):
            if (family := name.partition("{")[0]) not in typed:
                typed.add(family)
                lines.append(f"# TYPE {family} {kind}")
            lines.append(f"{name} {value:.6f}" if isinstance(value, float) else f"{name} {value}")
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
