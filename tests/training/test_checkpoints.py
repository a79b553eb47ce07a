"""The newest checkpoint that verifies is used."""

import hashlib
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


def test_the_newest_of_more_than_99999_epochs_is_kept(checkpoints: Checkpoints) -> None:
    for epoch in (99_999, 100_000):
        checkpoints.save(epoch, {"w": torch.zeros(1)}, {})

    newest, _ = checkpoints.newest()

    assert newest is not None
    assert newest.epoch == 100_000


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


def test_a_finished_training_is_kept_until_dvc_lock_records_it(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    journal, lock = tmp_path / "journal.jsonl", tmp_path / "dvc.lock"
    journal.write_text("what happened\n")
    checkpoints.finish(journal)

    checkpoints.forget_recorded(lock)
    kept = checkpoints.newest()[0] is not None
    lock.write_text(f"md5: {hashlib.md5(journal.read_bytes()).hexdigest()}")
    checkpoints.forget_recorded(lock)

    assert kept
    assert not checkpoints.folder.exists()


def test_a_finished_training_outside_dvc_leaves_nothing(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.finish(tmp_path / "journal.jsonl")

    assert not checkpoints.folder.exists()


def test_what_another_finished_training_left_is_removed_and_a_stopped_one_stays(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "train")
    finished, stopped = Checkpoints(tmp_path / "resume of old"), Checkpoints(tmp_path / "resume of stopped")
    for each in (finished, stopped):
        each.owner()
    (tmp_path / "journal.jsonl").touch()
    finished.finish(tmp_path / "journal.jsonl")

    checkpoints.forget_recorded(tmp_path / "dvc.lock")

    assert [each.folder.exists() for each in (checkpoints, finished, stopped)] == [True, False, True]
