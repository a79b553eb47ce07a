"""Sweeps and seeds on Ray and as jobs give what one process here gives, also where something is killed."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from preloaded import in_use
from sweep_support import SweepProject
from tracking_support import runs
from training_support import change_params, git

from twinrun.base.files import file_sha256, read_json

pytestmark = pytest.mark.usefixtures("ray_cluster")

SEEDS, CARD = Path(".twinrun/parts/runs"), Path("data/out/train/card.json")
NAMES = ["best with seed 1", "params with seed 1", "the sweep", *(f"trial {number}" for number in range(4))]
EPOCHS = 20  # of a training in several processes


@pytest.fixture(scope="session")
def one_after_the_other(once_swept: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checkpoints of ten seeds of one worker."""
    folder = tmp_path_factory.mktemp("seeds") / "project"
    shutil.copytree(once_swept, folder, symlinks=True)
    with in_use(programs), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        change_params(folder / "params.yaml", "train", {"seeds": 10})
        code, output = SweepProject(folder).run("seeds", "--workers", "1")
        assert code == 0, output
    return checkpoints(folder)


def test_a_sweep_on_ray_whose_driver_was_killed_gives_the_table_of_one_worker_here(swept: SweepProject) -> None:
    shutil.copy("one.yaml", "ray.yaml")
    killed = swept.start("sweep", "ray.yaml", "--on", "ray", "--workers", "2")
    wait_for_file(Path("data/sweeps/ray/trials/0000/history.csv"))
    killed.kill()
    killed.communicate()

    code, output = swept.run("sweep", "ray.yaml", "--on", "ray", "--workers", "2", "--resume")

    assert code == 0, output
    assert swept.table("ray") == swept.table("one")
    assert names_of_trials(swept) == NAMES


