"""Fixed splits: the CSV that `twinrun data split` writes and `validate.splits` names.

Its columns are `path`, `split` (train, val or test) and `pixels_sha256`, the hash of the image's pixels. Other columns
are kept. A line applies to a picture rather than to a name:

- an image with a line's path and pixels, or else with the pixels of any line (a renamed or relabelled file, a copy),
  has the split of that line;
- otherwise an image with a line's path has its split: the content was replaced. But if the old content still exists
  under another name, the line applies to that one, and the image is new.

A line whose picture is missing does no harm: the picture gets its split again when it is back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

from twinrun.base.errors import DataError
from twinrun.dataset.manifest import SPLITS, SplitName
from twinrun.dataset.table import Columns
from twinrun.tables.sheet import Sheet, cells_by_column, column_names, edited_text, read_sheet, sheet_text
from twinrun.tables.spelling import Names

_COLUMNS = ("path", "split", "pixels_sha256")
_SETTING = "params.yaml: validate.splits"
_NAMED = 5


@dataclass(frozen=True)
class FixedSplit:
    """The split of one picture; `where` names the line."""

    path: str
    split: SplitName
    pixels_sha256: str | None
    where: str = ""


def read_fixed_splits(path: Path) -> list[FixedSplit]:
    """Read a CSV of splits; raises DataError, which names the line, where it is not one."""
    return read_with_sheet(path)[0]


def read_with_sheet(path: Path) -> tuple[list[FixedSplit], Sheet]:
    """The splits in a CSV, as `read_fixed_splits` reads them, and the CSV, which has a header and a line for each."""
    try:
        sheet = read_sheet(path, _SETTING, DataError)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing ({_SETTING}). Write it: twinrun data split --out {path}, or set it to null."
        ) from None
    header = column_names(sheet, path, DataError)
    _require_columns(header, path)
    by_path: dict[str, FixedSplit] = {}
    for cells in sheet.lines[1:]:
        line = _line(header, cells.cells, f"{path}, line {cells.number}")
        if other := by_path.get(line.path):
            raise DataError(f"{line.where}: {line.path!r} already has a line ({other.where}). Remove one of them.")
        by_path[line.path] = line
    return list(by_path.values()), sheet


def fixed_splits(facts: Columns, lines: Sequence[FixedSplit]) -> list[SplitName | None]:
    """The split that `lines` fix for each row, or None for a new image.

    Raises DataError where the source now publishes another split for an image than the line has, or two lines name one
    image and different splits.
    """
    by_path = {line.path: line for line in _as_named(lines, facts["path"])}
    by_pixels: dict[str, FixedSplit] = {}
    for line in sorted(lines, key=lambda line: SPLITS.index(line.split)):  # of several, the last split
        if line.pixels_sha256 is not None:
            by_pixels[line.pixels_sha256] = line
    there = set(facts["pixels_sha256"])

    def line_of(path: str, pixels: str | None) -> FixedSplit | None:
        of_path = by_path.get(path)
        if of_path is not None and of_path.pixels_sha256 == pixels:
            return of_path
        if pixels in by_pixels:
            return by_pixels[pixels]
        return of_path if of_path is not None and of_path.pixels_sha256 not in there else None

    matches = [line_of(*row) if row[1] is not None else None for row in _paths_and_pixels(facts)]
    _require_agreement(facts, matches)
    return [line.split if line is not None else None for line in matches]


def with_images(lines: Sequence[FixedSplit], images: Sequence[FixedSplit]) -> list[FixedSplit]:
    """The lines, with those of `images` updated, in their order, and then the new ones."""
    now = {image.path: image for image in images}
    lines = _as_named(lines, now)
    known = [
        replace(line, split=now[line.path].split, pixels_sha256=now[line.path].pixels_sha256)
        if line.path in now
        else line
        for line in lines
    ]
    paths = {line.path for line in lines}
    return [*known, *(image for image in images if image.path not in paths)]


def fixed_splits_csv(lines: Sequence[FixedSplit], sheet: Sheet | None = None) -> str:
    """The CSV that `read_fixed_splits` reads.

    Where the first of `lines` were read from `sheet`, it is the text of the sheet with the others at its end, in its
    columns. Of its own lines, only those are written anew whose split or pixels have changed.
    """
    if sheet is None:
        return sheet_text([_COLUMNS, *([line.path, line.split, line.pixels_sha256 or ""] for line in lines)])
    header, *own = sheet.lines
    names, changed = [cell.strip().lower() for cell in header.cells], {}
    if _COLUMNS[2] not in names:
        names.append(_COLUMNS[2])
        changed[header] = [*header.cells, _COLUMNS[2]]
    for line, written in zip(lines, own, strict=False):
        cells = dict(zip(names, written.cells, strict=False))
        if (line.split, line.pixels_sha256) != _split_and_pixels(cells):
            values = {"split": line.split, "pixels_sha256": line.pixels_sha256 or ""}
            changed[written] = [
                values.get(name, cell) for name, cell in zip_longest(names, written.cells, fillvalue="")
            ]
    new = [asdict(line) for line in lines[len(own) :]]
    return edited_text(sheet, changed, [[line.get(name) or "" for name in names] for line in new])


def _as_named(lines: Sequence[FixedSplit], paths: Iterable[str]) -> list[FixedSplit]:
    """The lines with the paths as the table spells them; raises DataError where two give one image different splits."""
    names, line_of = Names(paths), dict[str, FixedSplit]()
    for line in lines:
        other = line_of.setdefault(names.find(line.path) or line.path, line)
        if other.split != line.split:
            raise DataError(
                f"{line.where}: {line.path!r} has the split {line.split}, and as {other.path!r} ({other.where}) it has "
                f"{other.split}. Remove one of these lines ({_SETTING})."
            )
    return [replace(line, path=names.find(line.path) or line.path) for line in lines]


def _paths_and_pixels(facts: Columns) -> list[tuple[str, str | None]]:
    return list(zip(facts["path"], facts["pixels_sha256"], strict=True))


def _require_columns(header: Sequence[str], path: Path) -> None:
    if missing := [name for name in _COLUMNS[:2] if name not in header]:
        raise DataError(
            f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}, separated by commas; {' and '.join(missing)} "
            f"missing, found {', '.join(header) or 'nothing'} ({_SETTING})."
        )


def _line(header: Sequence[str], cells: Sequence[str], where: str) -> FixedSplit:
    row = cells_by_column(header, cells, where, DataError)
    path = row.get("path", "")
    if not path:
        raise DataError(f"{where}: the path is empty.")
    split, pixels = _split_and_pixels(row)
    if split is None:
        raise DataError(f"{where}: the split must be train, val or test, found {row.get('split', '')!r}.")
    return FixedSplit(path, split, pixels, where)


def _split_and_pixels(cells: Mapping[str, str]) -> tuple[SplitName | None, str | None]:
    name = cells.get("split", "").strip().lower()
    split = next((split for split in SPLITS if split == name), None)
    return split, cells.get("pixels_sha256", "").strip() or None


def _require_agreement(facts: Columns, matches: Sequence[FixedSplit | None]) -> None:
    """Raise DataError where a line contradicts the source; a val or test taken from a published `train` does not."""
    published = set(facts["split"])
    wrong = [
        f"{line.where}: {line.split}, but the source has {facts['path'][row]!r} in {facts['split'][row]}"
        for row, line in enumerate(matches)
        if line is not None
        and facts["split"][row] not in (None, line.split)
        and not (facts["split"][row] == "train" and line.split not in published)
    ]
    if wrong:
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        lines = "1 line contradicts" if len(wrong) == 1 else f"{len(wrong):,} lines contradict"
        raise DataError(
            "\n".join([f"{lines} the splits of the source:", *wrong[:_NAMED], *more])
            + f"\nPut the images back, or change these lines if the move is intended ({_SETTING})."
        )
