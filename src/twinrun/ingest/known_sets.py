"""Sources that publish arrays and not files: digits, MNIST, Fashion-MNIST, CIFAR-10. Read by numpy alone.

Nothing here unpickles: CIFAR-10 is read in its binary version.
"""

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from twinrun.base.errors import SourceError
from twinrun.base.regular_files import open_regular
from twinrun.core.arrays import Pixels
from twinrun.dataset.manifest import SplitName
from twinrun.ingest.download import command, fetch
from twinrun.ingest.listing import Arrays, Item, Listing, sorted_listing

_MNIST = tuple(str(digit) for digit in range(10))
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_CIFAR10_MOST = 60_000  # images in one file
_MOST_UNPACKED = 1_100  # bytes that gzip makes of one at most
_CIFAR10_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class _Part:
    """One of the two parts that the IDX sets are published in."""

    split: SplitName
    prefix: Literal["train", "t10k"]


_PARTS = (_Part("train", "train"), _Part("test", "t10k"))


def list_digits() -> Listing:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8, from inside the package; their 17 gray levels become 256."""
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    # Its reader, load_digits, imports all of scikit-learn and pandas, which takes longer than the whole stage.
    table = np.loadtxt(Path(package.origin).with_name("datasets") / "data/digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)[..., None]
    labels = table[:, -1].astype(np.int64).tolist()
    items = [Item(f"digits/{index:04d}", str(label), None) for index, label in enumerate(labels)]
    return Listing(items, Arrays(pixels, "digits"))


def list_idx(name: Literal["mnist", "fashion-mnist"], folder: Path, may_download: bool) -> Listing:
    """The four IDX files of `name` in `folder`, plain or gzipped; both parts, each as its published split."""
    wanted = [f"{part.prefix}-{kind}" for part in _PARTS for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    files = _present_or_fetched(name, folder, {stem: _idx_names(stem) for stem in wanted}, may_download)
    classes = _MNIST if name == "mnist" else _FASHION
    items: list[Item] = []
    parts: list[Pixels] = []
    for part in _PARTS:
        images_path, labels_path = files[f"{part.prefix}-images-idx3-ubyte"], files[f"{part.prefix}-labels-idx1-ubyte"]
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise SourceError(
                f"{images_path} has {len(images):,} images and {labels_path} {len(labels):,} labels. "
                "Download both again."
            )
        if parts and images.shape[1:] != parts[0].shape[1:]:
            raise SourceError(
                f"{images_path} has images of {images.shape[1:]} pixels, the other part of {parts[0].shape[1:]}."
            )
        items += _items(part.split, part.split, labels, classes, labels_path)
        parts.append(images)
    return sorted_listing(items, Arrays(np.concatenate(parts)[..., None], "IDX"))


def list_cifar10(folder: Path, may_download: bool) -> Listing:
    """CIFAR-10's binary version: data_batch_1.bin to data_batch_5.bin and test_batch.bin, in `folder` or one below."""
    inner = "cifar-10-batches-bin"
    names = {stem: [f"{stem}.bin", f"{inner}/{stem}.bin"] for stem in _CIFAR10_BATCHES}
    files = _present_or_fetched("cifar10", folder, names, may_download)
    items: list[Item] = []
    parts: list[Pixels] = []
    record = 1 + int(np.prod(_CIFAR10_SHAPE))
    for stem in _CIFAR10_BATCHES:
        data = np.frombuffer(_read(files[stem], _CIFAR10_MOST * record), np.uint8)
        if len(data) > _CIFAR10_MOST * record:
            raise SourceError(
                f"{files[stem]} holds more than {_CIFAR10_MOST:,} images, which are all of CIFAR-10. Fetch it again."
            )
        if len(data) == 0 or len(data) % record:
            raise SourceError(
                f"{files[stem]} has {len(data):,} bytes and CIFAR-10's binary version has {record:,} for each image: "
                "it is cut short, or another version. Fetch it again."
            )
        records = data.reshape(-1, record)
        items += _items(stem, "test" if stem == "test_batch" else "train", records[:, 0], _CIFAR10, files[stem])
        parts.append(records[:, 1:].reshape(-1, *_CIFAR10_SHAPE).transpose(0, 2, 3, 1))
    return sorted_listing(items, Arrays(np.concatenate(parts), "CIFAR-10"))


