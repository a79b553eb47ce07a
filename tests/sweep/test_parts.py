"""Seeds and folds side by side are the trainings that the stage would run one after the other."""

import json
from pathlib import Path

from sweep_support import SweepProject
from training_support import change_params

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
