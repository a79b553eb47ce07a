"""Image files that no decoder takes, planted among good ones: how many are told, and how many good ones are accused.

Each kind of damage is done to 5% of the files, other files each time: TrashNet's photos, JPEG, and 2,000 images of
Fashion-MNIST, written as PNG. Ways to look for them:

    Twinrun      its ingest: a file is told where its facts have an error
    verify()     Pillow's Image.verify(), which many people use for this
    load()       Pillow's Image.load(): Twinrun decodes with Pillow, so that this finds what Pillow can find
    CleanVision  Imagelab(filepaths=...).find_issues(), all issues that it looks for by default

Pillow's two ways go through the files one by one; Twinrun's seconds are those of a whole ingest, with its facts, on all
cores. These three see all files at once, and their false alarms are the share of good files among those that they tell.
CleanVision 0.3.7 opens files without a guard, and so ends with the decoder's exception at the first that is broken. It
therefore gets the good files with one kind of damage at a time; the row says what it raised and whether that named a
planted file, and its seconds are those until then. It has no issue that means "broken": where it comes to its end, the
row says how many of the planted and of the good files have some issue. Handed a Hugging Face data set, it passes over
what cannot be loaded, and then ends with "ValueError: threshold_gap should be non negative", since a size is missing;
that way is not listed.
"""

import contextlib
import io
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from twinrun.core.cores import available_cores
from twinrun.dataset.pack import creating_pack
from twinrun.ingest.folders import list_trashnet
from twinrun.ingest.known_sets import list_idx
from twinrun.ingest.listing import Arrays, Files, Item, Listing
from twinrun.ingest.packing import Shape, fill_pack

_SHARE = 0.05
_WRITTEN = 2_000
_QUICK = 400
_MAX_PIXELS = 10**8
_CLAIMED_PX = 65_500
_PNG_HEADER_END = 29
_HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"


@dataclass(frozen=True)
class _Planted:
    """Files, and the damage of each, None for the good ones; the shape of the pack that Twinrun makes of them."""

    name: str
    paths: list[Path]
    damage: list[str | None]
    shape: Shape


@dataclass(frozen=True)
class _Told:
    """For each file whether it is said to be broken, and the seconds that took."""

    broken: list[bool]
    seconds: float


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each data set and kind of damage; `data` holds trashnet/ and fashion-mnist/, `quick`: 400 each."""
    rows: list[dict[str, Any]] = []
    for source in (_trashnet, _fashion_mnist):
        with tempfile.TemporaryDirectory() as folder:
            planted = source(data, Path(folder), quick)
            ways = {
                "": _twinrun(planted, Path(folder)),
                " verify()": _pillow(planted.paths, lambda image: image.verify()),
                " load()": _pillow(planted.paths, lambda image: image.load()),
            }
            rows += [_row(planted, kind, ways) for kind in damages()]
    return rows


def damages() -> dict[str, Callable[[bytes], bytes]]:
    """What is done to the bytes of a JPEG or PNG file, by name."""
    return {
        "cut to 10%": lambda file: file[: len(file) // 10],
        "cut to 50%": lambda file: file[: len(file) // 2],
        "cut to 90%": lambda file: file[: len(file) * 9 // 10],
        "cut to 99%": lambda file: file[: len(file) * 99 // 100],
        "second half zeros": lambda file: file[: len(file) // 2].ljust(len(file), b"\0"),
        "last tenth zeros": lambda file: file[: len(file) * 9 // 10].ljust(len(file), b"\0"),
        "empty": lambda _: b"",
        "an HTML page": lambda _: _HTML,
        "claims 65,500 x 65,500 pixels": _claiming,
    }


def _trashnet(data: Path, folder: Path, quick: bool) -> _Planted:
    content = list_trashnet(data / "trashnet").content
    assert isinstance(content, Files)
    paths = [content.paths[row] for row in _drawn(len(content.paths), _QUICK if quick else len(content.paths))]
    return _damaged("TrashNet", paths, folder, Shape((64, 64), "rgb", "pad", "bilinear", _MAX_PIXELS))


def _fashion_mnist(data: Path, folder: Path, quick: bool) -> _Planted:
    content = list_idx("fashion-mnist", data / "fashion-mnist", may_download=False).content
    assert isinstance(content, Arrays)
    paths = []
    for row in _drawn(len(content.pixels), _QUICK if quick else _WRITTEN):
        paths.append(folder / f"published-{row}.png")
        Image.fromarray(content.pixels[row, :, :, 0]).save(paths[-1])
    return _damaged("Fashion-MNIST, as PNG", paths, folder, Shape((28, 28), "gray", "pad", "bilinear", _MAX_PIXELS))


def _drawn(count: int, most: int) -> list[int]:
    drawn: list[int] = np.sort(np.random.default_rng(0).choice(count, min(most, count), replace=False)).tolist()
    return drawn


def _damaged(name: str, good: list[Path], folder: Path, shape: Shape) -> _Planted:
    """Damage 5% of the `good` files in each way, as new files in `folder`."""
    for_each = max(1, round(len(good) * _SHARE))
    order = np.random.default_rng(1).permutation(len(good)).tolist()
    paths = list(good)
    damage: list[str | None] = [None] * len(good)
    for number, (kind, change) in enumerate(damages().items()):
        for row in order[number * for_each : (number + 1) * for_each]:
            paths[row], damage[row] = folder / f"planted-{row}{good[row].suffix}", kind
            paths[row].write_bytes(change(good[row].read_bytes()))
    return _Planted(name, paths, damage, shape)


def _claiming(file: bytes) -> bytes:
    """The same file with another size in its header, and with the PNG's checksum to it."""
    side = _CLAIMED_PX
    if file.startswith(b"\x89PNG"):
        header = file[12:16] + side.to_bytes(4) * 2 + file[24:_PNG_HEADER_END]
        return file[:12] + header + zlib.crc32(header).to_bytes(4) + file[_PNG_HEADER_END + 4 :]
    place = 2
    while not 0xC0 <= file[place + 1] <= 0xC2:  # segments before the one that has the size
        place += 2 + int.from_bytes(file[place + 2 : place + 4])
    return file[: place + 5] + side.to_bytes(2) * 2 + file[place + 9 :]


