"""A sweep is a function of space, seed, data and code: the same for any number of workers and after a kill."""

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from sweep_support import SweepProject
from tracking_support import runs
from training_support import change_params, git

from twinrun.base.files import read_json, write_json, write_text
from twinrun.project.presets import params_text
from twinrun.record.journal import Journal
from twinrun.record.trial import Trial
from twinrun.sweep.carrying import pack, unpack_result, unpack_task
from twinrun.sweep.page import summary
from twinrun.sweep.plan import Plan
from twinrun.sweep.sweep import Confirmation, Outcome, Sweep
from twinrun.sweep.table import Row, promoted, table_csv

ONE, TRIAL = Path("data/sweeps/one"), Path("data/sweeps/one/trials/0001")
SPACE = {"train.learning_rate": {"from": 1e-4, "to": 1, "scale": "log"}, "train.optimizer": ["sgd", "adamw"]}
PLAN = Plan(space=SPACE, trials=36, width=6, seed=0, metric="val_accuracy", rungs=[1, 3], keep=0.5, seeds=1)


def test_two_workers_that_were_interrupted_and_then_killed_give_the_table_of_one_worker(swept: SweepProject) -> None:
    shutil.copy("one.yaml", "two.yaml")

    interrupted = swept.start("sweep", "two.yaml", "--workers", "2")
    wait_for(Path("data/sweeps/two/trials/0000/history.csv"))
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130
    assert "To go on: twinrun sweep --resume two.yaml" in output
    killed = swept.start("sweep", "two.yaml", "--workers", "2", "--resume")
    wait_for(Path("data/sweeps/two/trials/0003/history.csv"))
    killed.kill()
    killed.communicate()
    code, output = swept.run("sweep", "two.yaml", "--workers", "2", "--resume")

    assert code == 0, output
    assert "training it and params.yaml with 1 new seed\n" in output
    assert swept.table("two") == swept.table("one")
    trials = [run for run in runs(swept.folder) if run.tags.get("twinrun.sweep") == "two"]
    names = sorted(run.tags.get("twinrun.trial", "the sweep") for run in trials)
    assert names == ["best with seed 1", "params with seed 1", "the sweep", *(f"trial {n}" for n in range(4))]
    assert {run.status for run in trials} == {"FINISHED"}


def test_trials_are_judged_at_rungs_and_each_is_one_run_below_that_of_the_sweep(swept: SweepProject) -> None:
    rows = swept.rows()
    found = [run for run in runs(swept.folder) if "twinrun.sweep" in run.tags]
    (parent,) = [run for run in found if "twinrun.trial" not in run.tags]
    trials = {run.tags["twinrun.trial"]: run for run in found if run is not parent}

    assert [row["state"] for row in rows].count("finished") == 2
    assert [(row["epochs"], row["rung"]) for row in rows if row["state"] == "stopped"] == [("1", "1")] * 2
    assert {run.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.id}
    assert {"sweep/sweep.html", "sweep/trials.csv", "sweep/best.yaml"} <= set(parent.artifacts)
    for row in rows:
        losses = dict(trials[f"trial {row['trial']}"].history["val/loss"])
        assert losses[max(losses)] == float(row["val_loss"]) or row["state"] == "finished"
        assert max(losses) == int(row["epochs"])
    assert trials["trial 0"].info.data.params["train.learning_rate"] == rows[0]["train.learning_rate"]


@pytest.mark.usefixtures("swept")
def test_the_page_needs_no_network_and_says_that_the_best_of_many_is_optimistic() -> None:
    page = (ONE / "sweep.html").read_text(encoding="utf-8")
    output = Path("output.txt").read_text(encoding="utf-8")

    assert "http" not in page
    assert page.count("<polyline") == 4
    for said in (page, output):
        assert "The best of 4 is optimistic" in said
        assert "Trained again with 1 new seed:" in said
        assert re.search(r"Workers were idle \d+% of the time", said)
    assert "cp data/sweeps/one/best.yaml params.yaml" in output


def test_a_trial_is_reproduced_to_the_bit_from_its_run(swept: SweepProject) -> None:
    row = next(row for row in swept.rows() if row["state"] == "finished" and row["trial"] != "0")
    tag = f"trial {row['trial']}"
    run_id = next(run.id for run in runs(swept.folder) if run.tags.get("twinrun.trial") == tag)

    code, output = swept.run("reproduce", run_id)

    assert code == 0, output
    assert "IDENTICAL" in output
    assert row["weights_hash"] in output


