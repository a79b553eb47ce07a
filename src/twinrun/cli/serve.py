"""The commands `twinrun app` and `twinrun serve`. Like the others they import what they need when they are called."""

import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.core.errors import DataError, TrackingError
from twinrun.core.printing import print

if TYPE_CHECKING:
    from twinrun.serving.engine import Engine
    from twinrun.serving.follow import ModelInService
    from twinrun.tracking.store import Tracker

_LOCAL = ("127.0.0.1", "localhost", "::1")
_DRAIN_S = 30  # for requests that have begun when the server is to end


Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for the whole network.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File with the token that requests must send.")]
Log = Annotated[Path | None, typer.Option("--log", help="Add hashes of every answer to this file; never the image.")]


def app(
    host: Host = "127.0.0.1",
    port: Port = 5001,
    token_file: TokenFile = None,
    log: Log = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open the page that says what a photo shows and how to sort it. It needs no training and no network.

    It begins with the waste model that comes with Twinrun; a champion of this project replaces it as soon as there is
    one. Ctrl-C ends it. Photos stay on this machine, and none is kept.
    """
    from twinrun.core.params import load_params
    from twinrun.serving.follow import open_app
    from twinrun.serving.waste import waste_engine

    def open_model(tracker: "Tracker", stop: threading.Event) -> "ModelInService":
        return open_app(tracker, lambda: load_params().register.model_name, waste_engine, stop)

    _run(host, port, token_file, log, open_model, browser=browser)


def serve(
    host: Host = "127.0.0.1",
    port: Port = 5001,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="NAME@champion, NAME/3, a version's number, or the folder of a bundle. By default the champion of "
            "params.yaml's model, or else its candidate. A name is followed: a promotion takes over within seconds.",
        ),
    ] = None,
    token_file: TokenFile = None,
    log: Log = None,
) -> None:
    """Serve the champion: a page that classifies photos, and an API. Ctrl-C or SIGTERM ends it.

    Photos are classified on this machine and not kept. Classify one from a script:
    curl -F file=@photo.jpg http://127.0.0.1:5001/classify

    Example: twinrun serve --host 0.0.0.0 --token-file token.txt
    """
    from twinrun.core.params import load_params
    from twinrun.serving.follow import open_model

    def open_served(tracker: "Tracker", stop: threading.Event) -> "ModelInService":
        return open_model(tracker, model, lambda: load_params().register.model_name, stop)

    _run(host, port, token_file, log, open_served, browser=False)


def verify(
    answer: Annotated[Path, typer.Argument(help="The JSON that POST /classify sent, or the log of answers.")],
    photo: Annotated[Path, typer.Argument(help="The photo that was sent.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A model, as for `twinrun serve`; by default that of the answer.")
    ] = None,
) -> None:
    """Compute a served answer again from the photo, and say whether it is the same.

    Exit code: 0 the same, 4 different. Example: twinrun verify answer.json photo.jpg
    """
    from twinrun.core.params import load_params
    from twinrun.serving.follow import open_model
    from twinrun.serving.verify import ServedAnswer, verify_answer
    from twinrun.serving.waste import NAME, waste_engine
    from twinrun.tracking.store import find_tracker

    def open_engine(served: ServedAnswer) -> "Engine":
        if model is None and served.model.name == NAME:
            return waste_engine()
        version = served.model.version
        reference = model or (served.model.name if version is None else f"{served.model.name}/{version}")
        stop = threading.Event()
        stop.set()
        return open_model(find_tracker(), reference, lambda: load_params().register.model_name, stop).engine

    verdict = verify_answer(answer, photo, open_engine)
    print(f"{'SAME' if verdict.same else 'DIFFERENT'}: {verdict.sentence}")
    raise SystemExit(0 if verdict.same else 4)


def _run(
    host: str,
    port: int,
    token_file: Path | None,
    log: Path | None,
    open_model: "Callable[[Tracker, threading.Event], ModelInService]",
    *,
    browser: bool,
) -> None:
    import webbrowser

    import uvicorn

    from twinrun.serving.answer_log import AnswerLog
    from twinrun.serving.app import make_app
    from twinrun.serving.rules import read_regions
    from twinrun.tracking.store import find_tracker

    token = None if token_file is None else _token(token_file)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise TrackingError(
            f"The server cannot listen on {host}:{port}: {error.strerror}. Choose another port: --port {port + 1}"
        ) from None
    stop = threading.Event()
    with listening:
        served = open_model(find_tracker(), stop)
        app = make_app(
            served,
            read_regions(served.engine.model.classes),
            host=host,
            token=token,
            log=None if log is None else AnswerLog(log),
        )
        facts, shown = served.engine.facts(), f"[{host}]" if ":" in host else host
        which = f"version {facts['version']} of {facts['name']}" if facts["version"] else facts["name"]
        print(f"Model: {which}, weights {facts['weights_hash'][:8]}")
        if host not in _LOCAL and token is None:
            print("Everybody who can reach this machine can use this server. Ask for a token: --token-file FILE")
        address = f"http://{shown}:{port}"
        print(f"Page: {address}   API: {address}/docs   (Ctrl-C ends it)", flush=True)
        if browser and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
            webbrowser.open(address)  # which waits: connections are accepted, and answered in a moment
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_DRAIN_S, server_header=False)
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        finally:
            stop.set()


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} (--token-file) cannot be read: {error}") from None
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise DataError(
            f"{file} (--token-file) needs at least 16 printable ASCII characters. Make one: openssl rand -hex 32"
        )
    return token
