"""Walking a folder: which of its files are images to use, and how many others are left out, by reason.

A file counts unless it belongs to an operating system or another program (litter), matches a pattern of
`ingest.leave_out`, or has neither the suffix nor the first bytes of an image. The meaning of folders is decided in
`levels.py`.
"""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from twinrun.base.errors import SourceError
from twinrun.base.files import IN_DVC_CACHE
from twinrun.base.printing import escaped
from twinrun.base.regular_files import open_regular
from twinrun.ingest.listing import some_names, words_of

Parts = tuple[str, ...]  # names of folders, from the top, inside the folder that is walked

_LITTER = words_of(
    """.ds_store .directory .gitkeep desktop.ini thumbs.db ehthumbs.db ehthumbs_vista.db .nomedia .picasa.ini picasa.ini
    __macosx @eadir #recycle @recycle @recently-snapshot #snapshot $recycle.bin lost+found __pycache__"""
) | {"icon\r", "system volume information"}
IMAGE_SUFFIXES = words_of(
    """.jpg .jpeg .jpe .jfif .png .apng .gif .bmp .dib .tif .tiff .webp .pbm .pgm .ppm .pnm .pfm .heic .heif .avif .jp2
    .j2k .jpx .jpf .jxl .jxr .ico .cur .tga .pcx .psd .svg .exr .hdr .qoi .sgi .xbm .xpm .dcm .dicom .dng .cr2 .cr3 .crw
    .nef .nrw .arw .orf .rw2 .raf .pef .srw .raw .npy .nii"""
)
# Files that are still being downloaded may begin like an image.
_UNFINISHED = words_of(".crdownload .part .partial .download .opdownload .filepart .aria2 .!ut")
_IMAGE_STARTS = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  "),
    *(b"\xff\x4f\xff\x51", b"\x93NUMPY", b"\0\0\1\0"),
)
_HEIF_BRANDS = (
    *(b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"),
    *(b"mif1", b"msf1", b"avif", b"avis"),
)
_LOOKED_AT = 512
_DEEPEST = 100  # levels of folders
_MOST_PATHS = 1000  # to one folder by links: folders that link to one another have exponentially many
_SHOWN = 3


@dataclass
class Walk:
    """The content of a folder: the files that count, each with its folders, and what was left out."""

    files: list[tuple[Parts, str]] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    no_images: Counter[str] = field(default_factory=Counter)  # by suffix
    litter: Counter[str] = field(default_factory=Counter)  # by name
    patterns: Counter[str] = field(default_factory=Counter)  # by pattern of ingest.leave_out
    loops: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)  # links out of the folder, with their targets

    def notes(self) -> list[str]:
        """One sentence for each reason why something was left out."""
        notes, parts = [], []
        if self.no_images:
            parts.append(_counted(self.no_images, "file that is not an image", "files that are not images"))
        if self.litter:
            parts.append(
                _counted(self.litter, "file or folder of other programs", "files and folders of other programs")
            )
        if parts:
            notes.append(f"Left out: {' and '.join(parts)}.")
        for pattern, count in self.patterns.items():
            files = f"{count:,} {'file' if count == 1 else 'files'}" if count else "nothing"
            notes.append(f'Left out by the pattern "{pattern}": {files}.')
        if self.reports:
            notes.append(f"Left out, since it is the report of a check: {some_names(self.reports)}.")
        if self.loops:
            notes.append(f"Not followed, since it leads back to a folder above: {some_names(self.loops)}.")
        if self.outside:
            notes.append(f"Not followed, since they lead out of the folder: {some_names(self.outside)}.")
        if self.unreadable:
            notes.append(f"Folders that cannot be read and were left out: {some_names(self.unreadable)}.")
        return notes


@dataclass(frozen=True)
class _Folder:
    """A folder to be walked; `key` is its device and inode number, and `above` has those of it and all above it."""

    path: str
    parts: Parts
    key: tuple[int, int]
    above: frozenset[tuple[int, int]]


def walk_folder(
    root: Path,
    leave_out: Sequence[str] = (),
    skipped: Sequence[Path] = (),
    report: Sequence[str] = (),
    *,
    follow_links: bool = False,
) -> Walk:
    """Walk `root` in one pass and follow links; a folder that is reached twice is listed twice, except in loops.

    A link that leads out of `root` is followed if `follow_links` is set, or if it leads into DVC's cache. `leave_out`
    are patterns on paths inside `root`; a pattern that matches a folder leaves out all in it. `skipped` are files and
    folders to ignore. The files named in `report` are left out of a folder that has all of them. Raises SourceError
    where links lead to one folder by more than _MOST_PATHS paths.
    """
    walk = Walk(patterns=Counter(dict.fromkeys(leave_out, 0)))
    passed_over = {(status.st_dev, status.st_ino) for status in map(_stat, map(str, skipped)) if status is not None}
    matches = [(pattern, _matcher(pattern)) for pattern in leave_out]
    inside = None if follow_links else root.resolve()
    top = _stat(str(root))
    key = (top.st_dev, top.st_ino) if top else (0, 0)
    waiting = [_Folder(str(root), (), key, frozenset({key}))]
    paths: Counter[tuple[int, int]] = Counter()  # to each folder
    while waiting:
        folder = waiting.pop()
        entries = _entries(folder, walk)
        names = {entry.name for entry in entries}
        is_report = bool(report) and names.issuperset(report)
        if is_report:
            walk.reports.append(escaped("/".join(folder.parts)) or ".")
        below = []
        for entry in entries:
            if is_report and entry.name in report:
                continue
            inner = _folder_in(folder, entry, passed_over, matches, inside, walk)
            if inner is not None:
                paths[inner.key] += 1
                if paths[inner.key] > _MOST_PATHS:
                    raise SourceError(
                        f"Links in {root} lead to one folder by more than {_MOST_PATHS:,} paths, among them "
                        f"{escaped('/'.join(inner.parts))}. Remove those links, or leave them out (params.yaml: "
                        "ingest.leave_out)."
                    )
                below.append(inner)
        waiting += reversed(below)
    return walk


