"""Publishing while training goes on: exactly once, whatever the tracker does, and never in the training's way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracking_support import AB, FaultyTracker, runs, train

from twinrun.base.errors import InterruptedTraining
from twinrun.doctor.doctor import examine
from twinrun.record.journal import Journal, read_events
from twinrun.tracking.publisher import TROUBLED, follow, publishing
from twinrun.tracking.replay import Published, Replay, unpublished
from twinrun.tracking.store import find_tracker, open_client
from twinrun.tracking.sync import sync


def test_a_training_is_in_mlflow_when_its_stage_ends(project: Path) -> None:
    journal = Journal.create(project, name="mlp on digits", experiment="digits")

    with publishing(journal, grace_s=60) as publication:
        journal.params({"train": {"epochs": 2}})
        journal.metrics(0, {"train_loss": 0.5})
        journal.metrics(1, {"train_loss": 0.25})

    (run,) = runs(project)
    assert publication.notice() is None
    assert run.status == "FINISHED"
    assert run.info.info.run_name == f"{run.id[:8]} mlp on digits"
    assert run.info.data.params == {"train.epochs": "2"}
    assert run.history == {"train/loss": [(0, 0.5), (1, 0.25)]}


def test_replaying_a_journal_from_its_beginning_doubles_nothing(project: Path) -> None:
    journal = train(project)
    follow(journal.folder)
    first = runs(project)

    Published.load(find_tracker(project), journal.id).file.unlink()
    follow(journal.folder)

    assert [(run.id, run.history, run.artifacts) for run in runs(project)] == [
        (run.id, run.history, run.artifacts) for run in first
    ]


def test_a_run_holds_all_that_its_journal_holds(project: Path) -> None:
    journal = train(project)

    follow(journal.folder)

    (run,) = runs(project)
    (dataset,) = run.info.inputs.dataset_inputs
    assert run.tags["twinrun.journal_id"] == journal.id
    assert run.tags["twinrun.weights_hash"] == AB
    assert run.history["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert run.artifacts == ["bundle/manifest.json", "bundle/model.json", "bundle/weights.safetensors", "card.json"]
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "0123456789abcdef")


def test_a_stopped_training_is_killed_and_a_resumed_one_goes_on_in_the_same_run(project: Path) -> None:
    journal = Journal.create(project, name="mlp on digits", experiment="digits")
    journal.metrics(0, {"train_loss": 0.5})
    journal.end("KILLED")
    follow(journal.folder)
    (stopped,) = runs(project)

    resumed = Journal.resume(project, journal.id)
    resumed.metrics(0, {"train_loss": 0.5})
    resumed.metrics(1, {"train_loss": 0.25})
    replay = Replay(journal.folder, find_tracker(project))
    while replay.step():
        pass
    (running,) = runs(project)
    resumed.end()
    follow(journal.folder)

    (finished,) = runs(project)
    assert [stopped.status, running.status, finished.status] == ["KILLED", "RUNNING", "FINISHED"]
    assert finished.history == {"train/loss": [(0, 0.5), (1, 0.25)]}


def test_a_resumed_training_goes_on_in_its_run_although_a_person_renamed_the_experiment(project: Path) -> None:
    journal = Journal.create(project, name="mlp on digits", experiment="digits")
    journal.metrics(0, {"train_loss": 0.5})
    journal.end("KILLED")
    follow(journal.folder)
    (stopped,) = runs(project)
    open_client(find_tracker(project)).rename_experiment(stopped.info.info.experiment_id, "first tries")

    resumed = Journal.resume(project, journal.id)
    resumed.metrics(1, {"train_loss": 0.25})
    resumed.end()
    follow(journal.folder)

    (finished,) = runs(project)
    assert (finished.id, finished.status) == (stopped.id, "FINISHED")
    assert finished.history == {"train/loss": [(0, 0.5), (1, 0.25)]}


def test_a_body_that_is_left_by_an_error_says_how_the_training_ended(project: Path) -> None:
    ends = []
    for error in (InterruptedTraining("stopped", signal.SIGTERM), KeyboardInterrupt(), ValueError("a bug")):
        journal = Journal.create(project, name="mlp on digits", experiment="digits")
        with pytest.raises(type(error)), publishing(journal, grace_s=0):
            raise error
        ends.append(read_events(journal.file)[-1]["status"])

    assert ends == ["KILLED", "KILLED", "FAILED"]


def test_the_run_of_a_trainer_that_was_killed_is_marked_by_its_publisher(project: Path) -> None:
    script = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from twinrun.record.journal import Journal; from twinrun.tracking.publisher import publishing\n"
        "journal = Journal.create(Path('.'), name='mlp on digits', experiment='digits')\n"
        "with publishing(journal):\n"
        "    journal.metrics(0, {'train_loss': 0.5})\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=project, start_new_session=True
    )
    assert trainer.stdout is not None
    trainer.stdout.readline()

    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()

    deadline = time.monotonic() + 60
    while not (found := runs(project)) or found[0].status != "KILLED":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found[0].history == {"train/loss": [(0, 0.5)]}


def test_a_training_that_ended_while_an_earlier_death_of_it_was_published_is_not_marked_killed(project: Path) -> None:
    journal = train(project, end=False)
    replay = Replay(journal.folder, find_tracker(project))
    while replay.step():
        pass
    alive = replay.mark_killed()

    journal.end()
    while replay.step():
        pass

    assert [alive, replay.mark_killed()] == [False, False]
    assert [run.status for run in runs(project)] == ["FINISHED"]


def test_a_run_that_a_person_deleted_stays_deleted(project: Path) -> None:
    journal = train(project, end=False)
    replay = Replay(journal.folder, find_tracker(project))
    while replay.step():
        pass
    replay.client.delete_run(str(replay.state.run_id))

    journal.metrics(9, {"train_loss": 0.1})
    journal.end()
    follow(journal.folder)
    report = sync()

    assert report.problem is None
    assert runs(project) == []
    assert unpublished(journal.folder, find_tracker(project)) == 0


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        *(("error", 0), ("hang", 4)),
        *(("plain http", 3), ("plain http", 5), ("no entry", 3)),
        *(("lost", after) for after in range(7)),
    ],
)
def test_nothing_is_lost_or_doubled_by_a_tracker_that_breaks(
    fault: str, after: int, tracker: FaultyTracker, project: Path
) -> None:
    journal = train(project)
    tracker.break_down(fault, after)

    began = time.monotonic()
    follow(journal.folder, grace_s=0)
    gave_up_after_s = time.monotonic() - began
    waiting = unpublished(journal.folder, find_tracker(project))
    tracker.break_down(None)
    report = sync()
    again = sync()

    (run,) = [run for run in runs(project) if run.tags["twinrun.journal_id"] == journal.id]
    assert waiting > 0
    assert gave_up_after_s < 15
    assert (report.problem, report.pending) == (None, 0)
    assert again.lines() == []
    assert run.status == "FINISHED"
    assert run.history["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert len(run.artifacts) == 4


@pytest.mark.parametrize("times", [2, 6], ids=["a few times", "for long"])
def test_what_a_deadlock_of_the_database_ended_is_sent_again_a_few_times_and_waits_after_that(
    times: int, tracker: FaultyTracker, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    journal = train(project)
    tracker.break_down("deadlock", times=times)

    report = sync()
    left = tracker.times
    again = sync()

    (run,) = [run for run in runs(project) if run.tags["twinrun.journal_id"] == journal.id]
    if times == 2:
        assert (left, report.problem, again.lines()) == (0, None, [])
    else:
        assert left == 2
        assert "503" in str(report.problem)
    assert (again.problem, again.pending) == (None, 0)
    assert run.status == "FINISHED"
    assert run.history["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_a_stage_says_what_is_still_to_be_published(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    journal = Journal.create(project, name="mlp on digits", experiment="digits")

    with publishing(journal, grace_s=0.1) as publication:
        journal.metrics(0, {"train_loss": 0.5})

    assert publication.notice() == "3 events are still to be published to http://127.0.0.1:9; run `twinrun sync`."


def test_a_training_does_not_wait_for_a_tracker_that_was_found_away(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    journal = Journal.create(project, name="mlp on digits", experiment="digits")

    with publishing(journal, grace_s=30) as publication:
        journal.metrics(0, {"train_loss": 0.5})
        while not (journal.folder / TROUBLED).exists():
            time.sleep(0.1)
        ended = time.monotonic()

    assert time.monotonic() - ended < 10
    assert publication.unpublished == 3


@pytest.mark.parametrize("fault", ["slow", "hang"])
def test_a_training_does_not_wait_for_a_tracker_that_takes_long_to_answer(
    fault: str, tracker: FaultyTracker, project: Path
) -> None:
    journal = Journal.create(project, name="mlp on digits", experiment="digits")
    tracker.break_down(fault)

    with publishing(journal, grace_s=30) as publication:
        journal.metrics(0, {"train_loss": 0.5})
        while not (journal.folder / TROUBLED).exists():
            time.sleep(0.1)
        ended = time.monotonic()
    waited_s = time.monotonic() - ended
    tracker.break_down(None)
    report = sync()

    (run,) = [run for run in runs(project) if run.tags["twinrun.journal_id"] == journal.id]
    assert waited_s < 10
    assert publication.unpublished > 0
    assert (report.problem, report.pending) == (None, 0)
    assert run.history == {"train/loss": [(0, 0.5)]}


def test_what_mlflow_refuses_is_counted_and_told_and_the_rest_is_published(
    tracker: FaultyTracker, project: Path
) -> None:
    journal = train(project, end=False)
    journal.tags({"": "a tag without a name"})
    journal.end()

    report = sync()

    (run,) = [run for run in runs(project) if run.tags["twinrun.journal_id"] == journal.id]
    (found,) = [check for check in examine(project) if check.name == "journals"]
    assert run.status == "FINISHED"
    assert len(run.history["train/loss"]) == 3
    assert report.refused == {run.id: 1}
    assert any("MLflow refused 1 event" in line for line in report.lines())
    assert any("MLflow refused 1 event" in finding.problem for finding in found.findings)
    assert tracker.fault is None


def test_a_run_that_mlflow_refuses_waits_and_keeps_no_other_from_being_published(project: Path) -> None:
    refused = Journal.create(project, name="its experiment has too long a name", experiment="x" * 600)
    refused.end()
    journal = train(project)

    report = sync()

    assert [run.tags["twinrun.journal_id"] for run in runs(project)] == [journal.id]
    assert report.pending == 2
    assert "INVALID" in str(report.problem) or "name" in str(report.problem)
    assert refused.folder.exists()
    assert not journal.folder.exists()


def test_a_damaged_line_does_not_end_a_training_that_is_finished(project: Path) -> None:
    journal = Journal.create(project, name="lenet5 on digits", experiment="digits")
    with publishing(journal, live=False) as publication, journal.file.open("ab") as file:
        file.write(b"\0\0\0\n")

    assert publication.unpublished == 3
    assert "3 events are still to be published" in str(publication.notice())
