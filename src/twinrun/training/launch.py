"""Whether this process is one of several training processes, and which. Decided here and nowhere else.

Two launchers are supported: torchrun, and Lightning, which starts the others where `train.devices` is above 1. Batch
systems, MPI and other tools set variables of the same meaning for processes that they did not start, and Lightning
believes them; so all others are removed from this process's environment before Lightning is imported. So are
variables that set what Lightning's Trainer is not told, such as PL_TRAINER_LIMIT_TRAIN_BATCHES.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from twinrun.base.errors import TrainingError

_TRAINER = "TWINRUN_TRAINER"  # the first training process, for those that Lightning starts
_TORCHRUN = "TORCHELASTIC_RUN_ID"
_AGENTS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "torch/distributed/run.py", "accelerate")
# How many processes there are, and which one this is, in the words of each launcher.
_SIZES = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "MV2_COMM_WORLD_SIZE"),
    *("JSM_NAMESPACE_SIZE", "HOROVOD_SIZE", "XRT_SHARD_WORLD_SIZE", "GROUP_WORLD_SIZE"),
)
_RANKS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK"),
    *("HOROVOD_RANK", "HOROVOD_LOCAL_RANK", "XRT_SHARD_ORDINAL", "CLOUD_TPU_TASK_ID", "TPU_PROCESS_ID"),
)
_OTHERS = frozenset({"MASTER_ADDR", "MASTER_PORT", "STANDALONE_PORT", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE"})
_OF_LIGHTNING = "PL_TRAINER_"
_FAMILIES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "JSM_", "LSB_", "MV2_", "HOROVOD_", "XRT_", "TPU_", "TORCHELASTIC_")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was started.

    `rank` counts all training processes, from 0; `local_rank` those of this machine. `local_processes` is None where
    the launcher does not say and `train.devices` decides. `problem` is a reason not to train at all.
    """

    launcher: Literal["none", "torchrun", "lightning"] = "none"
    rank: int = 0
    local_rank: int = 0
    local_processes: int | None = None
    machines: int = 1
    suspicious: tuple[str, ...] = ()
    problem: str | None = None

    def check(self) -> str | None:
        """What a person should know, if anything. Raises TrainingError where the launcher's variables are unusable."""
        if self.problem is not None:
            raise TrainingError(self.problem)
        if not self.suspicious:
            return None
        return (
            f"one process trains, although the environment has {', '.join(self.suspicious)}: torchrun did not start "
            "it. For several processes set train.devices, or use torchrun (see README)."
        )


@cache
def launch() -> Launch:
    """How this process was started; the first call removes what other launchers left in the environment."""
    decided = decide(os.environ, os.getppid(), _ancestors() if _TORCHRUN in os.environ else ())
    for name in [name for name in os.environ if name.startswith(_OF_LIGHTNING)]:
        del os.environ[name]
    if decided.launcher == "none":
        for name in [name for name in os.environ if _is_of_a_launcher(name)]:
            del os.environ[name]
    return decided


def decide(environment: Mapping[str, str], parent: int, ancestors: Sequence[str]) -> Launch:
    """Judge an `environment`, given the number of the `parent` process and the command lines of all `ancestors`."""
    if trainer := environment.get(_TRAINER):
        local_rank = _number(environment, "LOCAL_RANK")
        if trainer != str(parent) or not local_rank:
            return Launch(launcher="lightning", problem=f"The training process {trainer} that started this one ended.")
        return Launch(launcher="lightning", rank=local_rank, local_rank=local_rank)
    if _TORCHRUN in environment and any(agent in line for line in ancestors for agent in _AGENTS):
        return _of_torchrun(environment)
    return Launch(suspicious=tuple(_suspicious(environment)))


@contextmanager
def starting_others() -> Iterator[None]:
    """Have the processes that Lightning starts meanwhile know that this one started them.

    Inside another one this does nothing: trainings in a row share the processes that the first of them starts.
    """
    if _TRAINER in os.environ:
        yield
        return
    before = dict(os.environ)
    if launch().launcher == "none":
        os.environ[_TRAINER] = str(os.getpid())
    try:
        yield
    finally:
        for name in [name for name in os.environ if name == _TRAINER or _is_of_a_launcher(name)]:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local_rank, world, local_world = (_number(environment, name) for name in names)
    if rank is None or local_rank is None or not world or not local_world or rank >= world or local_rank >= local_world:
        listed = ", ".join(f"{name}={environment.get(name)}" for name in names)
        return Launch(launcher="torchrun", problem=f"torchrun's variables do not fit together: {listed}.")
    return Launch(
        launcher="torchrun",
        rank=rank,
        local_rank=local_rank,
        local_processes=local_world,
        machines=world // local_world,
    )


def _suspicious(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables that claim more than this process, as NAME=VALUE; one process of one is not a claim."""
    for name in (*_SIZES, *_RANKS):
        if not environment.get(name, "").strip():
            continue
        number = _number(environment, name)
        if number is None or number > (1 if name in _SIZES else 0):
            yield f"{name}={environment[name][:40]}"
    if _TORCHRUN in environment:
        yield _TORCHRUN


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _is_of_a_launcher(name: str) -> bool:
    return name in _SIZES or name in _RANKS or name in _OTHERS or name.startswith(_FAMILIES)


def _ancestors() -> list[str]:
    import psutil

    lines = []
    for process in psutil.Process().parents():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        lines.append(" ".join([*(Path(word).name for word in command[:2]), *command[1:4]]))
    return lines
