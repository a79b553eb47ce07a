"""Images that a person names on the command line: files, folders, patterns such as "*.jpg", and CSV files of paths."""

import glob
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import SourceError
from twinrun.base.paths import expanded, is_missing
from twinrun.base.printing import escaped
from twinrun.ingest.walking import walk_folder
from twinrun.tables.sheet import read_sheet

_COLUMNS = ("path", "image", "file", "filename")
_SHOWN = 3  # names of missing files


@dataclass(frozen=True)
class ChosenImages:
    """Paths of images in order, a note for each kind of file that was left out, and the CSV files that were read."""

    paths: list[Path]
    notes: list[str]
    lists: list[Path]


def choose_images(arguments: Sequence[str]) -> ChosenImages:
    """The images that `arguments` name, in that order; those in a folder and its sub-folders are sorted by path.

    A named file counts as an image whatever it contains. Raises SourceError if there are no images, if none of the
    named files exists, if no file matches a pattern, or if a CSV cannot be read.
    """
    paths: list[Path] = []
    notes: list[str] = []
    lists: list[Path] = []
    for argument in arguments:
        for path in _expanded(argument):
            if _is(Path.is_dir, path):
                below, left_out = _images_below(path)
                paths += below
                notes += left_out
            elif path.suffix.lower() == ".csv":
                paths += _paths_of_csv(path)
                lists.append(path)
            else:
                paths.append(path)
    if not paths:
        raise SourceError(" ".join([f"There are no images in {', '.join(map(escaped, arguments))}.", *notes]))
    if all(map(is_missing, paths)):
        raise SourceError(_none_exists(paths, lists))
    return ChosenImages(paths, notes, lists)


def _none_exists(paths: Sequence[Path], lists: Sequence[Path]) -> str:
    names = ", ".join(escaped(str(path)) for path in paths[:_SHOWN])
    if (more := len(paths) - _SHOWN) > 0:
        names += f" and {more:,} more"
    there = f"There is no file {names}" if len(paths) == 1 else f"None of these {len(paths):,} files exists: {names}"
    relative = " Paths in a CSV are relative to the folder of the CSV." if lists else ""
    return f"{there}. Name images, or folders of images.{relative}"


def _expanded(argument: str) -> list[Path]:
    """The path itself, or the paths that match it, sorted, if it is a pattern that the shell did not expand."""
    path = expanded(argument)
    if _is(Path.exists, path) or not glob.has_magic(argument):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    if "**" in path.parts:  # matches files in sub-folders too, so searching the folders would repeat them
        matches = [match for match in matches if not _is(Path.is_dir, match)]
    if not matches:
        raise SourceError(f"No file matches {escaped(argument)}.")
    return matches


def _images_below(folder: Path) -> tuple[list[Path], list[str]]:
    walk = walk_folder(folder)
    parts = sorted((*folders, name) for folders, name in walk.files)
    return [folder.joinpath(*names) for names in parts], [f"{escaped(str(folder))}: {note}" for note in walk.notes()]


def _paths_of_csv(file: Path) -> list[Path]:
    """The paths in the column path, image, file or filename, or else in the first one; relative to the CSV's folder."""
    named = escaped(str(file))
    try:
        rows = [line.cells for line in read_sheet(file, "an argument", SourceError).lines]
    except FileNotFoundError:
        raise SourceError(f"{named} cannot be read: No such file or directory.") from None
    if not rows:
        raise SourceError(f"{named} is empty. Write a header with a column named path, then a row for each image.")
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in _COLUMNS if name in header), None)
    if column is None:
        # A first row that names a file, or looks like the others, is not a header.
        is_image = _is(Path.is_file, file.parent / rows[0][0]) or Path(rows[0][0]).suffix != ""
        return list(_cells(file, rows if is_image else rows[1:], 0))
    return list(_cells(file, rows[1:], column))


def _cells(file: Path, rows: Iterable[Sequence[str]], column: int) -> Iterator[Path]:
    for number, row in enumerate(rows, 1):
        cell = row[column] if column < len(row) else ""
        if not cell.strip() or "\0" in cell:
            raise SourceError(f"{escaped(str(file))} names no image in its row {number}.")
        yield _meant(file.parent, cell)


def _meant(folder: Path, cell: str) -> Path:
    """The file that a cell names: as written, without surrounding spaces, or in another Unicode normal form."""
    names = [cell, cell.strip(), *(unicodedata.normalize(form, cell.strip()) for form in ("NFC", "NFD"))]
    paths = [folder / expanded(name) for name in dict.fromkeys(names)]
    return next((path for path in paths if _is(Path.exists, path)), folder / expanded(cell.strip()))


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    """The result of a test such as Path.is_dir; False if the system refuses it, since reading the file reports why."""
    try:
        return test(path)
    except OSError:
        return False
