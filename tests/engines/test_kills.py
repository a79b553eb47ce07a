"""Twenty trials on Ray whose driver is killed ten times give the table, the runs and the models of one worker here."""

import random
import shutil
import time
from pathlib import Path

import pytest
from sweep_support import SweepProject
from tracking_support import runs
from training_support import REPOSITORY, change_params, git

pytestmark = pytest.mark.usefixtures("ray_cluster")

PLAN = """space:
  train.learning_rate: {from: 1e-4, to: 1e-1, scale: log}
  train.optimizer: [sgd, adamw]
trials: 20
width: 5
seed: 0
metric: val_accuracy
rungs: [1, 2]
keep: 0.4
seeds: 1
"""
KILLS, TRIALS = 10, 20


def test_ten_kills_of_a_sweep_on_ray_change_neither_its_table_nor_its_runs(swept: SweepProject) -> None:
    shutil.copy(REPOSITORY / "params.yaml", "params.yaml")  # of all handwritten digits
    change_params(Path("params.yaml"), "validate", {"label_errors": {"folds": 0, "budget_s": 600}})
    change_params(Path("params.yaml"), "train", {"model": "mlp", "epochs": 4})
    for name in ("here", "ray"):
        Path(f"{name}.yaml").write_text(PLAN)
    git(Path(), "add", "--all")
    git(Path(), "commit", "--quiet", "--message", "Twenty trials")
    sweep(swept, "here", "--workers", "1")

    draws = random.Random(0)
    for kill in range(KILLS):
        killed_after(swept, histories=2 * kill, delay_s=draws.uniform(0, 4), resume=kill > 0)
    sweep(swept, "ray", "--on", "ray", "--workers", "2", "--resume")

    assert swept.table("ray") == swept.table("here")
    trials = [run for run in runs(swept.folder) if run.tags.get("twinrun.sweep") == "ray"]
    found = {run.tags.get("twinrun.trial", "the sweep"): run for run in trials}
    names = ["the sweep", "best with seed 1", "params with seed 1", *(f"trial {number}" for number in range(TRIALS))]
    assert sorted(found) == sorted(names)
    assert len(trials) == len(found)
    assert {run.status for run in trials} == {"FINISHED"}
    for row in swept.rows("ray"):
        losses = found[f"trial {row['trial']}"].history["val/loss"]
        assert [step for step, _ in losses] == list(range(1, int(row["epochs"]) + 1))
    finished = [row["trial"] for row in swept.rows("ray") if row["state"] == "finished"]
    for number in finished[:2]:
        code, verdict = swept.run("reproduce", found[f"trial {number}"].id)
        assert code == 0, verdict
        assert "IDENTICAL" in verdict


def killed_after(project: SweepProject, histories: int, delay_s: float, *, resume: bool) -> None:
    """Kill the driver `delay_s` seconds after it has begun and so many trials have an epoch."""
    folder, workers = Path("data/sweeps/ray"), ("1", "2", "4")[histories // 2 % 3]
    before = written(folder / "sweep.json")
    driver = project.start("sweep", "ray.yaml", "--on", "ray", "--workers", workers, *["--resume"] * resume)
    deadline = time.monotonic() + 600
    while written(folder / "sweep.json") == before or len(list(folder.glob("trials/*/history.csv"))) < histories:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(delay_s)
    assert driver.poll() is None, driver.communicate()[0]
    driver.kill()
    driver.communicate()


def written(file: Path) -> int:
    """When a file was written, in ns; 0 where there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


def sweep(project: SweepProject, name: str, *arguments: str) -> None:
    """Run a sweep to its end."""
    driver = project.start("sweep", f"{name}.yaml", *arguments)
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output
