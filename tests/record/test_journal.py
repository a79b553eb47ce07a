"""The journal: whole events only, nothing twice, and its own copies of what it speaks of."""

import math
import os
import shutil
from pathlib import Path

import pytest

from twinrun.base.errors import PublishError
from twinrun.record.home import home
from twinrun.record.journal import ARTIFACTS, Journal, events_from, read_events, summarize


def _create(root: Path) -> Journal:
    return Journal.create(root, name="lenet5 on digits", experiment="digits")


def test_what_was_recorded_is_read_back_in_order(tmp_path: Path) -> None:
    journal = _create(tmp_path)

    journal.params({"train": {"epochs": 3, "model": "mlp", "clip": None}})
    journal.metrics(0, {"train_loss": 0.5, "val_loss": math.nan})
    journal.end()

    run, params, metrics, end = read_events(journal.file)
    assert run["name"] == "lenet5 on digits"
    assert params["values"] == {"train.epochs": "3", "train.model": "mlp", "train.clip": "null"}
    assert metrics["values"]["train_loss"] == 0.5
    assert math.isnan(float(metrics["values"]["val_loss"]))
    assert end["status"] == "FINISHED"


def test_a_torn_last_line_is_dropped_and_the_next_event_is_whole(tmp_path: Path) -> None:
    journal = _create(tmp_path)
    journal.metrics(0, {"train_loss": 0.5})
    journal.close()
    with journal.file.open("ab") as file:
        file.write(b'{"event":"metrics","step":1,"val')

    seen_while_torn = read_events(journal.file)
    resumed = Journal.resume(tmp_path, journal.id)
    resumed.metrics(1, {"train_loss": 0.4})

    assert [event["event"] for event in seen_while_torn] == ["run", "metrics"]
    assert [event["event"] for event in read_events(journal.file)] == ["run", "metrics", "run", "metrics"]


def test_an_epoch_that_is_computed_again_after_a_crash_is_recorded_once(tmp_path: Path) -> None:
    journal = _create(tmp_path)
    journal.params({"epochs": 3})
    journal.metrics(0, {"train_loss": 0.5})
    journal.metrics(1, {"train_loss": 0.4})
    journal.close()

    resumed = Journal.resume(tmp_path, journal.id)
    resumed.params({"epochs": 3})
    resumed.metrics(1, {"train_loss": 0.4, "val_loss": 0.6})
    resumed.metrics(2, {"train_loss": 0.3})

    values = [(e["step"], e["values"]) for e in read_events(journal.file) if e["event"] == "metrics"]
    assert values == [
        (0, {"train_loss": 0.5}),
        (1, {"train_loss": 0.4}),
        (1, {"val_loss": 0.6}),
        (2, {"train_loss": 0.3}),
    ]
    assert sum(event["event"] == "params" for event in read_events(journal.file)) == 1


def test_a_resumed_training_has_not_ended(tmp_path: Path) -> None:
    journal = _create(tmp_path)
    journal.end("KILLED")

    resumed = Journal.resume(tmp_path, journal.id)
    before = summarize(resumed.file)
    resumed.end("FINISHED")
    after = summarize(resumed.file)

    assert before is not None
    assert before.ended is None
    assert after is not None
    assert after.ended == "FINISHED"


def test_artifacts_survive_the_removal_of_the_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "data/out/train"
    (out / "bundle").mkdir(parents=True)
    (out / "bundle/model.json").write_text("{}")
    (out / "history.csv").write_text("epoch\n0\n")
    journal = _create(tmp_path)

    journal.artifact(out / "bundle")
    journal.artifact(out / "history.csv", "plots")
    journal.artifact(out / "history.csv", "plots")
    shutil.rmtree(out)

    kept = journal.folder / ARTIFACTS
    assert (kept / "bundle/model.json").read_text() == "{}"
    assert (kept / "plots/history.csv").read_text() == "epoch\n0\n"
    assert sum(event["event"] == "artifact" for event in read_events(journal.file)) == 2


def test_events_can_be_followed_from_an_offset(tmp_path: Path) -> None:
    journal = _create(tmp_path)
    offsets = [offset for offset, _ in events_from(journal.file, 0)]

    journal.metrics(0, {"train_loss": 0.5})

    assert [event["event"] for _, event in events_from(journal.file, offsets[-1])] == ["metrics"]


def test_a_full_disk_leaves_no_half_line_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = _create(tmp_path)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[: len(data) // 2]))

    with pytest.raises(PublishError, match="disk is full"):
        journal.metrics(0, {"train_loss": 0.5})
    monkeypatch.undo()
    journal.metrics(0, {"train_loss": 0.5})

    assert [event["event"] for event in read_events(journal.file)] == ["run", "metrics"]
    assert journal.file.read_bytes().count(b"\n") == 2


def test_a_temporary_experiment_workspace_writes_to_the_outer_project(tmp_path: Path) -> None:
    workspace = tmp_path / "project/.dvc/tmp/exps/tmpabc"
    workspace.mkdir(parents=True)

    journal = _create(workspace)

    assert home(workspace) == tmp_path / "project"
    assert journal.folder == tmp_path / "project/.twinrun/journals" / journal.id


def test_a_process_that_lives_is_not_dead_and_one_that_ended_is(tmp_path: Path) -> None:
    journal = _create(tmp_path)
    summary = summarize(journal.file)
    child = os.fork()
    if child == 0:
        Journal.resume(tmp_path, journal.id)
        os._exit(0)
    os.waitpid(child, 0)
    after = summarize(journal.file)

    assert summary is not None
    assert not summary.dead()
    assert after is not None
    assert after.dead()


def test_an_artifact_is_named_within_its_project_wherever_the_process_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.create(tmp_path / "project", name="mlp on x", experiment="x")
    card = tmp_path / "project/data/out/train/card.json"
    card.parent.mkdir(parents=True)
    card.write_text("{}")
    monkeypatch.chdir(tmp_path)

    journal.artifact(card)

    assert read_events(journal.file)[-1]["source"] == "data/out/train/card.json"
