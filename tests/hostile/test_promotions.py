"""A journal of promotions with an interrupted change: doctor reports it, and the command that it names fixes it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from twinrun.tracking.promotions import Promotions
from twinrun.tracking.store import find_tracker, open_client


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project with one registered model, as working folder."""
    folder = tmp_path / "project"
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def test_doctor_names_a_promotion_that_was_cut_off_and_history_ends_it(
    project: Path, twinrun: Callable[..., str]
) -> None:
    journal = Promotions(project / "mlruns/promotions.jsonl")
    journal.begin(action="promote", model="twinrun-digits", before=None, after=1, reason=None, tracker="local")

    found = twinrun("doctor")
    twinrun("history", "--model", "twinrun-digits")
    after = twinrun("doctor")

    assert "the promote of twinrun-digits to version 1" in found
    assert "fix: twinrun history --model twinrun-digits" in found
    assert "was interrupted" not in after
    assert [each.outcome for each in journal.read()[0]] == ["failed"]


@pytest.mark.parametrize("line", [b'{"id": "0', b"[" * 100_000, b"\x00\x00", b'{"action": "promote"}'])
def test_doctor_names_a_line_that_is_no_promotion(line: bytes, project: Path, twinrun: Callable[..., str]) -> None:
    (project / "mlruns/promotions.jsonl").write_bytes(line + b"\n")

    found = twinrun("doctor")

    assert "promotions.jsonl, line 1: not a record of a promotion" in found
    assert "fix: remove that line from mlruns/promotions.jsonl" in found


def test_a_reason_that_is_no_utf8_is_recorded_and_read_again(project: Path, twinrun: Callable[..., str]) -> None:
    """A terminal of another encoding gives Python bytes that no JSON holds."""
    promoted = twinrun("promote", "1", "--force", "--reason", "caf\udce9")
    found = twinrun("doctor")

    (entry,), problems = Promotions(project / "mlruns/promotions.jsonl").read()
    assert "Version 1 of twinrun-digits is the champion" in promoted
    assert (entry.action, entry.reason, entry.outcome, problems) == ("promote", r"caf\xe9", "done", [])
    assert "ok  promotions" in found


def test_history_ends_a_change_that_was_cut_off_also_where_no_version_has_an_alias(
    project: Path, twinrun: Callable[..., str]
) -> None:
    open_client(find_tracker()).delete_registered_model_alias("twinrun-digits", "candidate")
    journal = Promotions(project / "mlruns/promotions.jsonl")
    journal.begin(action="promote", model="twinrun-digits", before=None, after=1, reason=None, tracker="local")

    twinrun("history")

    assert [each.outcome for each in journal.read()[0]] == ["failed"]
    assert "ok  promotions" in twinrun("doctor")


def test_a_record_that_is_too_large_is_named_and_does_not_stop_a_promotion(
    project: Path, twinrun: Callable[..., str]
) -> None:
    with (project / "mlruns/promotions.jsonl").open("wb") as file:
        file.seek(64_000_000)
        file.write(b"\n")

    promoted, found = twinrun("promote", "1"), twinrun("doctor")

    assert "Version 1 of twinrun-digits is the champion" in promoted
    assert "Traceback" not in promoted
    assert "promotions.jsonl was not read: it has 64 MB" in found


def test_a_record_whose_last_line_end_an_editor_removed_is_kept(project: Path, twinrun: Callable[..., str]) -> None:
    file = project / "mlruns/promotions.jsonl"
    twinrun("promote", "1")
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    open_client(find_tracker()).delete_registered_model_alias("twinrun-digits", "champion")

    twinrun("promote", "1")

    assert [entry.outcome for entry in Promotions(file).read()[0]] == ["done", "done"]
