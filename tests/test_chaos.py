"""The short form of `make chaos`: a few faults of each cheap kind, injected into real runs of a small pipeline."""


import pytest

from benchmarks.chaos import flips, kills, publish_path
from benchmarks.chaos.cases import Lab, Row, measure
from benchmarks.chaos.stacks import make_twinrun


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("chaos")
    stack = make_twinrun(folder / "twinrun" / "project")
    undisturbed = measure(stack, folder / "undisturbed", 1)
    return Lab(stack=stack, undisturbed=undisturbed, folder=folder, seed=0, jobs=2, say=print)


def test_trainings_that_are_killed_end_with_the_weights_of_one_that_is_not(lab: Lab) -> None:
    _assert_held(kills.kill_while_training(lab, 2))


def test_a_training_that_is_asked_to_stop_ends_with_the_same_weights_later(lab: Lab) -> None:
    _assert_held(kills.terminate_while_training(lab, 1))


def test_kills_just_before_a_rename_or_fsync_lose_at_most_one_epoch(lab: Lab) -> None:
    _assert_held(publish_path.kill_at_every_point(lab, 4))


def test_a_flipped_bit_is_noticed_in_checkpoints_and_models(lab: Lab) -> None:
    _assert_held(flips.flip_bits_inside(lab, 12))


def _assert_held(row: Row) -> None:
    if row.left_out:
        pytest.skip(row.left_out)
    assert [f"{each.moment}: {each.faults}; see {each.log}" for each in row.outcomes if not each.held] == []
    assert row.outcomes
