"""The validation report: one HTML page that needs no network, with pictures of what offends. Refuses to judge."""

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from twinrun.data.decode import Pixels
from twinrun.data.manifest import SPLITS
from twinrun.data.validation import Finding, Verdict
from twinrun.params import ValidateParams

if TYPE_CHECKING:
    import pyarrow as pa

_THUMBNAIL_PX = 96
_SETS_SHOWN = 24
_IN_SET_SHOWN = 6
_DROPPED_SHOWN = 12
_SAMPLES_PER_CLASS = 10
_CLASSES_WITH_SAMPLES = 40
_BINS = 40
_MEASURES = ("brightness", "contrast", "sharpness")


@dataclass(frozen=True)
class _Card:
    """A picture with its caption; no picture where the image cannot be decoded."""

    picture: str | None
    path: str
    about: str


@dataclass(frozen=True)
class _Histogram:
    name: str
    low: str
    high: str
    heights: list[float]  # of each bar, in [0, 1]


def report_html(verdict: Verdict, table: "pa.Table", images: Pixels, params: ValidateParams) -> str:
    """The page for a verdict on `table`, whose rows are those of the pack `images`; the same for the same data."""
    from jinja2 import Environment, StrictUndefined

    drawer = _Drawer(verdict, table, images)
    template = resources.files("twinrun.data").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(template).render(
        verdict=verdict,
        params=params,
        splits=SPLITS,
        total=len(verdict.dropped),
        kept=verdict.dropped.count(None),
        split_sizes={name: sum(counts[name] for counts in verdict.counts.values()) for name in SPLITS},
        largest=max((sum(counts.values()) for counts in verdict.counts.values()), default=0) or 1,
        offenders={finding.name: drawer.offenders(finding) for finding in verdict.failed},
        shown=_SETS_SHOWN,
        dropped=drawer.dropped(),
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
        self._labels = table["label"].to_pylist()
        self._errors = table["error"].to_pylist()

    def offenders(self, finding: Finding) -> list[list[_Card]]:
        """A list of cards for each of the first offences; offences without an image have none."""
        return [[self._card(row) for row in offence.rows[:_IN_SET_SHOWN]] for offence in finding.offences[:_SETS_SHOWN]]

    def dropped(self) -> dict[str, list[_Card]]:
        """The first of the dropped images, by kind of reason."""
        cards: dict[str, list[_Card]] = defaultdict(list)
        for row, reason in enumerate(self._verdict.dropped):
            if reason is not None and len(cards[kind := reason.partition(":")[0]]) < _DROPPED_SHOWN:
                cards[kind].append(self._card(row))
        return dict(cards)

    def samples(self) -> dict[str, list[_Card]]:
        """The first usable training images of each class."""
        cards: dict[str, list[_Card]] = {label: [] for label in self._verdict.classes[:_CLASSES_WITH_SAMPLES]}
        for row, (label, split) in enumerate(zip(self._labels, self._verdict.splits, strict=True)):
            usable = self._verdict.dropped[row] is None and self._errors[row] is None
            if usable and split == "train" and len(cards.get(label, [None] * _SAMPLES_PER_CLASS)) < _SAMPLES_PER_CLASS:
                cards[label].append(self._card(row))
        return cards

    def histograms(self) -> list[_Histogram]:
        """How brightness, contrast and sharpness are spread over the images that can be decoded."""
        histograms = []
        for name in _MEASURES:
            values = self._table[name].drop_null().to_numpy()
            if len(values):
                counts, edges = np.histogram(values, bins=_BINS)
                heights = (counts / max(1, counts.max())).tolist()
                histograms.append(_Histogram(name, f"{edges[0]:.2f}", f"{edges[-1]:.2f}", heights))
        return histograms

    def _card(self, row: int) -> _Card:
        about = f"{self._labels[row] or 'no label'}, {self._verdict.splits[row] or 'no split'}"
        error = self._errors[row]
        picture = None if self._table["pixels_sha256"][row].as_py() is None else _data_uri(self._images[row])
        return _Card(picture, self._paths[row], f"{about}: {error}" if error else about)


def _data_uri(pixels: Pixels) -> str:
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
