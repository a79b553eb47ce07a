"""Sources that are trees of image files: `<class>/...` or `<split>/<class>/...`. Refuses to open an image.

The label is the name of the first folder, or of the second where the first level is made of splits; what lies deeper
belongs to the same class. Every file in a class folder becomes an item, an image or not, since a file that vanished
without a word is worse than one that was refused. Hidden folders and what file browsers leave behind do not count.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from twinrun.data.listing import Files, Item, Listing, sorted_listing, source_folder
from twinrun.data.manifest import SplitName
from twinrun.errors import SourceError
from twinrun.params import IngestParams

_SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_LITTER = frozenset({".DS_Store", ".directory", ".gitkeep", "Thumbs.db", "desktop.ini", "__MACOSX"})
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
_LAYOUT = "Lay it out as <class>/<image> or <split>/<class>/<image>"
_SHOWN = 5
REPORT_FILES = ("index.html", "result.json", "findings.parquet")  # what a check of a folder writes

_TRASHNET_LISTS: dict[SplitName, str] = {
    "train": "one-indexed-files-notrash_train.txt",
    "val": "one-indexed-files-notrash_val.txt",
    "test": "one-indexed-files-notrash_test.txt",
}


def list_tree(params: IngestParams) -> Listing:
    """List the source `folder` or `trashnet` of `params`; raises SourceError as those do."""
    root = source_folder(params)
    splits_file = Path(params.splits_file).expanduser() if params.splits_file is not None else None
    return list_trashnet(root, splits_file) if params.source == "trashnet" else list_folder(root, splits_file)


def list_folder(root: Path, splits_file: Path | None = None) -> Listing:
    """List a tree of images; `splits_file` names their splits and groups, and stands above folders named as splits.

    Raises SourceError where the folder is missing, empty or has one class, or the splits file does not fit.
    """
    items, kept, notes = _tree(root, splits_file)
    classes = sorted({item.label for item in items if item.label is not None})
    if len(classes) < 2:
        found = f"one class, {classes[0]!r}," if classes else "no class folders"
        raise SourceError(
            f"The source folder {root} has {found} and a classifier needs at least two (params.yaml: ingest.path). "
            f"{_LAYOUT}."
        )
    if splits_file is not None:
        items, note = _with_splits(items, {splits_file: None})
        notes += note
    return sorted_listing(items, Files(kept), notes)


def list_images(root: Path, leave_out: Path) -> Listing:
    """List any folder of images but what lies in `leave_out`; folders are labels where there are two or more of them.

    Reports of earlier checks, hidden files that are no images, and folders beside such as are named as splits are
    passed over with a note. Raises SourceError where the folder is missing or has no images.
    """
    if not root.is_dir():
        raise SourceError(
            f"{root} {'is not a folder' if root.exists() else 'does not exist'}. Name a folder of images."
        )
    around = root.resolve().is_relative_to(leave_out.resolve())
    files = [path for path in _walk(root) if around or not _is_in(path, leave_out)]
    reports = {path.parent for path in files if all((path.parent / name).is_file() for name in REPORT_FILES)}
    files = [path for path in files if path.parent not in reports or path.name not in REPORT_FILES]
    hidden = {path for path in files if path.name.startswith(".") and not _looks_like_an_image(path)}
    strays = _beside_splits(root, files)
    files = [path for path in files if path not in hidden and path.relative_to(root).parts[0] not in strays]
    if not files:
        raise SourceError(f"{root} has no images in it. Name a folder of images.")
    items, kept, notes = _items(root, files, bool(strays) or _is_split_by_folders(root, files))
    if len({item.label for item in items} - {None}) < 2:
        items = [replace(item, label=None, problem=None) for item in items]
    if strays:
        notes.append(f"Left out, since they lie beside folders named as splits: {_some(sorted(strays))}.")
    if hidden:
        notes.append(f"Left out, since their names begin with a dot and they are no images: {len(hidden):,} files.")
    if reports:
        notes.append(f"Left out, since it is the report of a check: {_some(sorted(map(str, reports)))}.")
    return sorted_listing(items, Files(kept), notes)


def _tree(root: Path, splits_file: Path | None) -> tuple[list[Item], list[Path], list[str]]:
    """Items of a tree with their files, and notes on what was left out."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise SourceError(f"The source folder {root} {what} (params.yaml: ingest.path). {_LAYOUT} and name it there.")
    files = [path for path in _walk(root) if not _is_file(path, splits_file)]
    if not files:
        raise SourceError(f"The source folder {root} has no files (params.yaml: ingest.path). {_LAYOUT}.")
    if strays := _beside_splits(root, files):
        splits = sorted(_folders_of(root, files) - strays)
        raise SourceError(
            f"{root} has folders named as splits ({', '.join(splits)}) beside others ({_some(sorted(strays))}). "
            f"{_LAYOUT}, and move the others elsewhere."
        )
    return _items(root, files, _is_split_by_folders(root, files))


