"""The checks as data: name, meaning, table, expectation, severity, settings and the messages of each.

A new check is one more entry in a list below, on a column of `Subject.tables` (subject.py).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from twinrun.core.params import Policy, Severity
from twinrun.dataset.manifest import SPLITS
from twinrun.dataset.table import NO_LABEL
from twinrun.validate.expectations import Judgement, Rule
from twinrun.validate.findings import Finding, Proposal, Status, Violation
from twinrun.validate.subject import QUALITY, Subject, flaw_column

if TYPE_CHECKING:
    from twinrun.dataset.pairs import NearPair
    from twinrun.validate.searches.clips import Clips
    from twinrun.validate.searches.shortcuts import Shortcut

_TWINS_NAMED = 4
_CLASSES_NAMED = 10
_SHOW_NOTHING = ("dark", "bright", "low information")


@dataclass(frozen=True)
class Check:
    """An expectation before it is judged.

    `violations` turns the rows that Great Expectations refused into violations, and `says` the rows and these
    into one sentence. Where `judges` is False, a refused row means that nothing could be judged.
    """

    name: str
    meaning: str
    table: str
    rule: Rule
    settings: tuple[str, ...]
    advice: str
    violations: Callable[[Judgement], Iterator[Violation]]
    says: "Says"
    judges: bool = True
    recommended: str | None = None

    def finding(self, judgement: Judgement) -> Finding:
        """The result; what Great Expectations could not judge is critical, whatever the check's own severity."""
        if judgement.problem is not None:
            violations = [Violation((), judgement.problem)]
            return self._finding("not judged", "critical", f"{self.name} could not be judged", violations)
        if judgement.passed:
            return self._finding("passed", self.rule.severity, "", [])
        violations = list(self.violations(judgement))
        status: Status = "failed" if self.rule.severity == "critical" else "warning"
        found = self.says(judgement.rows, violations)
        return self._finding(status if self.judges else "not judged", self.rule.severity, found, violations)

    def _finding(self, status: Status, severity: Severity, found: str, violations: list[Violation]) -> Finding:
        return Finding(
            name=self.name,
            meaning=self.meaning,
            severity=severity,
            status=status,
            found=found,
            settings=self.settings,
            advice=self.advice,
            judged_by=self.rule.expectation,
            violations=violations,
            recommended=None if status == "passed" else self.recommended,
        )


Says = Callable[[Sequence[int], Sequence[Violation]], str]
"""From the refused rows and their violations to a sentence without its full stop."""


def _counting(predicate: str, noun: str = "image", nouns: str = "", names: Sequence[str] | None = None) -> Says:
    """A sentence on the number of rows: from "is dark", "1 image is dark" or "1,200 images are dark".

    Where there are `names`, one of each row of the table, those of the refused rows follow.
    """
    verb, _, rest = predicate.partition(" ")
    verbs = {"is": "are", "has": "have", "does": "do"}.get(verb, verb.removesuffix("s"))

    def say(rows: Sequence[int], _: Sequence[Violation]) -> str:
        more = [f"{len(rows) - _CLASSES_NAMED:,} more"] if len(rows) > _CLASSES_NAMED else []
        named = f" ({', '.join([*(names[row] for row in rows[:_CLASSES_NAMED]), *more])})" if names is not None else ""
        if len(rows) == 1:
            return f"1 {noun} {predicate}{named}"
        return f"{len(rows):,} {nouns or f'{noun}s'} {verbs} {rest}".rstrip() + named

    return say


def checks(subject: Subject) -> list[Check]:
    """All checks of `subject`, the most important first."""
    lists = (_of_files, _of_copies, _of_classes, _of_labels, _of_shortcuts, _of_quality, _of_drift, _of_the_user)
    return list(chain.from_iterable(make(subject) for make in lists))


def _severity(policy: Policy) -> Severity:
    # What is to be dropped is not there any more; if it were, that would be critical.
    return "warning" if policy == "warn" else "critical"


def _each(
    subject: Subject, words: Callable[[int], str], drop: bool = False, asked: Sequence[int] | None = None
) -> Callable[[Judgement], Iterator[Violation]]:
    """A violation for each refused image, `words` being what is wrong with it; refused rows count in `asked` or all."""
    judged = subject.kept if asked is None else asked

    def violations(judgement: Judgement) -> Iterator[Violation]:
        for index in judgement.rows:
            row = judged[index]
            proposals = (Proposal(row, "drop"),) if drop else ()
            yield Violation((row,), f"{subject.facts['path'][row]}: {words(row)}", words(row), proposals)

    return violations


