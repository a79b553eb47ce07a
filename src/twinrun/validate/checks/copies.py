"""Checks of copies: conflicting labels, leaks between splits, groups, clips, duplicates."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from twinrun.dataset.manifest import SPLITS
from twinrun.validate.checks.check import TWINS_NAMED, Check, counting, severity_of
from twinrun.validate.expectations import Judgement, Rule
from twinrun.validate.findings import Proposal, Violation
from twinrun.validate.searches.leaks import near_by_pixels
from twinrun.validate.subject import Subject

if TYPE_CHECKING:
    from twinrun.dataset.pairs import NearPair
    from twinrun.validate.searches.clips import Clips


def of_copies(subject: Subject) -> list[Check]:
    params, same_split = subject.params, " of the same split" if subject.splits else ""
    return [
        Check(
            name="no_contradiction",
            meaning="No identical images have conflicting labels",
            table="images",
            rule=Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "labels_of_pixels", "max_value": 1},
                severity_of(params.on_contradiction),
            ),
            settings=("validate.on_contradiction",),
            advice="Remove those with the wrong label, or set on_contradiction to drop, which drops all of them",
            violations=_sharing(subject, "pixels_sha256", _drop_all),
            says=lambda rows, sets: f"{len(rows):,} identical images{_in_sets(len(sets))} have conflicting labels",
        ),
        Check(
            name="no_near_contradiction",
            meaning="No near duplicates have conflicting labels",
            table="near_pairs",
            rule=Rule("ExpectColumnPairValuesToBeEqual", _sides("label"), severity_of(params.on_contradiction)),
            settings=("validate.on_contradiction",),
            advice="Remove those with the wrong label, or set on_contradiction to drop, which drops all of them",
            violations=_pairs(subject, lambda pair: (pair.first, pair.second)),
            says=counting("has conflicting labels", "pair of near duplicates", "pairs of near duplicates"),
        ),
        *(_of_leaks(subject) if subject.has_splits else []),
        *([_of_groups(subject)] if subject.has_splits and any(subject.of("group")) else []),
        *([_of_clips(subject.evidence.clips)] if subject.evidence.clips is not None else []),
        Check(
            name="no_duplicate",
            meaning=f"No image duplicates another one{same_split}",
            table="images",
            rule=Rule("ExpectColumnValuesToBeNull", {"column": "copy_of"}, severity_of(params.on_duplicate)),
            settings=("validate.on_duplicate",),
            advice="Remove them, or set on_duplicate to drop, which keeps one of each",
            violations=_duplicates(subject),
            says=counting(f"duplicates another one{same_split}"),
        ),
    ]


def _of_leaks(subject: Subject) -> list[Check]:
    params = subject.params
    return [
        Check(
            name="no_leak",
            meaning="No image is in two splits",
            table="images",
            rule=Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "splits_of_pixels", "max_value": 1},
                severity_of(params.on_leak),
            ),
            settings=("validate.on_leak",),
            advice="Remove them from one, or set on_leak to drop, which keeps those in the last split",
            violations=_sharing(subject, "pixels_sha256", _drop_all_but_the_last_split),
            says=lambda _, sets: _leaking(subject, sets, "is also in"),
        ),
        Check(
            name="no_near_leak",
            meaning="No near duplicates are in two splits",
            table="near_pairs",
            rule=Rule("ExpectColumnPairValuesToBeEqual", _sides("split"), severity_of(params.on_near_leak)),
            settings=("validate.on_near_leak",),
            advice="Remove them from one, or set on_near_leak to drop, which keeps those in the last split",
            violations=_pairs(subject, lambda pair: (_earlier_split(subject, pair),)),
            says=lambda _, pairs: _leaking(subject, pairs, "has a near duplicate in"),
        ),
    ]


def _of_groups(subject: Subject) -> Check:
    return Check(
        name="no_group_in_two_splits",
        meaning="No group is in two splits",
        table="images",
        rule=Rule(
            "ExpectColumnValuesToBeBetween",
            {"column": "splits_of_group", "max_value": 1},
            severity_of(subject.params.on_leak),
        ),
        settings=("validate.on_leak",),
        advice="Publish one split for all of a group, or set on_leak to drop, which keeps those in the last split",
        violations=_sharing(subject, "group", _drop_all_but_the_last_split),
        says=lambda _, groups: f"{len(groups):,} {'group is' if len(groups) == 1 else 'groups are'} in two splits",
    )


def _of_clips(clips: "Clips") -> Check:
    name, frames = next(iter(clips.series.items()))
    if clips.pattern is not None:
        setting = f"ingest.group_pattern: '{clips.pattern.replace(chr(39), 2 * chr(39))}'"
    else:
        setting = "ingest.splits_file: a CSV with the columns path and group"
    result = (
        f"{clips.frames:,} images look like frames of {len(clips.series):,} clips, such as {name} ({len(frames):,})"
    )
    advice = f"frames of one clip may be in different splits; {setting} keeps them together"
    return Check(
        name="clips_are_groups",
        meaning="Frames of one clip are one group",
        table="clips",
        rule=Rule("ExpectColumnValuesToBeNull", {"column": "pattern"}, "warning"),
        settings=("ingest.group_pattern" if clips.pattern is not None else "ingest.splits_file",),
        advice=f"Set {setting}",
        violations=lambda _: iter([Violation(tuple(frames), advice, advice)]),
        says=lambda *_: result,
    )


def _in_sets(number: int) -> str:
    return f" in {number:,} sets" if number > 1 else ""


def _leaking(subject: Subject, sets: Sequence[Violation], predicate: str) -> str:
    """Such as "3 images of glass are also in test": the images in the earlier splits, and the splits of their copies.

    The label is named where it is the same for all of them, and otherwise their splits.
    """
    splits = subject.facts["split"]
    earlier: set[int] = set()
    later: set[int] = set()
    for violation in sets:
        places = {row: SPLITS.index(splits[row]) for row in violation.rows if splits[row] in SPLITS}
        last = max(places.values(), default=0)
        later.add(last)
        earlier.update(row for row, place in places.items() if place < last)
    labels = {subject.facts["label"][row] for row in earlier}
    origins = sorted({SPLITS.index(splits[row]) for row in earlier})
    whose = labels.pop() if len(labels) == 1 and None not in labels else _listed(origins)
    say = counting(f"{predicate} {_listed(sorted(later))}", f"image of {whose}", f"images of {whose}")
    return say(sorted(earlier), sets)


def _listed(splits: Sequence[int]) -> str:
    return " and ".join(SPLITS[split] for split in splits)


def _sides(column: str) -> dict[str, Any]:
    return {
        "column_A": f"{column}_first",
        "column_B": f"{column}_second",
        "ignore_row_if": "either_value_is_missing",
    }


def _sharing(
    subject: Subject, column: str, propose: Callable[[Subject, Sequence[int]], tuple[Proposal, ...]]
) -> Callable[[Judgement], Iterator[Violation]]:
    """A violation for each set of images with the same pixels, or of one group."""

    def violations(judgement: Judgement) -> Iterator[Violation]:
        sets: dict[str, list[int]] = defaultdict(list)
        for index in judgement.rows:
            row = subject.kept[index]
            sets[subject.facts[column][row]].append(row)
        for shared, rows in sets.items():
            yield _violation_of(subject, column, shared, _one_of_each_split_first(subject, rows), propose)

    return violations


def _violation_of(
    subject: Subject,
    column: str,
    shared: str,
    rows: Sequence[int],
    propose: Callable[[Subject, Sequence[int]], tuple[Proposal, ...]],
) -> Violation:
    named = [subject.named(row) for row in rows[:TWINS_NAMED]]
    more = [f"{len(rows) - TWINS_NAMED:,} more"] if len(rows) > TWINS_NAMED else []
    if column == "group":
        return Violation(
            tuple(rows), f'group "{shared}": {", ".join([*named, *more])}', f'group "{shared}"', propose(subject, rows)
        )
    return Violation(tuple(rows), " = ".join([*named, *more]), "identical pixels", propose(subject, rows))


def _one_of_each_split_first(subject: Subject, rows: Sequence[int]) -> list[int]:
    """The rows, beginning with one of each split and label, so that the first few show both sides."""
    sides = [(subject.facts["split"][row], subject.facts["label"][row]) for row in rows]
    first = set(dict(reversed(list(zip(sides, rows, strict=True)))).values())
    return [row for row in rows if row in first] + [row for row in rows if row not in first]


def _drop_all(_: Subject, rows: Sequence[int]) -> tuple[Proposal, ...]:
    return tuple(Proposal(row, "drop") for row in rows)


def _drop_all_but_the_last_split(subject: Subject, rows: Sequence[int]) -> tuple[Proposal, ...]:
    splits = subject.facts["split"]
    last = max((SPLITS.index(splits[row]) for row in rows if splits[row] in SPLITS), default=0)
    return tuple(Proposal(row, "drop") for row in rows if splits[row] != SPLITS[last])


def _pairs(
    subject: Subject, drop: "Callable[[NearPair], tuple[int, ...]]"
) -> Callable[[Judgement], Iterator[Violation]]:
    """A violation for each pair of near duplicates."""

    def violations(judgement: Judgement) -> Iterator[Violation]:
        for index in judgement.rows:
            pair = subject.evidence.pairs[index]
            proposals = tuple(Proposal(row, "drop") for row in drop(pair))
            yield Violation((pair.first, pair.second), _near(subject, pair), _change(pair), proposals)

    return violations


def _near(subject: Subject, pair: "NearPair") -> str:
    named = f"{subject.named(pair.first)} ~ {subject.named(pair.second)}"
    return f"{named}: {_change(pair)}"


def _change(pair: "NearPair") -> str:
    return f"{pair.change}, distance {pair.distance:.3f}"


def _earlier_split(subject: Subject, pair: "NearPair") -> int:
    splits = subject.facts["split"]
    return int(pair.first if SPLITS.index(splits[pair.first]) < SPLITS.index(splits[pair.second]) else pair.second)


def _duplicates(subject: Subject) -> Callable[[Judgement], Iterator[Violation]]:
    """A violation for each image that repeats another one."""

    def violations(judgement: Judgement) -> Iterator[Violation]:
        pixels = subject.facts["pixels_sha256"]
        near = near_by_pixels(subject.evidence.pairs, pixels)
        copies = subject.copies()
        for index in judgement.rows:
            row = subject.kept[index]
            first = copies[row]
            pair = near.get(frozenset((pixels[first], pixels[row])))
            text = f"{subject.named(first)} {'~' if pair else '='} {subject.named(row)}"
            text += f": {_change(pair)}" if pair else ""
            measure = _change(pair) if pair else "identical pixels"
            yield Violation((first, row), text, measure, (Proposal(row, "drop"),))

    return violations
