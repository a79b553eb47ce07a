"""Trackers as people have them: behind credentials, certificates and proxies, too old, without a driver, damaged."""

import base64
import datetime
import ipaddress
import os
import shutil
import sqlite3
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tracking_support import free_port, train

from twinrun.base.errors import TrackingError
from twinrun.cli import main as cli
from twinrun.tracking.store import find_tracker, require_reachable

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def project(tracked_project: Path) -> Path:
    return tracked_project


@pytest.fixture
def twinrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line, in this process: its exit code, and all that it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["twinrun", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


@dataclass
class Server:
    """A server that gives one answer to everything, to whoever has the password, if it asks for one."""

    answer: tuple[int, str] = (200, "3.17.2")
    password: str | None = None
    location: str | None = None  # where a redirection leads, without the path
    certificate: Path | None = None
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> "Server":
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                wanted = f"Basic {base64.b64encode(f'alice:{server.password}'.encode()).decode()}"
                refused = server.password is not None and self.headers.get("Authorization") != wanted
                code, text = (401, "no") if refused else server.answer
                self.send_response(code)
                if server.location is not None:
                    self.send_header("Location", server.location + self.path)
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "cert.pem"
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return file


@pytest.mark.parametrize(
    "how",
    [
        {"MLFLOW_TRACKING_SERVER_CERT_PATH": "CERTIFICATE"},
        {"MLFLOW_TRACKING_INSECURE_TLS": "true"},
        {"REQUESTS_CA_BUNDLE": "CERTIFICATE"},
    ],
)
def test_a_certificate_of_ones_own_is_trusted_as_mlflow_trusts_it(
    how: Mapping[str, str], certificate: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(certificate=certificate) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{server.address}")
        for name, value in how.items():
            monkeypatch.setenv(name, value.replace("CERTIFICATE", str(certificate)))

        require_reachable(find_tracker(project))

        assert server.asked == ["/version"]


@pytest.mark.usefixtures("project")
def test_a_certificate_that_is_not_trusted_is_named_with_the_variable_that_changes_it(
    certificate: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(certificate=certificate) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{server.address}")

        code, said = twinrun("models")

    assert code == 1
    assert "its certificate is not trusted (self-signed certificate)" in said
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in said
    assert "Max retries" not in said


def test_credentials_reach_the_server_however_mlflow_takes_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(password="s3cret") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:s3cret@{server.address}")
        require_reachable(find_tracker(project))

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server.address}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
        require_reachable(find_tracker(project))

        assert server.asked == ["/version"] * 2


@pytest.mark.usefixtures("project")
def test_a_refused_password_is_not_printed_and_the_variables_for_it_are(
    twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(password="s3cret") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://alice:wr0ng@{server.address}")

        code, said = twinrun("models")

    assert code == 1
    assert f"MLflow at http://{server.address} refuses this user (401)" in said
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "wr0ng" not in said


def test_a_proxy_is_used_as_mlflow_uses_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.invalid/team")
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")

        require_reachable(find_tracker(project))

        assert proxy.asked == ["http://mlflow.invalid/team/version"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((200, "2.9.2"), "is MLflow 2.9.2: the server is older than 3"),
        ((502, "<html><title>Bad Gateway</title></html>"), "cannot be reached: it answers with 502 Bad Gateway"),
        ((404, "<!doctype html><title>404 Not Found</title>"), "does not know a request that Twinrun needs (404)"),
        (
            (200, "<html><title>Sign in</title></html>"),
            "answers with a page (Sign in) and not as an MLflow server does",
        ),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_server_that_is_none_of_ours_is_described_without_its_pages(
    answer: tuple[int, str], expected: str, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(answer) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server.address}")

        code, said = twinrun("models")

    assert code == 1
    assert expected in said
    assert "<" not in said


@pytest.mark.parametrize("command", ["models", "sync"])
@pytest.mark.usefixtures("project")
def test_a_driver_that_is_missing_is_named_with_the_command_that_installs_it(
    command: str, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(Path.cwd())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"mysql+pymysql://u:s3cret@127.0.0.1:{free_port()}/mlflow")

    code, said = twinrun(command)

    assert code == 1
    assert "needs the Python package pymysql, which is not installed. Install it: pip install 'PyMySQL'" in said


@pytest.mark.parametrize(
    ("revision", "expected", "remedy"),
    [
        ("0584bdc529eb", "was written by an older MLflow", "mlflow db upgrade 'sqlite:///"),
        ("ffffffffffff", "was written by a newer MLflow", "git pull && pip install -r requirements.lock"),
    ],
)
def test_a_database_of_another_mlflow_is_one_message_and_one_command(
    revision: str, expected: str, remedy: str, project: Path, twinrun: Run
) -> None:
    train(project)
    with closing(sqlite3.connect(project / "mlruns/mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))

    code, said = twinrun("models")

    assert code == 1
    assert said.count(expected) == 1
    assert remedy in said
    assert "alembic" not in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"no database at all, but long enough", "it is not a SQLite database"), (None, "cannot be")],
)
def test_a_database_that_cannot_be_opened_is_said_at_once_and_nothing_is_lost(
    content: bytes | None, expected: str, project: Path, twinrun: Run
) -> None:
    database = project / "mlruns/mlflow.db"
    database.unlink()
    if content is None:
        database.mkdir()
    else:
        database.write_bytes(content)

    code, said = twinrun("models")

    assert code == 1
    assert expected in said
    assert content is None or database.read_bytes() == content


@pytest.mark.parametrize("name", ["a?b", "100%", "a%20b", "C# & prüfung? 50%41 (v2)"])
def test_the_store_of_a_project_lies_in_the_project_whatever_its_folder_is_called(
    name: str, project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = project.with_name("parent") / name
    shutil.copytree(project, odd)
    monkeypatch.chdir(odd)
    train(odd)

    code, said = twinrun("sync")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", find_tracker(odd).uri)
    again, said_again = twinrun("models")

    assert (code, again) == (0, 0), said + said_again
    assert "are still to be published" not in said
    assert [each.name for each in odd.parent.iterdir()] == [name]
    assert any((odd / "mlruns/artifacts").rglob("card.json"))


def test_an_address_whose_question_mark_ends_a_name_is_refused_before_a_database_is_created(
    project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/what?/mlruns/mlflow.db")

    code, said = twinrun("models")

    assert code == 1
    assert "Write %3F for it" in said
    assert not (project / "what").exists()


def test_a_database_server_that_is_away_is_said_without_a_password(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://u:s3cret@127.0.0.1:{free_port()}/mlflow")

    with pytest.raises(TrackingError, match="Connection refused") as raised:
        require_reachable(find_tracker(project))

    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("command", ["models", "sync", "doctor"])
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://u:pa[ss@127.0.0.1:9", "The user or password in MLFLOW_TRACKING_URI (http://127.0.0.1:9) has one of"),
        ("http://u:pa/ss@127.0.0.1:9", "The user or password in MLFLOW_TRACKING_URI (http://127.0.0.1:9) has one of"),
        ("postgresql://user:password@host:port/database", "cannot be reached: its port is not a number"),
        ("localhost:5000", "Correct it: export MLFLOW_TRACKING_URI=http://localhost:5000"),
        ("sqlite:////", "MLFLOW_TRACKING_URI (sqlite:////) names no file"),
    ],
)
def test_an_address_that_is_none_is_one_message_for_every_command(
    address: str, expected: str, command: str, project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)

    code, said = twinrun(command)

    assert code == 1
    assert expected in said
    assert "Traceback" not in said


def test_a_server_that_sends_writes_on_as_reads_is_named_with_the_address_to_use(
    project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what stands before a server does that wants https: a POST becomes a GET, which MLflow answers with 405."""
    train(project)
    with Server() as server, Server((301, ""), location=f"http://{server.address}") as front:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{front.address}/")

        code, said = twinrun("sync")

    assert code == 1
    assert f"export MLFLOW_TRACKING_URI=http://{server.address}" in said
    assert len(list((project / ".twinrun/journals").iterdir())) == 1


@pytest.mark.parametrize("answer", ["{}", '{"status": "ok"}', '{"run": {"info": {}}, "experiment": {}}'])
def test_a_server_that_answers_everything_with_the_same_json_gets_no_journal(
    answer: str, project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    with Server((200, answer)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{server.address}")

        code, said = twinrun("sync")

    assert code == 1
    assert "not as an MLflow server does" in said
    assert len(list((project / ".twinrun/journals").iterdir())) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "--model", "it's"),
        ("history", "--model", "a/b"),
        ("show", "it's@champion"),
        ("show", "o'brien/1"),
        ("promote", "1", "--model", "x' AND name != '"),
        ("rollback", "--model", "a:b"),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_name_that_no_model_may_have_is_a_model_that_is_missing(arguments: tuple[str, ...], twinrun: Run) -> None:
    code, said = twinrun(*arguments)

    assert code == 1
    assert "There is no model" in said
    assert "filter" not in said


def test_a_registry_of_its_own_in_the_environment_changes_no_model(
    registered: Path, project: Path, twinrun: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLFLOW_REGISTRY_URI is MLflow's, for whoever keeps models apart from runs; Twinrun keeps both in one store."""
    shutil.copytree(registered, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", find_tracker(project).uri)

    code, said = twinrun("predict", "0.png")

    assert code == 0, said
    assert os.environ["MLFLOW_REGISTRY_URI"] == find_tracker(project).uri