def _items(root: Path, files: list[Path], by_split: bool) -> tuple[list[Item], list[Path], list[str]]:
    """Items of `files` below `root`, those of them that are left, and notes on what was left out."""
    items, kept, left_out = [], [], []
    for path in files:
        item = _item(path.relative_to(root).parts, by_split)
        if item.label is None and not _looks_like_an_image(path):
            left_out.append(item.path)
            continue
        items.append(item)
        kept.append(path)
    notes = []
    if left_out:
        notes.append(f"Left out, since they lie in no class folder and are no images: {_some(left_out)}.")
    return items, kept, notes


def list_trashnet(root: Path, splits_file: Path | None = None) -> Listing:
    """TrashNet: `dataset-resized/<class>/` and the three published lists beside it, one for each split."""
    images = root / "dataset-resized"
    if not images.is_dir():
        raise SourceError(
            f"{images} does not exist (params.yaml: ingest.path). TrashNet is dataset-resized.zip and the lists "
            f"{', '.join(_TRASHNET_LISTS.values())} of "
            f"https://github.com/garythung/trashnet (folder data): unpack them into {root}."
        )
    if splits_file is not None:
        return list_folder(images, splits_file)
    lists = {root / name: split for split, name in _TRASHNET_LISTS.items()}
    if missing := [path.name for path in lists if not path.is_file()]:
        raise SourceError(
            f"{root} lacks TrashNet's published split lists {', '.join(missing)}. Fetch them from "
            "https://github.com/garythung/trashnet (folder data), or let us split: ingest.source: folder, "
            f"ingest.path: {images}."
        )
    listing = list_folder(images)
    items, notes = _with_splits(listing.items, dict(lists))
    return Listing(items, listing.content, listing.notes + notes)


def _walk(root: Path) -> Iterator[Path]:
    """Files below `root`, links followed, each real folder once."""
    seen: set[str] = set()

    def stop(error: OSError) -> None:
        raise SourceError(f"The folder {error.filename} cannot be read: {error.strerror}.")

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=stop):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if _counts(name) and not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if _counts(name))


def _counts(name: str) -> bool:
    return name not in _LITTER and not name.startswith("._")


def _is_file(path: Path, other: Path | None) -> bool:
    return other is not None and path.name == other.name and other.exists() and path.samefile(other)


def _is_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _is_split_by_folders(root: Path, files: list[Path]) -> bool:
    """Whether the first level of folders is made of splits alone."""
    folders = _folders_of(root, files)
    return bool(folders) and all(name.lower() in _SPLIT_NAMES for name in folders)


def _beside_splits(root: Path, files: list[Path]) -> set[str]:
    """Folders of the first level beside two or more that are named as splits; a single such one is a class."""
    folders = _folders_of(root, files)
    others = {name for name in folders if name.lower() not in _SPLIT_NAMES}
    return others if len(folders) - len(others) > 1 else set()


def _folders_of(root: Path, files: list[Path]) -> set[str]:
    return {path.relative_to(root).parts[0] for path in files if len(path.relative_to(root).parts) > 1}


