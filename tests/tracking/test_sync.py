"""Bringing MLflow up to date: what waited, what DVC restored, what was found out later; and nothing twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from tracking_support import AB, CD, REPOSITORY, FaultyTracker, evaluate, runs, train, validate

from twinrun.base.files import write_text
from twinrun.cli import main as cli
from twinrun.record.home import journals_folder
from twinrun.record.journal import Journal
from twinrun.tracking.replay import LOCK, publisher_lock
from twinrun.tracking.store import find_tracker, open_client
from twinrun.tracking.sync import run_of, sync


def test_a_journal_that_waited_is_published_once_and_cleared_away(project: Path) -> None:
    journal = train(project)

    first = sync()
    second = sync()

    (run,) = runs(project)
    assert first.runs == 1
    assert (second.events, second.attached, second.problem) == (0, [], None)
    assert run.history["val/accuracy"] == [(0, 0.9), (1, 0.9), (2, 0.9)]
    assert not journal.folder.exists()


def test_a_journal_stays_while_its_training_may_be_resumed_and_no_metric_is_doubled(project: Path) -> None:
    journal = train(project)
    owner = project / ".twinrun/resume/a-fingerprint" / f"owner-{journal.id}"
    owner.parent.mkdir(parents=True)
    owner.touch()
    sync()

    # Killed after it had said that it finished, it is resumed and tells its last epochs again.
    shutil.rmtree(project / "data/out/train")
    resumed = Journal.resume(project, journal.id)
    for epoch in range(3):
        resumed.metrics(epoch, {"train_loss": 1 / (epoch + 1), "val_accuracy": 0.9})
    resumed.end()
    sync()
    shutil.rmtree(owner.parent)
    sync()

    (run,) = runs(project)
    assert run.status == "FINISHED"
    assert run.history["val/accuracy"] == [(0, 0.9), (1, 0.9), (2, 0.9)]
    assert not journal.folder.exists()


def test_a_result_that_dvc_restored_appears_in_mlflow_once(project: Path) -> None:
    train(project)
    shutil.rmtree(journals_folder(project))

    sync()
    sync()

    (run,) = runs(project)
    assert run.status == "FINISHED"
    assert run.history["train/loss"] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert run.artifacts == ["bundle/manifest.json", "bundle/model.json", "bundle/weights.safetensors", "card.json"]


def test_a_result_comes_back_after_its_store_was_removed(project: Path) -> None:
    train(project)
    sync()
    shutil.rmtree(project / "mlruns")

    sync()

    (run,) = runs(project)
    assert run.status == "FINISHED"


def test_what_evaluation_found_out_is_added_to_the_run_of_its_model(project: Path) -> None:
    train(project)
    sync()
    metrics = evaluate(project)

    sync()
    sync()

    (run,) = runs(project)
    assert run.history["test/accuracy"] == [(0, metrics["accuracy"])]
    assert run.history["test/calibration_error"] == [(0, metrics["calibration_error"])]
    assert {"evaluation/metrics.json", "evaluation/per_class.json", "evaluation/report/index.html"} <= set(
        run.artifacts
    )
    assert run_of(project, AB) == run.id


def test_an_evaluation_of_an_earlier_version_which_has_no_journal_is_named_with_what_to_do(project: Path) -> None:
    train(project)
    evaluate(project)
    (project / "data/out/evaluate/journal.jsonl").unlink()

    report = sync()

    assert "To write one: dvc repro evaluate" in report.lines()[-1]
    assert not report.failed
    assert [run.status for run in runs(project)] == ["FINISHED"]


def test_an_evaluation_that_waited_is_added_to_its_run_although_another_training_followed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for weights_hash, accuracy in ((AB, 0.5), (CD, 0.75)):
        train(project, weights_hash=weights_hash)
        evaluate(project, weights_hash=weights_hash, accuracy=accuracy)
        assert sync().failed
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    first, second = sync(), sync()

    accuracies = {run.tags["twinrun.weights_hash"]: run.metrics["test/accuracy"] for run in runs(project)}
    assert accuracies == {AB: 0.5, CD: 0.75}
    assert first.attached == ["evaluation", "evaluation"]
    assert second.lines() == []


def test_an_evaluation_is_added_to_each_training_that_gave_the_same_weights(project: Path) -> None:
    train(project)
    evaluate(project)
    sync()
    train(project)

    sync()

    assert [run.metrics["test/accuracy"] for run in runs(project)] == [0.99, 0.99]


def test_an_evaluation_that_is_done_again_with_the_same_result_adds_nothing(project: Path) -> None:
    train(project)
    evaluate(project)
    sync()

    evaluate(project)
    report = sync()

    assert report.lines() == []


def test_a_run_is_named_after_its_accuracy_and_id_and_described_for_a_person(project: Path) -> None:
    train(project)
    sync()
    (before,) = runs(project)
    evaluate(project)

    sync()

    (run,) = runs(project)
    note = run.tags["mlflow.note.content"]
    assert before.info.info.run_name == f"{run.id[:8]} lenet5 on digits"
    assert run.info.info.run_name == f"99.0% {run.id[:8]} lenet5 on digits"
    assert "**Accuracy 99.0% (95% interval 95.0% to 100.0%) of 10 test images.**" in note
    assert "Data: digits, 10 training images." in note
    assert "| **0** | 2 | 1 |" in note
    assert "| **1&#124;&#60;b&#62;** |  | 1 |" in note
    report = f"#/experiments/{run.info.info.experiment_id}/runs/{run.id}/artifacts/evaluation/report/index.html"
    assert f"]({report})" in note


def test_the_name_and_description_that_a_person_gave_a_run_stay(project: Path) -> None:
    train(project)
    sync()
    (run,) = runs(project)
    client = open_client(find_tracker(project))
    client.update_run(run.id, name="the good one")
    client.set_tag(run.id, "mlflow.note.content", "for the fair")
    evaluate(project)

    sync()

    (run,) = runs(project)
    assert (run.info.info.run_name, run.tags["mlflow.note.content"]) == ("the good one", "for the fair")
    assert run.metrics["test/accuracy"] == 0.99


@pytest.mark.parametrize("accuracy", [0.99, 0.9995, 1.0])
def test_a_description_follows_a_later_evaluation(accuracy: float, project: Path) -> None:
    train(project)
    evaluate(project, accuracy=accuracy)
    sync()
    evaluate(project, accuracy=0.5)

    sync()

    (run,) = runs(project)
    assert run.info.info.run_name == f"50.0% {run.id[:8]} lenet5 on digits"
    assert "Accuracy 50.0%" in run.tags["mlflow.note.content"]


def test_a_run_shows_the_evaluation_that_stands_in_the_workspace_also_one_that_dvc_restored(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    evaluate(project, accuracy=0.75)
    sync()
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        evaluate(project, accuracy=0.25)
        sync()
        evaluate(project, accuracy=0.5)
        sync()

    sync()
    evaluate(project, accuracy=0.75)
    sync()

    (run,) = runs(project)
    assert run.metrics["accuracy"] == 0.75
    assert [value for _, value in run.history["accuracy"]] == [0.5, 0.75, 0.75]


def test_tables_of_validation_and_evaluation_are_both_drawn(project: Path) -> None:
    validate(project)
    train(project)
    evaluate(project)

    sync()

    (run,) = runs(project)
    drawn = {table["path"] for table in json.loads(run.tags["mlflow.loggedArtifacts"])}
    assert drawn == {"validation/checks.json", "evaluation/per_class.json"}
    assert run.table("evaluation/per_class.json")[0]["recall"] == 0.9


def test_a_journal_of_an_earlier_version_gets_the_names_in_use(project: Path) -> None:
    journal = train(project, epochs=1)
    file = journal.folder / "journal.jsonl"
    earlier = file.read_text().replace('"name":"lenet5 on digits"', f'"name":"lenet5 on digits, {journal.id[:6]}"')
    file.write_text(earlier)

    sync()

    (run,) = runs(project)
    assert run.info.info.run_name == f"{run.id[:8]} lenet5 on digits"
    assert set(run.metrics) == {"train/loss", "val/accuracy"}


def test_a_headline_from_cross_validation_stands_beside_the_numbers_of_the_test_split(project: Path) -> None:
    train(project)
    sync()
    sets = [{"from": "test", "accuracy": 0.8, "log_loss": 0.5}, {"from": "cross-validation", "accuracy": 0.93}]
    evaluate(project, accuracy=0.93, score_sets=sets)

    sync()

    (run,) = runs(project)
    assert run.metrics["accuracy"] == run.metrics["cross_validation/accuracy"] == 0.93
    assert (run.metrics["test/accuracy"], run.metrics["test/log_loss"]) == (0.8, 0.5)
    assert "test/macro_f1" not in run.metrics


def test_the_evaluation_of_another_model_is_not_added(project: Path) -> None:
    train(project, weights_hash=AB)
    evaluate(project, weights_hash=CD)

    sync()

    (run,) = runs(project)
    assert "test/accuracy" not in run.metrics
    assert run_of(project, CD) is None


def test_dvc_lock_is_added_when_it_speaks_of_this_training(project: Path) -> None:
    train(project)
    write_text("stages: {}\n", project / "dvc.lock")
    sync()
    (before,) = runs(project)

    md5 = hashlib.md5((project / "data/out/train/journal.jsonl").read_bytes()).hexdigest()
    write_text(
        f"stages: {{train: {{outs: [{{path: data/out/train/journal.jsonl, md5: {md5}}}]}}}}\n", project / "dvc.lock"
    )
    sync()

    (after,) = runs(project)
    assert "dvc.lock" not in before.artifacts
    assert "dvc.lock" in after.artifacts


def test_a_command_that_lists_versions_does_not_speak_of_a_dvc_lock_that_it_added(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(project)
    evaluate(project)
    md5 = hashlib.md5((project / "data/out/train/journal.jsonl").read_bytes()).hexdigest()
    lock = f"stages: {{train: {{outs: [{{path: data/out/train/journal.jsonl, md5: {md5}}}]}}}}\n"
    monkeypatch.setattr(sys, "argv", ["twinrun", "models"])

    said = []
    for text in (lock, f"{lock}# of a later stage\n"):
        write_text(text, project / "dvc.lock")
        with pytest.raises(SystemExit):
            cli.main()
        said.append(capsys.readouterr().err)

    assert "Added to the run: evaluation.\n" in said[0]
    assert said[1] == ""
    assert "dvc.lock" in runs(project)[0].artifacts


@pytest.mark.parametrize("restored", [False, True])
def test_a_run_has_the_validation_of_its_data_so_that_its_links_hold(project: Path, restored: bool) -> None:
    validate(project, "the data as trained on")
    journal = train(project)
    if restored:  # by DVC, and with it what validation wrote
        shutil.rmtree(journal.folder)

    sync()

    (run,) = runs(project)
    assert {f"validation/{name}/index.html" for name in ("report", "data_docs")} <= set(run.artifacts)
    assert "validation/result.json" in run.artifacts
    assert not any(name.startswith("data") for name in run.metrics)
    assert {name: run.tags[f"data.{name}"] for name in ("images", "dropped", "findings")} == {
        "images": "10",
        "dropped": "2",
        "findings": "no_blur 2",
    }
    assert run.table("validation/checks.json") == [
        {
            "check": "no_leaks",
            "status": "passed",
            "severity": "critical",
            "found": 0,
            "result": "the data as trained on",
        },
        {
            "check": "label_search",
            "status": "not judged",
            "severity": "warning",
            "found": 0,
            "result": "The labels could not be judged",
        },
    ]
    assert run.tags["data.not_judged"] == "The labels could not be judged"


def test_a_later_validation_does_not_replace_that_of_the_training(project: Path) -> None:
    validate(project, "the data as trained on")
    train(project)
    validate(project, "other data")

    sync()
    report = sync()

    (run,) = runs(project)
    assert report.lines() == []
    assert run.table("validation/checks.json")[0]["result"] == "the data as trained on"


def test_data_that_were_refused_are_a_failed_run_with_the_report_once(project: Path) -> None:
    train(project)
    validate(project, "2 images in both train and test", passed=False)

    first, second = sync(), sync()
    validate(project, "3 images in both train and test", passed=False)
    sync()

    (trained,) = [run for run in runs(project) if run.status == "FINISHED"]
    failed = sorted((run for run in runs(project) if run.status == "FAILED"), key=lambda run: run.info.info.start_time)
    assert len(first.failures) == 1
    assert "MLflow has the report on data that did not pass: run " in "\n".join(first.lines())
    assert (second.lines(), len(failed)) == ([], 2)
    assert failed[0].info.info.run_name == f"{failed[0].id[:8]} data of digits"
    assert failed[0].info.info.run_name in first.lines()[-1]
    assert failed[0].metrics == {}
    assert failed[0].tags["data.findings"] == "no_leaks 2, no_blur 2"
    assert failed[0].tags["data.not_judged"] == "The labels could not be judged"
    assert "- failed: 2 images" in failed[0].tags["mlflow.note.content"]
    assert failed[0].artifacts == [
        *("validation/checks.json", "validation/data_docs/index.html", "validation/report/index.html"),
        "validation/result.json",
    ]
    assert failed[0].info.info.experiment_id == trained.info.info.experiment_id


def test_a_failed_run_that_a_person_deleted_stays_deleted(project: Path) -> None:
    validate(project, passed=False)
    sync()
    tracker = find_tracker(project)
    open_client(tracker).delete_run(runs(project)[0].id)

    sync()
    shutil.rmtree(tracker.state)
    sync()

    assert runs(project) == []


def test_runs_that_a_person_deleted_stay_deleted_where_their_experiment_is_needed_again(project: Path) -> None:
    train(project)
    sync()
    client, before = open_client(find_tracker(project)), runs(project)[0]
    client.delete_experiment(before.info.info.experiment_id)

    evaluate(project)
    sync()
    train(project, weights_hash=CD)
    sync()

    (after,) = runs(project)
    assert after.id != before.id
    assert after.info.info.experiment_id == before.info.info.experiment_id


def test_a_run_that_a_person_restored_gets_what_was_left_out_while_it_was_deleted(
    project: Path, tracker: FaultyTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, accuracy in ((tracker.uri, 0.98), ("", 0.97)):  # a server, and the store of the project
        monkeypatch.setenv("MLFLOW_TRACKING_URI", name)
        train(project)
        sync()
        client = open_client(find_tracker(project))
        run_id = str(run_of(project, AB))
        client.delete_run(run_id)
        evaluate(project, accuracy=accuracy)
        sync(verify=True)

        client.restore_run(run_id)
        said = sync(verify=True).lines()

        assert said == ["Added to the run: evaluation."]
        assert client.get_run(run_id).data.metrics["accuracy"] == accuracy
        assert sync(verify=True).lines() == []


@pytest.mark.parametrize(("dvc", "twinrun", "code"), [(0, 0, 0), (3, 0, 3), (3, 1, 3), (0, 1, 1)])
def test_make_repro_tells_mlflow_of_a_failure_too_and_fails_as_dvc_does(
    tmp_path: Path, dvc: int, twinrun: int, code: int
) -> None:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    wanted = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        shutil.copy(REPOSITORY / name, tmp_path)
        wanted.update((REPOSITORY / name).read_bytes())
    (tmp_path / ".venv/.made-from").write_text(wanted.hexdigest())
    (programs / "activate").write_text(f"PATH='{programs}':$PATH\n")
    for name, ends in (("dvc", dvc), ("twinrun", twinrun)):
        (programs / name).write_text(f"#!/bin/sh\necho {name} $1 >> '{tmp_path}/asked'\nexit {ends}\n")
        (programs / name).chmod(0o755)

    done = subprocess.run(["make", "repro"], cwd=tmp_path, capture_output=True, text=True)

    assert (tmp_path / "asked").read_text() == "dvc repro\ntwinrun sync\n"
    assert (done.returncode == 0, f"Error {code}" in done.stderr) == (code == 0, code != 0)


def test_sync_waits_for_the_publisher_of_a_training_that_is_over(project: Path) -> None:
    journal = train(project)
    publisher = FileLock(journal.folder / LOCK, thread_local=False)
    publisher.acquire()
    threading.Timer(1, publisher.release).start()

    report = sync()

    assert (report.pending, report.problem) == (0, None)
    assert [run.status for run in runs(project)] == ["FINISHED"]


def test_no_process_that_waits_for_a_journal_brings_it_back_when_it_is_deleted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = train(project)
    turns: list[Path | str] = []

    def wait_between(place: Path | str, rmdir: Callable[..., None] = os.rmdir, **options: int) -> None:
        if Path(place).name == journal.id and not turns:
            turns.append(place)
            with publisher_lock(journal.folder) as before:
                assert not before
            FileLock(journal.folder / LOCK).acquire(timeout=0).lock.release()  # it looked before, and locks now
        rmdir(place, **options)

    monkeypatch.setattr(os, "rmdir", wait_between)
    report = sync()
    with publisher_lock(journal.folder) as after:
        assert not after

    assert (report.problem, report.set_aside, len(turns)) == (None, [], 1)
    assert not journal.folder.exists()


def test_a_journal_that_another_sync_is_copying_is_not_looked_at(project: Path) -> None:
    journal = train(project)
    shutil.copytree(journal.folder, journal.folder.with_name(".adopted-abc"))

    report = sync()

    assert (report.runs, report.problem, report.set_aside) == (1, None, [])


def test_a_dead_trainers_run_is_marked_killed_and_a_living_ones_is_not(project: Path) -> None:
    alive = Journal.create(project, name="mlp on digits", experiment="digits")
    script = (
        "from pathlib import Path; from twinrun.record.journal import Journal\n"
        "Journal.create(Path('.'), name='dead', experiment='digits').metrics(0, {'train_loss': 0.5})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=project)

    first = sync()
    second = sync()

    status = {run.info.info.run_name.partition(" ")[2]: run.status for run in runs(project)}
    assert status == {"mlp on digits": "RUNNING", "dead": "KILLED"}
    assert len(first.killed) == 1
    assert second.killed == []
    assert alive.folder.exists()


def test_a_tracker_that_is_away_is_named_and_nothing_is_lost(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = train(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    report = sync()

    assert report.pending == 10
    assert report.problem is not None
    assert "http://127.0.0.1:9 (MLFLOW_TRACKING_URI) cannot be reached" in report.problem
    assert journal.folder.exists()


def test_a_journal_that_the_server_fails_on_is_named_and_the_others_are_published(
    tracker: FaultyTracker, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = train(project), train(project, weights_hash=CD)
    tracker.break_down("error", only=first.id)
    monkeypatch.setattr(sys, "argv", ["twinrun", "sync"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"the journal .twinrun/journals/{first.id} could not be published. MLflow at {tracker.uri}" in said
    assert "10 events of 1 run published" in said
    assert (first.folder.exists(), second.folder.exists()) == (True, False)
    tracker.break_down(None)
    assert (sync().problem, first.folder.exists()) == (None, False)


def test_a_tracker_that_hangs_is_not_tried_for_each_journal(
    tracker: FaultyTracker, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights_hash in (AB, CD, "ef" * 32):
        train(project, weights_hash=weights_hash)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setattr("twinrun.tracking.sync._FAILING_S", 2)
    tracker.break_down("hang", only="runs/search")

    began = time.monotonic()
    report = sync()

    assert report.problem is not None
    assert "does not answer in time" in report.problem
    assert time.monotonic() - began < 3 * 3


def test_with_nothing_to_do_mlflow_is_not_even_imported_and_a_run_in_progress_is_left_alone(project: Path) -> None:
    train(project)
    evaluate(project)
    train(project, weights_hash=CD, end=False)
    sync()
    asked = "sync(thorough=True).lines(), 'mlflow' in sys.modules"
    script = f"import sys; from twinrun.tracking.sync import sync; print({asked})"

    printed = subprocess.run([sys.executable, "-c", script], check=True, cwd=project, capture_output=True, text=True)

    assert printed.stdout == "[] False\n"


def test_a_temporary_experiment_publishes_to_the_outer_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = project / ".dvc/tmp/exps/tmpabc"
    workspace.mkdir(parents=True)
    os.chdir(workspace)
    train(workspace)
    evaluate(workspace)

    sync()
    monkeypatch.chdir(project)
    shutil.rmtree(workspace)

    (run,) = runs(project)
    assert run.metrics["test/accuracy"] == 0.99
    assert "card.json" in run.artifacts


def test_an_evaluation_after_the_clock_was_set_back_is_the_one_that_the_run_shows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or on another machine, whose clock is behind: MLflow shows the metric with the latest time."""
    train(project)
    evaluate(project, accuracy=0.75)
    sync()
    hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: hour_ago)
    evaluate(project, accuracy=0.5)

    sync()

    (run,) = runs(project)
    assert run.metrics["accuracy"] == 0.5
    assert sync().lines() == []
