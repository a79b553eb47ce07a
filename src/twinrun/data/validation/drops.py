"""What policies and persons take out of the data before it is judged, each with its reason. Pure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from twinrun.data.leaks import distinct_per_key, first_copies, kept_pairs, leaked, near_leaked
from twinrun.data.validation.findings import Facts
from twinrun.params import ValidateParams

if TYPE_CHECKING:
    from twinrun.data.nearest import NearPair

Reasons = list[str | None]
_TWIN_LABELS, _TWIN_SPLIT = "identical pixels under another label", "identical pixels in a later split"
_COPY_LABELS, _COPY_SPLIT = "a changed copy is under another label", "a changed copy is in a later split"


def drop_broken(facts: Facts, dropped: Sequence[str | None], params: ValidateParams) -> Reasons:
    """Also take out what could not be decoded, where the policy says so."""
    if params.on_broken != "drop":
        return list(dropped)
    return [
        reason or (None if error is None else f"broken: {error}")
        for reason, error in zip(dropped, facts["error"], strict=True)
    ]


def drop_copies(
    facts: Facts, pairs: "Sequence[NearPair]", dropped: Sequence[str | None], params: ValidateParams
) -> Reasons:
    """Also take out the copies that the policies drop: contradictions, then leaks, then those within a split.

    Contradictions go first, since they leave fewer leaks. Where they stop the pipeline instead, no other policy hides
    one: a leak under two labels is not dropped, since nothing tells which of both is right.
    """
    reasons = list(dropped)
    contradicting = _contradictions(facts, pairs, reasons)
    if params.on_contradiction == "drop":
        reasons = drop_rows(reasons, contradicting)
    unsettled = contradicting.keys() if params.on_contradiction == "stop" else frozenset()

    def drop(rows: Mapping[int, str]) -> Reasons:
        return drop_rows(reasons, {row: reason for row, reason in rows.items() if row not in unsettled})

    if params.on_leak == "drop":
        leaks = leaked(_kept(facts, "pixels_sha256", reasons), facts["split"])
        reasons = drop(dict.fromkeys(leaks, f"leak: {_TWIN_SPLIT}"))
    if params.on_near_leak == "drop":
        near = near_leaked(_kept_pairs(facts, pairs, reasons), facts["split"])
        reasons = drop(dict.fromkeys(_all_with(facts, reasons, near, "split"), f"near leak: {_COPY_SPLIT}"))
    if params.on_leak == "drop":
        groups = leaked(_kept(facts, "group", reasons), facts["split"])
        reasons = drop({row: f'leak: group "{facts["group"][row]}" is in a later split' for row in groups})
    if params.on_duplicate == "drop":
        copies = first_copies(
            _kept(facts, "pixels_sha256", reasons), facts["split"], _kept_pairs(facts, pairs, reasons)
        )
        reasons = drop({row: f"duplicate: of {facts['path'][first]}" for row, first in copies.items()})
    return reasons


def drop_rows(dropped: Sequence[str | None], rows: Mapping[int, str]) -> Reasons:
    """Also take out `rows`, each for its reason."""
    return [reason or rows.get(row) for row, reason in enumerate(dropped)]


def _contradictions(facts: Facts, pairs: "Sequence[NearPair]", dropped: Reasons) -> dict[int, str]:
    """The rows that have, themselves or as a changed copy, another label, each with the words for it."""
    labels = facts["label"]
    counts = distinct_per_key(_kept(facts, "pixels_sha256", dropped), labels)
    near = {
        row
        for pair in _kept_pairs(facts, pairs, dropped)
        if None not in (labels[pair.first], labels[pair.second]) and labels[pair.first] != labels[pair.second]
        for row in (pair.first, pair.second)
    }
    return {
        **dict.fromkeys(_all_with(facts, dropped, near, "label"), f"contradiction: {_COPY_LABELS}"),
        **{row: f"contradiction: {_TWIN_LABELS}" for row, count in enumerate(counts) if count > 1},
    }


def _kept_pairs(facts: Facts, pairs: "Sequence[NearPair]", dropped: Reasons) -> "list[NearPair]":
    return kept_pairs(pairs, facts["pixels_sha256"], facts["split"], facts["label"], dropped)


def _kept(facts: Facts, column: str, dropped: Reasons) -> list[str | None]:
    """A column of the facts; of dropped rows null."""
    return [value if reason is None else None for value, reason in zip(facts[column], dropped, strict=True)]


def _all_with(facts: Facts, dropped: Reasons, rows: set[int], column: str) -> list[int]:
    """The rows with the pixels of `rows` and their value in `column`: a pair speaks for all of them."""
    wanted = {(facts["pixels_sha256"][row], facts[column][row]) for row in rows}
    keys = zip(_kept(facts, "pixels_sha256", dropped), facts[column], strict=True)
    return [row for row, key in enumerate(keys) if key in wanted]