def _of_files(subject: Subject) -> list[Check]:
    facts, params = subject.facts, subject.params
    sides = {"min_value": params.min_side_px, "max_value": params.max_side_px}
    side_settings = ("validate.min_side_px", "validate.max_side_px", "validate.on_size")

    between = f"{params.min_side_px:,} to {params.max_side_px:,} pixels"

    def size(row: int) -> str:
        return f"{facts['width'][row]:,} x {facts['height'][row]:,} pixels"

    return [
        Check(
            "images",
            "There are images",
            "images",
            Rule("ExpectTableRowCountToBeBetween", {"min_value": 1}),
            ("ingest.path",),
            "Point it at a folder with images, or drop less",
            lambda judgement: iter([Violation((), f"{judgement.observed or 0} images are left")]),
            lambda *_: "No usable image is left",
        ),
        Check(
            "unique_ids",
            "Every image has its own id",
            "images",
            Rule("ExpectColumnValuesToBeUnique", {"column": "id"}),
            ("ingest.path",),
            "Rename one of them",
            _each(subject, lambda row: f"id {facts['id'][row]}"),
            _counting("shares an id with another image"),
        ),
        Check(
            "decoded",
            "Every image can be read, and has a label where others have one",
            "files",
            Rule("ExpectColumnValuesToBeNull", {"column": "error"}, _severity(params.on_broken)),
            ("validate.on_broken",),
            _advice_on_unusable(subject),
            _each(subject, lambda row: str(facts["error"][row]), drop=True, asked=subject.files()),
            lambda rows, _: _unusable(subject, rows),
        ),
        *[
            Check(
                side,
                f"{side.capitalize()}s are {between}",
                "images",
                Rule("ExpectColumnValuesToBeBetween", {"column": side, **sides}, _severity(params.on_size)),
                side_settings,
                "Remove them, widen the range, or set on_size to drop",
                _each(subject, size, drop=True),
                _counting(f"has a {side} outside {between}"),
            )
            for side in ("width", "height")
        ],
        Check(
            "mode",
            f"Colour modes are {', '.join(params.modes)}",
            "images",
            Rule(
                "ExpectColumnValuesToBeInSet",
                {"column": "mode", "value_set": list(params.modes)},
                _severity(params.on_mode),
            ),
            ("validate.modes", "validate.on_mode"),
            "Convert them, add their mode, or set on_mode to drop",
            _each(subject, lambda row: f"mode {facts['mode'][row]}", drop=True),
            _counting(f"has a colour mode other than {', '.join(params.modes)}"),
        ),
    ]


def _unusable(subject: Subject, rows: Sequence[int]) -> str:
    """Such as "4 images are unreadable, and 1 image lies in no class folder", of rows of the table of files."""
    files = subject.files()
    strays = [row for row in rows if subject.facts["error"][files[row]] == NO_LABEL]
    counts = ((len(rows) - len(strays), "is unreadable"), (len(strays), "lies in no class folder"))
    return ", and ".join(_counting(predicate)(range(count), ()) for count, predicate in counts if count)


def _advice_on_unusable(subject: Subject) -> str:
    strays = any(subject.facts["error"][row] == NO_LABEL for row in subject.files())
    moving = ", move those without a label into a class folder" if strays else ""
    return f"Fix or remove them{moving}, or set it to drop"


