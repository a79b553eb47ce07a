"""One training in several processes on a Ray cluster: Ray Train places its workers, and each runs a node of torchrun.

Ray's own strategy for Lightning (RayDDPStrategy) averages gradients, so that the weights depend on the number of
processes; the processes of torchrun add those of the shards in a fixed order.
"""

import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from twinrun.base.errors import SweepError
from twinrun.base.files import write_json
from twinrun.base.printing import one_line
from twinrun.core.params import PARAMS, Params
from twinrun.record.trial import DRIVER
from twinrun.sweep.launcher import run_command
from twinrun.sweep.sweep import describe_driver

_RESTARTS = 2  # of all processes, where one has died; each goes on from the last finished epoch


def train(params: Params, workers: int, folder: Path, *, gpus: bool) -> None:
    """Train the project in the working folder, whose logs go to `folder`; Ray has been started.

    Raises SweepError, which names the log, where a process would compute something else or ended without a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.txt"):
        log.unlink()
    shutil.copyfile(PARAMS, folder / PARAMS)
    write_json(describe_driver(params), folder / DRIVER)
    trainer = DataParallelTrainer(
        _run_node,
        train_loop_config={"project": str(Path.cwd()), "folder": str(folder.resolve())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(
            name="train", storage_path=str(folder.resolve()), failure_config=FailureConfig(max_failures=_RESTARTS)
        ),
    )
    try:
        trainer.fit()
    except SystemExit:  # with 0, which is what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:  # Ray Train's own, whose classes differ between versions
        raise SweepError(f"The training ended without a model: {one_line(str(error))}") from None


def _run_node(config: dict[str, str]) -> None:
    """In each worker of Ray Train: a node of torchrun, with one process."""
    context: Any = get_context()
    rank = context.get_world_rank()
    host, port = broadcast_from_rank_zero(_free_address() if rank == 0 else None)
    nodes = [f"--nnodes={context.get_world_size()}", f"--node-rank={rank}", "--nproc-per-node=1"]
    log = f"{config['folder']}/{rank}.txt"
    check = [sys.executable, "-m", "twinrun.sweep.checks", config["folder"]]
    if run_command(check, config["project"], log):
        raise RuntimeError(f"process {rank} would compute something else, see {log}")
    meeting = [f"--master-addr={host}", f"--master-port={port}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *nodes, *meeting, "-m", "pipeline.train"]
    if code := run_command(torchrun, config["project"], log):
        raise RuntimeError(f"process {rank} ended with exit code {code}, see {log}")


def _free_address() -> tuple[str, int]:
    """Where the processes meet: this machine, at a port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]
