"""Images that policies and people drop from the data before it is judged, each with the reason. Pure."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from twinrun.core.params import ValidateParams
from twinrun.dataset.table import Columns
from twinrun.validate.findings import Drop
from twinrun.validate.searches.leaks import (
    contradicting,
    first_copies,
    kept_pairs,
    leaked,
    near_by_pixels,
    near_leaked,
    undecided,
)

if TYPE_CHECKING:
    from twinrun.dataset.pairs import NearPair

Drops = list[Drop | None]


def drop_broken(facts: Columns, dropped: Sequence[Drop | None], params: ValidateParams) -> Drops:
    """Also drop images that could not be decoded, unless they stop the pipeline; they are unusable in any case."""
    if params.on_broken == "stop":
        return list(dropped)
    broken = {row: Drop(f"unreadable: {error}") for row, error in enumerate(facts["error"]) if error is not None}
    return drop_rows(dropped, broken)


def drop_unfit(facts: Columns, dropped: Sequence[Drop | None], params: ValidateParams) -> Drops:
    """Also drop images whose size or colour mode is not allowed, where the policies say so."""
    drops = list(dropped)
    if params.on_size == "drop":
        sizes = enumerate(zip(facts["width"], facts["height"], strict=True))
        drops = drop_rows(
            drops,
            {
                row: Drop(f"size: {sides[0]:,} x {sides[1]:,} pixels")
                for row, sides in sizes
                if None not in sides and not params.min_side_px <= min(sides) <= max(sides) <= params.max_side_px
            },
        )
    if params.on_mode == "drop":
        others = {row: mode for row, mode in enumerate(facts["mode"]) if mode is not None and mode not in params.modes}
        drops = drop_rows(drops, {row: Drop(f"mode: {mode}") for row, mode in others.items()})
    return drops


def drop_copies(
    facts: Columns,
    pairs: "Sequence[NearPair]",
    dropped: Sequence[Drop | None],
    approved: frozenset[int],
    params: ValidateParams,
) -> Drops:
    """Also drop the copies that the policies drop: conflicting labels, then leaks, then those within a split.

    Conflicting labels come first, since dropping them leaves fewer leaks. Where they stop the pipeline instead, no
    other policy hides them: a leak under two labels is not dropped, since nothing shows which label is right. Images
    that a person `approved` are kept.
    """
    drops = _Copies(facts, pairs, list(dropped), approved)
    conflicts = drops.conflicting_labels()
    if params.on_contradiction == "drop":
        drops = drops.without(conflicts)
    spared = conflicts.keys() if params.on_contradiction == "stop" else frozenset()
    if params.on_leak == "drop":
        drops = drops.without(drops.leaks(), spared)
    if params.on_near_leak == "drop":
        drops = drops.without(drops.near_leaks(), spared)
    if params.on_leak == "drop":
        drops = drops.without(drops.split_groups(), spared)
    if params.on_duplicate == "drop":
        # Without those, an image that a person approved may speak for its pixels, in pairs that others stood for.
        while (fewer := drops.without(drops.duplicates(), spared)).dropped != drops.dropped:
            drops = fewer
    return drops.dropped


def drop_rows(dropped: Sequence[Drop | None], rows: Mapping[int, Drop]) -> Drops:
    """Also drop `rows`, each for its reason."""
    return [drop or rows.get(row) for row, drop in enumerate(dropped)]


class _Copies:
    """The copies among the rows that are not dropped yet, each with a reason and the image that it copies."""

    def __init__(self, facts: Columns, pairs: "Sequence[NearPair]", dropped: Drops, approved: frozenset[int]) -> None:
        self.dropped = dropped
        self._facts = facts
        self._all_pairs = pairs
        self._approved = approved
        self._pixels = self._open("pixels_sha256")
        self._pairs = kept_pairs(pairs, facts["pixels_sha256"], facts["split"], facts["label"], dropped, approved)

    def without(self, rows: Mapping[int, Drop], spared: Collection[int] = ()) -> "_Copies":
        """The copies after dropping `rows` too, except those `spared` and those that a person approved."""
        wanted = {row: drop for row, drop in rows.items() if row not in spared and row not in self._approved}
        return _Copies(self._facts, self._all_pairs, drop_rows(self.dropped, wanted), self._approved)

    def conflicting_labels(self) -> dict[int, Drop]:
        """The rows of which an identical image or a near duplicate has another label."""
        labels = self._facts["label"]
        near: dict[int, NearPair] = {}
        for pair in self._pairs:
            if None not in (labels[pair.first], labels[pair.second]) and labels[pair.first] != labels[pair.second]:
                near.setdefault(pair.first, pair)
                near.setdefault(pair.second, pair)
        return {
            **self._near("conflicting labels", near, "label"),
            **{
                row: Drop(f"conflicting labels: {self._of(other)}, label {labels[other]}", other)
                for row, other in contradicting(self._pixels, labels).items()
            },
        }

    def leaks(self) -> dict[int, Drop]:
        """The rows with the pixels of one in a later split."""
        partners = leaked(self._pixels, self._facts["split"])
        return {row: Drop(f"leak: {self._of(other)}", other) for row, other in partners.items()}

    def near_leaks(self) -> dict[int, Drop]:
        """The rows of which a near duplicate is in a later split."""
        return self._near("near leak", near_leaked(self._pairs, self._facts["split"]), "split")

    def split_groups(self) -> dict[int, Drop]:
        """The rows of a group that is in a later split too."""
        partners = leaked(self._open("group"), self._facts["split"])
        return {
            row: Drop(
                f'leak: group "{self._facts["group"][row]}" is in a later split, {self._facts["path"][other]}', other
            )
            for row, other in partners.items()
        }

    def duplicates(self) -> dict[int, Drop]:
        """The rows that repeat another one of their split."""
        pixels = self._facts["pixels_sha256"]
        near = near_by_pixels(self._pairs, pixels)
        stays = first_copies({**self._facts, "pixels_sha256": self._pixels}, self._facts["split"], self._pairs)
        return {
            row: Drop(f"duplicate: {self._of(first, near.get(frozenset((pixels[first], pixels[row]))))}", first)
            for row, first in stays.items()
        }

    def _near(self, kind: str, partners: "Mapping[int, NearPair]", column: str) -> dict[int, Drop]:
        """All rows with the pixels of those found and their value in `column`: a pair speaks for all of them."""
        values = self._facts[column]
        by_key: dict[tuple[str, str | None], tuple[int, NearPair]] = {}
        for row, pair in partners.items():
            other = pair.second if row == pair.first else pair.first
            by_key.setdefault((self._facts["pixels_sha256"][row], values[row]), (other, pair))
        drops = {}
        for row, key in enumerate(zip(self._facts["pixels_sha256"], values, strict=True)):
            if self.dropped[row] is None and key in by_key:
                other, pair = by_key[key]
                label = f", label {values[other]}" if column == "label" else ""
                drops[row] = Drop(f"{kind}: {self._of(other, pair, label)}", other)
        return drops

    def _of(self, other: int, pair: "NearPair | None" = None, more: str = "") -> str:
        change = f" ({pair.change}, distance {pair.distance:.3f})" if pair else ""
        return f"of {self._facts['path'][other]}{more}{change}"

    def _open(self, column: str) -> list[str | None]:
        """A column of the facts; null in rows that are dropped, or of a set that a person approved wholly."""
        kept = [value if drop is None else None for value, drop in zip(self._facts[column], self.dropped, strict=True)]
        return undecided(kept, [row in self._approved for row in range(len(kept))])
