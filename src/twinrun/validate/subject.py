"""What is judged: the usable images and what was found among them, as the tables that expectations are judged on."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from twinrun.core.params import ValidateParams
from twinrun.core.rules import FACTS
from twinrun.dataset.manifest import SplitName
from twinrun.dataset.table import Columns
from twinrun.tables.spelling import read_alike, told_apart
from twinrun.validate.evidence import Evidence
from twinrun.validate.searches.leaks import distinct_per_key, first_copies, undecided

if TYPE_CHECKING:
    from twinrun.validate.searches.shortcuts import Shortcut

QUALITY = {
    "dark": "is dark",
    "bright": "is overexposed",
    "blurred": "is blurred",
    "low information": "is nearly empty",
    "odd size": "has an unusual size",
    "odd aspect": "has an unusual aspect ratio",
    "gray": "is gray among colour images",
}


@dataclass(frozen=True)
class Subject:
    """What is judged: the `kept` rows of `facts`, the counts of their classes and splits, and what searches found.

    `left_out` are rows that were kept and cannot be used: unreadable images, where they do not stop the pipeline.
    `approved` are rows that a person looked at and wants as they are.
    """

    facts: Columns
    kept: Sequence[int]
    left_out: Sequence[int]
    counts: dict[str, dict[str, int]]
    splits: Sequence[SplitName]
    evidence: Evidence
    approved: frozenset[int]
    params: ValidateParams
    splits_are_given: bool  # by the source

    def of(self, name: str) -> list[Any]:
        """A column of the facts, of the kept rows."""
        values = self.facts[name]
        return [values[row] for row in self.kept]

    def named(self, row: int) -> str:
        """An image with its label and split."""
        label, split = self.facts["label"][row], self.facts["split"][row]
        return f"{self.facts['path'][row]} ({', '.join(filter(None, [label or 'no label', split]))})"

    def tables(self) -> dict[str, Columns]:
        """What expectations are judged on: one row for each image, near pair, class, and so on."""
        pixels, split, label = self._open("pixels_sha256"), self.of("split"), self.of("label")
        copies = self.copies()
        suspects = {issue.row: issue.suggested for issue in self.evidence.labels.issues} if self.evidence.labels else {}
        flaws: dict[str, dict[int, str]] = defaultdict(dict)
        for issue in self.evidence.quality:
            flaws[issue.name][issue.row] = issue.text
        facts = self.facts
        pairs, drift, largest = self.evidence.pairs, self.evidence.drift, self.largest
        return {
            "images": {
                **{name: self.of(name) for name in FACTS},
                "splits_of_pixels": distinct_per_key(pixels, split),
                "splits_of_group": distinct_per_key(self._open("group"), split),
                "labels_of_pixels": distinct_per_key(pixels, label),
                "copy_of": [facts["path"][copies[row]] if row in copies else None for row in self.kept],
                "likely_label": [suspects.get(row) for row in self.kept],
                **{flaw_column(name): [flaws[name].get(row) for row in self.kept] for name in QUALITY},
            },
            "files": {name: [facts[name][row] for row in self.files()] for name in ("path", "error")},
            "near_pairs": {
                "distance": [pair.distance for pair in pairs],
                "change": [pair.change for pair in pairs],
                **{
                    f"{column}_{side}": [facts[column][getattr(pair, side)] for pair in pairs]
                    for column in ("path", "label", "split")
                    for side in ("first", "second")
                },
            },
            "classes": {
                "fewest_in_a_split": list(self.fewest().values()),
                "imbalance": [largest / images if images else float(largest) for _, images in self.totals()],
                "written_alike": [self.alike[name][0] if name in self.alike else None for name in self.counts],
            },
            "shortcuts": {"share": [share_of_way(shortcut) for shortcut in self.evidence.shortcuts]},
            "clips": {"pattern": [self.evidence.clips.pattern or "none"] if self.evidence.clips else []},
            "searches": {"unjudged": [self.evidence.labels.unjudged if self.evidence.labels else None]},
            "drift": {"significant": [shift.significant for shift in drift.shifts] if drift else []},
            "labels_since_reference": {
                "change": [change for change, _ in self.changed_labels()],
                "label": [label for _, label in self.changed_labels()],
            },
            "images_since_reference": {"relabelled": [path for path, _, _ in drift.relabelled] if drift else []},
        }

    def files(self) -> list[int]:
        """The rows that were to be decoded: those that are judged, and those that had to be left out."""
        return sorted([*self.kept, *self.left_out])

    @cached_property
    def has_splits(self) -> bool:
        """Whether any image is in a split: without splits nothing can leak between them."""
        return bool(self.splits) or any(split is not None for split in self.of("split"))

    def copies(self) -> dict[int, int]:
        """Each kept row that repeats another of its split and label, changed or not, with the one that stays.

        Those with another label are conflicting labels, which have a separate check.
        """
        splits = _where(self.facts["split"], self.kept)
        copies = first_copies(self.facts, splits, self.evidence.pairs)
        labels = self.facts["label"]
        return {
            row: first
            for row, first in copies.items()
            if row not in self.approved and (labels[row] == labels[first] or None in (labels[row], labels[first]))
        }

    def _open(self, name: str) -> list[str | None]:
        """A column of the kept rows; null in those of a set that a person approved wholly."""
        return undecided(self.of(name), [row in self.approved for row in self.kept])

    def fewest(self) -> dict[str, int | None]:
        """Of each class the usable images of the split that has fewest of it; None where there are no splits."""
        return {label: min((count[name] for name in self.splits), default=None) for label, count in self.counts.items()}

    @cached_property
    def groups(self) -> dict[str, set[str | None]]:
        """Of each class the groups that its kept images are in, None for those in no group."""
        groups: dict[str, set[str | None]] = defaultdict(set)
        for label, group in zip(self.of("label"), self.of("group"), strict=True):
            groups[label].add(group)
        return groups

    def totals(self) -> list[tuple[str, int]]:
        """Class and number of usable images."""
        return [(label, sum(count.values())) for label, count in self.counts.items()]

    @property
    def largest(self) -> int:
        """Usable images of the largest class."""
        return max((images for _, images in self.totals()), default=0)

    @cached_property
    def alike(self) -> dict[str, list[str]]:
        """Classes whose names read like those of others, with all that read so, itself among them."""
        return read_alike(self.counts)

    @cached_property
    def shown(self) -> dict[str, str]:
        """How each class is printed: with its code points where another one looks the same."""
        return told_apart(list(self.counts))

    def changed_labels(self) -> list[tuple[str, str]]:
        """Labels that the reference did not have, and those that it alone has."""
        drift = self.evidence.drift
        if drift is None:
            return []
        return [("new", label) for label in drift.new_labels] + [("gone", label) for label in drift.vanished_labels]


def _where(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """`values` at `rows`; elsewhere each row has a different value, so that nothing is a copy of what was dropped."""
    kept = set(rows)
    return [value if row in kept else row for row, value in enumerate(values)]


def share_of_way(shortcut: "Shortcut") -> float:
    """How far a shortcut gets from chance to always right, by the low end of its interval."""
    return max(0.0, (shortcut.low - shortcut.chance) / (1 - shortcut.chance))


def flaw_column(flaw: str) -> str:
    """The column of the table of images that describes a flaw, such as `quality_odd_size`."""
    return f"quality_{flaw.replace(' ', '_')}"
