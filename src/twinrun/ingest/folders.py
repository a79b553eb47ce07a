"""Sources that are trees of image files: `<class>/...`, `<split>/<class>/...` and others. Opens no image.

`walking.py` says which files count, and `levels.py` what each level of folders is (a reading). This module makes the
listing, with notes on anything a person may not expect. Folders below the levels of a reading do not change the class.
"""

import glob
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from twinrun.base.errors import SourceError
from twinrun.base.paths import expanded, not_a_folder
from twinrun.base.printing import escaped
from twinrun.core.params import IngestParams, Level
from twinrun.dataset.manifest import SPLITS, SplitName
from twinrun.dataset.table import NO_LABEL, NO_LABEL_IN_LIST
from twinrun.ingest.levels import (
    Parts,
    Place,
    Reading,
    is_mask_folder,
    mask_files,
    mask_pattern,
    possible_readings,
    reading_as,
    split_names,
    split_names_among_labels,
    words_in,
)
from twinrun.ingest.listing import Files, Item, Listing, some_names, sorted_listing, source_folder
from twinrun.ingest.sharing import nearby
from twinrun.ingest.walking import Walk, walk_folder
from twinrun.tables.sheet import Line, decoded, expect_no_more_cells, read_sheet
from twinrun.tables.spelling import Names, told_apart

Levels = Literal["auto"] | Sequence[Level]

_SPLITS_FILE = "params.yaml: ingest.splits_file"
_SHEETS = (".csv", ".tsv")
_PATH_COLUMNS = (
    *("path", "image", "file", "filename", "filepath", "file_path", "file_name", "image_path", "image_name", "img"),
)
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_GROUP_COLUMNS = ("group", "group_id")
_LABEL_COLUMNS = ("label", "class", "class_name", "category")
_LAYOUT = "Lay it out as <class>/<image> or <split>/<class>/<image>"
_CLASSES_SHOWN = 6
_OPTIONS = "levels|splits_file|depth|ground|bands"  # settings that are options of a check too
REPORT_FILES = ("index.html", "result.json", "findings.parquet")  # what a check of a folder writes

_TRASHNET_LISTS: dict[SplitName, str] = {
    "train": "one-indexed-files-notrash_train.txt",
    "val": "one-indexed-files-notrash_val.txt",
    "test": "one-indexed-files-notrash_test.txt",
}


@dataclass(frozen=True)
class _Content:
    """The images of a folder under one reading: their items, their files, and notes for the person."""

    items: list[Item]
    files: list[Path]
    notes: list[str]


def list_tree(params: IngestParams) -> Listing:
    """List the source `folder` or `trashnet` of `params`; raises SourceError as those do."""
    root = source_folder(params)
    splits_file = expanded(params.splits_file) if params.splits_file is not None else None
    make = list_trashnet if params.source == "trashnet" else list_folder
    listing = make(root, splits_file, params.levels, params.leave_out, follow_links=params.follow_links)
    if splits_file is None or splits_file.resolve().is_relative_to(root.resolve()):
        return listing
    note = (
        f"{splits_file} is outside {root}, so `dvc repro` does not notice its changes. Move it into that folder, or "
        "run after each change: dvc repro -f ingest, then dvc repro."
    )
    return replace(listing, notes=[*listing.notes, note])


