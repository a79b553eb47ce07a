"""What spreadsheets make of a CSV is read, and what is written there is computed by none."""

from pathlib import Path

import pytest

from twinrun.base.errors import DataError
from twinrun.tables.sheet import guarded, header_of, read_sheet, sheet_text, unguarded


@pytest.mark.parametrize(
    "content",
    [
        b"path,label\r\na.png,cat\r\n",
        b"\xef\xbb\xbfpath;label\na.png;cat\n",
        "path\tlabel\na.png\tcat\n".encode("utf-16"),
        b"sep=;\npath;label\n\na.png;cat",
        b'path,label\n"a.png","cat"\n',
    ],
)
def test_encodings_line_ends_and_separators_of_spreadsheets_give_the_same_cells(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    lines = read_sheet(tmp_path / "a.csv", "validate.splits", DataError).lines

    assert [line.cells for line in lines] == [("path", "label"), ("a.png", "cat")]


@pytest.mark.parametrize(("content", "problem"), [(b"a,\xff\n", "0xff is not UTF-8"), (b"a\n\0\n", "line 2")])
def test_what_is_no_csv_is_named_with_its_line(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    with pytest.raises(DataError, match=problem):
        read_sheet(tmp_path / "a.csv", "validate.splits", DataError)


@pytest.mark.parametrize("cell", ["=1+1", "@x", "-1", "'=1", "plain", "'quoted'"])
def test_a_formula_is_written_as_text_and_read_as_it_was(cell: str) -> None:
    assert not guarded(cell).startswith(("=", "@", "-"))
    assert unguarded(guarded(cell)) == cell
    assert header_of(sheet_text([["a", "b"], [cell, 1]], ";")) == (["a", "b"], ";")
