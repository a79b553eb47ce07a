"""The newest checkpoint that verifies is used."""

from pathlib import Path

import pytest
import torch

from twinrun.training.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "resume")
    for epoch in (1, 2, 3):
        made.save(epoch, {"w": torch.full((3,), float(epoch))}, {"loss": 0.1 * epoch})
    return made


def test_two_are_kept_and_the_newest_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    newest, warnings = checkpoints.newest()

    assert newest is not None
    assert (newest.epoch, newest.tensors["w"].tolist(), newest.facts) == (3, [3.0] * 3, {"loss": 0.1 * 3})
    assert warnings == []
    assert sorted(folder.name for folder in checkpoints.folder.iterdir()) == ["epoch-00002", "epoch-00003"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_one_with_a_flipped_bit_is_passed_over_with_a_warning(checkpoints: Checkpoints, name: str) -> None:
    file = checkpoints.folder / "epoch-00003" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)

    newest, warnings = checkpoints.newest()

    assert newest is not None
    assert newest.epoch == 2
    assert "epoch-00003 does not verify and is passed over" in warnings[0]


def test_a_training_without_a_sound_checkpoint_begins_anew(checkpoints: Checkpoints) -> None:
    for folder in checkpoints.folder.iterdir():
        (folder / "manifest.json").unlink()

    newest, warnings = checkpoints.newest()

    assert newest is None
    assert len(warnings) == 2


def test_the_owner_stays_until_the_checkpoints_are_cleared(checkpoints: Checkpoints) -> None:
    first = checkpoints.owner()

    assert checkpoints.owner() == first
    checkpoints.clear()
    assert checkpoints.owner() != first