def _of_copies(subject: Subject) -> list[Check]:
    params, same_split = subject.params, " of the same split" if subject.splits else ""
    return [
        Check(
            "no_contradiction",
            "No identical images have conflicting labels",
            "images",
            Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "labels_of_pixels", "max_value": 1},
                _severity(params.on_contradiction),
            ),
            ("validate.on_contradiction",),
            "Remove those with the wrong label, or set it to drop, which drops all of them",
            _sharing(subject, "pixels_sha256", _drop_all),
            lambda rows, sets: f"{len(rows):,} identical images{_in_sets(len(sets))} have conflicting labels",
        ),
        Check(
            "no_near_contradiction",
            "No near duplicates have conflicting labels",
            "near_pairs",
            Rule("ExpectColumnPairValuesToBeEqual", _sides("label"), _severity(params.on_contradiction)),
            ("validate.on_contradiction",),
            "Remove those with the wrong label, or set it to drop, which drops all of them",
            _pairs(subject, lambda pair: (pair.first, pair.second)),
            _counting("has conflicting labels", "pair of near duplicates", "pairs of near duplicates"),
        ),
        *(_of_leaks(subject) if subject.has_splits else []),
        *([_of_groups(subject)] if subject.has_splits and any(subject.of("group")) else []),
        *([_of_clips(subject.evidence.clips)] if subject.evidence.clips is not None else []),
        Check(
            "no_duplicate",
            f"No image duplicates another one{same_split}",
            "images",
            Rule("ExpectColumnValuesToBeNull", {"column": "copy_of"}, _severity(params.on_duplicate)),
            ("validate.on_duplicate",),
            "Remove them, or set it to drop, which keeps the first",
            _duplicates(subject),
            _counting(f"duplicates another one{same_split}"),
        ),
    ]


def _of_leaks(subject: Subject) -> list[Check]:
    params = subject.params
    return [
        Check(
            "no_leak",
            "No image is in two splits",
            "images",
            Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "splits_of_pixels", "max_value": 1},
                _severity(params.on_leak),
            ),
            ("validate.on_leak",),
            "Remove them from one, or set it to drop, which keeps those in the last split",
            _sharing(subject, "pixels_sha256", _drop_all_but_the_last_split),
            lambda _, sets: _leaking(subject, sets, "is also in"),
        ),
        Check(
            "no_near_leak",
            "No near duplicates are in two splits",
            "near_pairs",
            Rule("ExpectColumnPairValuesToBeEqual", _sides("split"), _severity(params.on_near_leak)),
            ("validate.on_near_leak",),
            "Remove them from one, or set it to drop, which keeps those in the last split",
            _pairs(subject, lambda pair: (_earlier_split(subject, pair),)),
            lambda _, pairs: _leaking(subject, pairs, "has a near duplicate in"),
        ),
    ]


def _of_groups(subject: Subject) -> Check:
    return Check(
        "no_group_in_two_splits",
        "No group is in two splits",
        "images",
        Rule(
            "ExpectColumnValuesToBeBetween",
            {"column": "splits_of_group", "max_value": 1},
            _severity(subject.params.on_leak),
        ),
        ("validate.on_leak",),
        "Publish one split for all of a group, or set it to drop, which keeps those in the last split",
        _sharing(subject, "group", _drop_all_but_the_last_split),
        lambda _, groups: f"{len(groups):,} {'group is' if len(groups) == 1 else 'groups are'} in two splits",
    )


