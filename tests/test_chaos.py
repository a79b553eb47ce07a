"""The short form of `make chaos`: a few faults of each cheap kind, injected into real runs of a small pipeline."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from training_support import run_stages_for_dvc

from benchmarks.chaos import flips, kills, publish_path
from benchmarks.chaos.cases import Lab, Row, measure
from benchmarks.chaos.stacks import make_twinrun

pytestmark = pytest.mark.timeout(900)  # a minute and a half on two quiet cores


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> dict[str, Row]:
    """All that is tried, two at a time: most of a case is importing, which uses one core."""
    folder = tmp_path_factory.mktemp("chaos")

    def prepare(project: Path) -> None:
        run_stages_for_dvc(project, "ingest", "validate")
        shutil.copytree(new_store, project / "mlruns", dirs_exist_ok=True)

    stack = make_twinrun(folder / "twinrun" / "project", prepare)
    stack = replace(stack, everything=stack.train)
    undisturbed = measure(stack, folder / "undisturbed", 1)
    lab = Lab(stack=stack, undisturbed=undisturbed, folder=folder, seed=0, jobs=1, say=print)
    tries = {
        "points": lambda: publish_path.kill_at_every_point(lab, 2),
        "flips": lambda: flips.flip_bits_inside(lab, 12),
        "kill": lambda: kills.kill_while_training(lab, 1),
    }
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(tries, pool.map(lambda attempt: attempt(), tries.values()), strict=True))


def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(rows: dict[str, Row]) -> None:
    _assert_held(rows["kill"])


def test_a_kill_just_before_a_rename_or_fsync_costs_at_most_one_epoch(rows: dict[str, Row]) -> None:
    _assert_held(rows["points"])


def test_a_flipped_bit_is_noticed_in_checkpoints_and_models(rows: dict[str, Row]) -> None:
    _assert_held(rows["flips"])


def _assert_held(row: Row) -> None:
    if row.left_out:
        pytest.skip(row.left_out)
    assert [f"{each.moment}: {each.faults}; see {each.log}" for each in row.outcomes if not each.held] == []
    assert row.outcomes
