"""Files to which the server appends lines, on a disk that becomes full."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_support import heed_permissions
from serving_support import digit_png, digits_engine, full_after, serving
from tracking_support import free_port

from twinrun.serving.answer_log import AnswerLog
from twinrun.serving.app import make_app
from twinrun.serving.follow import ModelInService
from twinrun.serving.json_lines import JsonLines
from twinrun.serving.traffic import Window, read_windows
from twinrun.serving.verify import verify_answer


def test_an_answer_that_the_disk_cut_off_costs_no_other_line_of_the_log_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, photo = tmp_path / "answers.jsonl", tmp_path / "photo.png"
    app = make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None, log=AnswerLog(log))
    with serving(app) as served:
        before = served.ask("POST", "/classify", digit_png(0))[0]
        with full_after(log, 30):
            full = served.ask("POST", "/classify", digit_png(1))[0]
        after = [served.ask("POST", "/classify", digit_png(row))[0] for row in (2, 3)]

    lines = log.read_bytes().splitlines()
    photo.write_bytes(digit_png(2))
    assert (before, full, after) == (200, 503, [200, 200])
    assert capsys.readouterr().err == f"Nothing can be added to {log} (--log): the disk is full.\n"
    assert [len(lines), len(lines[1])] == [4, 30]
    assert [json.loads(lines[at])["model"]["name"] for at in (0, 2, 3)] == ["digits"] * 3
    assert verify_answer(log, photo, lambda _: digits_engine()).same


def test_a_window_that_the_disk_cut_off_costs_no_other_window(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    lines, other_process = (JsonLines(file, "--watch") for _ in range(2))
    windows = [Window(time=str(at), model={}, images=1, reference={}, counts={}).model_dump() for at in range(4)]

    lines.append(windows[0])
    with full_after(file, 30), pytest.raises(OSError, match=r"full|large"):
        lines.append(windows[1])
    other_process.append(windows[2])
    lines.append(windows[3])

    assert [window.time for window in read_windows(file)] == ["0", "2", "3"]


def test_a_log_that_was_moved_away_or_removed_is_begun_anew_and_nothing_is_added_to_a_file_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, moved = tmp_path / "logs/answers.jsonl", tmp_path / "answers.jsonl.1"
    log.parent.mkdir()
    app = make_app(ModelInService(digits_engine()), [], host="127.0.0.1", token=None, log=AnswerLog(log))
    with serving(app) as served:
        served.ask("POST", "/classify", digit_png(0))
        log.rename(moved)
        served.ask("POST", "/classify", digit_png(1))
        begun = log.read_bytes()
        shutil.rmtree(log.parent)
        served.ask("POST", "/classify", digit_png(3))
        begun_with_folder = log.read_bytes()
        log.unlink()
        log.write_bytes(b"somebody's")
        status = served.ask("POST", "/classify", digit_png(2))[0]

    assert [len(lines.splitlines()) for lines in (moved.read_bytes(), begun, begun_with_folder)] == [1] * 3
    assert (status, log.read_bytes()) == (503, b"somebody's")
    assert capsys.readouterr().err == f"Nothing can be added to {log} (--log): another file has its name now.\n"


@pytest.mark.parametrize(
    ("option", "content"), [("--log", digit_png(0)), ("--watch", digit_png(0)), ("--log", b'{"name": "settings"}\n')]
)
def test_a_file_of_something_else_gets_no_lines(tmp_path: Path, option: str, content: bytes) -> None:
    own = tmp_path / "own.json"
    own.write_bytes(content)
    command = [sys.executable, "-m", "twinrun", "app", "--no-open", "--port", str(free_port()), option, "own.json"]

    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert ended.returncode == 1
    assert f"own.json ({option}) is not a file that the server writes, and nothing was added to it" in ended.stderr
    assert own.read_bytes() == content


def test_a_log_whose_first_line_was_cut_off_is_taken_again(tmp_path: Path) -> None:
    log = tmp_path / "answers.jsonl"
    log.write_bytes(b'{"ti')

    for at in range(2):
        JsonLines(log, "--log").append({"time": at})

    assert log.read_bytes() == b'{"ti\n{"time": 0}\n{"time": 1}\n'


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--log", "one.jsonl", "--watch", "./one.jsonl"], "one.jsonl is the file of --log and of --watch. Name"),
        (["--log", "one.jsonl", "--watch", "link.jsonl"], "one.jsonl is the file of --log and of --watch. Name"),
        (["--log", "new.jsonl", "--watch", "./new.jsonl"], "new.jsonl is the file of --log and of --watch. Name"),
        (
            ["--feedback", "--watch", "data/feedback/items.jsonl"],
            "data/feedback/items.jsonl is the file of --watch and of --feedback. Name another",
        ),
        (["--log", "lgos/a.jsonl"], "lgos/a.jsonl (--log) cannot be written: there is no folder lgos. Create"),
        (["--watch", "folder"], "folder (--watch) cannot be written: Is a directory. Name another file"),
        (["--log", "away"], "away (--log) is a link to /nowhere/a.jsonl, which does not exist. Create that, or name"),
        (["--log", "pipe"], "pipe (--log) is not a file that the server writes"),
        (["--log", "locked.jsonl"], "locked.jsonl (--log) cannot be written: Permission denied. Name another file"),
        (["--workers", "2", "--log", "locked/a.jsonl"], "locked/a.jsonl (--log) cannot be written: Permission denied."),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_once_before_the_model_is_looked_for(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    for folder in ("folder", "locked", "data/feedback"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link.jsonl").symlink_to("one.jsonl")
    (tmp_path / "one.jsonl").touch()
    (tmp_path / "away").symlink_to("/nowhere/a.jsonl")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "locked.jsonl").touch(0o400)
    (tmp_path / "locked").chmod(0o500)
    command = [sys.executable, "-m", "twinrun", "serve", "--model", "none", "--port", str(free_port()), *arguments]

    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, preexec_fn=heed_permissions
    )

    (tmp_path / "locked").chmod(0o700)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count(problem) == 1
    assert not [name for name in ("lgos", "new.jsonl", "data/feedback/items.jsonl") if (tmp_path / name).exists()]