def test_a_sweep_is_not_resumed_with_another_space_seed_or_code_and_says_which(swept: SweepProject) -> None:
    plan = Path("one.yaml").read_text()
    Path("one.yaml").write_text(plan.replace("seed: 0", "seed: 1").replace("1e-1", "1e-2"))
    with Path("src/twinrun/training/schedule.py").open("a") as code:
        code.write("# another line\n")

    exit_code, output = swept.run("sweep", "one.yaml", "--resume")

    assert exit_code == 1
    assert "began with another space and seed and code, so what it has computed does not belong to this one" in output


def test_a_sweep_that_is_not_resumed_keeps_what_it_was_trained_with(swept: SweepProject) -> None:
    kept = (ONE / "params.yaml").read_bytes()
    change_params(Path("params.yaml"), "train", {"epochs": 3})
    first, second, *rest = Path("one.yaml").read_text().splitlines()[1:]
    Path("one.yaml").write_text("\n".join(["space:", second, first, *rest]))  # settings are drawn in their order

    code, output = swept.run("sweep", "one.yaml", "--resume")

    assert code == 1
    assert "began with another space and params.yaml" in output
    assert (ONE / "params.yaml").read_bytes() == kept


def test_a_sweep_whose_record_is_lost_is_not_mixed_with_another(swept: SweepProject) -> None:
    (ONE / "sweep.json").write_text("{")

    code, output = swept.run("sweep", "one.yaml", "--resume")

    assert code == 1
    assert "data/sweeps/one/sweep.json is missing or damaged" in output
    assert (ONE / "sweep.json").read_text() == "{"


def test_a_sweep_ends_although_params_yaml_cannot_be_trained_with_a_new_seed(swept: SweepProject) -> None:
    change_params(Path("params.yaml"), "train", {"learning_rate": 1000.0, "optimizer": "sgd"})
    plan = Path("one.yaml").read_text().replace("trials: 4", "trials: 2").replace("rungs: [1]", "rungs: []")
    Path("two.yaml").write_text(plan.replace("seeds: 1", "seeds: 2"))

    code, output = swept.run("sweep", "two.yaml", "--workers", "2")

    assert code == 0, output
    assert "params with seed 1: failed, The " in output
    assert "params.yaml with the same seeds: all 2 failed. So no seed tells which" in output
    page = Path("data/sweeps/two/sweep.html").read_text(encoding="utf-8")
    assert page.count("<td>failed</td>") == 2


@pytest.mark.parametrize(
    ("best", "base", "said"),
    [
        ((0.9, 0.8), (0.8, 0.7), "85.00% ± 7.07%; params.yaml with the same seeds: 75.00% ± 7.07%. The sweep beats"),
        (
            (0.9, None),
            (0.8, 0.99),
            r"90.00% \(1 of 2 failed\); .* beats .* with 1 of 1 seeds with which neither failed",
        ),
        ((0.7, 0.1), (0.5, 0.3), "The sweep does not beat params.yaml .* with 1 of 2 seeds"),
        ((None,), (0.8,), "1 new seed: it failed; .*: 80.00%. So no seed tells"),
    ],
)
def test_the_new_seeds_are_judged_by_those_with_which_both_were_trained(
    best: tuple[float | None, ...], base: tuple[float | None, ...], said: str
) -> None:
    plan = replace(PLAN, metric="val_accuracy")
    row = Row(0, 0, "finished", 1, 3, 0.9, 0.9, {"train.optimizer": "sgd"})
    confirmation = Confirmation(tuple(range(len(best))), best, base)

    lines = summary(Outcome("one", Path("one"), plan, (row,), row, confirmation, None))

    assert re.search(said, lines[-1])


class InAnyOrder:
    """Trains no network: a trial's accuracy is a coarse function of its settings. Workers end in any order."""

    def __init__(self, slots: int, order: int) -> None:
        self.slots, self.draws, self.running = slots, random.Random(order), list[Path]()

    def submit(self, folder: Path) -> None:
        self.running.append(folder)

    def ended(self) -> list[tuple[Path, str]]:
        folder = self.running.pop(self.draws.randrange(len(self.running)))
        settings = YAML(typ="safe").load(folder / "params.yaml")["train"]
        epochs = read_json(folder / "trial.json")["pause_after"] or settings["epochs"]
        accuracy = round(1 / (1 + abs(math.log10(settings["learning_rate"] / 0.01))), 1)  # so that many are equal
        lines = [f"{epoch},{1 - accuracy},{accuracy * epoch / (epoch + 1)}" for epoch in range(1, epochs + 1)]
        write_text("\n".join(["epoch,val_loss,val_accuracy", *lines]), folder / "history.csv")
        if epochs == settings["epochs"]:
            write_json({"weights_hash": str(accuracy)}, folder / "card.json")
            write_text("", folder / "journal.jsonl")
        write_json({"state": "finished", "reason": ""}, folder / "result.json")
        return [(folder, "it ended")]

    def close(self) -> None:
        pass


