"""The command line: it teaches, it answers at once, and its errors are messages."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clock import takes_at_most
from tracking_support import HASHES, evaluate, free_port, runs, train, train_really, wait_for
from typer.main import get_command

from pipeline import register
from twinrun.base.files import write_json
from twinrun.cli import main as cli
from twinrun.tracking.store import find_tracker, open_client


@pytest.fixture
def project(tracked_project: Path) -> Path:
    return tracked_project


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def twinrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The real entry point, in this process, since each new one would import MLflow anew."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["twinrun", *arguments])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


def test_help_answers_at_once_and_shows_every_command() -> None:
    with takes_at_most(0.5):  # PyTorch, MLflow or DVC alone take longer to import
        printed = subprocess.run(
            [sys.executable, "-m", "twinrun", "--help"], capture_output=True, text=True, check=True
        ).stdout

    for name in (
        "init",
        "preset",
        "data",
        "sweep",
        "models",
        "promote",
        "rollback",
        "predict",
        "sync",
        "show",
        "serve",
    ):
        assert len(re.findall(rf"^│ {name} ", printed, re.MULTILINE)) == 1
    assert re.findall("^╭─ (.*?) ─", printed, re.MULTILINE) == ["Options", "Start", "Train", "Models and runs", "Serve"]


def test_the_help_of_each_command_has_an_example() -> None:
    def commands(of: Any) -> Iterator[Any]:
        for command in of.commands.values():
            yield from commands(command) if hasattr(command, "commands") else [command]

    assert [command.name for command in commands(get_command(cli.app)) if "Example" not in command.help] == []


def test_help_is_wrapped_by_the_terminal_and_not_where_the_source_breaks_its_lines(
    twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    printed = twinrun("predict", "--help").out

    assert "files that are not images are left out. With --out, the same command" in " ".join(printed.split())
    paragraph = printed.partition("The order is kept.")[2].partition("Examples:")[0].strip().splitlines()
    assert min(len(line.strip()) for line in paragraph[:-1]) > 50


def test_a_model_is_listed_promoted_and_rolled_back_but_never_without_a_record(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    for weights in ("ab", "cd"):
        train(project, weights_hash=HASHES[weights])
        evaluate(project, weights_hash=HASHES[weights])
        register.main()

    promoted = [twinrun("promote", "1"), twinrun("promote", "2", "--reason", "better"), twinrun("promote", "2")]
    record = project / "mlruns/promotions.jsonl"
    record.rename(project / "kept")
    record.mkdir()  # a place that cannot be written to, even by root
    refused = [twinrun("promote", "1"), twinrun("rollback")]
    record.rmdir()
    (project / "kept").rename(record)
    unchanged = twinrun("models").out
    back = twinrun("rollback", "--reason", "worse")
    listed = twinrun("models").out
    shown = twinrun("show", "2").out

    rows = [line.split() for line in listed.splitlines()]
    assert [each.code for each in (*promoted, back, *refused)] == [0, 0, 0, 0, 1, 1]
    assert promoted[2].out == "Version 2 of twinrun-digits is the champion already; nothing was changed.\n"
    for each in refused:
        assert "promotions.jsonl (Is a directory), so nothing was changed" in each.err
        assert "Traceback" not in each.err
    assert ["2", "candidate,", "champion"] in [line.split()[:3] for line in unchanged.splitlines()]
    assert back.out.startswith("Version 1 of twinrun-digits is the champion again (it was version 2).\n")
    assert ["1", "champion", "yes", "0.9900"] in [row[:4] for row in rows]
    assert ["2", "candidate", "yes", "0.9900"] in [row[:4] for row in rows]
    assert HASHES["cd"] in shown
    told = twinrun("history").out.splitlines()
    assert [line.split()[3] for line in told if " done" in line] == ["promote", "promote", "rollback"]
    assert not any("accuracy passed:" in line for line in told)
    assert [line.strip() for line in told if "Gates: " in line][-1] == "Gates: 4 passed, 3 not judged"
    told = twinrun("history", "--all").out.splitlines()
    assert any(line.split()[:2] == ["accuracy", "passed:"] for line in told)  # a line of its own


def test_a_champion_removed_in_mlflow_is_brought_back_and_the_history_has_local_times(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project, weights_hash=HASHES["ab"])
    evaluate(project, weights_hash=HASHES["ab"])
    register.main()
    twinrun("promote", "1")
    open_client(find_tracker(project)).delete_registered_model_alias("twinrun-digits", "champion")

    back = twinrun("rollback").out
    times = []
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        row = next(line for line in twinrun("history").out.splitlines() if " rollback " in line)
        times.append(datetime.fromisoformat(" ".join(row.split()[:2])))
    monkeypatch.undo()
    time.tzset()

    assert back == "Version 1 of twinrun-digits is the champion again (there was none).\n"
    assert times[1] - times[0] == timedelta(hours=9)


def _on_a_read_only_disk(folder: Path, *commands: str) -> list[tuple[int, str]]:
    """The exit code and the output of each command of twinrun in `folder`, mounted read-only for them alone."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0"'
    namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    try:
        subprocess.run([*namespace, f"{mount} && ! touch new 2> /dev/null", str(folder)], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user can mount nothing")
    ended = []
    for command in commands:
        line = f"{mount} && exec {sys.prefix}/bin/python -m twinrun {command}"
        done = subprocess.run([*namespace, line, str(folder)], capture_output=True, text=True, check=False)
        ended.append((done.returncode, done.stdout + done.stderr))
    return ended


def test_a_project_on_a_read_only_disk_can_be_looked_at_but_not_changed(
    project: Path, twinrun: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project, weights_hash=HASHES["ab"])
    evaluate(project, weights_hash=HASHES["ab"])
    register.main()
    twinrun("promote", "1", "--reason", "the first")
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    shutil.rmtree(project / "mlruns/published")  # a writer would create it

    listed, shown, told, refused = _on_a_read_only_disk(project, "models", "show 1", "history", "rollback")
    monkeypatch.chdir(moved)
    shutil.rmtree(project)
    listed_there, served = _on_a_read_only_disk(moved, "models", f"serve --port {free_port()}")

    assert [code for code, _ in (listed, shown, told, listed_there)] == [0] * 4
    assert HASHES["ab"] in shown[1]
    assert "the first" in told[1]
    for _, text in (listed, listed_there):
        assert re.search("^1 +candidate, champion ", text, re.MULTILINE)
    assert refused[0] == served[0] == 1
    assert "registry.lock cannot be used: the file system is read-only" in refused[1]
    assert "was moved here and is read-only" in served[1]
    assert not any("Traceback" in text for _, text in (refused, served))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote", "3"], "There is no model 'twinrun-digits'"),
        (["rollback"], "There is no model 'twinrun-digits'"),
        (["show", "beef"], "No run or version is called 'beef'"),
        (["show"], "This folder has no model of its own .*Train one: dvc repro"),
    ],
)
def test_what_cannot_be_done_is_a_message_and_an_exit_code(
    arguments: list[str], message: str, twinrun: Callable[..., Ended]
) -> None:
    ended = twinrun(*arguments)

    assert ended.code == 1
    assert re.search(message, ended.err)
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", ""),
        ("data", "check", ""),
        ("init", ""),
        ("init", "demo", "--data="),
        ("promote", "1", "--reason", ""),
    ],
)
def test_an_argument_that_is_empty_is_not_taken_for_this_folder(
    arguments: tuple[str, ...], twinrun: Callable[..., Ended]
) -> None:
    ended = twinrun(*arguments)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("An argument is empty")