def _of_clips(clips: "Clips") -> Check:
    name, frames = next(iter(clips.series.items()))
    if clips.pattern is not None:
        setting = f"ingest.group_pattern: '{clips.pattern.replace(chr(39), 2 * chr(39))}'"
    else:
        setting = "ingest.splits_file: a CSV with the columns path and group"
    found = f"{clips.frames:,} images look like frames of {len(clips.series):,} clips, such as {name} ({len(frames):,})"
    words = f"frames of one clip may get into different splits; {setting} keeps them together"
    return Check(
        "clips_are_groups",
        "Frames of one clip are one group",
        "clips",
        Rule("ExpectColumnValuesToBeNull", {"column": "pattern"}, "warning"),
        ("ingest.group_pattern" if clips.pattern is not None else "ingest.splits_file",),
        f"Set {setting}",
        lambda _: iter([Violation(tuple(frames), words, words)]),
        lambda *_: found,
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
    for found in sets:
        places = {row: SPLITS.index(splits[row]) for row in found.rows if splits[row] in SPLITS}
        last = max(places.values(), default=0)
        later.add(last)
        earlier.update(row for row, place in places.items() if place < last)
    labels = {subject.facts["label"][row] for row in earlier}
    origins = sorted({SPLITS.index(splits[row]) for row in earlier})
    whose = labels.pop() if len(labels) == 1 and None not in labels else _listed(origins)
    say = _counting(f"{predicate} {_listed(sorted(later))}", f"image of {whose}", f"images of {whose}")
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
    named = [subject.named(row) for row in rows[:_TWINS_NAMED]]
    more = [f"{len(rows) - _TWINS_NAMED:,} more"] if len(rows) > _TWINS_NAMED else []
    if column == "group":
        return Violation(
            tuple(rows), f'group "{shared}": {", ".join([*named, *more])}', f'group "{shared}"', propose(subject, rows)
        )
    return Violation(tuple(rows), " = ".join([*named, *more]), "identical pixels", propose(subject, rows))


def _one_of_each_split_first(subject: Subject, rows: Sequence[int]) -> list[int]:
    """The rows, but one of each split and label first: where only some are named, both sides are among them."""
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
    """A violation for each image that repeats an earlier one."""

    def violations(judgement: Judgement) -> Iterator[Violation]:
        near = {(pair.first, pair.second): pair for pair in subject.evidence.pairs}
        copies = subject.copies()
        for index in judgement.rows:
            row = subject.kept[index]
            first = copies[row]
            pair = near.get((first, row))
            words = _near(subject, pair) if pair else f"{subject.named(first)} = {subject.named(row)}"
            measure = _change(pair) if pair else "identical pixels"
            yield Violation((first, row), words, measure, (Proposal(row, "drop"),))

    return violations


def _of_classes(subject: Subject) -> list[Check]:
    params, totals = subject.params, subject.totals()
    classes, shown, largest = list(subject.counts), list(subject.shown.values()), subject.largest
    smallest = min((images for _, images in totals), default=0)
    return [
        *([_of_class_sizes(subject)] if subject.splits else []),
        Check(
            "balance",
            f"No class has more than {params.max_imbalance:g} times the images of another",
            "classes",
            Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "imbalance", "max_value": params.max_imbalance},
                _severity(params.on_classes),
            ),
            ("validate.max_imbalance",),
            "Add images of the small classes, or raise that number",
            lambda judgement: (
                Violation((), f'Class "{shown[i]}" has {totals[i][1]:,} images and the largest has {largest:,}')
                for i in judgement.rows
            ),
            _counting(
                f"has less than 1/{params.max_imbalance:g} of the largest one's images", "class", "classes", shown
            ),
            recommended=_setting_for_classes("max_imbalance", math.ceil(largest / smallest) if smallest else 0),
        ),
        Check(
            "distinct_names",
            "No two labels read alike",
            "classes",
            Rule("ExpectColumnValuesToBeNull", {"column": "written_alike"}, _severity(params.on_names)),
            ("ingest.path", "validate.on_names"),
            "Merge the folders if they mean the same",
            lambda judgement: (
                Violation((), f'"{shown[i]}" is written like {_others(subject, classes[i])}')
                for i in judgement.rows
                if classes[i] == min(subject.alike[classes[i]])  # once for all that read alike
            ),
            _counting("reads like another one but for case, spaces or characters that look the same", "label"),
        ),
    ]


def _of_class_sizes(subject: Subject) -> Check:
    params, classes, shown = subject.params, list(subject.counts), list(subject.shown.values())
    fewest = min((images for images in subject.fewest().values() if images is not None), default=0)
    counted = _counting(
        f"has fewer than {params.min_images_per_class:,} {_images(params.min_images_per_class)} in a split",
        "class",
        "classes",
        shown,
    )
    return Check(
        "enough_images",
        f"Each class has at least {params.min_images_per_class:,} {_images(params.min_images_per_class)} in each split",
        "classes",
        Rule(
            "ExpectColumnValuesToBeBetween",
            {"column": "fewest_in_a_split", "min_value": params.min_images_per_class},
            _severity(params.on_classes),
        ),
        ("validate.min_images_per_class",),
        "Add images of these classes, or lower that number",
        lambda judgement: (Violation((), _short_of_images(subject, classes[i])) for i in judgement.rows),
        lambda rows, violations: counted(rows, violations) + _too_few_groups(subject, [classes[row] for row in rows]),
        recommended=_setting_for_classes("min_images_per_class", fewest),
    )


