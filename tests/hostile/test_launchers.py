"""Variables of batch systems and other launchers, which say nothing about a process that they did not start."""

import os
import shutil
from collections.abc import Mapping

import pytest
from training_support import TrainableProject

from twinrun.base.errors import TrainingError
from twinrun.training.launch import decide

AWAY = "http://127.0.0.1:9"
TORCHRUN = {
    **{"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    **{"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
}
SEVERAL = {
    **{"SLURM_JOB_ID": "77", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "train"},
    **{"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2", "PMI_RANK": "1"},
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "oops", "NODE_RANK": "1", "JSM_NAMESPACE_RANK": ""},
    **{"MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "stray", "LSB_JOBID": "5"},
    **{"PL_TRAINER_LIMIT_TRAIN_BATCHES": "1", "PL_TRAINER_OVERFIT_BATCHES": "1"},
}


def test_a_training_inside_of_jobs_of_other_launchers_is_one_process_with_the_same_weights(
    trainable: TrainableProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    trainable.set(epochs=1).train_here()
    undisturbed = trainable.weights_hash()
    shutil.rmtree(trainable.folder / "data/out/train")

    code, said = trainable.train(**SEVERAL)

    assert code == 0, said
    assert trainable.weights_hash() == undisturbed
    assert "one process trains, although the environment has WORLD_SIZE=2, SLURM_NTASKS=2" in said


@pytest.mark.parametrize(
    "environment",
    [
        {
            "SLURM_JOB_ID": "77",
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_JOB_NAME": "train",
        },
        {"KUBERNETES_PORT": "tcp://10.0.0.1:443", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1", "RANK": "0"},
        {"RANK": "", "LOCAL_RANK": " "},
        {"LSB_JOBID": "3", "LSB_HOSTS": "a a", "TPU_NAME": "x"},
    ],
)
def test_a_job_of_one_process_is_no_reason_for_a_warning(environment: Mapping[str, str]) -> None:
    found = decide(environment, os.getppid(), [])

    assert found.rank == 0
    assert found.check() is None


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "HOROVOD_SIZE"])
def test_a_number_of_processes_that_nobody_started_is_named_and_ignored(name: str) -> None:
    found = decide({name: "4"}, os.getppid(), ["bash", "sbatch train.sh"])

    assert (found.launcher, found.rank, found.local_processes, found.machines) == ("none", 0, None, 1)
    assert f"{name}=4" in str(found.check())


def test_torchrun_is_believed_where_it_is_an_ancestor_and_only_there() -> None:
    below = decide(TORCHRUN, 1, ["python -m torch.distributed.run --nnodes=2", "bash"])
    elsewhere = decide(TORCHRUN, 1, ["python dvc repro", "bash"])

    assert (below.rank, below.local_rank, below.local_processes, below.machines) == (3, 1, 2, 2)
    assert (elsewhere.rank, elsewhere.launcher) == (0, "none")


def test_torchrun_whose_variables_do_not_fit_together_stops_the_training_with_their_values() -> None:
    found = decide({**TORCHRUN, "RANK": "4"}, 1, ["torchrun --standalone"])

    with pytest.raises(TrainingError, match="RANK=4, LOCAL_RANK=1, WORLD_SIZE=4"):
        found.check()


def test_a_training_process_whose_first_process_is_gone_does_not_train_alone() -> None:
    child = decide({"TWINRUN_TRAINER": "41", "LOCAL_RANK": "1"}, 41, [])
    orphan = decide({"TWINRUN_TRAINER": "41", "LOCAL_RANK": "1"}, 1, [])

    assert child.rank == 1
    with pytest.raises(TrainingError, match="training process 41 that started this one ended"):
        orphan.check()
