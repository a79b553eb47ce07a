"""Seeds and folds side by side are the trainings that the stage would run one after the other."""

import json
from pathlib import Path

import pytest
from filelock import FileLock
from sweep_support import SweepProject
from training_support import change_params

from twinrun.base.errors import LockHeldError, SweepError
from twinrun.base.files import write_json
from twinrun.core.params import load_params
from twinrun.sweep.parts import FOLDER, train_parts
from twinrun.sweep.worker import RESULT

BUNDLE = Path("data/out/train/bundle/model.json")


def test_seeds_and_folds_of_two_workers_give_the_weights_of_one_after_the_other(swept: SweepProject) -> None:
    change_params(Path("params.yaml"), "train", {"seeds": 2, "folds": 2})
    code, output = swept.run(module="pipeline.train")
    assert code == 0, output
    wanted = BUNDLE.read_bytes()
    BUNDLE.unlink()

    code, output = swept.run("seeds", "--workers", "2")

    assert code == 0, output
    assert "4 trainings are done" in output
    code, output = swept.run(module="pipeline.train")
    assert code == 0, output
    assert output.count("Resuming after epoch 2 of 2") == 4
    assert json.loads(BUNDLE.read_bytes()) == json.loads(wanted)


def test_one_training_is_nothing_to_run_side_by_side(swept: SweepProject) -> None:
    code, output = swept.run("seeds")

    assert code == 1
    assert "Set train.seeds to 2 or more" in output


class Engine:
    """Kills the first `kills` workers; the others have trained at once."""

    slots = 1

    def __init__(self, kills: int) -> None:
        self.kills, self.started = kills, list[Path]()

    def submit(self, folder: Path) -> None:
        self.started.append(folder)

    def ended(self) -> list[tuple[Path, str]]:
        self.kills -= 1
        if self.kills < 0:
            write_json({"state": "finished", "reason": ""}, self.started[-1] / RESULT)
        return [(self.started[-1], "it was killed by SIGKILL")]

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("swept")
def test_a_worker_that_was_killed_is_started_again_and_after_three_times_the_command_says_so() -> None:
    change_params(Path("params.yaml"), "train", {"seeds": 2})
    params, unlucky, hopeless = load_params(), Engine(2), Engine(99)
    said: list[str] = []

    train_parts(params, lambda _: unlucky, said.append)
    with pytest.raises(SweepError, match="was not trained: it was killed by SIGKILL; see"):
        train_parts(params, lambda _: hopeless, said.append)

    assert [folder.name for folder in unlucky.started] == ["seed-0", "seed-1", "seed-0", "seed-1"]
    assert said[:4] == [
        "  seed-0 ended early, and is started again",
        "  seed-1 ended early, and is started again",
        "  seed-0 is trained",
        "  seed-1 is trained",
    ]


@pytest.mark.usefixtures("swept")
def test_seeds_that_another_process_trains_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinrun.sweep.parts.LOCK_S", 0.1)
    change_params(Path("params.yaml"), "train", {"seeds": 2})
    log = FOLDER / "runs/seed-0/log.txt"
    log.parent.mkdir(parents=True)
    log.touch()

    with FileLock(FOLDER / "parts.lock"), pytest.raises(LockHeldError, match="Another process trains the seeds"):
        train_parts(load_params(), lambda _: Engine(0), print)

    assert log.exists()