def _others(subject: Subject, label: str) -> str:
    """The classes that read like `label`, or the first of them and how many more there are."""
    others = (other for other in subject.alike[label] if other != label)
    named = [f'"{subject.shown[other]}"' for other in islice(others, _TWINS_NAMED)]
    more = len(subject.alike[label]) - 1 - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _setting_for_classes(name: str, value: int) -> str:
    """The setting that lets these classes pass: 0 images cannot be allowed, only warned of."""
    return f"validate.{name}: {value}" if value else "validate.on_classes: warn"


def _short_of_images(subject: Subject, label: str) -> str:
    wanted = subject.params.min_images_per_class
    short = [(images, name) for name in subject.splits if (images := subject.counts[label][name]) < wanted]
    counts = [f"{images:,}{'' if at else ' ' + _images(images)} in {name}" for at, (images, name) in enumerate(short)]
    return f'Class "{subject.shown[label]}" has {_and(counts)}'


def _too_few_groups(subject: Subject, labels: Sequence[str]) -> str:
    """The cause, after a colon, where all images of some of these classes are in fewer groups than there are splits."""
    splits = len(subject.splits)
    few = {len(groups) for label in labels if None not in (groups := subject.groups[label]) and len(groups) < splits}
    if not few:
        return ""
    inside = "1 group" if min(few) == 1 else f"{min(few):,} groups"
    return f": all images of a class are in {inside}, and a group is in one split, so that {splits} are needed"


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _of_labels(subject: Subject) -> list[Check]:
    search = subject.evidence.labels
    if search is None:
        return []
    issues = {issue.row: issue for issue in search.issues}
    rank = {issue.row: place for place, issue in enumerate(search.issues)}

    def suspects(judgement: Judgement) -> Iterator[Violation]:
        for row in sorted((subject.kept[index] for index in judgement.rows), key=rank.__getitem__):
            issue = issues[row]
            words = f"looks like {issue.suggested} and not {issue.given}, confidence {issue.confidence:.2f}"
            named = f"{subject.facts['path'][row]}: {words}"
            yield Violation((row,), named, words, (Proposal(row, "relabel", issue.suggested),))

    doubted = Check(
        "labels",
        "No label looks wrong",
        "images",
        Rule("ExpectColumnValuesToBeNull", {"column": "likely_label"}, _severity(subject.params.on_label_error)),
        ("validate.on_label_error",),
        f"A model that had not seen them agrees with {search.accuracy:.0%} of all labels; look at these, the least "
        "likely first, and decide: twinrun data mend",
        suspects,
        _counting("looks wrong", "label"),
    )
    return [_label_search(subject, search.unjudged)] if search.unjudged else [doubted, _label_search(subject)]


def _label_search(subject: Subject, unjudged: str | None = None) -> Check:
    """Whether labels could be judged. That there was no time for it is as critical as a wrong label is.

    Otherwise what is dropped, or stops the pipeline, would depend on how fast the machine is.
    """
    finished = subject.evidence.labels is None or subject.evidence.labels.finished
    return Check(
        "label_search",
        "The quick model can judge the labels",
        "searches",
        Rule(
            "ExpectColumnValuesToBeNull",
            {"column": "unjudged"},
            "warning" if finished else _severity(subject.params.on_label_error),
        ),
        () if finished else ("validate.label_errors", "validate.on_label_error"),
        "Look through some images of each class" if finished else "Raise budget_s, or lower folds",
        lambda _: iter(()),
        lambda *_: str(unjudged),
        judges=False,
    )


def _of_shortcuts(subject: Subject) -> list[Check]:
    shortcuts, params = subject.evidence.shortcuts, subject.params
    if not shortcuts:
        return []

    def words(shortcut: "Shortcut") -> str:
        what = "the labels" if shortcut.label is None else f'"{shortcut.label}" from all others'
        told_by = "All of these facts tell" if shortcut.name == "all" else f"{shortcut.name.capitalize()} alone tells"
        return (
            f"{told_by} {what}: balanced accuracy {shortcut.balanced_accuracy:.3f} "
            f"({shortcut.low:.3f} to {shortcut.high:.3f}), chance {shortcut.chance:.3f}"
        )

    return [
        Check(
            "no_shortcut",
            f"No fact beside the content gets more than {params.max_shortcut:.0%} of the way to the labels",
            "shortcuts",
            Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "share", "max_value": params.max_shortcut},
                _severity(params.on_shortcut),
            ),
            ("validate.on_shortcut", "validate.max_shortcut"),
            "Take images of all labels in the same way, or raise that number",
            lambda judgement: (Violation((), words(shortcuts[i])) for i in judgement.rows),
            _counting("gives the labels away", "shortcut"),
        )
    ]


