"""How the doctor names files, numbers and times."""

from pathlib import Path

from twinrun.doctor.findings import counted, duration, shown


def test_names_are_counted_and_the_first_ones_listed() -> None:
    assert counted(["a"], "file") == "1 file (a) is"
    assert counted(["a", "b"], "file") == "2 files (a, b) are"
    assert counted([*"abcdefgh"], "file") == "8 files (a, b, c, d, e, f and 2 more) are"


def test_times_are_in_their_largest_unit_and_never_negative() -> None:
    assert [duration(seconds) for seconds in (-5, 90, 150, 3 * 3600, 3 * 86400)] == [
        "0 s",
        "90 s",
        "2 min",
        "3 h",
        "3 d",
    ]


def test_a_path_is_shown_below_the_project_or_whole() -> None:
    assert shown(Path("/p/a/b"), Path("/p")) == "a/b"
    assert shown(Path("/q/b"), Path("/p")) == "/q/b"
