"""Judging data, in this order: decisions, drops, splits, searches, expectations."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.progress import phase
from twinrun.core.arrays import Pixels
from twinrun.core.params import ValidateParams
from twinrun.dataset.manifest import SPLITS, SplitName
from twinrun.validate.checks import checks
from twinrun.validate.decisions import Decided, Decision, decided
from twinrun.validate.drops import Drops, drop_broken, drop_copies, drop_rows, drop_unfit
from twinrun.validate.evidence import (
    Evidence,
    Reference,
    search_clips,
    search_drift,
    search_labels,
    search_quality,
    search_shortcuts,
)
from twinrun.validate.expectations import judge
from twinrun.validate.findings import UNSPLIT, Drop, Finding, Verdict
from twinrun.validate.fixed_splits import FixedSplit, fixed_splits
from twinrun.validate.searches.leaks import kept_pairs
from twinrun.validate.splits import assign_splits, split_keys
from twinrun.validate.subject import Subject

if TYPE_CHECKING:
    import pyarrow as pa

    from twinrun.dataset.pairs import NearPair
    from twinrun.validate.checks import Check
    from twinrun.validate.searches.quality import QualityIssue


def judge_table(
    table: "pa.Table",
    images: Pixels,
    pairs: "Sequence[NearPair]",
    params: ValidateParams,
    *,
    decisions: Sequence[Decision] = (),
    fixed: Sequence[FixedSplit] = (),
    reference: Reference | None = None,
    draw_splits: bool = True,
    docs: Path | None = None,
) -> Verdict:
    """Drop what people and policies drop, assign splits, search the rest, and judge it.

    `images` (N, H, W, C) and `table` have a row for each image, `pairs` are near duplicates. Where splits are not
    drawn, only those that the source published count; `fixed` are splits that stay as they are. `docs` is a folder for
    Great Expectations' own pages.
    """
    facts: dict[str, list[Any]] = {name: table[name].to_pylist() for name in table.column_names}
    decision = decided(facts, decisions)
    facts["label"] = decision.labels
    keys = split_keys(facts["pixels_sha256"], facts["group"], [(pair.first, pair.second) for pair in pairs])
    fit = drop_unfit(facts, drop_broken(facts, decision.dropped, params), params)
    if draw_splits:
        facts["split"] = _drawn(facts, keys, fit, fixed_splits(facts, fixed), params)
    with phase("Comparing copies"):
        dropped = drop_copies(facts, pairs, fit, decision.approved, params)
    given = table["split"].to_pylist()
    evidence, dropped = _searched(facts, images, pairs, dropped, decision, params, reference, given)
    kept = [row for row, drop in enumerate(dropped) if drop is None]
    classes = sorted({label for label in facts["label"] if label is not None})
    counts = _count(facts, kept, classes)
    labelled = {split for split, label in zip(facts["split"], facts["label"], strict=True) if label is not None}
    splits = [name for name in SPLITS if draw_splits or name in labelled]
    left_out = _broken(facts, decision.dropped) if params.on_broken == "warn" else []
    splits_are_given = any(split is not None for split in given)
    subject = Subject(facts, kept, left_out, counts, splits, evidence, decision.approved, params, splits_are_given)
    return Verdict(
        findings=_findings(checks(subject), subject, docs),
        classes=classes,
        labels=facts["label"],
        splits=facts["split"],
        dropped=[None if drop is None else drop.reason for drop in dropped],
        partners={row: drop.partner for row, drop in enumerate(dropped) if drop and drop.partner is not None},
        decisions=decision.descriptions,
        units=keys,
        counts=counts,
        evidence=evidence,
    )


def _drawn(
    facts: dict[str, list[Any]],
    keys: Sequence[str | None],
    dropped: Drops,
    fixed: Sequence[SplitName | None],
    params: ValidateParams,
) -> list[SplitName | None]:
    return assign_splits(
        facts["split"],
        keys,
        facts["label"],
        {"train": params.fractions.train, "val": params.fractions.val, "test": params.fractions.test},
        params.seed,
        fixed=fixed,
        counted=[drop is None for drop in dropped],
    )


def _searched(
    facts: dict[str, list[Any]],
    images: Pixels,
    pairs: "Sequence[NearPair]",
    dropped: Drops,
    decision: Decided,
    params: ValidateParams,
    reference: Reference | None,
    given: Sequence[str | None],
) -> tuple[Evidence, Drops]:
    """The results of the searches among the usable images, and the drops after them; later searches skip the dropped.

    Quality and labels of images that a person has looked at are not reported again.
    """
    usable = _usable(facts, dropped)
    quality = [issue for issue in search_quality(facts, usable) if issue.row not in decision.looked_at]
    if params.on_quality == "drop":
        dropped = drop_rows(dropped, _flawed(quality))
        usable, quality = _usable(facts, dropped), []
    labelled = [row for row in usable if facts["label"][row] is not None]
    labels = search_labels(facts, images, labelled, params)
    if labels is not None:
        labels = replace(labels, issues=[issue for issue in labels.issues if issue.row not in decision.looked_at])
    if labels is not None and params.on_label_error == "drop":
        wrong = {issue.row: Drop(f"label error: looks like {issue.suggested}") for issue in labels.issues}
        dropped = drop_rows(dropped, wrong)
        usable = _usable(facts, dropped)
    evidence = Evidence(
        pairs=kept_pairs(pairs, facts["pixels_sha256"], facts["split"], facts["label"], dropped, decision.approved),
        labels=labels,
        quality=quality,
        shortcuts=search_shortcuts(facts, images, usable, params.seed),
        drift=search_drift(facts, usable, reference, params.seed),
        reference=reference.name if reference is not None else None,
        clips=search_clips(facts, usable, given),
    )
    return evidence, dropped


def _flawed(issues: "Sequence[QualityIssue]") -> dict[int, Drop]:
    """A drop for each image with flaws, which names all of them."""
    flaws: dict[int, list[str]] = defaultdict(list)
    for issue in issues:
        flaws[issue.row].append(f"{issue.name}, {issue.text}")
    return {row: Drop(f"quality: {'; '.join(reasons)}") for row, reasons in flaws.items()}


def _usable(facts: dict[str, list[Any]], dropped: Drops) -> list[int]:
    return [row for row, drop in enumerate(dropped) if drop is None and facts["error"][row] is None]


def _broken(facts: dict[str, list[Any]], dropped: Drops) -> list[int]:
    return [row for row, drop in enumerate(dropped) if drop is None and facts["error"][row] is not None]


def _count(facts: dict[str, list[Any]], kept: Sequence[int], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Numbers of usable images of each class in each split and, if there are any, in no split."""
    usable = [row for row in kept if facts["error"][row] is None]
    pairs = Counter((facts["label"][row], facts["split"][row]) for row in usable)
    unsplit = {label: {UNSPLIT: pairs[label, None]} if pairs[label, None] else {} for label in classes}
    return {label: {**{name: pairs[label, name] for name in SPLITS}, **unsplit[label]} for label in classes}


def _findings(asked: "Sequence[Check]", subject: Subject, docs: Path | None) -> list[Finding]:
    with phase("Judging"):
        judgements = judge(subject.tables(), [(check.table, check.rule) for check in asked], docs)
    return [check.finding(judgement) for check, judgement in zip(asked, judgements, strict=True)]
