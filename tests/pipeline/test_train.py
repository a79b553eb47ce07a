"""The stage `train`, run as `dvc repro` runs it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import preloaded
import psutil
import pyarrow.parquet as pq
import pytest
from tracking_support import runs
from training_support import TrainableProject, run_stage

import pipeline.train
from twinrun.evaluation.history import read_history
from twinrun.models.bundle import load_bundle
from twinrun.tracking.sync import sync

# Of a tracker that is not there, where runs are not what is asked about: importing MLflow takes seconds.
AWAY = "http://127.0.0.1:9"
JOURNALS = ".twinrun/journals/*/journal.jsonl"
LONG: dict[str, Any] = {"epochs": 24, "ema_decay": 0.9, "keep": "last"}


@pytest.fixture(scope="module")
def undisturbed(validated_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights hash of the long training, when nothing stops it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(validated_digits, folder)
    project = TrainableProject(folder).keep_a_third().set(**LONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", AWAY)
        project.train_here()
    return project.weights_hash()


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the stage's entry point in this process, which must refuse, and return what it said."""
    with pytest.raises(SystemExit) as raised:
        run_stage("train")
    assert raised.value.code == 1
    assert not Path("data/out/train/bundle").exists()
    return capsys.readouterr().err


def test_it_writes_a_bundle_a_history_a_card_and_a_journal_and_the_run_is_in_mlflow(
    trainable: TrainableProject,
) -> None:
    trainable.train_here()

    out = trainable.folder / "data/out/train"
    card = json.loads((out / "card.json").read_bytes())
    assert sorted(path.name for path in out.iterdir()) == [
        *("beside.parquet", "bundle", "card.json", "history.csv", "journal.jsonl", "out_of_fold.parquet")
    ]
    assert load_bundle(out / "bundle").weights_hash == card["weights_hash"]
    assert {"weights_hash", "fingerprint", "params", "commit"} <= card.keys()
    assert (out / "history.csv").read_text().startswith("epoch,train_loss,val_loss,val_accuracy,learning_rate\n1,")
    (run,) = runs(trainable.folder)
    assert run.status == "FINISHED"
    assert [step for step, _ in run.history["val/accuracy"]] == [1, 2, 3]
    assert run.info.info.run_name == f"{run.id[:8]} {card['params']['train']['model']} on digits"
    assert {"train/loss", "train/learning_rate", "val/loss", "system/images_per_second"} <= run.metrics.keys()
    assert json.loads(run.info.inputs.dataset_inputs[0].dataset.source) == {"uri": "digits"}
    assert run.tags["twinrun.weights_hash"] == card["weights_hash"]
    assert not (trainable.folder / ".twinrun/resume" / card["fingerprint"]).exists()


