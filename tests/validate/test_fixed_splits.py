"""Splits that stay as they are."""

from pathlib import Path
from typing import Any

import pytest

from twinrun.base.errors import DataError
from twinrun.validate.fixed_splits import (
    FixedSplit,
    fixed_splits,
    fixed_splits_csv,
    read_fixed_splits,
    read_with_sheet,
    with_images,
)

LINES = [FixedSplit("a.png", "train", "aa"), FixedSplit("b.png", "test", "bb")]


def _facts(**pixels: str) -> dict[str, list[Any]]:
    """Images by name, with their pixels, of a source that publishes no splits."""
    names = [f"{name}.png" for name in pixels]
    return {"path": names, "pixels_sha256": list(pixels.values()), "split": [None] * len(names)}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text(fixed_splits_csv(LINES), encoding="utf-8")

    lines = read_fixed_splits(tmp_path / "splits.csv")

    assert [(line.path, line.split, line.pixels_sha256) for line in lines] == [
        ("a.png", "train", "aa"),
        ("b.png", "test", "bb"),
    ]
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


def test_two_lines_for_one_image_in_two_spellings_may_not_differ(tmp_path: Path) -> None:
    (tmp_path / "splits.csv").write_text("path,split\na.png,train\n./a.png,test\n", encoding="utf-8")
    lines = read_fixed_splits(tmp_path / "splits.csv")

    for use in (lambda: fixed_splits(_facts(a="aa"), lines), lambda: with_images(lines, LINES)):
        with pytest.raises(DataError, match=r"line 3: './a.png' has the split test, and as 'a.png' \(.*line 2\)"):
            use()


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'by;Split;path;pixels_sha256;;\r\n\r\n"Ann; Bo";Val;"a.png";aa;note;\r\nCy;TEST;b.png;bb',
            'by;Split;path;pixels_sha256;;\r\n\r\n"Ann; Bo";Val;"a.png";aa;note;\r\nCy;test;b.png;cc;;\r\n'
            ";train;d.png;dd;;\r\n",
        ),
        (
            "sep=,\npath,split,note\na.png,val,'=1\nb.png,test\n",
            "sep=,\npath,split,note,pixels_sha256\na.png,val,'=1,aa\nb.png,test,,cc\nd.png,train,,dd\n",
        ),
    ],
)
def test_only_lines_that_have_changed_are_written_anew_in_the_columns_of_the_file(
    tmp_path: Path, text: str, expected: str
) -> None:
    file = tmp_path / "splits.csv"
    file.write_text(text, newline="")
    before, sheet = read_with_sheet(file)
    images = [FixedSplit("a.png", "val", "aa"), FixedSplit("b.png", "test", "cc"), FixedSplit("d.png", "train", "dd")]

    written = fixed_splits_csv(with_images(before, images), sheet)
    file.write_text(written, newline="")
    again = fixed_splits_csv(*read_with_sheet(file))

    assert written == expected
    assert again == written
