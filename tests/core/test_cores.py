"""A container's share of the processors counts, not only the cores that it sees."""

from pathlib import Path

import pytest

from twinrun.core.cores import core_quota


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


def put(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("limits", "own", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "10000 100000\n"}, "0::/\n", 1),
        ({"a.slice/b/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"}, "0::/a.slice/b\n", 3),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/docker/x\n", 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
        (
            {f"cpu,cpuacct/user/cpu.cfs_{name}_us": text for name, text in (("quota", "50000"), ("period", "25000"))},
            "4:cpu,cpuacct:/user\n",
            2,
        ),
        ({"cpu.max": "a lot\n"}, "no line of control groups\n", None),
        ({}, "", None),
    ],
)
def test_the_quota_of_control_groups_is_found(
    groups: Path, limits: dict[str, str], own: str, cores: int | None
) -> None:
    for name, text in limits.items():
        put(groups / name, text)
    put(groups.parent / "own", own)

    assert core_quota(groups, groups.parent / "own") == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert core_quota(tmp_path / "none", tmp_path / "nothing") is None
