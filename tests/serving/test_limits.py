"""What requests may use of the memory and the disk of the server."""

import io
import socket
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image
from serving_support import digit_png, digits_engine, serving

from twinrun.serving import app as serving_app
from twinrun.serving.app import make_app
from twinrun.serving.follow import ModelInService


def test_a_large_photo_of_a_form_is_classified_without_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = io.BytesIO()
    Image.new("RGB", (999, 999), "gray").save(large, "BMP")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with serving(make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None)) as served:
        plain = served.ask("POST", "/classify", large.getvalue())
        form = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="photo"\r\n\r\n' + large.getvalue()
        sent = served.ask(
            "POST", "/classify", form + b"\r\n--edge--\r\n", Content_Type="multipart/form-data; boundary=edge"
        )

    assert len(large.getvalue()) > 2_900_000
    assert plain[0] == sent[0] == 200
    assert sent[1] == plain[1]


def test_bodies_that_are_too_much_at_once_are_refused_until_others_are_answered_or_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_app, "MOST_BYTES_AT_ONCE", 100_000)
    half, small = b"x" * 60_000, digit_png(0)
    with serving(make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None)) as served:

        def begin() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", served.port), timeout=30)
            client.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60001\r\n\r\n" + half)
            time.sleep(0.5)  # so that the server has read it
            return client

        alone = served.ask("POST", "/classify", half)[0]
        slow = begin()
        status, answer, headers = served.ask("POST", "/classify", half)
        fits = served.ask("POST", "/classify", small)[0]
        slow.sendall(b"x")
        ended = slow.recv(100)
        after = [served.ask("POST", "/classify", half)[0] for _ in range(3)]
        begin().close()
        time.sleep(0.5)
        after_gone = served.ask("POST", "/classify", half)[0]

    assert (status, headers["Retry-After"]) == (503, "1")
    assert "too much at once" in answer["error"]
    assert (alone, fits, after, after_gone) == (415, 200, [415] * 3, 415)
    assert ended.startswith(b"HTTP/1.1 415")
