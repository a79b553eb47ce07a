"""CSV files that people edit: one reader for what spreadsheets make of them, one writer that no spreadsheet computes.

Read are UTF-8 (with or without a mark at the start) and UTF-16 (with one), LF, CR LF and CR, quoted line breaks, and
commas, semicolons or tabs, whichever the first line has most of. A cell that a spreadsheet would take for a formula is
written behind an apostrophe, and read without it.
"""

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import TwinrunError
from twinrun.base.printing import one_line
from twinrun.base.regular_files import read_regular

_DELIMITERS = ",;\t"
_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "＝",
    "＋",
    "－",
    "＠",
)  # what a spreadsheet takes for the start of one
_LOOKED_AT = 100_000  # characters
_SEPARATOR_LINE = "sep="  # Excel's own way to say which character separates cells
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


@dataclass(frozen=True)
class Line:
    """A line of cells; `number` counts lines of the file from 1, and is the first where cells hold line breaks.

    `start` and `end` are its place in the text of its sheet, in characters.
    """

    number: int
    cells: tuple[str, ...]
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Sheet:
    """The lines of a CSV that hold anything, its text without a mark at the start, and what separates its cells."""

    lines: list[Line]
    text: str
    delimiter: str


def read_sheet(path: Path, setting: str, error: type[TwinrunError]) -> Sheet:
    """Read a CSV.

    Raises `error`, which names the file, the line and the `setting` that names the file, where it is none. A file that
    is missing raises FileNotFoundError.
    """
    named = one_line(str(path))
    text = decoded(path, setting, error)
    delimiter, skipped = _delimiter(text)
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise error(f"{named}, line {number}: this is not CSV (it has a NUL character; {setting}). Save it in UTF-8.")
    taken = 0

    def of_file() -> Iterator[str]:
        nonlocal taken
        for line in io.StringIO(text, newline=""):
            taken += len(line)
            yield line

    reader = csv.reader(of_file(), delimiter=delimiter, strict=True)
    lines, end, start = [], 0, 0
    try:
        for cells in reader:
            number, end = end + 1, reader.line_num
            if number > skipped and any(cell.strip() for cell in cells):
                lines.append(Line(number, tuple(unguarded(cell) for cell in cells), start, taken))
            start = taken
    except csv.Error as problem:
        raise error(f"{named}, line {end + 1}: this is not CSV ({problem}; {setting}).") from None
    return Sheet(lines, text, delimiter)


def column_names(sheet: Sheet, path: Path, error: type[TwinrunError]) -> list[str]:
    """The names in the first line in lower case, "" for a column without one; raises `error` where one occurs twice."""
    names = [cell.strip().lower() for cell in sheet.lines[0].cells] if sheet.lines else []
    if twice := next((name for at, name in enumerate(names) if name and name in names[:at]), None):
        raise error(f"{one_line(str(path))}, line 1: two columns are called {twice}. Rename or remove one of them.")
    return names


def cells_by_column(
    names: Sequence[str], cells: Sequence[str], where: str, error: type[TwinrunError]
) -> dict[str, str]:
    """The cells of a line by their `column_names`; one without a name counts as "column 5", and only if it has text.

    Raises `error` where there is text beyond the last column.
    """
    expect_no_more_cells(names, cells, where, error)
    return {
        name or f"column {at}{'' if f'column {at}' not in names else ' without a name'}": cell
        for at, (name, cell) in enumerate(zip(names, cells, strict=False), 1)
        if name or cell.strip()
    }


def expect_no_more_cells(names: Sequence[str], cells: Sequence[str], where: str, error: type[TwinrunError]) -> None:
    """Raise `error` where a line has text beyond the last of the columns that `names` name."""
    texts = [at for at, cell in enumerate(cells, 1) if cell.strip()]
    if texts and texts[-1] > len(names):
        raise error(
            f"{where}: {texts[-1]} cells, but the header has {len(names)}. Quote cells that hold what "
            "separates cells, or name the column in the first line."
        )


def decoded(path: Path, setting: str, error: type[TwinrunError]) -> str:
    """The text of a file in UTF-8 or UTF-16, without a mark at its start; raises `error` where it is neither."""
    named = one_line(str(path))
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{named} cannot be read: {problem.strerror} ({setting}).") from None
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as problem:
        at = len(mark) + problem.start
        line, byte = content[:at].count(b"\n") + 1, content[at]
        raise error(
            f"{named}, line {line}: the byte 0x{byte:02x} is not {encoding.upper()} text. Save it in UTF-8 ({setting})."
        ) from None


def mark_of(path: Path) -> str:
    """The byte-order mark at the start of a file as text, "" where it has none: spreadsheets write one and need it."""
    with path.open("rb") as file:
        start = file.read(3)
    return "\ufeff" if any(start.startswith(mark) for mark in _MARKS) else ""


def sheet_text(rows: Iterable[Sequence[object]], delimiter: str = ",", end: str = "\n") -> str:
    """Rows as CSV for people: texts that would be formulas are guarded, None is empty, numbers stay numbers."""
    lines = []
    for row in rows:
        line = io.StringIO(newline="")
        # A cell with a part of the line's end is quoted, and only such.
        writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")
        writer.writerow([guarded(cell) if isinstance(cell, str) else cell for cell in row])
        lines.append(line.getvalue().removesuffix("\r\n") + end)
    return "".join(lines)


def edited_text(sheet: Sheet, changed: Mapping[Line, Sequence[str]], new: Iterable[Sequence[str]]) -> str:
    """The text of `sheet` with other cells in some of its lines, and with `new` lines; the rest is as it was."""
    text, at = "", 0
    for line, cells in sorted(changed.items(), key=lambda item: item[0].start):
        before = sheet.text[line.start : line.end]
        text += sheet.text[at : line.start] + sheet_text([cells], sheet.delimiter, before[len(before.rstrip("\r\n")) :])
        at = line.end
    text += sheet.text[at:]
    header = sheet.text[: sheet.lines[0].end]
    end = header[len(header.rstrip("\r\n")) :] or "\n"
    added = sheet_text(new, sheet.delimiter, end)
    return text + (end if added and not text.endswith(("\n", "\r")) else "") + added


def guarded(cell: str) -> str:
    """A text that a spreadsheet shows and does not compute."""
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) else cell


def unguarded(cell: str) -> str:
    """The text that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


def header_of(text: str) -> tuple[list[str], str]:
    """The cells of a CSV's first line, empty where it has none, and what separates them."""
    delimiter, skipped = _delimiter(text)
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        lines.readline()
    return next(csv.reader(lines, delimiter=delimiter), []), delimiter


def _delimiter(text: str) -> tuple[str, int]:
    """What separates the cells, and the number of lines that say nothing else."""
    lines = [line for line in text[:_LOOKED_AT].splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")  # # may be a comment
    if first.lower().startswith(_SEPARATOR_LINE) and first[len(_SEPARATOR_LINE) :].strip(" ") in set(_DELIMITERS):
        return first[len(_SEPARATOR_LINE)], text[: text.index(first)].count("\n") + 1
    outside = "".join(first.split('"')[::2])
    return max(_DELIMITERS, key=outside.count), 0
