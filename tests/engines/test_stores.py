"""A project whose runs are in PostgreSQL and whose data and models are on S3, for two people and for eight writers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_support import SweepProject
from training_support import REPOSITORY, change_params, git

from twinrun.base.files import read_json
from twinrun.record.journal import Journal
from twinrun.tracking.store import find_tracker, open_client

WRITERS, EPOCHS = 8, 300


def test_a_colleague_sees_runs_models_and_report_and_reproduces_the_run_to_the_bit(
    swept: SweepProject, mlflow_on_postgres: str, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_postgres)
    change_params(Path("params.yaml"), "register", {"min_accuracy": 0.5})
    dvc(swept, "remote", "add", "--default", "store", "s3://dvc/store")
    dvc(swept, "remote", "modify", "store", "endpointurl", s3)
    commit("A remote")  # so that no change is uncommitted when the model is trained
    dvc(swept, "repro")
    commit("A model")
    dvc(swept, "push", "--quiet")

    colleague = tmp_path / "colleague"
    git(Path(), "clone", "--quiet", ".", str(colleague))
    monkeypatch.chdir(colleague)
    theirs = SweepProject(colleague)
    dvc(theirs, "pull", "--quiet")
    _, models = theirs.run("models")
    _, shown = theirs.run("show", "1")
    code, verdict = theirs.run("reproduce", "1")

    weights = read_json(swept.folder / "data/out/train/card.json")["weights_hash"]
    assert read_json(Path("data/out/train/card.json"))["weights_hash"] == weights
    assert Path("data/out/evaluate/report/index.html").is_file()
    assert "twinrun-digits" in models
    assert weights[:8] in shown
    assert code == 0, verdict
    assert "IDENTICAL" in verdict


def test_eight_writers_at_once_lose_no_metric_and_double_none(
    mlflow_on_postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_postgres)
    for number in range(WRITERS):
        folder = tmp_path / f"writer {number}"
        folder.mkdir()
        (folder / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
        journal = Journal.create(folder, name=f"writer {number}", experiment="eight writers")
        for epoch in range(EPOCHS):
            journal.metrics(epoch, {"train_loss": number + epoch / EPOCHS, "val_accuracy": epoch / EPOCHS})
        journal.end()
        journal.close()

    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "twinrun", "sync"],
            cwd=tmp_path / f"writer {number}",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(WRITERS)
    ]
    outputs = [writer.communicate(timeout=500)[0] for writer in writers]

    assert [writer.returncode for writer in writers] == [0] * WRITERS, outputs
    client = open_client(find_tracker(tmp_path / "writer 0"))
    experiment = client.get_experiment_by_name("eight writers")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name.partition(" ")[2] for run in found) == [f"writer {n}" for n in range(WRITERS)]
    for run in found:
        number = int(run.info.run_name[-1])
        losses = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")]
        assert sorted(losses) == [(epoch, number + epoch / EPOCHS) for epoch in range(EPOCHS)]
        assert len(client.get_metric_history(run.info.run_id, "val/accuracy")) == EPOCHS


def dvc(project: SweepProject, *arguments: str) -> None:
    code, output = project.run(*arguments, module="dvc")
    assert code == 0, output


def commit(message: str) -> None:
    git(Path(), "add", "--all")
    git(Path(), "commit", "--quiet", "--message", message)
