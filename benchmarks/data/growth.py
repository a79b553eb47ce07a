"""How the time of the search for near copies, and of all of `validate`, grows with the number of images.

Fashion-MNIST cut to its first images of train and test, six to one, as IDX files; its preset, in which the search for
label errors is off. `near copies s` is the search alone; `ingest s` and `validate s` are whole stages, begun as DVC
begins them, with the import of all that they use. All are medians. The columns after them divide by n log n, relative
to the first row: what stays at or below 1 grows no faster.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinrun.core.cores import available_cores
from twinrun.dataset.pack import creating_pack, open_pack
from twinrun.ingest.copies.nearest import near_duplicates
from twinrun.ingest.known_sets import list_idx
from twinrun.ingest.listing import Arrays
from twinrun.ingest.packing import Shape, fill_pack
from twinrun.project.presets import params_text

_REPOSITORY = Path(__file__).parents[2]
_SIZES = (10_000, 20_000, 40_000, 70_000)
_NAME: Final = "fashion-mnist"
_TIMED = ("near copies s", "ingest s", "validate s")


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for each number of images; `data` holds fashion-mnist/, `quick` takes each time once, not five times."""
    rows: list[dict[str, Any]] = []
    for size in _SIZES:
        with tempfile.TemporaryDirectory() as folder:
            _write_first(data / _NAME, size, Path(folder))
            rows.append({"images": size, **_timed(Path(folder), 1 if quick else 5)})
    work = [size * math.log(size) for size in _SIZES]
    return [
        {**row, **{f"{name[:-2]} / n log n": row[name] / rows[0][name] / (each / work[0]) for name in _TIMED}}
        for row, each in zip(rows, work, strict=True)
    ]


def _write_first(source: Path, size: int, project: Path) -> None:
    """Write a project whose data are the first of `source`."""
    listing = list_idx(_NAME, source, may_download=False)
    assert isinstance(listing.content, Arrays)
    splits = np.array([item.split for item in listing.items])
    labels = np.array([item.label for item in listing.items])
    names = sorted(set(labels))
    folder = project / "data/raw" / _NAME
    folder.mkdir(parents=True)
    for split, prefix, count in (("train", "train", size - size // 7), ("test", "t10k", size // 7)):
        rows = np.flatnonzero(splits == split)[:count]
        _write_idx(listing.content.pixels[rows, :, :, 0], folder / f"{prefix}-images-idx3-ubyte")
        classes = np.array([names.index(label) for label in labels[rows]], np.uint8)
        _write_idx(classes, folder / f"{prefix}-labels-idx1-ubyte")
    preset = params_text(_NAME)
    (project / "params.yaml").write_text(re.sub(r"(\n  min_images_per_class:) \d+", r"\1 1", preset), encoding="utf-8")


def _write_idx(array: npt.NDArray[np.uint8], path: Path) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(header + array.tobytes())


def _timed(project: Path, repeats: int) -> dict[str, float]:
    listing = list_idx(_NAME, project / "data/raw" / _NAME, may_download=False)
    shape, path = Shape((32, 32), "gray", "pad", "bilinear", 10**8), project / "images.npy"
    with creating_pack(path, (len(listing.items), *shape.of_image)) as temp:
        facts = fill_pack(listing, shape, temp, available_cores())
    images = open_pack(path)
    ways: tuple[Callable[[], object], ...] = (
        lambda: near_duplicates(images, facts),
        lambda: _stage("ingest", project),
        lambda: _stage("validate", project),
    )
    return {name: median(_seconds(way) for _ in range(repeats)) for name, way in zip(_TIMED, ways, strict=True)}


def _stage(name: str, project: Path) -> None:
    paths = os.pathsep.join([str(_REPOSITORY / "src"), str(_REPOSITORY)])
    command = [sys.executable, "-m", f"pipeline.{name}"]
    subprocess.run(command, cwd=project, env={**os.environ, "PYTHONPATH": paths}, check=True, capture_output=True)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