def test_torchrun_gives_the_same_weights_as_one_process_and_the_best_epoch_and_the_time_are_said_once(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    trainable.set(epochs=2, precision="bf16", ema_decay=0.9).train_here()
    alone = trainable.weights_hash()
    shutil.rmtree(trainable.folder / "data/out/train")

    code, said = trainable.train("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    assert code == 0, said
    assert trainable.weights_hash() == alone
    best = max(read_history(trainable.folder / "data/out/train/history.csv").val_accuracy)
    assert len(re.findall(rf"best epoch \d, validation {best:.1%}, (?:\d+ min )?[\d.]+ s\n", said)) == 1
    assert len(re.findall(r"^train took (?:\d+ min )?[\d.]+ s$", said, re.MULTILINE)) == 1


def test_several_seeds_and_folds_give_the_same_weights_and_predictions_in_two_processes(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    out = trainable.folder / "data/out/train"
    trainable.set(model="mlp", epochs=1, batch_size=512, seeds=2, folds=2).train_here()
    alone, tables = trainable.weights_hash(), [path.read_bytes() for path in sorted(out.glob("*.parquet"))]
    shutil.rmtree(out)

    code, said = trainable.set(devices=2).train()

    assert code == 0, said
    assert trainable.weights_hash() == alone
    assert [path.read_bytes() for path in sorted(out.glob("*.parquet"))] == tables
    assert len(pq.read_table(out / "out_of_fold.parquet")) == 1797
    assert pq.read_table(out / "beside.parquet")["by"].unique().to_pylist() == ["seed 0", "seed 1"]


def test_processes_on_a_machine_of_many_cores_give_the_same_weights_as_one(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    trainable.set(epochs=1, threads=1, gradient_clip=1.0).train_here()
    alone = trainable.weights_hash()
    shutil.rmtree(trainable.folder / "data/out/train")
    (tmp_path / "sitecustomize.py").write_text("import os\nos.sched_getaffinity = lambda _: set(range(8))\n")

    of_another_launcher = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "RANK": "1", "MASTER_ADDR": "10.255.255.1"}

    path = os.pathsep.join([str(tmp_path), *_python_path()])
    code, said = trainable.set(devices=2).train("-X", "importtime", PYTHONPATH=path, **of_another_launcher)

    assert code == 0, said
    assert " torch.nn\n" in said
    assert "torch._dynamo.utils" not in said  # the compiler takes longer to import than such a training
    assert trainable.weights_hash() == alone


def test_two_machines_with_disks_of_their_own_go_on_after_a_stop_with_the_undisturbed_weights(
    trainable: TrainableProject, undisturbed: str
) -> None:
    other = TrainableProject(trainable.folder.with_name("other"))
    trainable.keep_a_third().set(**LONG)
    shutil.copytree(trainable.folder, other.folder)
    first, second = _start_on_two_machines(trainable, other)
    _wait_for_epoch(first, 3)

    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=60)
    first, second = _start_on_two_machines(trainable, other)
    said, _ = first.communicate(timeout=240)
    second.communicate(timeout=60)

    assert (first.returncode, second.returncode) == (0, 0), said
    assert re.search(r"Resuming after epoch ([3-9]|\d\d) of 24", said)
    assert not (other.folder / ".twinrun").exists()
    assert trainable.weights_hash() == undisturbed


def test_ctrl_c_while_the_processes_still_start_is_a_clean_stop(trainable: TrainableProject) -> None:
    process = trainable.keep_a_third().set(**LONG, devices=2).start(MLFLOW_TRACKING_URI=AWAY)
    while not (_trainers_below(process) and any(trainable.folder.glob(JOURNALS))):
        assert process.poll() is None
        time.sleep(0.02)

    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)

    (journal,) = trainable.folder.glob(JOURNALS)
    assert process.returncode == 130, said
    assert "Training stopped: SIGINT arrived" in said
    assert "Traceback" not in said
    assert '"status":"KILLED"' in journal.read_text().replace(" ", "")


def test_a_stop_reaches_every_process_and_one_process_continues_with_the_same_weights(
    trainable: TrainableProject, undisturbed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    process = trainable.keep_a_third().set(**LONG, devices=2).start()
    _wait_for_epoch(process, 3)
    workers = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=20)
    trainable.set(devices=1, threads=1).train_here()

    assert process.returncode == 143
    assert said.count("Training stopped: SIGTERM arrived") == 1
    assert "Traceback" not in said
    assert not [worker for worker in workers if _is_trainer(worker)]
    assert re.search(r"Resuming after epoch ([3-9]|\d\d) of 24", capsys.readouterr().out)
    assert trainable.weights_hash() == undisturbed
    assert [(run.status, len(run.history["val/loss"])) for run in runs(trainable.folder)] == [("FINISHED", 24)]


def test_ctrl_c_says_what_is_kept_and_a_second_trainer_is_refused_until_then(
    trainable: TrainableProject, undisturbed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twinrun.training.interruption.LOCK_WAIT_S", 0.2)
    process = trainable.keep_a_third().set(**LONG).start(MLFLOW_TRACKING_URI=AWAY)
    _wait_for_epoch(process, 3)

    second = refused(capsys)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    trainable.train_here()

    assert re.search(rf"process {process.pid}, has been writing to this project for \d+ s", second)
    assert process.returncode == 130
    assert "The last finished epoch is kept" in said
    assert "Traceback" not in said
    assert trainable.weights_hash() == undisturbed


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("lenet6", "did you mean lenet5"),
        ("inception-v3", "did you mean inception_v3"),
        ("xyz", "some are mlp, lenet5, resnet9, airbench94, resnet18"),
    ],
)
def test_an_unknown_model_is_refused_with_those_that_are_meant(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str], model: str, hint: str
) -> None:
    trainable.set(model=model)

    said = refused(capsys)

    assert f'no network is called "{model}"; {hint}' in said


