"""The validation report: one HTML page that needs no network, with pictures of the affected images."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from twinrun.core.arrays import Pixels
from twinrun.core.params import ValidateParams
from twinrun.dataset.manifest import SPLITS
from twinrun.tables.page import fill_page
from twinrun.validate.findings import UNSPLIT, Finding, Verdict
from twinrun.validate.messages import headline
from twinrun.validate.results import PLOTTED
from twinrun.validate.subject import share_of_way

if TYPE_CHECKING:
    import pyarrow as pa

_TEMPLATE = Path(__file__).with_name("report.html")
_THUMBNAIL_PX = 128
_SAMPLE_PX = 64
_SMALL_PX = 32
_QUALITY = 80  # of WebP, in percent: a copy beside its source still shows what was changed
_PICTURES_BYTES = 3_500_000  # of all sets together; samples come to less than a million
_SETS_SHOWN = 200
_WARNINGS_SHOWN = 24
_IN_SET_SHOWN = 6
_DROPPED_SHOWN = 12
_ADDED_SHOWN = 12
_PATHS_SHOWN = 20
_SAMPLES_PER_CLASS = 10
_CLASSES_WITH_SAMPLES = 40
_BINS = 40


@dataclass(frozen=True)
class _Card:
    """A picture with its caption; no picture where the image cannot be decoded."""

    picture: str | None
    path: str
    about: str


@dataclass(frozen=True)
class _Set:
    """The pictures of one violation, and what it is."""

    heading: str
    cards: list[_Card]


@dataclass(frozen=True)
class _Histogram:
    name: str
    low: str
    high: str
    outlines: dict[str, str]  # of each split, points of an SVG polyline in a box of 40 x 20


def report_html(
    verdict: Verdict,
    table: "pa.Table",
    images: Pixels,
    params: ValidateParams,
    places: Mapping[str, tuple[int, str]],
    docs: str | None = "../data_docs",
) -> str:
    """The page for a verdict on `table`, whose rows are those of the pack `images`; the same for the same data.

    `places` are lines of params.yaml, by the name of the setting; `docs` is where Great Expectations' own pages lie.
    """
    drawer = _Drawer(verdict, table, images)
    drift = verdict.evidence.drift
    findings = [*verdict.stopping, *verdict.warnings, *verdict.not_judged]
    sizes = {name: sum(counts.get(name, 0) for counts in verdict.counts.values()) for name in (*SPLITS, UNSPLIT)}
    return fill_page(
        _TEMPLATE,
        verdict=verdict,
        evidence=verdict.evidence,
        headline=headline(verdict),
        findings=findings,
        ordered=[*findings, *(finding for finding in verdict.findings if finding.passed)],
        params=params,
        places=places,
        docs=docs,
        splits=[name for name, size in sizes.items() if size or (docs and name in SPLITS)],
        unsplit=UNSPLIT,
        total=len(verdict.dropped),
        kept=verdict.dropped.count(None),
        split_sizes=sizes,
        unusable=verdict.dropped.count(None) - sum(sizes.values()) if verdict.counts else 0,
        largest=max((sum(counts.values()) for counts in verdict.counts.values()), default=0) or 1,
        affected={finding.name: list(drawer.affected(finding)) for finding in findings},
        share_of_way=share_of_way,
        dropped=drawer.dropped(),
        relabelled=drawer.relabelled(),
        added=drawer.cards_of(drift.added, _ADDED_SHOWN) if drift else [],
        paths_shown=_PATHS_SHOWN,
        samples=drawer.samples(),
        histograms=drawer.histograms(),
    )


class _Drawer:
    """Turns rows of the table into pictures and captions."""

    def __init__(self, verdict: Verdict, table: "pa.Table", images: Pixels) -> None:
        self._verdict = verdict
        self._images = images
        self._table = table
        self._paths = table["path"].to_pylist()
        self._errors = table["error"].to_pylist()
        self._spent = 0

    def affected(self, finding: Finding) -> Iterator[_Set]:
        """The first violations with the pictures of their images, if they have any."""
        most = _SETS_SHOWN if finding.severity == "critical" else _WARNINGS_SHOWN
        for violation in finding.violations[:most]:
            if not violation.rows:
                yield _Set(violation.text, [])
                continue
            if not self._has_room():
                return
            hidden = len(violation.rows) - _IN_SET_SHOWN
            more = f"; {hidden:,} more in findings.parquet" if hidden > 0 else ""
            yield _Set(f"{violation.measure}{more}", [self._card(row) for row in violation.rows[:_IN_SET_SHOWN]])

    def dropped(self) -> dict[str, list[_Set]]:
        """The first of the dropped images, by kind of reason; a copy is shown beside what it is a copy of."""
        sets: dict[str, list[_Set]] = {kind: [] for kind in self._verdict.reasons}
        for row, reason in enumerate(self._verdict.dropped):
            kind, _, why = (reason or "").partition(": ")
            partner = self._verdict.partners.get(row)
            if reason is None or len(sets[kind]) >= (_DROPPED_SHOWN if partner is None else _SETS_SHOWN):
                continue
            if not self._has_room():
                break
            sets[kind].append(_Set(why, [self._card(image) for image in (row, partner) if image is not None]))
        return sets

    def relabelled(self) -> list[_Set]:
        """The first images that a person gave another label."""
        given = self._table["label"].to_pylist()
        sets: list[_Set] = []
        for row, decision in enumerate(self._verdict.decisions):
            action, _, reason = (decision or "").partition(": ")
            if action == "relabel" and len(sets) < _SETS_SHOWN and self._has_room():
                change = f"from {given[row] or 'no label'} to {self._verdict.labels[row]}"
                sets.append(_Set(f"{change}: {reason}" if reason else change, [self._card(row)]))
        return sets

    def cards_of(self, paths: Sequence[str], most: int) -> list[_Card]:
        """Pictures of the first images of `paths`."""
        rows = {path: row for row, path in enumerate(self._paths)}
        return [self._card(rows[path]) for path in paths[:most] if path in rows and self._has_room()]

    def samples(self) -> dict[str, list[_Card]]:
        """The first usable images of each class: of those for training, and of those in no split."""
        cards: dict[str, list[_Card]] = {label: [] for label in self._verdict.classes[:_CLASSES_WITH_SAMPLES]}
        for row, (label, split) in enumerate(zip(self._verdict.labels, self._verdict.splits, strict=True)):
            usable = self._verdict.dropped[row] is None and self._errors[row] is None
            if usable and split in ("train", None) and label in cards and len(cards[label]) < _SAMPLES_PER_CLASS:
                cards[label].append(self._card(row, _SAMPLE_PX))
        return cards

    def histograms(self) -> list[_Histogram]:
        """The distributions of facts over the usable images of each split; the highest bin has the full height."""
        splits = np.array([split or UNSPLIT for split in self._verdict.splits])
        kept = np.array([reason is None for reason in self._verdict.dropped], bool)
        histograms = []
        for name in PLOTTED:
            values = np.array([np.nan if value is None else value for value in self._table[name].to_pylist()], float)
            usable = kept & ~np.isnan(values)
            edges = np.histogram_bin_edges(values[usable], bins=_BINS)
            outlines: dict[str, str] = {}
            for split in (*SPLITS, UNSPLIT):
                if (chosen := usable & (splits == split)).any():
                    counts = np.histogram(values[chosen], bins=edges)[0]
                    heights = 20 - 19 * counts / max(1, counts.max())
                    points = [f"{i},{h:.2f} {i + 1},{h:.2f}" for i, h in enumerate(heights)]
                    outlines[split] = " ".join(["0,20", *points, f"{_BINS},20"])
            if outlines:
                histograms.append(_Histogram(name, f"{edges[0]:.2f}", f"{edges[-1]:.2f}", outlines))
        return histograms

    def _has_room(self) -> bool:
        return self._spent < _PICTURES_BYTES

    def _card(self, row: int, largest_px: int = _THUMBNAIL_PX) -> _Card:
        about = ", ".join(filter(None, [self._verdict.labels[row] or "no label", self._verdict.splits[row]]))
        picture = None
        if self._table["pixels_sha256"][row].as_py() is not None:
            picture = _data_uri(self._images[row], largest_px)
            self._spent += len(picture)
        return _Card(picture, self._paths[row], about)


def _data_uri(pixels: Pixels, largest_px: int) -> str:
    """A small picture unchanged, and a large one as a copy of a few kilobytes."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    image.thumbnail((largest_px, largest_px))
    kind = "PNG" if max(image.size) <= _SMALL_PX else "WEBP"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"optimize": True} if kind == "PNG" else {"quality": _QUALITY}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