def list_folder(
    root: Path,
    splits_file: Path | None = None,
    levels: Levels = "auto",
    leave_out: Sequence[str] = (),
    *,
    follow_links: bool = False,
) -> Listing:
    """List a tree of images; `splits_file` names their splits and groups, and overrides folders.

    It names their labels too where the folders do not name two classes or more.

    Raises SourceError where the folder is missing, is empty, has only one class or can be read in two ways, where a
    sub-folder cannot be read, or where the splits file does not fit. Unreadable sub-folders are left out only if
    `leave_out` says so: otherwise images would be missing from the training without anybody having decided it.
    """
    if not root.is_dir():
        problem = not_a_folder(root)
        others = nearby(Path.cwd(), str(root))
        raise SourceError(
            f"The source folder {root} {problem} (params.yaml: ingest.path).{others} {_LAYOUT} and name it there."
        )
    skipped = [splits_file] if splits_file is not None else []
    walk = walk_folder(root, leave_out, skipped, follow_links=follow_links)
    if walk.unreadable:
        raise SourceError(
            f"The source folder {root} has folders that cannot be read: {some_names(walk.unreadable)}. Make them "
            "readable, or leave them out: params.yaml: ingest.leave_out."
        )
    if walk.outside:
        raise SourceError(
            f"The source folder {root} has {_links(walk)} out of it: {some_names(walk.outside)}. Copy the images into "
            "the folder, leave them out (params.yaml: ingest.leave_out), or set ingest.follow_links: true."
        )
    if not walk.files:
        raise SourceError(f"The source folder {root} has no images (params.yaml: ingest.path). {_LAYOUT}.{_said(walk)}")
    readings = _readings(walk, levels)
    if len(readings) > 1:
        raise SourceError(
            f"The folders in {root} can be read in {len(readings)} ways. Write the right one into params.yaml:\n"
            + "\n".join(f"  ingest.levels: {_counts(reading, walk)}" for reading in readings)
        )
    if levels == "auto" and (doubt := _splits_among_classes(walk, readings[0], leave_out)):
        raise SourceError(
            f"The folders in {root} can be read in 2 ways, since {doubt[0]}. Write the right one into params.yaml:\n"
            + "\n".join(f"  {way}" for way in doubt[1:])
        )
    content = _content(root, walk, readings[0], strict=True)
    note = content.notes[0]
    if splits_file is not None:
        content = _by_list(root, walk, readings[0], content, splits_file)
    _expect_classes(root, content.items, note, readings[0], splits_file)
    return sorted_listing(content.items, Files(content.files), content.notes)


def list_images(
    root: Path,
    out: Path,
    levels: Levels = "auto",
    leave_out: Sequence[str] = (),
    *,
    splits_file: Path | None = None,
    follow_links: bool = False,
) -> Listing:
    """List any folder of images; folders are labels where there are two or more of them, and `splits_file` otherwise.

    The folder `out` is left out, unless it has more than the report of an earlier check. Unreadable folders, files
    without a place in the reading and reports of earlier checks are left out with a note. If there are two readings,
    the likelier is used, and a note names both. Raises SourceError where the folder is missing or has no images, or
    where the splits file does not fit. Notes and errors name options of `twinrun data check`.
    """
    if not root.is_dir():
        raise SourceError(f"{root} {not_a_folder(root)}. Name a folder of images.")
    has_more = out.is_dir() and any(path.name not in REPORT_FILES for path in out.glob("[!.]*"))
    skipped = [*([] if has_more else [out]), *([splits_file] if splits_file is not None else [])]
    walk = walk_folder(root, leave_out, skipped, REPORT_FILES, follow_links=follow_links)
    if not walk.files:
        raise SourceError(f"{root} has no images in it. Name a folder of images.{_said(walk)}")
    readings = _readings(walk, levels)
    content = _content(root, walk, readings[0], strict=False)
    if splits_file is not None:
        try:
            content = _by_list(root, walk, readings[0], content, splits_file)
        except SourceError as error:
            raise SourceError(as_options(str(error))) from None
    items, notes = content.items, [as_options(note) for note in content.notes]
    if len({item.label for item in items} - {None}) < 2:
        items = [replace(item, label=None, problem=None) for item in items]
    if len(readings) > 1:
        ways = [f"{_counts(reading, walk)} (--levels {','.join(reading.levels)})" for reading in readings]
        both = f"These folders can be read in {len(ways)} ways; the first is used here: {'; or '.join(ways)}."
        notes = [
            f"{both} In a pipeline, set ingest.levels, such as ingest.levels: [{', '.join(readings[0].levels)}].",
            *notes,
        ]
    elif levels == "auto" and (doubt := _splits_among_classes(walk, readings[0], leave_out)):
        notes = [f"Read as classes here, although {doubt[0]}. In a pipeline: {'; or '.join(doubt[1:])}.", *notes]
    return sorted_listing(items, Files(content.files), notes)