def _entries(folder: _Folder, walk: Walk) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder.path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        walk.unreadable.append(f"{escaped('/'.join(folder.parts)) or '.'} ({error.strerror})")
        return []
    walk.folders.append(folder.parts)
    return ordered


def _folder_in(
    folder: _Folder,
    entry: "os.DirEntry[str]",
    passed_over: set[tuple[int, int]],
    matches: list[tuple[str, "re.Pattern[str]"]],
    inside: Path | None,
    walk: Walk,
) -> _Folder | None:
    """Count `entry` in `walk`; returns it where it is a folder to be walked."""
    name = entry.name
    parts = (*folder.parts, name)
    is_folder = _is_folder(entry)
    if passed_over and _is_one_of(entry, is_folder, passed_over):
        return None
    if name.lower() in _LITTER or name.startswith("._") or (is_folder and name.startswith(".")):
        walk.litter[name] += 1
        return None
    path = "/".join(parts)
    if pattern := next((pattern for pattern, matcher in matches if matcher.match(path)), None):
        walk.patterns[pattern] += _files_below(entry.path) if is_folder else 1
        return None
    if inside is not None and entry.is_symlink() and (target := _target_outside(entry, inside)):
        walk.outside.append(f"{escaped(path)} (to {escaped(str(target))})")
        return None
    if not is_folder:
        if _counts(entry):
            walk.files.append((folder.parts, name))
        elif name.startswith("."):
            walk.litter[name] += 1
        else:
            walk.no_images[_suffix(name)] += 1
        return None
    if len(parts) > _DEEPEST:
        walk.unreadable.append(f"{escaped(parts[0])}/... (nested more than {_DEEPEST} levels deep)")
        return None
    status = _stat(entry.path)
    if status is None or (key := (status.st_dev, status.st_ino)) in folder.above:
        walk.loops.append(escaped(path))
        return None
    return _Folder(entry.path, parts, key, folder.above | {key})


def _target_outside(entry: "os.DirEntry[str]", inside: Path) -> Path | None:
    """Where a link leads that leaves the folder `inside`; None where it stays, is broken, or leads into a DVC cache."""
    try:
        target = Path(entry.path).resolve(strict=True)
    except (OSError, RuntimeError):
        return None
    return None if target.is_relative_to(inside) or IN_DVC_CACHE.search(target.as_posix()) else target


def _files_below(folder: str) -> int:
    """The number of files in a folder and below; not by os.walk, which Python 3.11 lets call itself for each level."""
    count, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        count += 1
                    elif not entry.is_symlink():
                        waiting.append(entry.path)
        except OSError:
            continue
    return count


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_one_of(entry: "os.DirEntry[str]", is_folder: bool, passed_over: set[tuple[int, int]]) -> bool:
    # The entry has the inode, which saves a call of stat; of a link it is the link's own.
    if not entry.is_symlink() and entry.inode() not in {inode for _, inode in passed_over}:
        return False
    stat = _stat(entry.path)
    return stat is not None and (stat.st_dev, stat.st_ino) in passed_over and (is_folder or not entry.is_symlink())


def _stat(path: str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except OSError:
        return None


def _matcher(pattern: str) -> "re.Pattern[str]":
    """A pattern on a path inside the folder; "*/masks/*" also matches masks/ at the top, and a folder itself."""
    bare = re.sub(r"\*{2,}", "*", pattern).removeprefix("./").rstrip("/")
    forms = [bare]
    if bare.startswith("*/") and bare != "*/*":
        forms.append(bare[2:])
    forms += [form[:-2] for form in forms if form.endswith("/*") and form != "*/*"]
    return re.compile("|".join(map(fnmatch.translate, forms)))


def _counts(entry: "os.DirEntry[str]") -> bool:
    """Whether a file seems to be an image, by its suffix or its first bytes."""
    suffix = _suffix(entry.name)
    if suffix in _UNFINISHED:
        return False
    if suffix in IMAGE_SUFFIXES and not entry.name.startswith("."):
        return True
    start = _start(entry)
    return start is not None and starts_like_an_image(start)


def _suffix(name: str) -> str:
    """The end of a name from its last dot on, in lower case; a dot at its start does not count."""
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem.strip(".") else ""


def _start(entry: "os.DirEntry[str]") -> bytes | None:
    """The first bytes of a file; None where it is not a regular file or cannot be read."""
    try:
        with open_regular(Path(entry.path)) as file:
            return file.read(_LOOKED_AT)
    except OSError:
        return None


def starts_like_an_image(start: bytes) -> bool:
    """Whether the first bytes of a file, 132 at least, are those of an image in a supported format."""
    if start.startswith(_IMAGE_STARTS) or start[128:132] == b"DICM":
        return True
    if start.startswith(b"BM"):
        return start[6:10] == bytes(4)
    if start.startswith(b"RIFF"):
        return start[8:12] == b"WEBP"
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _counted(counts: Counter[str], one: str, many: str) -> str:
    """A count of things, with the commonest of them, such as "3 files that are not images (.txt 2, .csv)"."""
    total = counts.total()
    named = [
        f"{escaped(name) or 'no suffix'}{f' {count:,}' if count > 1 else ''}"
        for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    shown = ", ".join(named[:_SHOWN]) + (", ..." if len(named) > _SHOWN else "")
    return f"{total:,} {one if total == 1 else many} ({shown})"