def test_machines_of_ray_with_clones_of_their_own_give_the_table_and_the_runs_of_one_worker_here(
    swept: SweepProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    git(Path(), "clone", "--quiet", ".", str(clone))
    for data in ("ingest", "validate"):
        shutil.copytree(f"data/out/{data}", clone / "data/out" / data)
    shutil.copy("one.yaml", "ray.yaml")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("TWINRUN_PROJECT", os.fspath(clone))

    code, output = swept.run("sweep", "ray.yaml", "--on", "ray", "--workers", "2")

    assert code == 0, output
    assert swept.table("ray") == swept.table("one")
    assert names_of_trials(swept) == NAMES
    assert (clone / "data/sweeps/ray/trials/0001/bundle").is_dir()

    change_params(Path("params.yaml"), "train", {"seeds": 2})
    code, output = swept.run("seeds", "--on", "ray", "--workers", "2")

    assert code == 0, output
    code, output = swept.run(module="pipeline.train")
    assert code == 0, output
    assert output.count("Resuming after epoch 2 of 2") == 2


@pytest.mark.parametrize("engine", ["local", "slurm", "ray"])
def test_ten_seeds_side_by_side_have_the_weights_of_one_after_the_other(
    swept: SweepProject, one_after_the_other: dict[str, str], engine: str
) -> None:
    change_params(Path("params.yaml"), "train", {"seeds": 10})

    code, output = swept.run("seeds", "--on", engine, "--workers", "2")

    assert code == 0, output
    assert len(one_after_the_other) == 10
    assert checkpoints(swept.folder) == one_after_the_other


@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_a_killed_worker_costs_at_most_one_epoch_and_doubles_nothing_in_mlflow(
    swept: SweepProject, engine: str
) -> None:
    epochs = 40
    change_params(Path("params.yaml"), "train", {"seeds": 2, "epochs": epochs})
    (SEEDS / "seed-0").mkdir(parents=True)
    running = swept.start("seeds", "--on", engine, "--workers", "2")
    worker = wait_for_worker("seed-0", f"epoch +10/{epochs}")

    worker.kill()
    output, _ = running.communicate(timeout=300)

    assert running.returncode == 0, output
    done = re.findall(rf"^epoch +(\d+)/{epochs}", (SEEDS / "seed-0/log.txt").read_text(), re.MULTILINE)
    assert epochs - 1 <= len(done) <= epochs + 1  # an epoch may be saved and not yet printed when the kill comes
    code, output = swept.run(module="pipeline.train")
    assert code == 0, output
    (run,) = [run for run in runs(swept.folder) if run.info.data.params.get("train.seeds") == "2"]
    assert [step for step, _ in run.history["val/loss"]] == list(range(1, epochs + 1))


@pytest.fixture(scope="session")
def one_process(once_swept: Path, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights hash of a training of one process."""
    folder = tmp_path_factory.mktemp("one") / "project"
    shutil.copytree(once_swept, folder, symlinks=True)
    with in_use(programs), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        change_params(folder / "params.yaml", "train", {"epochs": EPOCHS})
        code, output = SweepProject(folder).run(module="pipeline.train")
        assert code == 0, output
    return str(read_json(folder / CARD)["weights_hash"])


@pytest.mark.parametrize("victim", ["nobody", "training process", "worker of Ray"])
@pytest.mark.usefixtures("real_processes")
def test_one_training_in_two_processes_of_ray_train_has_the_weights_of_one_process_also_where_one_is_killed(
    swept: SweepProject, one_process: str, victim: str
) -> None:
    change_params(Path("params.yaml"), "train", {"epochs": EPOCHS})
    shutil.rmtree("data/out/train")
    shutil.rmtree(".twinrun/resume", ignore_errors=True)
    running = swept.start("train", "--on", "ray", "--workers", "2")
    if victim != "nobody":
        wait_for_text(Path(".twinrun/ray/0.txt"), rf"epoch +8/{EPOCHS}")
        (process,) = [each for each in of_the_project("pipeline.train") if each.environ().get("RANK") == "1"]
        agent = process.parent()
        assert agent is not None
        killed = process if victim == "training process" else agent.parent()
        assert killed is not None
        killed.kill()

    output, _ = running.communicate(timeout=300)

    assert running.returncode == 0, output
    card = read_json(CARD)
    assert (card["weights_hash"], card["processes"]) == (one_process, 2)
    done = re.findall(rf"^epoch +(\d+)/{EPOCHS}", Path(".twinrun/ray/0.txt").read_text(), re.MULTILINE)
    assert EPOCHS - 1 <= len(done) <= EPOCHS + 1
    assert not of_the_project("pipeline.train")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("real_processes")
def test_a_training_on_ray_train_that_is_stopped_says_how_to_go_on_and_leaves_no_process(
    swept: SweepProject, number: signal.Signals
) -> None:
    change_params(Path("params.yaml"), "train", {"epochs": 500})
    running = swept.start("train", "--on", "ray", "--workers", "2")
    wait_for_text(Path(".twinrun/ray/0.txt"), "epoch +2/500")

    running.send_signal(number)
    output, _ = running.communicate(timeout=120)

    assert running.returncode == 128 + number, output
    assert "finished epochs are kept. To go on: the same command" in output
    deadline = time.monotonic() + 60
    while of_the_project("pipeline.train"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def names_of_trials(project: SweepProject) -> list[str]:
    """Those of the runs of the sweep `ray`."""
    found = [run for run in runs(project.folder) if run.tags.get("twinrun.sweep") == "ray"]
    return sorted(run.tags.get("twinrun.trial", "the sweep") for run in found)


def checkpoints(project: Path) -> dict[str, str]:
    """The sha256 of the newest checkpoint's tensors, for each seed of a project's training."""
    files = sorted((project / ".twinrun/resume").glob("*/*/epoch-*/state.safetensors"))
    return {file.parents[1].name: file_sha256(file) for file in files}


def wait_for_worker(name: str, pattern: str) -> psutil.Process:
    """The process that trains a part, once its log has the pattern."""
    log = SEEDS / name / "log.txt"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if log.exists() and re.search(pattern, log.read_text()):
            return next(
                each
                for each in psutil.process_iter(["cmdline", "cwd"])
                if (each.info["cmdline"] or [""])[-1].endswith(f"/{name}")
                and "twinrun.sweep.worker" in each.info["cmdline"]
                and each.info["cwd"] == os.fspath(Path.cwd())
            )
        time.sleep(0.005)
    pytest.fail(f"{log} has no {pattern}")


def of_the_project(module: str) -> list[psutil.Process]:
    """The processes in the working folder that run a module, and those that start them."""
    here = os.fspath(Path.cwd())
    running = psutil.process_iter(["cmdline", "cwd"])
    return [each for each in running if module in (each.info["cmdline"] or []) and each.info["cwd"] == here]


def wait_for_text(file: Path, pattern: str) -> None:
    deadline = time.monotonic() + 600
    while not file.exists() or not re.search(pattern, file.read_text()):
        assert time.monotonic() < deadline, f"{file} has no {pattern}"
        time.sleep(0.05)


def wait_for_file(file: Path) -> None:
    deadline = time.monotonic() + 600
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.02)
