"""What policies and persons take out of the data before it is judged, each with its reason. Pure."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from twinrun.data.leaks import distinct_per_pixels, first_copies, kept_pairs, leaked, near_leaked
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

    Contradictions go first, since they leave fewer leaks.
    """
    reasons = list(dropped)

    def kept() -> "list[NearPair]":
        return kept_pairs(pairs, facts["pixels_sha256"], facts["split"], facts["label"], reasons)

    def pixels() -> list[str | None]:
        return [
            value if reason is None else None for value, reason in zip(facts["pixels_sha256"], reasons, strict=True)
        ]

    def all_with(rows: set[int], column: str) -> list[int]:
        """The rows with the pixels of `rows` and their value in `column`: a pair speaks for all of them."""
        wanted = {(facts["pixels_sha256"][row], facts[column][row]) for row in rows}
        return [row for row, key in enumerate(zip(pixels(), facts[column], strict=True)) if key in wanted]

    if params.on_contradiction == "drop":
        contradicting = [row for row, labels in enumerate(distinct_per_pixels(pixels(), facts["label"])) if labels > 1]
        near = {
            row
            for pair in kept()
            if None not in (first := facts["label"][pair.first], second := facts["label"][pair.second])
            and first != second
            for row in (pair.first, pair.second)
        }
        for row in all_with(near, "label"):
            reasons[row] = f"contradiction: {_COPY_LABELS}"
        for row in contradicting:
            reasons[row] = f"contradiction: {_TWIN_LABELS}"
    if params.on_leak == "drop":
        for row, leaks in enumerate(leaked(pixels(), facts["split"])):
            if leaks:
                reasons[row] = f"leak: {_TWIN_SPLIT}"
    if params.on_near_leak == "drop":
        for row in all_with(near_leaked(kept(), facts["split"]), "split"):
            reasons[row] = f"near leak: {_COPY_SPLIT}"
    if params.on_duplicate == "drop":
        for row, first in first_copies(pixels(), facts["split"], kept()).items():
            reasons[row] = f"duplicate: of {facts['path'][first]}"
    return reasons


def drop_rows(dropped: Sequence[str | None], rows: Mapping[int, str]) -> Reasons:
    """Also take out `rows`, each for its reason."""
    return [reason or rows.get(row) for row, reason in enumerate(dropped)]
