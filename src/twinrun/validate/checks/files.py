"""Checks of files: unreadable images, sizes, colour modes."""

from collections import Counter
from collections.abc import Sequence

from twinrun.dataset.table import NO_LABEL, NO_LABEL_IN_LIST
from twinrun.validate.checks.check import Check, counting, each_image, severity_of
from twinrun.validate.expectations import Rule
from twinrun.validate.findings import Violation
from twinrun.validate.subject import Subject


def of_files(subject: Subject) -> list[Check]:
    facts, params = subject.facts, subject.params
    sides = {"min_value": params.min_side_px, "max_value": params.max_side_px}
    side_settings = ("validate.min_side_px", "validate.max_side_px", "validate.on_size")

    between = f"{params.min_side_px:,} to {params.max_side_px:,} pixels"

    def size(row: int) -> str:
        return f"{facts['width'][row]:,} x {facts['height'][row]:,} pixels"

    return [
        Check(
            name="images",
            meaning="There are images",
            table="images",
            rule=Rule("ExpectTableRowCountToBeBetween", {"min_value": 1}),
            settings=("ingest.path",),
            advice="Set it to a folder with images, or drop fewer",
            violations=lambda judgement: iter([Violation((), f"{judgement.observed or 0} images are left")]),
            says=lambda *_: "No usable image is left",
        ),
        Check(
            name="unique_ids",
            meaning="Every image has its own id",
            table="images",
            rule=Rule("ExpectColumnValuesToBeUnique", {"column": "id"}),
            settings=("ingest.path",),
            advice="Rename one of them",
            violations=each_image(subject, lambda row: f"id {facts['id'][row]}"),
            says=counting("shares an id with another image"),
        ),
        Check(
            name="decoded",
            meaning="Every image can be read, and has a label where others have one",
            table="files",
            rule=Rule("ExpectColumnValuesToBeNull", {"column": "error"}, severity_of(params.on_broken)),
            settings=("validate.on_broken",),
            advice=_advice_on_unusable(subject),
            violations=each_image(subject, lambda row: str(facts["error"][row]), drop=True, asked=subject.files()),
            says=lambda rows, _: _unusable(subject, rows),
        ),
        *[
            Check(
                name=side,
                meaning=f"{side.capitalize()}s are {between}",
                table="images",
                rule=Rule("ExpectColumnValuesToBeBetween", {"column": side, **sides}, severity_of(params.on_size)),
                settings=side_settings,
                advice="Remove them, widen the range, or set on_size to drop",
                violations=each_image(subject, size, drop=True),
                says=counting(f"has a {side} outside {between}"),
            )
            for side in ("width", "height")
        ],
        Check(
            name="mode",
            meaning=f"Colour modes are {', '.join(params.modes)}",
            table="images",
            rule=Rule(
                "ExpectColumnValuesToBeInSet",
                {"column": "mode", "value_set": list(params.modes)},
                severity_of(params.on_mode),
            ),
            settings=("validate.modes", "validate.on_mode"),
            advice="Convert them, add their mode, or set on_mode to drop",
            violations=each_image(subject, lambda row: f"mode {facts['mode'][row]}", drop=True),
            says=counting(f"has a colour mode other than {', '.join(params.modes)}"),
        ),
    ]


def _unusable(subject: Subject, rows: Sequence[int]) -> str:
    """Such as "4 images are unreadable, and 1 image lies in no class folder", of rows of the table of files."""
    files = subject.files()
    errors = Counter(subject.facts["error"][files[row]] for row in rows)
    without = errors[NO_LABEL], errors[NO_LABEL_IN_LIST]
    counts = (
        (len(rows) - sum(without), "is unreadable"),
        (without[0], "lies in no class folder"),
        (without[1], NO_LABEL_IN_LIST),
    )
    return ", and ".join(counting(predicate)(range(count), ()) for count, predicate in counts if count)


def _advice_on_unusable(subject: Subject) -> str:
    errors = {subject.facts["error"][row] for row in subject.files()}
    moving = ", move those without a label into a class folder" if NO_LABEL in errors else ""
    naming = ", name the labels of those without one there" if NO_LABEL_IN_LIST in errors else ""
    return f"Fix or remove them{moving}{naming}, or set on_broken to drop"