def list_trashnet(
    root: Path,
    splits_file: Path | None = None,
    levels: Levels = "auto",
    leave_out: Sequence[str] = (),
    *,
    follow_links: bool = False,
) -> Listing:
    """TrashNet: `dataset-resized/<class>/` and the three published lists beside it, one for each split."""
    images = root / "dataset-resized"
    if not images.is_dir():
        raise SourceError(
            f"{images} does not exist (params.yaml: ingest.path). TrashNet is dataset-resized.zip and the lists "
            f"{', '.join(_TRASHNET_LISTS.values())} of "
            f"https://github.com/garythung/trashnet (folder data): unpack them into {root}."
        )
    if splits_file is not None:
        return list_folder(images, splits_file, levels, leave_out, follow_links=follow_links)
    lists: dict[Path, SplitName | None] = {root / name: split for split, name in _TRASHNET_LISTS.items()}
    if missing := [path.name for path in lists if not path.is_file()]:
        raise SourceError(
            f"{root} lacks TrashNet's published split lists {', '.join(missing)}. Fetch them from "
            "https://github.com/garythung/trashnet (folder data), or let Twinrun split the images: "
            f"ingest.source: folder, ingest.path: {images}."
        )
    listing = list_folder(images, None, levels, leave_out, follow_links=follow_links)
    items, notes = _placed(listing.items, _read_lists(lists, listing.items, images))
    return Listing(items, listing.content, listing.notes + notes)


def as_options(text: str) -> str:
    """A text with the options of `twinrun data check` in place of settings."""

    def option(match: re.Match[str]) -> str:
        value = (match[3] or "").replace(", ", ",")
        return f"--{match[1].replace('_', '-')}{' ' if match[2] else ''}{value}"

    return re.sub(rf"(?:params\.yaml: )?ingest\.({_OPTIONS})(: )?(?:\[([^\]]*)\])?", option, text)


def _links(walk: Walk) -> str:
    return "a link that leads" if len(walk.outside) == 1 else f"{len(walk.outside):,} links that lead"


def _said(walk: Walk) -> str:
    notes = walk.notes()
    return f" {' '.join(notes)}" if notes else ""


def _readings(walk: Walk, levels: Levels) -> list[Reading]:
    images = _images_by_folder(walk)
    if levels == "auto":
        return possible_readings(images)
    if twice := [level for level in ("split", "label", "group") if list(levels).count(level) > 1]:
        raise SourceError(
            f"The levels [{', '.join(levels)}] name {twice[0]} twice (ingest.levels); only skip may be repeated."
        )
    return [reading_as(levels, images)]


def _splits_among_classes(walk: Walk, reading: Reading, leave_out: Sequence[str]) -> list[str]:
    """Why folders named as splits among the classes are in doubt, and two ways to read them; [] if there are none."""
    images = _images_by_folder(walk)
    odd = split_names_among_labels(reading, images)
    if not odd:
        return []
    others = sorted({reading.place(folders).label or "" for folders in images} - {parts[-1] for parts in odd} - {""})
    names = sorted({parts[-1] for parts in odd})
    patterns = [*leave_out, *map(_pattern, sorted(odd))]
    condition = "it is not a class" if len(names) == 1 else "they are not classes"
    return [
        f"{' and '.join(_shown(names))} {'is' if len(names) == 1 else 'are'} named as a split and "
        f"{'lies' if len(names) == 1 else 'lie'} beside folders that are not ({some_names(_shown(others))})",
        f"ingest.levels: {_counts(reading, walk)}",
        f"ingest.leave_out: [{_quoted(patterns)}], if {condition}",
    ]


def _quoted(patterns: Iterable[str]) -> str:
    return ", ".join(f'"{escaped(pattern)}"' for pattern in patterns)


def _pattern(folders: Sequence[str]) -> str:
    """A pattern for `ingest.leave_out` that matches all in a folder. Bytes that YAML cannot hold become ?."""
    path = glob.escape("/".join(folders))
    return "".join("?" if "\udc80" <= character <= "\udcff" else character for character in path) + "/*"


def _images_by_folder(walk: Walk) -> Counter[Parts]:
    return Counter(folders for folders, _ in walk.files)


def _counts(reading: Reading, walk: Walk) -> str:
    """A reading with an example and counts: "[split, label], as in train/cat: train 80, test 20; 2 classes (...)"."""
    images = _images_by_folder(walk)
    places = {folders: reading.place(folders) for folders in images}
    splits, labels, groups = Counter[str](), Counter[str](), set()
    for folders, place in places.items():
        if place.stray is None and (place.label is not None or "label" not in reading.levels):
            splits[place.split or ""] += images[folders]
            labels[escaped(place.label or "")] += images[folders]
            groups.add(place.group)
    depth = len(reading.levels)
    deepest = max(places, key=lambda folders: (places[folders].label is not None, min(len(folders), depth)))
    parts = [", ".join(f"{split} {splits[split]:,}" for split in SPLITS if splits[split])]
    if known := sorted(labels.keys() - {""}):
        named = told_apart(known)
        shown = ", ".join(f"{named[label]} {labels[label]:,}" for label in known[:_CLASSES_SHOWN])
        more = ", ..." if len(known) > _CLASSES_SHOWN else ""
        parts.append(f"{len(known):,} {'class' if len(known) == 1 else 'classes'} ({shown}{more})")
    elif reading.levels:
        parts.append("no classes")
    if "group" in reading.levels:
        number = len(groups - {None})
        parts.append(f"{number:,} {'group' if number == 1 else 'groups'}")
    example = escaped("/".join(deepest[:depth]))
    return f"[{', '.join(reading.levels)}]{f', as in {example}' if example else ''}: {'; '.join(filter(None, parts))}"


