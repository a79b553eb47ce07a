"""The searches among the usable images before they are judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twinrun.base.progress import fraction, phase
from twinrun.core.arrays import Pixels
from twinrun.core.params import ValidateParams
from twinrun.dataset.table import Columns

if TYPE_CHECKING:
    from twinrun.dataset.pairs import NearPair
    from twinrun.validate.searches.clips import Clips
    from twinrun.validate.searches.drift import Drift
    from twinrun.validate.searches.label_errors import LabelSearch
    from twinrun.validate.searches.quality import QualityIssue
    from twinrun.validate.searches.shortcuts import Shortcut


@dataclass(frozen=True)
class Reference:
    """Columns of an earlier data set, and where they come from."""

    facts: Columns
    name: str


@dataclass(frozen=True)
class Evidence:
    """The results of the searches; rows are those of the whole table. None: there was no such search."""

    pairs: "list[NearPair]"
    labels: "LabelSearch | None"
    quality: "list[QualityIssue]"
    shortcuts: "list[Shortcut]"
    drift: "Drift | None"
    reference: str | None
    clips: "Clips | None"


def search_labels(facts: Columns, images: Pixels, rows: Sequence[int], params: ValidateParams) -> "LabelSearch | None":
    """Look for wrong labels among `rows`, unless it is switched off or there are fewer than two classes."""
    labels = [facts["label"][row] for row in rows]
    if not params.label_errors.folds or len(set(labels)) < 2:
        return None
    from twinrun.validate.searches.label_errors import find_label_errors

    with fraction("Searching for wrong labels") as progress:
        return find_label_errors(
            images,
            rows,
            labels,
            folds=params.label_errors.folds,
            budget_s=params.label_errors.budget_s,
            seed=params.seed,
            progress=progress,
        )


def search_quality(facts: Columns, rows: Sequence[int]) -> "list[QualityIssue]":
    """Look for dark, bright, blurred, empty and oddly shaped images among `rows`."""
    from dataclasses import replace

    from twinrun.validate.searches.quality import find_quality_issues

    with phase("Looking for poor images"):
        return [replace(issue, row=rows[issue.row]) for issue in find_quality_issues(_of_rows(facts, rows))]


def search_shortcuts(facts: Columns, images: Pixels, rows: Sequence[int], seed: int) -> "list[Shortcut]":
    """Try to predict the labels of `rows` from facts that should not depend on the label."""
    labelled = [row for row in rows if facts["label"][row] is not None]
    if len({facts["label"][row] for row in labelled}) < 2:
        return []
    from twinrun.validate.searches.shortcuts import corner_colours, find_shortcuts

    with phase("Looking for shortcuts"):
        corners = corner_colours(images, facts["width"], facts["height"])
        chosen = _of_rows({**facts, **corners}, labelled)
        return find_shortcuts(chosen, chosen["label"], seed=seed)


def search_drift(facts: Columns, rows: Sequence[int], reference: Reference | None, seed: int) -> "Drift | None":
    """Compare `rows` with the facts of an earlier data set."""
    if reference is None:
        return None
    from twinrun.validate.searches.drift import find_drift

    with phase("Comparing with the reference"):
        return find_drift(reference.facts, _of_rows(facts, rows), seed=seed)


def search_clips(facts: Columns, rows: Sequence[int], given: Sequence[str | None]) -> "Clips | None":
    """Look for frames of clips among those of `rows` that have no group, if splits divide a clip or may divide it.

    `given` are the splits that the source gave. Other splits change with the images, and may then divide a clip that is
    in one split today.
    """
    from twinrun.validate.searches.clips import are_torn, find_clips

    loose = [row for row in rows if facts["group"][row] is None]
    clips = find_clips(facts["path"], facts["phash"], facts["label"], loose)
    may_be = clips is not None and (are_torn(clips, facts["split"]) or are_torn(clips, given))
    return clips if may_be else None


def _of_rows(facts: Columns, rows: Sequence[int]) -> dict[str, list[Any]]:
    return {name: [values[row] for row in rows] for name, values in facts.items()}