def _items(prefix: str, split: SplitName, labels: Pixels, classes: tuple[str, ...], path: Path) -> list[Item]:
    if len(labels) and (worst := int(labels.max())) >= len(classes):
        raise SourceError(
            f"{path} has the label {worst} and there are {len(classes)} classes, 0 to {len(classes) - 1}. "
            "Download it again."
        )
    return [Item(f"{prefix}/{index:05d}", classes[label], split) for index, label in enumerate(labels.tolist())]


def _idx_names(stem: str) -> list[str]:
    dotted = stem.replace("-idx", ".idx")
    return [stem, f"{stem}.gz", dotted, f"{dotted}.gz"]


def _present_or_fetched(name: str, folder: Path, names: dict[str, list[str]], may_download: bool) -> dict[str, Path]:
    """The first file in `folder` that exists for each entry of `names`, after a download if need be and allowed."""
    files = _present(folder, names)
    missing = [stem for stem in names if stem not in files]
    if not missing:
        return files
    wanted = ", ".join(names[stem][0] for stem in names)
    lacking = (
        f"{folder} lacks "
        + (f"{', '.join(names[stem][0] for stem in missing)} of " if files else "")
        + (f"the {len(names)} files of {name}: {wanted}" + (" (plain or .gz)." if name != "cifar10" else "."))
    )
    if not may_download:
        raise SourceError(
            f"{lacking}\nFetch them, then run again:\n  {command(name, folder)}\n"
            "Or set ingest.path to the folder that has them."
        )
    try:
        fetch(name, folder, missing)
    except SourceError as error:
        raise SourceError(
            f"{lacking}\n{error}\nWith a network, `dvc repro ingest` fetches them, and so does:\n"
            f"  {command(name, folder)}\nOr set ingest.path to a folder that has them."
        ) from None
    files = _present(folder, names)
    if missing := [stem for stem in names if stem not in files]:
        raise SourceError(f"{folder} still lacks {', '.join(missing)} after the download.")
    return files


def _present(folder: Path, names: dict[str, list[str]]) -> dict[str, Path]:
    candidates = {stem: [folder / name for name in options] for stem, options in names.items()}
    return {
        stem: next(path for path in paths if path.is_file())
        for stem, paths in candidates.items()
        if any(path.is_file() for path in paths)
    }


def _read_idx(path: Path, dimensions: int) -> Pixels:
    """An IDX file of unsigned bytes, as described on the MNIST page: two zeros, type, dimensions, sizes, values.

    No more is unpacked than the header announces, and nothing where the file is too small to hold that.
    """
    with _unpacked(path) as file:
        start = file.read(4)
        if start != bytes((0, 0, 8, dimensions)):
            raise SourceError(
                f"{path} is no IDX file of bytes in {dimensions} dimensions: it starts with {start!r}. Fetch it again."
            )
        sizes = file.read(4 * dimensions)
        shape = [int.from_bytes(sizes[at : at + 4], "big") for at in range(0, 4 * dimensions, 4)]
        wanted = f"{path} should hold {' x '.join(map(str, shape))} bytes"
        if len(sizes) < 4 * dimensions or math.prod(shape) > _MOST_UNPACKED * path.stat().st_size:
            raise SourceError(f"{wanted} and holds far less: it is cut short or damaged. Fetch it again.")
        if math.prod(shape) == 0:
            raise SourceError(f"{wanted}, which are no images. Fetch it again.")
        values = np.empty(math.prod(shape), np.uint8)
        held = 0
        while read := file.readinto(values[held:]):  # type: ignore[attr-defined]
            held += read
        if held < values.size:
            raise SourceError(f"{wanted} and holds {held:,}: it is cut short. Fetch it again.")
        if file.read(1):
            raise SourceError(f"{wanted} and holds more: it is damaged. Fetch it again.")
    return values.reshape(shape)


def _read(path: Path, most: int) -> bytes:
    """At most `most` bytes of a file, unpacked, and one more where there are more."""
    with _unpacked(path) as file:
        return file.read(most + 1)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """A file to be read once from its start, unpacked where it is gzipped. What goes wrong is a SourceError."""
    try:
        with open_regular(path) as file:
            # By content, since a .gz that a browser unpacked keeps its name.
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_packed else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{path} cannot be unpacked ({error}): it is cut short or damaged. Fetch it again.") from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from None