def _item(parts: tuple[str, ...], by_split: bool) -> Item:
    # A name that is no UTF-8 has no place in a table; its bytes do.
    name = os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")
    split = _SPLIT_NAMES[parts[0].lower()] if by_split and len(parts) > 1 else None
    label = parts[1 if by_split else 0] if len(parts) > (2 if by_split else 1) else None
    if label is None:
        return Item(name, None, split, "lies in no class folder, so that it has no label")
    return Item(name, os.fsencode(label).decode("utf-8", "backslashreplace"), split)


def _looks_like_an_image(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(8).startswith(_IMAGE_STARTS)
    except OSError:
        return True


@dataclass(frozen=True)
class _Place:
    """What a splits file says of an image."""

    split: SplitName | None
    group: str | None = None


def _with_splits(items: list[Item], lists: dict[Path, SplitName | None]) -> tuple[list[Item], list[str]]:
    """Items with the splits and groups that `lists` name; a list of one split names only images."""
    named: dict[str, _Place] = {}
    for path, split in lists.items():
        for name, place in _read_places(path, split):
            if named.setdefault(name, place) != place:
                raise SourceError(
                    f"{path} puts {name} into {_words(place)}, and it was put into {_words(named[name])}."
                )
    where = ", ".join(map(str, lists))
    by_name = Counter(item.path.rsplit("/", 1)[-1] for item in items)
    result, used = [], set()
    for item in items:
        short = item.path.rsplit("/", 1)[-1]
        key = item.path if item.path in named else short if short in named else None
        if key == short != item.path and by_name[short] > 1:
            raise SourceError(
                f"{where} names {short}, and {by_name[short]} images are called so: write its path, <class>/{short}."
            )
        if key is not None:
            used.add(key)
        place = named[key] if key is not None else _Place(None)
        result.append(replace(item, split=place.split or item.split, group=place.group))
    if absent := sorted(named.keys() - used):
        raise SourceError(f"{where} names {len(absent):,} images that are not there: {_some(absent)}.")
    unnamed = [item.path for item in result if item.split is None]
    note = f"Without a split in {where}, and so for validate to decide: {_some(unnamed)}." if unnamed else ""
    return result, [note] if note else []


def _words(place: _Place) -> str:
    return " ".join(filter(None, [place.split or "no split", place.group and f"(group {place.group})"]))


def _read_places(path: Path, split: SplitName | None) -> Iterator[tuple[str, _Place]]:
    """Names of images with their splits and groups: the columns of a CSV, or the two of a text.

    A CSV with a header may have either column or both (`path`, `split`, `group`); without one its columns are path and
    split. Where `split` is given, the file is a list of images of that split, whatever stands in further columns.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise SourceError(
            f"The splits file {path} cannot be read: {error.strerror} (params.yaml: ingest.splits_file)."
        ) from None
    except UnicodeDecodeError:
        raise SourceError(f"The splits file {path} is no UTF-8 text (params.yaml: ingest.splits_file).") from None
    commas = path.suffix.lower() == ".csv"
    columns: dict[str, int] | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in (next(csv.reader([line])) if commas else line.rsplit(None, 1))]
        if split is not None:
            yield cells[0], _Place(split)
            continue
        if columns is None:
            columns = _columns_of(cells) if commas else {"path": 0, "split": 1}
            if commas and {cell.lower() for cell in cells} & {"split", "group"}:
                continue
        found = {name: cells[column] if column < len(cells) else "" for name, column in columns.items()}
        its_split = _SPLIT_NAMES.get(found.get("split", "").lower())
        if its_split is None and (found.get("split") or "group" not in columns):
            raise SourceError(
                f"{path}, line {number}: wanted an image and its split (train, val or test), found {line.strip()!r}."
            )
        yield found["path"].removeprefix("./"), _Place(its_split, found.get("group") or None)


def _columns_of(cells: list[str]) -> dict[str, int]:
    """Which column holds what, by a CSV's first line."""
    header = [cell.lower() for cell in cells]
    columns: dict[str, int] = {name: header.index(name) for name in ("split", "group") if name in header}
    if not columns:
        return {"path": 0, "split": 1}
    others = [column for column in range(len(header)) if column not in columns.values()]
    named = [header.index(name) for name in ("path", "image", "file", "filename") if name in header]
    return {"path": [*named, *others, 0][0], **columns}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown
