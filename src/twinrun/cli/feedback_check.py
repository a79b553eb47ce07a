"""What is wrong with photos that users sent, found before any of them is data, and how accepted ones become data."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from twinrun.base.errors import DataError
from twinrun.base.files import file_sha256, replacing, scratch_folder
from twinrun.base.progress import fraction
from twinrun.core.arrays import Pixels
from twinrun.core.cores import available_cores
from twinrun.core.params import IngestParams, Params
from twinrun.dataset.manifest import read_manifest_table
from twinrun.dataset.pack import PackWriter, creating_pack, open_pack
from twinrun.dataset.table import Columns, read_table
from twinrun.decoding.samples import sample_rules
from twinrun.ingest.copies.nearest import near_duplicates
from twinrun.ingest.facts import Facts
from twinrun.ingest.listing import Files, Item, Listing, source_folder
from twinrun.ingest.packing import Shape, fill_pack
from twinrun.serving.feedback import FeedbackItem
from twinrun.validate.decisions import Decision
from twinrun.validate.searches.label_errors import LEAST_AGREEMENT, OutOfTime, out_of_fold

PACK = Path("data/out/ingest/images.npy")
TABLE = Path("data/out/ingest/table.parquet")
MANIFEST = Path("data/out/validate/manifest.parquet")
_FOLDS = 5
_AT_ONCE = 4096
_FEWEST_PER_LABEL = 2


@dataclass(frozen=True)
class Photo:
    """A photo in quarantine: the labels that people gave it, what the model had said, and what is wrong with it.

    `kind` names the problem in short, such as "test copy", and `problem` describes it; None where there is none.
    """

    file: str
    labels: tuple[str, ...]
    predicted: str
    kind: str | None = None
    problem: str | None = None

    @property
    def proposal(self) -> Decision:
        """What a person may do: keep it, or drop it where something is wrong."""
        said = self.labels[0] if len(self.labels) == 1 else None
        if self.problem is None:
            return Decision(self.file, "keep", said, f"the model said {self.predicted}", "")
        return Decision(self.file, "drop", said, f"{self.kind}: {self.problem}", "")


@dataclass(frozen=True)
class _Data:
    """The images that are data already: their pixels, facts, labels and splits; unusable ones have no split."""

    images: Pixels
    facts: Columns
    labels: Sequence[str | None]
    splits: Sequence[str | None]

    @property
    def usable(self) -> list[int]:
        return [row for row, split in enumerate(self.splits) if split is not None and self.labels[row] is not None]

    def named(self, row: int) -> str:
        split = self.splits[row]
        where = "that was taken out" if split is None else f"of the {split} split"
        return f"{self.facts['path'][row]} {where}, which is {self.labels[row] or 'without a label'}"


def check_feedback(folder: Path, items: Sequence[FeedbackItem], params: Params) -> tuple[list[Photo], Pixels]:
    """Judge the photos of `items` in `folder` by the images of the last ingest and validate.

    Returns a photo for each file, sorted by name, and their pixels (N, H, W, C), zeros where one cannot be read. Raises
    DataError where there is no data to compare with.
    """
    data, photos = _read_data(), _photos(items)
    files = [folder / photo.file for photo in photos]
    listing = Listing([Item(photo.file, None, None) for photo in photos], Files(files))
    settings = params.ingest
    rules = sample_rules(settings)
    shape = Shape(settings.size, settings.channels, settings.fit, settings.resample, settings.max_pixels, rules)
    if data.images.shape[1:] != shape.of_image:
        raise DataError(f"{PACK} has images of another size than params.yaml says. Create it again: dvc repro ingest")
    with scratch_folder("twinrun-feedback") as temp:
        with creating_pack(temp / "photos.npy", (len(photos), *shape.of_image)) as unfinished:
            facts = fill_pack(listing, shape, unfinished, available_cores())
        pixels = np.array(open_pack(temp / "photos.npy"))
        photos = [
            _soundness(photo, file, fact, set(data.labels))
            for photo, file, fact in zip(photos, files, facts, strict=True)
        ]
        photos = _exact_copies(photos, facts, data)
        with _joined(data.images, pixels, temp / "all.npy") as images:
            photos = _near_copies(photos, facts, images, data)
            photos = _doubted(photos, images, data, params)
    return photos, pixels


def _read_data() -> _Data:
    images, table, manifest = open_pack(PACK), read_table(TABLE), read_manifest_table(MANIFEST)
    if not len(images) == len(table) == len(manifest) or table["id"] != manifest["id"]:
        raise DataError(f"{PACK}, {TABLE} and {MANIFEST} are not of the same images. Create them again: dvc repro")
    splits = [
        None if dropped else split
        for split, dropped in zip(manifest["split"].to_pylist(), manifest["dropped"].to_pylist(), strict=True)
    ]
    facts = {name: table[name].to_pylist() for name in ("path", "pixels_sha256", "width", "height", "error", "group")}
    return _Data(images, facts, manifest["label"].to_pylist(), splits)


def _photos(items: Sequence[FeedbackItem]) -> list[Photo]:
    by_file: dict[str, list[FeedbackItem]] = {}
    for item in items:
        by_file.setdefault(item.file, []).append(item)
    return [
        Photo(file, tuple(sorted({item.label for item in same})), same[-1].predicted)
        for file, same in sorted(by_file.items())
    ]


def _soundness(photo: Photo, file: Path, fact: Facts, labels: set[str | None]) -> Photo:
    """What is wrong with the photo on its own."""
    if fact.error is not None:
        return replace(photo, kind="unreadable", problem=f"it {fact.error}")
    if file_sha256(file) != file.stem:
        return replace(photo, kind="changed file", problem="it is not the file that was received")
    if len(photo.labels) > 1:
        return replace(photo, kind="conflicting labels", problem=f"people called it {' and '.join(photo.labels)}")
    if photo.labels[0] not in labels:
        return replace(photo, kind="new label", problem=f"no image of the data has the label {photo.labels[0]}")
    return photo


def _exact_copies(photos: list[Photo], facts: Sequence[Facts], data: _Data) -> list[Photo]:
    """Those with the pixels of an image of the data, of test images above all, or of an earlier photo."""
    rank = {"test": 0, "val": 1, "train": 2, None: 3}
    known = {
        data.facts["pixels_sha256"][row]: row
        for row in sorted(range(len(data.splits)), key=lambda row: -rank[data.splits[row]])
    }
    seen: dict[str | None, str] = {}
    found = []
    for photo, fact in zip(photos, facts, strict=True):
        if photo.problem is None and fact.pixels_sha256 in known:
            photo = _copy(photo, known[fact.pixels_sha256], "the same pixels as", data)
        elif photo.problem is None and (first := seen.setdefault(fact.pixels_sha256, photo.file)) != photo.file:
            photo = replace(photo, kind="repetition", problem=f"it has the same pixels as the photo {first}")
        found.append(photo)
    return found


def _copy(photo: Photo, row: int, how: str, data: _Data) -> Photo:
    kind = f"{data.splits[row]} copy" if data.splits[row] else "copy"
    return replace(photo, kind=kind, problem=f"it has {how} {data.named(row)}")


@contextmanager
def _joined(images: Pixels, photos: Pixels, path: Path) -> Iterator[Pixels]:
    """The images of the data and the photos behind them, as one pack on the disk."""
    with creating_pack(path, (len(images) + len(photos), *images.shape[1:])) as unfinished:
        writer = PackWriter(unfinished)
        try:
            for start in range(0, len(images), _AT_ONCE):
                writer.write(start, images[start : start + _AT_ONCE])
            writer.write(len(images), photos)
        finally:
            writer.close()
    yield open_pack(path)


def _near_copies(photos: list[Photo], facts: Sequence[Facts], images: Pixels, data: _Data) -> list[Photo]:
    columns = (data.facts[name] for name in ("width", "height", "pixels_sha256", "error"))
    before = [
        Facts(0, None, width=width, height=height, pixels_sha256=digest, error=error)
        for width, height, digest, error in zip(*columns, strict=True)
    ]
    with fraction("Searching for near duplicates") as progress:
        pairs = near_duplicates(images, [*before, *facts], [*data.splits, *[None] * len(facts)], progress=progress)
    found = list(photos)
    for pair in sorted(pairs, key=lambda pair: data.splits[pair.first] != "test" if pair.first < len(before) else True):
        place = pair.second - len(before)
        if place < 0 or found[place].problem is not None:
            continue
        if pair.first < len(before):
            found[place] = _copy(found[place], pair.first, f"the picture ({pair.change}) of", data)
        else:
            other = photos[pair.first - len(before)].file
            found[place] = replace(
                found[place], kind="repetition", problem=f"it shows the picture of the photo {other}"
            )
    return found


def _doubted(photos: list[Photo], images: Pixels, data: _Data, params: Params) -> list[Photo]:
    """Those whose label a quick model, trained without them, finds less probable than another one."""
    sound = [place for place, photo in enumerate(photos) if photo.problem is None]
    counts = Counter(data.labels[row] for row in data.usable)
    known = [row for row in data.usable if counts[data.labels[row]] >= _FEWEST_PER_LABEL]
    judged = [place for place in sound if counts[photos[place].labels[0]] >= _FEWEST_PER_LABEL]
    labels = [*(str(data.labels[row]) for row in known), *(photos[place].labels[0] for place in judged)]
    names, codes = np.unique(np.array(labels, dtype=str), return_inverse=True)
    found, why = list(photos), "there are fewer than two classes"
    if judged and len(names) > 1:
        rows = np.array([*known, *(len(data.labels) + place for place in judged)], np.int64)
        settings = params.validate.label_errors
        try:
            with fraction("Searching for wrong labels") as progress:
                shares = out_of_fold(
                    images,
                    rows,
                    codes,
                    folds=max(2, settings.folds or _FOLDS),
                    budget_s=settings.budget_s,
                    seed=params.validate.seed,
                    progress=progress,
                    apart=len(judged),
                )
        except OutOfTime:
            why = f"the search does not finish within {settings.budget_s:g} s (params.yaml: validate.label_errors)"
        else:
            agreement = float((shares[: len(known)].argmax(axis=1) == codes[: len(known)]).mean())
            why = f"the quick model agrees with only {agreement:.0%} of the labels of the data"
            if agreement >= LEAST_AGREEMENT:
                for place, share, code in zip(judged, shares[len(known) :], codes[len(known) :], strict=True):
                    best = int(share.argmax())
                    if best != code:
                        said = f"it looks like {names[best]} ({share[best]:.0%}), not {names[code]} ({share[code]:.0%})"
                        found[place] = replace(photos[place], kind="doubtful label", problem=said)
                return found
    for place in sound:
        found[place] = replace(photos[place], kind="label not judged", problem=f"look at it: {why}")
    return found


@dataclass(frozen=True)
class Accepted:
    """How many photos became data, how many were so before, the folder they are in, and whether `ingest` reads it."""

    new: int
    before: int
    folder: Path
    is_read: bool


def accept(
    folder: Path, items: Sequence[FeedbackItem], decisions: Sequence[Decision], params: Params, into: Path | None
) -> Accepted:
    """Copy the photos of `folder` that `decisions` keep or relabel into the source's folder, or `into`.

    All are checked before one is copied. Raises DataError, which names the line, where one cannot be data.
    """
    photos = {photo.file: photo for photo in _photos(items)}
    root = into or _source(params.ingest)
    folders = _folders(root, is_source=into is None)
    copies: list[tuple[Path, Path]] = []
    for decision in decisions:
        if decision.action is None:
            continue
        photo = photos.get(decision.path)
        if decision.action == "drop":
            if photo is not None:
                _require_nowhere_else(decision, _name(photo), None, folders, copies)
            continue
        if photo is None:
            raise DataError(f"{decision.where}: {folder} has no photo {decision.path!r}. Remove the line.")
        label = decision.label or (photo.labels[0] if len(photo.labels) == 1 else None)
        if label is None or label not in folders:
            known = ", ".join(sorted(folders)[:20])
            raise DataError(
                f"{decision.where}: write one of these labels in the column label: {known}. Found: {label}."
            )
        file = folder / photo.file
        if not file.is_file() or file_sha256(file) != file.stem:
            raise DataError(f"{decision.where}: {file} is missing, or is not the file that was received. Drop it.")
        target = folders[label] / _name(photo)
        _require_nowhere_else(decision, target.name, target, folders, copies)
        copies.append((file, target))
    new = [(file, target) for file, target in copies if not target.exists()]
    for file, target in new:
        with replacing(target) as temp:
            temp.write_bytes(file.read_bytes())
    is_read = params.ingest.source == "folder" and root.resolve().is_relative_to(source_folder(params.ingest).resolve())
    return Accepted(len(new), len(copies) - len(new), root, is_read)


def _name(photo: Photo) -> str:
    file = Path(photo.file)
    return f"feedback-{file.stem[:16]}{file.suffix}"


def _require_nowhere_else(
    decision: Decision,
    name: str,
    target: Path | None,
    folders: Mapping[str, Path],
    copies: Sequence[tuple[Path, Path]],
) -> None:
    """Raise DataError where the photo is data in another place than `target`, or another line will put it there."""
    planned = {path for _, path in copies}
    places = [folder / name for folder in folders.values()]
    if other := next((place for place in places if place != target and (place.exists() or place in planned)), None):
        raise DataError(
            f"{decision.where}: another line, or an earlier --accept, puts this photo into {other}, where this line "
            "does not. Leave one line for a photo, and remove a file of it that is not wanted in the data."
        )


def _source(params: IngestParams) -> Path:
    if params.source != "folder":
        raise DataError(
            f"The source is {params.source}, a published set that stays as it is. Name a folder for the accepted "
            "photos, in which each label gets a folder: --into photos"
        )
    return source_folder(params)


def _folders(root: Path, *, is_source: bool) -> Mapping[str, Path]:
    """Where a photo of each label goes: beside the training images of that label."""
    table, manifest = read_table(TABLE), read_manifest_table(MANIFEST)
    labels = {label for label in manifest["label"].to_pylist() if label is not None}
    if not is_source:
        if odd := next((label for label in sorted(labels) if Path(label).name != label), None):
            raise DataError(f"The label {odd!r} cannot be the name of a folder.")
        return {label: root / label for label in labels}
    if table["group"].null_count < len(table):
        raise DataError(
            "The images of the source are in groups, and a photo's is not known. Name another folder for the accepted "
            "photos: --into photos"
        )
    counts: dict[str, Counter[str]] = {}
    columns = (table[name].to_pylist() for name in ("path", "label", "split", "error"))
    for path, label, split, error in zip(*columns, strict=True):
        if label is not None and split in ("train", None) and error is None:
            counts.setdefault(label, Counter())[Path(path).parent.as_posix()] += 1
    folder_of = {label: root / folders.most_common(1)[0][0] for label, folders in counts.items()}
    if len(set(folder_of.values())) < len(folder_of):
        raise DataError(
            "The labels of the source are not its folders, so a photo in one of them would have no label. Name another "
            "folder for the accepted photos: --into photos"
        )
    return folder_of