def _twinrun(planted: _Planted, folder: Path) -> _Told:
    listing = Listing([Item(path.name, None, None) for path in planted.paths], Files(planted.paths))
    started = time.perf_counter()
    with creating_pack(folder / "images.npy", (len(planted.paths), *planted.shape.of_image)) as temp:
        facts = fill_pack(listing, planted.shape, temp, available_cores())
    return _Told([fact.error is not None for fact in facts], time.perf_counter() - started)


def _pillow(paths: list[Path], check: Callable[[Image.Image], object]) -> _Told:
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _Told([_fails(path, check) for path in paths], time.perf_counter() - started)


def _fails(path: Path, check: Callable[[Image.Image], object]) -> bool:
    try:
        with Image.open(path) as image:
            check(image)
    except Exception:  # whatever the decoder raises says that the file is broken
        return True
    return False


def _row(planted: _Planted, kind: str, ways: dict[str, _Told]) -> dict[str, Any]:
    bad = np.array([damage == kind for damage in planted.damage])
    good = np.array([damage is None for damage in planted.damage])
    row: dict[str, Any] = {"data set": planted.name, "damage": kind, "planted": int(bad.sum())}
    for way, told in ways.items():
        broken = np.array(told.broken)
        row[f"recall{way}"] = float(broken[bad].mean())
        row[f"false alarms{way}"] = float(broken[good].mean())
        row[f"seconds{way}"] = told.seconds
    started = time.perf_counter()
    row["CleanVision"] = _cleanvision(*(np.array(planted.paths)[rows].tolist() for rows in (bad, good)))
    row["seconds CleanVision"] = time.perf_counter() - started
    return row


def _cleanvision(bad: list[Path], good: list[Path]) -> str:
    """What CleanVision says of files that are damaged and others that are not, in words."""
    from cleanvision import Imagelab

    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars
        warnings.simplefilter("ignore")
        lab = Imagelab(filepaths=sorted(str(path) for path in [*bad, *good]), verbose=False)
        try:
            lab.find_issues(verbose=False)
        except Exception as error:
            named = any(path.name in str(error) for path in bad)
            return f"raises {type(error).__name__}, names {'a planted' if named else 'no'} file"
    has_issue = lab.issues.filter(regex="^is_").any(axis=1)
    shares = [has_issue[[str(path) for path in paths]].mean() for paths in (bad, good)]
    return f"issues in {shares[0]:.0%} of the planted, {shares[1]:.0%} of the good"