def test_a_study_depends_neither_on_the_number_of_workers_nor_on_the_order_in_which_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # instead of publishing

    tables = set()
    for number, slots in enumerate((1, 4, 7)):
        folder = tmp_path / str(number)
        journal = Journal.create(tmp_path, name=str(number), experiment="sweeps")
        sweep = Sweep(folder, PLAN, params_text("digits", []), InAnyOrder(slots, number), journal, print, "again")
        rows = sweep.run().rows
        journal.close()
        tables.add(table_csv(rows, PLAN.metric))

    assert len(tables) == 1
    assert {row.generation for row in rows} == set(range(6))


class Failing(InAnyOrder):
    """Trains nothing: every trial fails."""

    def ended(self) -> list[tuple[Path, str]]:
        folder = self.running.pop()
        write_json({"state": "failed", "reason": "=no luck"}, folder / "result.json")
        return [(folder, "it ended")]


def test_where_all_trials_of_a_generation_fail_no_trial_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # instead of publishing
    lines: list[str] = []

    with closing(Journal.create(tmp_path, name="one", experiment="sweeps")) as journal:
        plan = replace(PLAN, trials=2, width=2)
        Sweep(tmp_path, plan, params_text("digits", []), Failing(1, 0), journal, lines.append, "again").run()

    assert "generation 0, rung 1 after epoch 1: 2 trials, 2 failed, no trial goes on" in lines
    reasons = [line.rpartition(",")[2] for line in (tmp_path / "trials.csv").read_text().splitlines()]
    assert reasons == ["reason", "'=no luck", "'=no luck"]  # which a spreadsheet does not compute


def test_a_sweep_that_exists_is_neither_started_again_nor_lost(swept: SweepProject) -> None:
    before = swept.table("one")

    code, output = swept.run("sweep", "one.yaml")

    assert (code, swept.table("one")) == (1, before)
    assert "twinrun sweep --resume one.yaml" in output


def test_a_sweep_begins_in_no_folder_with_files_of_a_person(swept: SweepProject) -> None:
    mine = Path("data/sweeps/two/best.yaml")
    mine.parent.mkdir()
    mine.write_text("mine")
    shutil.copy("one.yaml", "two.yaml")

    code, output = swept.run("sweep", "two.yaml")

    assert code == 1
    assert "data/sweeps/two/best.yaml does not belong to a sweep, and would be lost" in output
    assert [path.name for path in mine.parent.iterdir()] == ["best.yaml"]
    assert mine.read_text() == "mine"


def another_lock() -> None:
    with Path("requirements.lock").open("a") as lock:
        lock.write("# another line\n")


def another_commit() -> None:
    git(Path(), "commit", "--quiet", "--allow-empty", "--message", "Another")


def another_processor() -> None:
    write_json({**json.loads((ONE / "driver.json").read_text()), "numeric self-test": "0" * 64}, ONE / "driver.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [(another_lock, "requirements.lock"), (another_commit, "commit"), (another_processor, "numeric self-test")],
    ids=["lock", "commit", "processor"],
)
def test_a_worker_with_another_lock_commit_or_arithmetic_does_no_work_and_says_why(
    swept: SweepProject, change: Callable[[], None], named: str
) -> None:
    shutil.rmtree(TRIAL / "resume", ignore_errors=True)
    (TRIAL / "history.csv").unlink()
    change()

    code, output = swept.run(os.fspath(TRIAL), module="twinrun.sweep.worker")

    assert code == 1
    assert f"  {named}: the sweep has" in output
    assert read_json(TRIAL / "result.json")["state"] == "refused"
    assert not (TRIAL / "history.csv").exists()