def _content(root: Path, walk: Walk, reading: Reading, *, strict: bool) -> _Content:
    """Items of the files of `walk`, and notes; if `strict`, an image without a place in the reading is an error."""
    images = _images_by_folder(walk)
    places = {folders: reading.place(folders) for folders in images}
    unlabelled = _unlabelled(places, reading)
    strays = {place.stray for folders, place in places.items() if place.stray is not None and folders not in unlabelled}
    if strict and strays:
        raise SourceError(_beside_splits(root, sorted(strays), places, reading))
    passed_over = {folders for folders, place in places.items() if place.stray is not None}
    if strict:
        passed_over |= unlabelled.keys()
    items, files = [], []
    prefixes = {folders: "".join(f"{name}/" for name in folders) for folders in images}
    for folders, name in walk.files:
        if folders in passed_over:
            continue
        place = places[folders]
        problem = NO_LABEL if place.label is None and folders not in unlabelled else None
        items.append(
            Item(
                escaped(prefixes[folders] + name),
                None if place.label is None else escaped(place.label),
                place.split,
                problem,
                None if place.group is None else escaped(place.group),
            )
        )
        files.append(root / prefixes[folders] / name)
    notes = [_note_on_reading(reading, walk), *_notes_on_splits(reading)]
    if strays:
        notes.append(f"Left out, since they lie beside folders named as splits: {some_names(_shown(strays))}.")
    notes += _notes_on_labels(items, unlabelled, images, reading, strict)
    notes += _notes_on_folders(walk, reading, images, passed_over)
    notes += _notes_on_mask_files(walk, passed_over)
    return _Content(items, files, notes + walk.notes())


def _note_on_reading(reading: Reading, walk: Walk) -> str:
    if not reading.levels:
        return f"No folders that could be classes: {_images(len(walk.files))} without labels."
    return f"Folders read as {_counts(reading, walk)}."


