"""Splits that stay as they are."""

from pathlib import Path
from typing import Any

import pytest

from twinrun.base.errors import DataError
from twinrun.validate.fixed_splits import FixedSplit, fixed_splits, fixed_splits_csv, read_fixed_splits, with_images

LINES = [FixedSplit("a.png", "train", "aa"), FixedSplit("b.png", "test", "bb", (("by", "Ann, Bo"),))]


def _facts(**pixels: str) -> dict[str, list[Any]]:
    """Images by name, with their pixels, of a source that publishes no splits."""
    names = [f"{name}.png" for name in pixels]
    return {"path": names, "pixels_sha256": list(pixels.values()), "split": [None] * len(names)}


def test_what_is_written_is_what_is_read_with_the_columns_of_others(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(fixed_splits_csv(LINES), encoding="utf-8")

    lines = read_fixed_splits(tmp_path / "splits.csv")

    assert [(line.path, line.split, line.pixels_sha256) for line in lines] == [
        ("a.png", "train", "aa"),
        ("b.png", "test", "bb"),
    ]
    assert lines[1].more == (("by", "Ann, Bo"),)
    assert lines[1].where.endswith("splits.csv, line 3")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (_facts(a="aa", b="bb"), ["train", "test"]),
        (_facts(a="aa", renamed="bb"), ["train", "test"]),
        (_facts(a="changed", b="bb"), ["train", "test"]),
        (_facts(a="new", moved="aa"), [None, "train"]),
        (_facts(a="bb", b="bb"), ["test", "test"]),
        (_facts(other="xx"), [None]),
    ],
)
def test_a_line_speaks_for_a_picture_rather_than_for_a_name(facts: Any, expected: list[str | None]) -> None:
    assert fixed_splits(facts, LINES) == expected


def test_a_line_against_the_split_that_the_source_publishes_is_refused() -> None:
    facts = {**_facts(a="aa", b="bb"), "split": ["test", "test"]}

    with pytest.raises(DataError, match=r"1 line contradicts[\s\S]*'a.png' in test"):
        fixed_splits(facts, LINES)


def test_new_images_come_behind_the_lines_and_known_ones_are_brought_up_to_date() -> None:
    lines = with_images(LINES, [FixedSplit("b.png", "val", "cc"), FixedSplit("d.png", "train", "dd")])

    assert [(line.path, line.split, line.pixels_sha256) for line in lines] == [
        ("a.png", "train", "aa"),
        ("b.png", "val", "cc"),
        ("d.png", "train", "dd"),
    ]
    assert lines[1].more == LINES[1].more


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file,split\n", "line 1: expected the columns path, split"),
        ("path,split\na.png,tset\n", "line 2: the split must be train, val or test, found 'tset'"),
        ("path,split\n,val\n", "line 2: the path is empty"),
        ("path,split\na.png,val\na.png,test\n", "line 3: 'a.png' already has a line"),
        ("path,split\na,b.png,val\n", "line 2: 3 cells, but the header has 2"),
        ("path,split,Split\na.png,val,test\n", "line 1: two columns are called split"),
    ],
)
def test_a_csv_that_is_wrong_is_refused_with_its_line(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(text)

    with pytest.raises(DataError, match=problem):
        read_fixed_splits(tmp_path / "splits.csv")
    with pytest.raises(DataError, match=r"gone.csv is missing[\s\S]*twinrun data split"):
        read_fixed_splits(tmp_path / "gone.csv")


def test_notes_in_columns_without_a_name_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "splits.csv"
    file.write_text("path,split,,,\na.png,val,first,second,\nb.png,test,,,\n")

    lines = read_fixed_splits(file)
    file.write_text(fixed_splits_csv(lines))

    assert [line.more for line in lines] == [(("column 3", "first"), ("column 4", "second")), ()]
    assert read_fixed_splits(file)[0].more == lines[0].more
