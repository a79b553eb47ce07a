"""The commands `twinrun app` and `twinrun serve`. Like the others they import what they need when they are called."""

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import DataError, failing_with
from twinrun.base.printing import one_line, print

if TYPE_CHECKING:
    from twinrun.serving.engine import Engine

_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NOT_COMPARED = 2  # exit code
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.IGNORECASE)

Host = Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for the whole network.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", help="File with the token that requests must send.")]
Watch = Annotated[
    Path | None,
    typer.Option("--watch", help="Add counts of brightness, size, labels ... of every 500 answers to this file."),
]
Feedback = Annotated[
    bool, typer.Option("--feedback", help="Keep photos with the labels that people give them, in data/feedback.")
]
Name = Annotated[
    list[str] | None,
    typer.Option("--name", help="Host name under which a proxy passes requests on: bins.example.org. Repeatable."),
]
Log = Annotated[Path | None, typer.Option("--log", help="Add hashes of every answer to this file; never the image.")]


def app(
    host: Host = "127.0.0.1",
    port: Port = 5001,
    token_file: TokenFile = None,
    name: Name = None,
    log: Log = None,
    feedback: Feedback = False,
    watch: Watch = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open the page that says what a photo shows and how to sort it. It needs no training and no network.

    It begins with the waste model that comes with Twinrun; a champion of this project replaces it as soon as there is
    one. Ctrl-C ends it. Photos stay on this machine, and none is kept without --feedback.

    Examples: twinrun app, twinrun app --port 5002 --no-open
    """
    from twinrun.serving.running import Settings, run

    token = None if token_file is None else _token(token_file)
    run(Settings(host, port, token, log, feedback, watch, model=None, is_app=True, names=_names(name)), browser=browser)


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
    name: Name = None,
    log: Log = None,
    feedback: Feedback = False,
    watch: Watch = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Processes; with 2 or more, one that dies is replaced.")
    ] = 1,
) -> None:
    """Serve the champion: a page that classifies photos, and an API. Ctrl-C or SIGTERM ends it.

    Photos are classified on this machine, and not kept without --feedback. Classify one from a script:
    curl -F file=@photo.jpg http://127.0.0.1:5001/classify

    Example: twinrun serve --host 0.0.0.0 --token-file token.txt
    """
    from twinrun.serving.running import Settings, run

    token = None if token_file is None else _token(token_file)
    settings = Settings(
        *(host, port, token, log, feedback, watch, model), is_app=False, names=_names(name), workers=workers
    )
    run(settings, browser=False)


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


def drift(
    file: Annotated[Path, typer.Argument(help="The file of twinrun serve --watch.")] = Path("traffic.jsonl"),
    last: Annotated[int, typer.Option("--last", min=1, help="Number of windows to show, the newest last.")] = 10,
) -> None:
    """Compare served images with the test split of their model, in windows of 500 answers. No image is needed.

    Compares brightness, sharpness, sizes, labels and kinds of answers. Without drift, at most 1% of windows are
    reported. Exit code: 0 the newest window is alike, or there is none yet, 1 it differs, 2 not compared. For training
    data: twinrun data drift.

    Examples: twinrun serve --watch traffic.jsonl, then twinrun drift
    """
    from twinrun.serving.traffic import read_windows

    with failing_with(_NOT_COMPARED):
        windows = read_windows(file)
    if not windows:
        print(f"{file} has no window yet: the first is written after 500 answers.")
        return
    differs = False
    for window in windows[-last:]:
        shifts = [shift for shift in window.shifts() if shift.significant]
        differs = bool(shifts)
        found = ", ".join(f"{shift.name} (PSI {shift.value:.2f}, p {shift.p_value:.2g})" for shift in shifts)
        model = f"{window.model.get('name')}, version {window.model.get('version')}"
        print(one_line(f"{window.time}  {window.images:,} answers of {model}: {found or 'like the test split'}"))
    raise SystemExit(1 if differs else 0)


def _names(given: list[str] | None) -> tuple[str, ...]:
    for name in given or ():
        if len(name) > 253 or not _HOST_NAME.fullmatch(name):
            raise DataError(
                f"{name[:300]!r} (--name) is not a host name. Write it without http://, port and path, and a name with "
                "other letters in its form with xn--. For example: --name bins.example.org"
            )
    return tuple(given or ())


def _token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{file} (--token-file) cannot be read: {reason}. Name a file that holds the token.") from None
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise DataError(
            f"{file} (--token-file) needs at least 16 printable ASCII characters. Make one: openssl rand -hex 32"
        )
    return token
