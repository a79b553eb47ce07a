"""Checks of classes: their sizes, balance and names."""

import math
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations, islice

from twinrun.validate.checks.check import TWINS_NAMED, Check, counting, severity_of
from twinrun.validate.expectations import Rule
from twinrun.validate.findings import Violation
from twinrun.validate.subject import Subject

_SIMILAR = 0.85  # ratio of SequenceMatcher from which two names may be one name, written in two ways
_MOST_COMPARED = 100


def of_classes(subject: Subject) -> list[Check]:
    params, totals = subject.params, subject.totals()
    classes, shown, largest = list(subject.counts), list(subject.shown.values()), subject.largest
    smallest = min((images for _, images in totals), default=0)
    return [
        *([_of_class_sizes(subject)] if subject.splits else []),
        Check(
            name="balance",
            meaning=f"No class has more than {params.max_imbalance:g} times the images of another",
            table="classes",
            rule=Rule(
                "ExpectColumnValuesToBeBetween",
                {"column": "imbalance", "max_value": params.max_imbalance},
                severity_of(params.on_classes),
            ),
            settings=("validate.max_imbalance",),
            advice="Add images of the small classes, or raise that number",
            violations=lambda judgement: (
                Violation(
                    (), f'Class "{shown[i]}" has {totals[i][1]:,} {_images(totals[i][1])}, the largest {largest:,}'
                )
                for i in judgement.rows
            ),
            says=counting(
                f"has less than 1/{params.max_imbalance:g} of the largest one's images", "class", "classes", shown
            ),
            recommended=_setting_for_classes("max_imbalance", math.ceil(largest / smallest) if smallest else 0),
        ),
        Check(
            name="distinct_names",
            meaning="No two labels look alike",
            table="classes",
            rule=Rule("ExpectColumnValuesToBeNull", {"column": "written_alike"}, severity_of(params.on_names)),
            settings=("ingest.path", "validate.on_names"),
            advice="Where they mean the same, give their folders or labels one name",
            violations=lambda judgement: (
                Violation((), f'"{shown[i]}" is written like {_others(subject, classes[i])}')
                for i in judgement.rows
                if classes[i] == min(subject.alike[classes[i]])  # once for all that look alike
            ),
            says=counting("differs from another one only in case, spaces, a final .0 or similar characters", "label"),
        ),
    ]


def _of_class_sizes(subject: Subject) -> Check:
    params, classes, shown = subject.params, list(subject.counts), list(subject.shown.values())
    fewest = {label: images for label, images in subject.fewest().items() if images is not None}
    short = {label for label, images in fewest.items() if images < params.min_images_per_class}
    apart = _names_apart(subject)
    settings: tuple[str, ...] = ("validate.min_images_per_class",)
    advice = "Add images of these classes, or lower that number"
    if apart:
        settings = ("ingest.path", *(settings if short.difference(*apart) else ()))
        advice = "Give a class the same name in every split"
        advice += ", and add images of the other classes, or lower that number" if len(settings) > 1 else ""
    counted = counting(
        f"has fewer than {params.min_images_per_class:,} {_images(params.min_images_per_class)} in a split",
        "class",
        "classes",
        shown,
    )
    return Check(
        name="enough_images",
        meaning=f"Each class has at least {params.min_images_per_class:,} {_images(params.min_images_per_class)} in "
        "each split",
        table="classes",
        rule=Rule(
            "ExpectColumnValuesToBeBetween",
            {"column": "fewest_in_a_split", "min_value": params.min_images_per_class},
            severity_of(params.on_classes),
        ),
        settings=settings,
        advice=advice,
        violations=lambda judgement: (Violation((), _short_of_images(subject, classes[i])) for i in judgement.rows),
        says=lambda rows, violations: (
            counted(rows, violations)
            + _too_few_groups(subject, [classes[row] for row in rows])
            + next(iter(apart.values()), "")
        ),
        recommended=None if apart else _setting_for_classes("min_images_per_class", min(fewest.values(), default=0)),
    )


def _names_apart(subject: Subject) -> dict[tuple[str, str], str]:
    """A clause for each two classes with similar names that share no split of the source: they may be one class."""
    if not subject.splits_are_given:
        return {}
    where = {label: {name for name, images in counts.items() if images} for label, counts in subject.counts.items()}
    some = [label for label in where if where[label] and where[label] != set(subject.splits)][:_MOST_COMPARED]
    pairs = [
        (first, second)
        for first, second in combinations(some, 2)
        if where[first].isdisjoint(where[second])
        and re.findall(r"\d+", first) == re.findall(r"\d+", second)
        and SequenceMatcher(None, first.casefold(), second.casefold()).ratio() >= _SIMILAR
    ]
    place = {label: _and(sorted(splits)) for label, splits in where.items() if splits}
    return {
        (first, second): f'; "{subject.shown[first]}" has images in {place[first]}, and "{subject.shown[second]}" in '
        f"{place[second]}: are they one class?"
        for first, second in pairs
    }


def _others(subject: Subject, label: str) -> str:
    """The classes that look like `label`, or the first of them and how many more there are."""
    others = (other for other in subject.alike[label] if other != label)
    named = [f'"{subject.shown[other]}"' for other in islice(others, TWINS_NAMED)]
    more = len(subject.alike[label]) - 1 - len(named)
    return ", ".join(named) + (f" and {more:,} more" if more else "")


def _setting_for_classes(name: str, value: int) -> str:
    """The setting that lets these classes pass: 0 images cannot be allowed, only give a warning."""
    return f"validate.{name}: {value}" if value else "validate.on_classes: warn"


def _short_of_images(subject: Subject, label: str) -> str:
    wanted = subject.params.min_images_per_class
    short = [(images, name) for name in subject.splits if (images := subject.counts[label][name]) < wanted]
    counts = [f"{images:,}{'' if at else ' ' + _images(images)} in {name}" for at, (images, name) in enumerate(short)]
    return f'Class "{subject.shown[label]}" has {_and(counts)}'


def _too_few_groups(subject: Subject, labels: Sequence[str]) -> str:
    """The cause, after a colon, if all images of some of these classes are in fewer groups than there are splits."""
    splits = len(subject.splits)
    few = {
        len(groups)
        for label in labels
        if (groups := subject.groups[label]) and None not in groups and len(groups) < splits
    }
    if not few:
        return ""
    inside = "1 group" if min(few) == 1 else f"{min(few):,} groups"
    return f": all images of a class are in {inside}; a group stays in one split, so {splits} groups are needed"


def _images(count: int) -> str:
    return "image" if count == 1 else "images"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))