@pytest.mark.parametrize("command", ["models", "history"])
@pytest.mark.usefixtures("project")
def test_a_model_that_is_named_and_does_not_exist_is_an_error(command: str, twinrun: Callable[..., Ended]) -> None:
    ended = twinrun(command, "--model", "twinrun-digit")

    assert (ended.code, ended.out) == (1, "")
    assert "There is no model 'twinrun-digit'" in ended.err


def test_weights_are_fetched_into_a_project_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)

    ended = twinrun("weights", "fetch", "resnet18")

    assert ended.code == 1
    assert "This folder is not a project" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_project_is_named_and_not_its_missing_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)

    ended = twinrun("data", "fix")

    assert ended.code == 1
    assert "This folder is not a project" in ended.err


@pytest.mark.parametrize("command", [("drift",), ("data", "drift")])
def test_images_that_cannot_be_compared_have_another_exit_code_than_those_that_drifted(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)  # no project: no champion, no traffic

    ended = twinrun(*command)

    assert (ended.code, ended.out) == (2, "")


def test_sync_says_what_it_did_and_fails_where_the_tracker_is_away(
    project: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    train(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    away = twinrun("sync")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    first, second = twinrun("sync"), twinrun("sync")

    assert away.code == 1
    assert "10 events are still to be published" in away.err
    assert "http://127.0.0.1:9 (MLFLOW_TRACKING_URI) cannot be reached" in away.err
    assert first.out.startswith("10 events of 1 run published")
    assert "is up to date" in second.out


def test_what_shows_runs_marks_those_of_dead_processes_first(project: Path, twinrun: Callable[..., Ended]) -> None:
    code = (
        "from pathlib import Path; from twinrun.record.journal import Journal\n"
        "Journal.create(Path('.'), name='dead', experiment='digits').metrics(0, {'train_loss': 0.5})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)

    ended = twinrun("models")

    assert ended.code == 0
    assert "was left by a dead process" in ended.err
    assert [run.status for run in runs(project)] == ["KILLED"]


def test_a_model_of_this_folder_is_shown_though_the_tracker_is_away(
    project: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    journal = train(project)
    card = json.loads((project / "data/out/train/card.json").read_bytes())
    params = {"ingest": {"source": "digits", "path": ""}, "train": {"epochs": 7, "model": "lenet5"}}
    write_json({**card, "untracked_left_out": ["notes.pdf"], "params": params}, project / "data/out/train/card.json")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    ended, newest, whole = twinrun("show", journal.id[:6]), twinrun("show"), twinrun("show", "--all")

    assert newest.out == ended.out
    assert ended.code == 0
    assert re.search(r"^run +lenet5 on digits \(FINISHED\)\s+id +none yet: the run is not in MLflow", ended.out)
    assert journal.id[:6] not in ended.out
    assert re.search(r"untracked, left out +notes\.pdf", ended.out)
    assert "cannot be reached" in ended.err
    assert re.search(r"params\.train\.epochs +7\s+other params +2 at this version's defaults", ended.out)
    assert "params.train.model" not in ended.out
    assert re.search(r"params\.train\.model +lenet5", whole.out)


def test_a_served_champion_answers_a_request_with_an_image(
    project: Path, monkeypatch: pytest.MonkeyPatch, twinrun: Callable[..., Ended]
) -> None:
    from PIL import Image

    train_really(project)
    register.main()
    twinrun("promote", "1")
    file = io.BytesIO()
    Image.new("L", (28, 28), 90).save(file, "PNG")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    port = free_port()
    log = project / "serve.log"

    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/twinrun-digits@champion"),
                *("--env-manager", "local", "--port", str(port)),
            ],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(port, "/ping", server, log)
        image = base64.b64encode(file.getvalue()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}).encode(),
            {"Content-Type": "application/json"},
        )
        answer = json.load(urllib.request.urlopen(request, timeout=30))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)

    (prediction,) = answer["predictions"]
    assert prediction["label"] in "0123456789"
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)


def test_a_run_is_found_by_its_beginning_however_many_there_are(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        train(project, epochs=1)
    cli.sync()
    monkeypatch.setattr("twinrun.tracking.runs._PAGE", 2)

    for run in runs(project):
        cli.show(run.id[:12], None, False)

        assert run.id in capsys.readouterr().out