def test_a_batch_larger_than_the_training_split_is_refused_with_both_numbers(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str]
) -> None:
    trainable.set(batch_size=100_000)

    said = refused(capsys)

    assert re.search(r"A batch of 100000 images \(params.yaml: train.batch_size\) .* has 1\d{3}", said)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_the_learning_rate(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str]
) -> None:
    trainable.set(learning_rate=1000.0, optimizer="sgd", weight_decay=1e6)

    said = refused(capsys)

    assert re.search(r"The loss became (nan|inf) at step \d+ \(epoch 1\), where the learning rate was \d", said)
    assert re.search(r"train.weight_decay takes \S+ of each weight away per step; lower it too", said)
    assert sync(trainable.folder).problem is None  # at most two seconds are spent on it when a training fails
    (run,) = runs(trainable.folder)
    assert run.status == "FAILED"


def test_a_folder_that_is_no_repository_is_refused_with_what_to_do(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(trainable.folder / ".git")

    assert "git init" in refused(capsys)


def test_missing_git_is_refused_with_what_to_do(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(trainable.folder))

    assert "git" in refused(capsys).lower()


def test_shifts_larger_than_the_images_are_refused(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str]
) -> None:
    trainable.set(augment={"shift_px": 32, "flip": False, "rotate_deg": 0.0, "erase": 0.0})

    assert "train.augment.shift_px: must be less than ingest.size_px, 32, got 32" in refused(capsys)


def test_a_gpu_that_is_not_there_is_refused(
    trainable: TrainableProject, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    trainable.set(accelerator="gpu")

    assert "train.accelerator: gpu" in refused(capsys)


def test_a_read_only_output_folder_is_refused_before_the_first_batch(trainable: TrainableProject) -> None:
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to be somebody else")
    out = trainable.folder / "data/out/train"
    out.mkdir(mode=0o555)
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

    done = subprocess.run(
        [*command, preloaded.REAL, "-m", "pipeline.train"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(_python_path())},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    assert "data/out/train cannot be written: its folder is read-only" in done.stderr
    assert "Traceback" not in done.stderr
    assert "epoch" not in done.stdout


def _python_path() -> list[str]:
    repository = Path(pipeline.train.__file__).parents[1]
    return [str(repository / "src"), str(repository)]


def _start_on_two_machines(*projects: TrainableProject) -> "list[subprocess.Popen[str]]":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        project.start(
            *("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"),
            *("--master-addr=127.0.0.1", f"--master-port={port}"),
            MLFLOW_TRACKING_URI=AWAY,
        )
        for rank, project in enumerate(projects)
    ]


def _trainers_below(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if _is_trainer(child)]


def _is_trainer(process: psutil.Process) -> bool:
    """Whether it trains; a process that just ended, such as one that only asked git, does not."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(word.endswith("pipeline/train.py") or word == "pipeline.train" for word in words)


def _wait_for_epoch(process: "subprocess.Popen[str]", epoch: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(rf"epoch +{epoch}/", line):
            return
    pytest.fail(f"the training ended before epoch {epoch}")
