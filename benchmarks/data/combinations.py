"""Near duplicates that differ in two to four ways at once: how many are found, by the number of changes.

Of half of the images (of at most 10,000 of a data set with --quick) 900 are copied, 300 with each number of changes,
drawn at random with a seed; the limits of the search were chosen on copies of the other half. Beside Twinrun look
CleanVision, and a plain nearest neighbour on the features of the pretrained network of "Your own photos": it calls a
pair one picture below the distance that recalls most of the copies while it ties at most 0.1% of the clean images,
which only someone who knows the copies can choose.

Clean images that are tied count as suspected wrongly, near duplicates that the set as published holds among them: look
at the pictures before you believe the number.
"""

import io
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.data.combined import combined
from benchmarks.data.leaks import (
    HASHES,
    QUICK,
    SUSPECTED_AT_MOST,
    Found,
    Planted,
    cleanvision,
    judged,
    with_copies,
)
from benchmarks.data.leaks import twinrun as search_by_twinrun
from twinrun.core.arrays import Pixels
from twinrun.ingest.facts import Facts, pixels_sha256
from twinrun.ingest.folders import list_trashnet
from twinrun.ingest.known_sets import list_idx
from twinrun.ingest.listing import Arrays, Files, Item, Listing
from twinrun.ingest.packing import Shape

_COUNTS = (2, 3, 4)
_FOR_EACH = 300
_FEATURES_PX = 64


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each data set in `data` and number of changes; `quick`: fewer images and CleanVision's default."""
    rows: list[dict[str, Any]] = []
    for name in ("Fashion-MNIST", "CIFAR-10", "TrashNet", "MNIST"):
        with tempfile.TemporaryDirectory() as temp:
            folder = Path(temp)
            planted = _planted(name, data, folder, quick)
            ours = search_by_twinrun(planted, folder)
            theirs = cleanvision(planted, folder, HASHES[:1] if quick else HASHES)
            nearest = _nearest_features(planted)
        rows += [
            {
                "data set": name,
                "changes": count,
                "planted": planted.change.count(count),
                "recall": ours.recall[count],
                "tied": ours.suspected,
                "seconds": ours.seconds,
                "recall CleanVision": theirs.recall[count],
                "tied CleanVision": theirs.suspected,
                "recall features": nearest.recall[count],
                "tied features": nearest.suspected,
                "seconds features": nearest.seconds,
            }
            for count in ours.recall
        ]
    return rows


def _planted(name: str, data: Path, folder: Path, quick: bool) -> Planted:
    """The set and the copies of it, as arrays where it is arrays, and as JPEG files of full size where it is files."""
    listing, side = _listing(name, data, folder)
    stop = min(QUICK, len(listing.items)) if quick else len(listing.items)
    items, random = listing.items[:stop], np.random.default_rng(1)
    halves = np.random.default_rng(0).permutation(len(listing.items))
    reported = halves[len(halves) // 2 :]
    chosen = reported[reported < stop][: _FOR_EACH * len(_COUNTS)].tolist()
    counts = [str(_COUNTS[index % len(_COUNTS)]) for index in range(len(chosen))]
    source = [*range(len(items)), *chosen]
    content: Arrays | Files
    if isinstance(listing.content, Arrays):
        pixels = listing.content.pixels[:stop]
        copies = [
            combined(pixels[row, :, :, 0], int(count), random)[0] for row, count in zip(chosen, counts, strict=True)
        ]
        content = Arrays(np.concatenate([pixels, np.stack(copies)[..., None]]), listing.content.format)
    else:
        paths = list(listing.content.paths[:stop])
        for number, (row, count) in enumerate(zip(chosen, counts, strict=True)):
            paths.append(folder / f"copy-{number}.jpg")
            picture = np.asarray(Image.open(paths[row]).convert("RGB"))
            Image.fromarray(combined(picture, int(count), random)[0]).save(paths[-1], quality=95)
        content = Files(paths)
    shape = Shape((side, side), "gray" if isinstance(content, Arrays) else "rgb", "pad", "bilinear", 10**8)
    return Planted(name, Listing(with_copies(items, source), content), shape, source, [*[None] * len(items), *counts])


def _listing(name: str, data: Path, folder: Path) -> tuple[Listing, int]:
    """The images as published, and the side in pixels at which Twinrun packs them."""
    if name == "TrashNet":
        return list_trashnet(data / "trashnet"), 64
    if name != "CIFAR-10":
        return list_idx(name.lower(), data / name.lower(), may_download=False), 28  # type: ignore[arg-type]
    with tarfile.open(data / "cifar10" / "cifar10-jpeg.tar.xz") as archive:
        archive.extractall(folder / "cifar10", filter="data")
    paths = sorted((folder / "cifar10").rglob("*.jpg"), key=lambda path: (path.parts[-3] != "test", path))
    items = [Item("/".join(path.parts[-3:]), path.parts[-2], path.parts[-3]) for path in paths]  # type: ignore[arg-type]
    return Listing(items, Files(paths)), 32


def _nearest_features(planted: Planted) -> Found:
    """Ties of each image to its nearest neighbour, itself or mirrored, by the cosine of pretrained features."""
    start = time.perf_counter()
    pictures = _pictures(planted)
    facts = [Facts(0, None, pixels_sha256=pixels_sha256(picture)) for picture in pictures]
    plain, mirrored = _features(pictures), _features(pictures[:, :, ::-1])
    nearest, likeness = np.empty(len(plain), np.int64), np.empty(len(plain), np.float32)
    for row in range(0, len(plain), 1000):
        block = np.maximum(plain[row : row + 1000] @ plain.T, plain[row : row + 1000] @ mirrored.T)
        block[np.arange(len(block)), row + np.arange(len(block))] = -1
        nearest[row : row + 1000], likeness[row : row + 1000] = block.argmax(axis=1), block.max(axis=1)
    seconds = time.perf_counter() - start
    best = judged(planted, [], facts, seconds)
    for share in np.geomspace(0.001, 0.5, 30):
        close = np.flatnonzero(likeness >= np.quantile(likeness, 1 - share)).tolist()
        found = judged(planted, [(row, int(nearest[row])) for row in close], facts, seconds)
        if found.suspected <= SUSPECTED_AT_MOST and sum(found.recall.values()) > sum(best.recall.values()):
            best = found
    return best


def _pictures(planted: Planted) -> Pixels:
    """All images as RGB of the side at which features are computed: (N, 64, 64, 3)."""
    content, size = planted.listing.content, (_FEATURES_PX, _FEATURES_PX)
    opened = (
        (Image.fromarray(pixels[:, :, 0]) for pixels in content.pixels)
        if isinstance(content, Arrays)
        else (Image.open(io.BytesIO(Path(path).read_bytes())) for path in content.paths)
    )
    return np.stack([np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for image in opened])


def _features(pictures: Pixels) -> "np.typing.NDArray[np.float32]":
    """Features (N, 1280) of unit length."""
    import timm
    import torch

    from twinrun.models.pretrained import load_pretrained, start_from

    network = timm.create_model("tf_efficientnet_lite0", num_classes=2).eval()
    start_from(network, load_pretrained("imagenet", "timm/tf_efficientnet_lite0"), classes=2)
    parts = []
    with torch.inference_mode():
        for row in range(0, len(pictures), 64):
            batch = torch.from_numpy(np.ascontiguousarray(pictures[row : row + 64])).permute(0, 3, 1, 2) / 127.5 - 1
            features = network.forward_head(network.forward_features(batch), pre_logits=True)
            parts.append(torch.nn.functional.normalize(features, dim=1).numpy())
    return np.concatenate(parts)
