"""What jobs of Slurm ask for, from the file that TWINRUN_SLURM names."""

from pathlib import Path

import pytest

from twinrun.base.errors import SweepError
from twinrun.sweep.slurm import Slurm


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "jobs.yaml"
    monkeypatch.setenv("TWINRUN_SLURM", str(file))
    return file


def test_settings_of_the_file_replace_those_of_twinrun(settings: Path, tmp_path: Path) -> None:
    settings.write_text("timeout_min: 120\nname: bins\nslurm_partition: gpu\n")

    parameters = Slurm(1, tmp_path / "jobs", "twinrun.sweep.worker")._executor._executor.parameters

    assert parameters["timeout_min"] == 120


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should hold lines such as slurm_partition: gpu"),
        ("- 1\n", "should hold lines such as"),
        ("a: [\n", "cannot be read"),
        ("day: 2025-31-12\n", "cannot be read: month must be in 1..12"),
        ("timeout_minutes: 5\n", "submitit does not take these settings"),
    ],
)
def test_a_file_that_submitit_cannot_use_is_refused(settings: Path, tmp_path: Path, text: str, said: str) -> None:
    settings.write_text(text)

    with pytest.raises(SweepError, match=said):
        Slurm(1, tmp_path / "jobs", "twinrun.sweep.worker")


def test_a_file_that_is_missing_is_named(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=f"{settings.name} cannot be read"):
        Slurm(1, tmp_path / "jobs", "twinrun.sweep.worker")