def test_a_trial_whose_weights_this_machine_lacks_is_left_to_another_and_not_counted_as_failed(
    swept: SweepProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(TRIAL / "resume", ignore_errors=True)
    (TRIAL / "history.csv").unlink()
    for cache in ("TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(cache, str(tmp_path / "empty"))
    states = []
    for settings in ({"model": "resnet18", "pretrained": "imagenet"}, {"model": "mlp", "pretrained": None}):
        change_params(TRIAL / "params.yaml", "train", {**settings, "head_first_epochs": 0, "shards": 1})
        if settings["pretrained"] is None:
            change_params(TRIAL / "params.yaml", "train", {"batch_size": 100_000})  # fails on every machine

        code, output = swept.run(os.fspath(TRIAL), module="twinrun.sweep.worker")

        states.append(read_json(TRIAL / "result.json")["state"])
        assert code == 1, output

    assert states == ["refused", "failed"]


@pytest.fixture
def elsewhere(swept: SweepProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepProject:
    """Another clone without data, with the same DVC remote; it is sent a trial up to its rung; the working folder."""
    clone, remote = tmp_path / "elsewhere", str(tmp_path / "remote")
    git(Path(), "clone", "--quiet", ".", str(clone))
    for folder in (swept.folder, clone):
        monkeypatch.chdir(folder)
        code, output = swept.run("remote", "add", "--local", "--default", "store", remote, module="dvc")
        assert code == 0, output
    shutil.copytree(swept.folder / TRIAL, tmp_path / "trained")
    shutil.rmtree(swept.folder / TRIAL)
    (swept.folder / TRIAL).mkdir()
    shutil.copy(tmp_path / "trained/params.yaml", swept.folder / TRIAL)
    trial = Trial(**read_json(tmp_path / "trained/trial.json"))
    replace(trial, name="another trial", pause_after=1).write(swept.folder / TRIAL)
    unpack_task(pack(swept.folder, TRIAL), clone, TRIAL)
    return SweepProject(clone)


def test_a_trial_that_begins_in_another_clone_with_data_from_the_remote_goes_on_here_to_the_same_bits_and_in_one_run(
    swept: SweepProject, elsewhere: SweepProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.folder)
    code, output = swept.run("push", "--quiet", "ingest", "validate", module="dvc")
    assert code == 0, output
    trial = Trial(**read_json(TRIAL / "trial.json"))

    monkeypatch.chdir(elsewhere.folder)
    paused, output = elsewhere.run(os.fspath(TRIAL), module="twinrun.sweep.worker")
    unpack_result(pack(elsewhere.folder, TRIAL), swept.folder, TRIAL)
    monkeypatch.chdir(swept.folder)
    replace(trial, pause_after=None).write(TRIAL)
    finished, rest = swept.run(os.fspath(TRIAL), module="twinrun.sweep.worker")
    synced, told = swept.run("sync")

    assert (paused, finished, synced) == (0, 0, 0), output + rest + told
    weights = read_json(tmp_path / "trained/card.json")["weights_hash"]
    assert read_json(TRIAL / "card.json")["weights_hash"] == weights
    assert "Resuming after epoch 1 of 2" in rest
    (run,) = [run for run in runs(swept.folder) if run.tags.get("twinrun.trial") == "another trial"]
    assert [step for step, _ in run.history["val/loss"]] == [1, 2]
    assert run.tags["twinrun.weights_hash"] == weights


def test_a_worker_that_cannot_fetch_the_data_trains_nothing_and_says_why(elsewhere: SweepProject) -> None:
    code, output = elsewhere.run(os.fspath(TRIAL), module="twinrun.sweep.worker")

    assert code == 1
    assert "  images: the sweep has" in output
    assert "dvc pull did not fetch data/out/ingest/images.npy, data/out/validate/manifest.parquet: ERROR" in output
    assert "git commit dvc.lock, and dvc push" in output
    assert read_json(TRIAL / "result.json")["state"] == "refused"
    assert not (TRIAL / "history.csv").exists()


def test_jobs_of_submitit_give_the_weights_of_processes_here(swept: SweepProject) -> None:
    plan = Path("one.yaml").read_text().replace("trials: 4", "trials: 2").replace("seeds: 1", "seeds: 0")
    Path("jobs.yaml").write_text(plan)

    code, output = swept.run("sweep", "jobs.yaml", "--on", "slurm", "--workers", "2")

    assert code == 0, output
    assert swept.rows("jobs") == swept.rows()[:2]


@pytest.mark.parametrize("command", ["sweep other.yaml", "train"])
def test_an_engine_whose_package_is_missing_says_what_to_install(swept: SweepProject, command: str) -> None:
    shutil.copy("one.yaml", "other.yaml")

    code, output = swept.run(*command.split(), "--on", "ray")

    assert code == 1
    assert "pip install 'twinrun[ray]'" in output


def test_the_best_go_on_by_metric_and_number_and_failed_ones_never() -> None:
    scores = {0: 0.5, 1: None, 2: 0.9, 3: 0.5, 4: 0.1}

    assert promoted(scores, 0.4, maximise=True) == {2, 0}
    assert promoted(scores, 0.4, maximise=False) == {4, 0}
    assert promoted({7: None}, 0.4, maximise=True) == set()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.02)
