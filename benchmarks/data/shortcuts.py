"""Is a mark that betrays a label found? A coloured corner, planted on one label of TrashNet after another.

A shortcut counts as found where a small tree gets further from chance to certainty than TrashNet's preset allows; the
`share` of that way is the largest without a mark and, with one, the smallest of those planted. On the photos as
published, and for labels without a mark, every finding is a false alarm.
The marks are 64 and 32 pixels wide on photos of 512 x 384, seen in a pack of 64 pixels. No peer finds shortcuts in a
set of images without being told what to look for.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinrun.data.decode import fit_image
from twinrun.data.facts import Facts, measured
from twinrun.data.shortcuts import Shortcut, corner_colours, find_shortcuts
from twinrun.data.validation.subject import share_of_way
from twinrun.params import load_params

_PRESET = Path(__file__).parents[2] / "presets" / "trashnet.yaml"
_MARKS_PX = (64, 32)
_COLOUR = (220, 30, 30)
_PACK_PX = 64
_QUICK_PER_LABEL = 60
_FACTS = (
    "width", "height", "mode", "format", "file_bytes", "brightness", "contrast", "red", "green", "blue",
)  # fmt: skip

Columns = dict[str, list[Any]]


def run(data: Path, *, quick: bool) -> list[dict[str, Any]]:
    """A row for the photos as published and one for each size of mark; `data` holds trashnet/, `quick` takes 360."""
    folders = sorted(path for path in (data / "trashnet" / "dataset-resized").iterdir() if path.is_dir())
    files = [
        (path, folder.name)
        for folder in folders
        for path in sorted(folder.glob("*.jpg"))[: _QUICK_PER_LABEL if quick else None]
    ]
    labels = [label for _, label in files]
    started = time.perf_counter()
    facts, pack = _measured([path for path, _ in files], mark_px=0)
    clean = _looked_at(facts, pack, labels)
    rows = [
        {
            "mark": "none",
            "planted": 0,
            "found": 0,
            "false_alarms": len(_alarms(clean)),
            "share": max(share_of_way(one) for one in clean),
            "seconds": time.perf_counter() - started,
        }
    ]
    for mark_px in _MARKS_PX:
        started = time.perf_counter()
        marked_facts, marked_pack = _measured([path for path, _ in files], mark_px)
        found, others, shares = 0, 0, []
        for label in (folder.name for folder in folders):
            here = np.array([one == label for one in labels])
            shortcuts = _looked_at(
                {name: _mixed(facts[name], marked_facts[name], here) for name in facts},
                np.where(here[:, None, None, None], marked_pack, pack),
                labels,
            )
            named = _alarms(shortcuts)
            found += label in named
            others += len(named - {label})
            shares.append(max((share_of_way(one) for one in shortcuts if one.label == label), default=0.0))
        rows.append(
            {
                "mark": f"{mark_px} px",
                "planted": len(folders),
                "found": found,
                "false_alarms": others,
                "share": min(shares),
                "seconds": time.perf_counter() - started,
            }
        )
    return rows


def _looked_at(facts: Columns, pack: NDArray[np.uint8], labels: Sequence[str]) -> list[Shortcut]:
    return find_shortcuts({**facts, **corner_colours(pack, facts["width"], facts["height"])}, labels, seed=0)


def _alarms(shortcuts: Sequence[Shortcut]) -> set[str]:
    """Labels, or "" for all of them, that a group of facts gives away."""
    most = load_params(_PRESET).validate.max_shortcut
    return {one.label or "" for one in shortcuts if share_of_way(one) > most}


def _mixed(plain: list[Any], marked: list[Any], here: NDArray[np.bool_]) -> list[Any]:
    return [new if mark else old for old, new, mark in zip(plain, marked, here.tolist(), strict=True)]


def _measured(paths: Sequence[Path], mark_px: int) -> tuple[Columns, NDArray[np.uint8]]:
    """Facts as columns, and a pack (N, 64, 64, 3), of photos with a mark of `mark_px` pixels in the top left corner."""
    rows, pack = [], np.empty((len(paths), _PACK_PX, _PACK_PX, 3), np.uint8)
    for number, path in enumerate(paths):
        pixels = np.array(Image.open(path).convert("RGB"))
        pixels[:mark_px, :mark_px] = _COLOUR
        pack[number] = fit_image(pixels, _PACK_PX, "pad")
        height, width, _ = pixels.shape
        known = Facts(path.stat().st_size, None, width=width, height=height, mode="RGB", format="JPEG")
        rows.append(measured(known, pixels))
    return {name: [getattr(row, name) for row in rows] for name in _FACTS}, pack
