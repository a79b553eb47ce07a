"""A name is found however a person wrote it, and names that look alike can be told apart."""

from pathlib import Path

import pytest

from twinrun.tables.spelling import Names, code_points, read_alike, told_apart


@pytest.mark.parametrize(
    "written", ["cats/1.png", " cats/1.png ", "./cats/1.png", "cats\\1.png", "/data/cats/1.png", "'=1.png"]
)
def test_spaces_slashes_folders_and_apostrophes_do_not_hide_a_name(written: str) -> None:
    names = Names(["cats/1.png", "=1.png"], Path("/data"))

    assert names.find(written) == ("=1.png" if "=" in written else "cats/1.png")


def test_another_unicode_form_is_found_and_noted_unless_it_could_be_two() -> None:
    names = Names(["cafe\u0301.png"])

    assert names.find("caf\u00e9.png") == "cafe\u0301.png"
    assert "1 name is written in another Unicode form" in names.note("splits.csv")[0]
    assert Names(["dog.png"]).find("cat.png") is None


def test_names_that_read_alike_are_listed_and_printed_with_their_code_points() -> None:
    latin, cyrillic = "cat", "c\u0430t"

    assert read_alike([latin, cyrillic, "dog"]) == {key: [latin, cyrillic] for key in (latin, cyrillic)}
    assert told_apart([latin, cyrillic]) == {latin: latin, cyrillic: f"{cyrillic} (c U+0430 t)"}
    assert code_points("caf\u00e9") == "caf U+00E9"