def _of_quality(subject: Subject) -> list[Check]:
    words = {(issue.name, issue.row): issue.words for issue in subject.evidence.quality}
    return [
        Check(
            f"not_{name.replace(' ', '_')}",
            f"No image {predicate}",
            "images",
            Rule("ExpectColumnValuesToBeNull", {"column": flaw_column(name)}, _severity(subject.params.on_quality)),
            ("validate.on_quality",),
            "Look at them, and drop those that show nothing",
            _each(subject, lambda row, name=name: words[name, row], drop=name in _SHOW_NOTHING),  # type: ignore[misc]
            _counting(predicate),
        )
        for name, predicate in QUALITY.items()
    ]


def _of_drift(subject: Subject) -> list[Check]:
    drift, reference = subject.evidence.drift, subject.evidence.reference
    if drift is None:
        return []
    severity, settings = _severity(subject.params.on_drift), ("validate.on_drift", "validate.reference")
    changes = subject.changed_labels()
    rows = {path: row for row, path in enumerate(subject.facts["path"])}
    return [
        Check(
            "no_drift",
            f"Facts and labels are distributed as in {reference}",
            "drift",
            Rule("ExpectColumnValuesToBeInSet", {"column": "significant", "value_set": [False]}, severity),
            settings,
            "Find out what changed in how images are taken, or make these the reference",
            lambda judgement: (
                Violation((), f"{shift.name}: {shift.measure} {shift.value:.3f}, p {shift.p_value:.2g}")
                for shift in (drift.shifts[i] for i in judgement.rows)
            ),
            _counting(f"is distributed differently than in {reference}", "fact"),
        ),
        Check(
            "same_labels",
            f"The labels are those of {reference}",
            "labels_since_reference",
            Rule("ExpectColumnValuesToBeInSet", {"column": "change", "value_set": ["none"]}, severity),
            settings,
            "Rename or remove them, or make these the reference",
            lambda judgement: (Violation((), f'Label "{changes[i][1]}" is {changes[i][0]}') for i in judgement.rows),
            _counting(f"is new or gone since {reference}", "label"),
        ),
        Check(
            "same_images",
            f"No image has another label than in {reference}",
            "images_since_reference",
            Rule("ExpectColumnValuesToBeNull", {"column": "relabelled"}, severity),
            settings,
            "Make sure that the new labels are meant",
            lambda judgement: (
                Violation((rows[path],), f"{path}: was {before}, is {now}", f"was {before}, is {now}")
                for path, before, now in (drift.relabelled[i] for i in judgement.rows)
            ),
            _counting(f"has another label than in {reference}"),
        ),
    ]


def _of_the_user(subject: Subject) -> list[Check]:
    names = Counter(wanted.name for wanted in subject.params.expectations)
    return [
        Check(
            wanted.name if names[wanted.name] == 1 else f"{wanted.name}_{number}",
            f"{wanted.name}: " + ", ".join(f"{key} {value}" for key, value in wanted.arguments.items()),
            "images",
            Rule(wanted.name, wanted.arguments, wanted.severity),
            ("validate.expectations",),
            "Look into them, or change the expectation",
            _asked(subject, str(wanted.arguments.get("column", ""))),
            _not_meeting(wanted.name),
        )
        for number, wanted in enumerate(subject.params.expectations, 1)
    ]


def _not_meeting(expectation: str) -> Says:
    counted = _counting(f"does not meet {expectation}")
    return lambda rows, violations: counted(rows, violations) if rows else f"{expectation} is not met"


def _asked(subject: Subject, column: str) -> Callable[[Judgement], Iterator[Violation]]:
    def violations(judgement: Judgement) -> Iterator[Violation]:
        for index in judgement.rows:
            row = subject.kept[index]
            value = f": {column} is {subject.facts[column][row]}" if column in subject.facts else ""
            yield Violation((row,), f"{subject.named(row)}{value}", value.removeprefix(": "))
        if not judgement.rows:
            found = "it is not so" if judgement.observed is None else f"observed {judgement.observed}"
            yield Violation((), f"{column or 'the table'}: {found}")

    return violations