def _notes_on_splits(reading: Reading) -> list[str]:
    """Which split each folder is, where its name is not the split's own."""
    parts = []
    for split in SPLITS:
        names = _shown(name for name, meant in reading.splits.items() if meant == split)
        if any(name.casefold() != split for name in names):
            parts.append(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {split}")
    return [f"Folders taken for splits: {'; '.join(parts)}."] if parts else []


def _shown(names: Iterable[str]) -> list[str]:
    return sorted(map(escaped, names))


def _unlabelled(places: Mapping[Parts, Place], reading: Reading) -> dict[Parts, str]:
    """Folders of unlabelled images in a set that also has labelled ones, each with its folder of the split level."""
    levels = list(reading.levels)
    if "split" not in levels or "label" not in levels[levels.index("split") :]:
        return {}
    depth = levels.index("split")
    labelled = {folders[depth] for folders, place in places.items() if place.label is not None}
    return (
        {folders: folders[depth] for folders in places if len(folders) > depth and folders[depth] not in labelled}
        if labelled
        else {}
    )


def _beside_splits(root: Path, strays: list[str], places: Mapping[Parts, Place], reading: Reading) -> str:
    depth = reading.levels.index("split") + 1
    pattern = _pattern(min(folders for folders, place in places.items() if place.stray == strays[0])[:depth])
    others = some_names(_shown(strays))
    if reading.splits:
        problem = f"{root} has folders named as splits ({', '.join(_shown(reading.splits))}) beside others ({others})."
    else:
        problem = f"{root} has no folders named as splits where ingest.levels has them: {others}."
    return (
        f"{problem} Name them train, val or test, move them elsewhere, or leave them out: "
        f"params.yaml: ingest.leave_out: [{_quoted([pattern])}]."
    )


def _expect_classes(root: Path, items: list[Item], note: str, reading: Reading, splits_file: Path | None) -> None:
    classes = sorted({item.label for item in items if item.label is not None})
    if len(classes) > 1:
        return
    structure = f"one class, {classes[0]!r}," if classes else "no class folders"
    if not classes and "label" not in reading.levels and "group" in reading.levels:
        structure = "no level of folders that is the label,"
    elif not classes and reading.splits:
        structure = f"folders named as splits ({', '.join(_shown(reading.splits))}) and no class folders in them,"
    by_list = "set ingest.splits_file to a CSV with the columns path and label"
    if splits_file is not None:
        by_list = f"put the classes into a column label of {splits_file}, which names none ({_SPLITS_FILE})"
    raise SourceError(
        f"The source folder {root} has {structure} and a classifier needs at least two classes "
        f"(params.yaml: ingest.path). {note} {_LAYOUT}, say what each level of folders is (ingest.levels), or "
        f"{by_list}."
    )


def _notes_on_labels(
    items: list[Item], unlabelled: Mapping[Parts, str], images: Mapping[Parts, int], reading: Reading, left_out: bool
) -> list[str]:
    notes = []
    without, strange = Counter[str](), Counter[str]()
    depth = len(reading.levels)
    for folders, name in unlabelled.items():
        if name in reading.unlabelled:
            strange[escaped("/".join(folders[:depth]))] += images[folders]
        else:
            without[escaped(name)] += images[folders]
    start = "Left out, since" if left_out else "Without labels, since"
    if without:
        notes.append(f"{start} they have no class folders: {_with_images(without)}.")
    if strange:
        notes.append(
            f"{start} the only folder of a split is a class of no other split: {_with_images(strange)}. If it is a "
            f"class: ingest.levels: [{', '.join(reading.levels)}]."
        )
    splits: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if item.label is not None and item.split is not None:
            splits[item.label].add(item.split)
    if len(set().union(*splits.values())) > 1:
        shown = told_apart(sorted(splits))
        alone = [f"{shown[label]} ({min(where)})" for label, where in sorted(splits.items()) if len(where) == 1]
        if alone:
            notes.append(f"Classes that are in only one split: {some_names(alone)}.")
    return notes


def _with_images(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({_images(count)})" for name, count in sorted(counts.items()))


def _notes_on_mask_files(walk: Walk, left_out: set[Parts]) -> list[str]:
    """A note on files that are named as masks of others beside them."""
    names: dict[Parts, list[str]] = defaultdict(list)
    for folders, name in walk.files:
        if folders not in left_out:
            names[folders].append(name)
    masks = [(folders, name) for folders, files in names.items() for name in mask_files(files)]
    if not masks:
        return []
    patterns = sorted({mask_pattern(name) for _, name in masks})
    first = escaped("/".join((*masks[0][0], masks[0][1])))
    return [
        f"{len(masks):,} of {sum(map(len, names.values())):,} images are named as masks of others beside them, such "
        f"as {first}. If they are not photos of their class, leave them out: ingest.leave_out: [{_quoted(patterns)}]."
    ]


def _notes_on_folders(walk: Walk, reading: Reading, images: Counter[Parts], left_out: set[Parts]) -> list[str]:
    """Notes on empty folders, masks beside photos, and folders deeper than the reading."""
    notes = []
    depths = {place + 1 for place, level in enumerate(reading.levels) if level in ("split", "label")}
    full = {folders[:depth] for folders in images for depth in depths}
    empty = {folders for folders in walk.folders if len(folders) in depths and folders not in full}
    if named := [escaped("/".join(folders)) for folders in sorted(empty) if folders[:-1] not in empty]:
        notes.append(f"Folders without images where classes are expected: {some_names(named)}.")
    taken = Counter({folders: count for folders, count in images.items() if folders not in left_out})
    meant = [level for level in reading.levels if level in ("split", "label", "group")]
    masks: Counter[str] = Counter()
    deeper: Counter[Parts] = Counter()
    beside: dict[Parts, set[Parts]] = defaultdict(set)
    for folders in walk.folders:
        if folders:
            beside[folders[:-1]].add(words_in(folders[-1]))
    for folders, count in taken.items():
        if mask := next(
            filter(None, (_mask_at(folders, place, reading, beside) for place in range(len(folders)))), None
        ):
            masks[mask] += count
        elif meant and len(folders) > len(reading.levels):
            deeper[folders] += count
    if masks and masks.total() < taken.total():
        patterns = _quoted(f"*/{_pattern([name])}" for name in sorted(masks))
        notes.append(
            f"{masks.total():,} of {taken.total():,} images lie in folders named {some_names(_shown(masks))}, as masks "
            f"do. If they are not photos of their class, leave them out: ingest.leave_out: [{patterns}]."
        )
    return notes + ([_note_on_deeper(deeper, reading)] if _are_many(deeper) else [])


def _mask_at(folders: Parts, place: int, reading: Reading, beside: Mapping[Parts, set[Parts]]) -> str | None:
    """The folder's name, if it is one of masks. A class folder counts only if named after another, as cat_mask is."""
    name = folders[place]
    is_free = place >= len(reading.levels) or reading.levels[place] == "skip"
    if not is_free and is_mask_folder(name):
        return None
    above = set(map(words_in, folders[:place])) if is_free else ()
    return name if is_mask_folder(name, beside[folders[:place]]) or is_mask_folder(name, above) else None


def _are_many(deeper: Counter[Parts]) -> bool:
    # class/images/ is no evidence of groups if every class has that folder.
    return len({folders[-1] for folders in deeper}) > 1 or (0 < len(deeper) < 2)


def _note_on_deeper(deeper: Counter[Parts], reading: Reading) -> str:
    note = (
        f"{_images(deeper.total())} {'is' if deeper.total() == 1 else 'are'} in {_deeper_folders(deeper)}, and "
        f"{'has' if deeper.total() == 1 else 'have'} the class of the folder above."
    )
    if len(deeper) > 1 and "group" not in reading.levels:
        note += (
            " If the images of such a folder belong together (a patient, a clip), keep them in one split: "
            f"ingest.levels: [{', '.join((*reading.levels, 'group'))}]."
        )
    return note


def _deeper_folders(deeper: Counter[Parts]) -> str:
    first = escaped("/".join(min(deeper)))
    return f"1 deeper folder, {first}" if len(deeper) == 1 else f"{len(deeper):,} deeper folders, such as {first}"


@dataclass(frozen=True)
class _Named:
    """What a splits file says about an image."""

    split: SplitName | None
    group: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class _Places:
    """What splits files say about images: by path, by file name, or by file name without suffix.

    `counts` are the images of each short name, and `stems` those names that lack the suffix.
    """

    named: Mapping[str, _Named]
    where: str
    counts: Mapping[str, int]
    stems: Collection[str]
    notes: list[str]

    def without_labels(self) -> "_Places":
        return replace(self, named={name: replace(place, label=None) for name, place in self.named.items()})

    def name_of(self, item: Item) -> str | None:
        """The name by which an image is named; raises SourceError where others have it too."""
        path = Path(item.path)
        names = (item.path, path.name, path.stem) if path.stem in self.stems else (item.path, path.name)
        name = next((name for name in names if name in self.named), None)
        if name is not None and name != item.path and self.counts[name] > 1:
            raise SourceError(
                f"{self.where} names {name}, but {self.counts[name]} images have that name: write the path, such as "
                f"{item.path}."
            )
        return name


def _read_lists(lists: Mapping[Path, SplitName | None], items: list[Item], root: Path) -> _Places:
    """What `lists` say about the labels, splits and groups of images; a list of one split names only images."""
    named: dict[str, _Named] = {}
    by_name = Counter(Path(item.path).name for item in items)
    by_stem = Counter(stem for item in items if (stem := Path(item.path).stem) not in by_name)
    known = Names({item.path for item in items} | by_name.keys() | by_stem.keys(), root)
    comments = 0
    for path, split in lists.items():
        for written, place in _read_places(path, split, known, by_stem.keys()):
            name = known.find(written)
            if name is None and written.startswith("#"):
                comments += 1
                continue
            name = escaped(written) if name is None else name
            if named.setdefault(name, place) != place:
                raise SourceError(
                    f"{path} puts {name} into {_described(place)}, but another line puts it into "
                    f"{_described(named[name])}. Remove one of them."
                )
    where = ", ".join(map(str, lists))
    notes = known.note(where)
    if comments:
        lines = "1 line" if comments == 1 else f"{comments:,} lines"
        notes = [*notes, f"Read as comments, since they begin with # and name no image: {lines} of {where}."]
    return _Places(named, where, by_name + by_stem, by_stem.keys(), notes)


def _by_list(root: Path, walk: Walk, reading: Reading, content: _Content, splits_file: Path) -> _Content:
    """The content with the splits and groups that `splits_file` names, and its labels if the folders name none."""
    items, notes = content.items, content.notes
    places = _read_lists({splits_file: None}, items, root)
    labels = {place.label for place in places.named.values()} - {None}
    by_folder = len({item.label for item in items} - {None}) > 1
    if labels and by_folder:
        places = places.without_labels()
        notes = [*notes, f"The labels are those of the folders, not those in {splits_file}. {_by_file(reading)}"]
        labels = set()
    elif labels:
        notes = [f"Labels are those of {splits_file}: {len(labels):,} classes.", *notes[1:]]
    elif not by_folder:
        notes = [*notes, f"{splits_file} names no labels. Put them into a column label of it."]
    left_out = {name for _, name in walk.files} - {Path(item.path).name for item in items}
    items, more = _placed(items, places, left_out, _by_file(reading))
    if len(labels) == 1:
        raise SourceError(
            f"{splits_file} names one class, {labels.pop()!r}, and a classifier needs at least two ({_SPLITS_FILE})."
        )
    return replace(content, items=items, notes=[*notes, *more])


def _by_file(reading: Reading) -> str:
    """How labels of a splits file are taken where the folders have some."""
    levels = list(reading.levels)
    above = levels[: levels.index("label")] if "label" in levels else levels
    return f"To take all labels from that file: ingest.levels: [{', '.join(above or ['skip'])}]."


def _placed(
    items: list[Item], places: _Places, left_out: Collection[str] = (), advice: str = ""
) -> tuple[list[Item], list[str]]:
    """Items with the labels, splits and groups that `places` name, and notes.

    Raises SourceError where an image is not there; with `advice` where it is one of those `left_out`, by name.
    """
    labels = any(place.label for place in places.named.values())
    result, used = [], set()
    for item in items:
        name = places.name_of(item)
        place = _Named(None)
        if name is not None:
            place = places.named[name]
            used.add(name)
        so_far = replace(item, split=place.split or item.split, group=place.group or item.group)
        if labels and item.problem in (None, NO_LABEL):
            so_far = replace(so_far, label=place.label, problem=None if place.label else NO_LABEL_IN_LIST)
        result.append(so_far)
    if absent := sorted(places.named.keys() - used):
        known = {*left_out, *(Path(name).stem for name in left_out)}
        out = any(Path(path).name in known for path in absent)
        are = "is" if len(absent) == 1 else "are"
        raise SourceError(
            f"{places.where} names {_images(len(absent))} that {are} {'left out' if out else 'not there'}: "
            f"{some_names(absent)}.{f' {advice}' if out else _meant(absent, items)}"
        )
    notes = list(places.notes)
    by_split = any(place.split or (place.group and not labels) for place in places.named.values())
    unnamed = [item.path for item in result if item.split is None] if by_split else []
    if unnamed:
        notes.append(f"Without a split in {places.where}; the pipeline chooses one: {some_names(unnamed)}.")
    return result, notes


def _meant(absent: Iterable[str], items: Iterable[Item]) -> str:
    """What to do with names that are not there: if an image has the file name of one of them, how to write it."""
    paths = {name.casefold(): item.path for item in items for name in (Path(item.path).stem, Path(item.path).name)}
    names = (re.split(r"[\\/]+", name)[-1].casefold() for name in absent)
    path = next((paths[name] for name in names if name in paths), None)
    if path is not None:
        return f" Write each path as it is inside the folder of images, such as {path}."
    return " Remove the lines of images that are not there, or add these images."


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _described(place: _Named) -> str:
    of = ", ".join(f"{name} {value}" for name, value in (("label", place.label), ("group", place.group)) if value)
    return " ".join(filter(None, [place.split or "no split", of and f"({of})"]))


def _read_places(
    path: Path, split: SplitName | None, known: Names, stems: Collection[str]
) -> Iterator[tuple[str, _Named]]:
    """Names of images with their labels, splits and groups: the columns of a CSV, or the two of a text.

    A CSV with a header has the column `path` and some of `label`, `split` and `group`; without a header its columns are
    path and split. Where `split` is given, the file is a list of images of that split, and further columns are ignored.
    A line that begins with # and names no image of those that are `known` is a comment. Of a column that is taken for
    the paths since it is the first of several, `stems` are no names: it may hold numbers of lines.
    """
    columns: dict[str, int] | None = None
    header: Sequence[str] = ()
    is_sheet = path.suffix.lower() in _SHEETS
    for line in _lines(path, is_sheet, split is not None):
        cells = line.cells
        if split is not None:
            yield cells[0], _Named(split)
            continue
        is_comment = cells[0].startswith("#") and known.find(cells[0].strip()) is None
        if columns is None and is_comment and not _is_header(cells):
            continue
        if columns is None:
            columns = _columns_of(cells) if is_sheet else {"path": 0, "split": 1}
            if is_sheet and _is_header(cells):
                header = cells
                _expect_named_once(header, columns, f"{path}, line {line.number}")
                continue
        if header and not is_comment:
            expect_no_more_cells(header, cells, f"{path}, line {line.number}", SourceError)
        cell_of = {name: cells[column] if column < len(cells) else "" for name, column in columns.items()}
        written, group = cell_of["path"], cell_of.get("group", "").strip() or None
        its_split = _split_of(cell_of.get("split", "").strip())
        label = escaped(unicodedata.normalize("NFC", cell_of.get("label", "").strip())) or None
        if its_split is None and (cell_of.get("split") or not {"group", "label"} & columns.keys()):
            if is_comment:
                continue
            where = "A header" if is_sheet else "The header of a CSV (.csv or .tsv)"
            raise SourceError(
                f"{path}, line {line.number}: expected an image and its split (train, val or test), found "
                f"{', '.join(map(repr, cells))}. {where} may name the columns path, label, split and group."
            )
        if not written.strip():
            raise SourceError(
                f"{path}, line {line.number}: no image is named in {', '.join(map(repr, cells))}. Name it, or remove "
                "the line."
            )
        if written in stems and _is_guess(header, columns):
            raise SourceError(
                f"{path}, line {line.number}: {written!r} may be a number of the line. Call the column of the images "
                "path, or leave no other columns than label, split and group beside it."
            )
        yield written, _Named(its_split, group, label)


def _lines(path: Path, is_sheet: bool, only_names: bool) -> Iterator[Line]:
    try:
        if is_sheet:
            yield from read_sheet(path, _SPLITS_FILE, SourceError).lines
            return
        text = decoded(path, _SPLITS_FILE, SourceError)
    except FileNotFoundError:
        raise SourceError(f"The splits file {path} does not exist ({_SPLITS_FILE}).") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            stripped = line.removesuffix("\r")
            parts = stripped.rsplit(None, 1)
            yield Line(number, tuple(parts) if len(parts) == 2 or not only_names else (stripped.strip(),))


def _split_of(word: str) -> SplitName | None:
    return split_names([word]).get(word)


def _is_header(cells: Sequence[str]) -> bool:
    words = {cell.strip().lower() for cell in cells}
    # Without a header a line is an image and its split.
    return bool(words & {*_SPLIT_COLUMNS, *_GROUP_COLUMNS}) or (
        bool(words & {*_LABEL_COLUMNS}) and not any(map(_split_of, words))
    )


def _expect_named_once(header: Sequence[str], columns: Mapping[str, int], where: str) -> None:
    names = [cell.strip().lower() for cell in header]
    if twice := next((names[column] for column in columns.values() if names.count(names[column]) > 1), None):
        raise SourceError(f"{where}: two columns are called {twice}. Rename or remove one of them.")


def _is_guess(header: Sequence[str], columns: Mapping[str, int]) -> bool:
    """Whether the column of the images is only the first of several that might be it."""
    if not header:
        return False
    return header[columns["path"]].strip().lower() not in _PATH_COLUMNS and len(header) > len(columns)


def _columns_of(cells: Sequence[str]) -> dict[str, int]:
    """The index of each column, from a CSV's first line."""
    header = [cell.strip().lower() for cell in cells]
    named = {"split": _SPLIT_COLUMNS, "group": _GROUP_COLUMNS, "label": _LABEL_COLUMNS}
    columns = {
        content: header.index(names[0])
        for content, known in named.items()
        if (names := [name for name in known if name in header])
    }
    if not columns:
        return {"path": 0, "split": 1}
    others = [column for column in range(len(header)) if column not in columns.values()]
    paths = [header.index(name) for name in _PATH_COLUMNS if name in header]
    if not paths and not others and "label" in columns:
        others = [columns.pop("label")]
    return {"path": [*paths, *others, 0][0], **columns}
