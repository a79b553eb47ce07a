"""Judging the table of facts: drops, splits, expectations, and what a person is told. Refuses to decode or to draw.

What the policies in params.yaml drop is dropped first; Great Expectations then judges what is left, and every
expectation is critical: one that fails stops the pipeline.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from twinrun.data.expectations import Columns, Judgement, Rule, judge
from twinrun.data.leaks import distinct_per_pixels, leaked
from twinrun.data.manifest import SPLITS, SplitName
from twinrun.data.splits import assign_splits
from twinrun.params import ValidateParams, setting_line

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 10
_TWINS_NAMED = 4
FORMAT = 1


@dataclass(frozen=True)
class Offence:
    """What offends an expectation: an image, a set of images with the same pixels, or a class, and in what way."""

    rows: tuple[int, ...]
    words: str


@dataclass(frozen=True)
class Finding:
    """One expectation and how the table met it."""

    name: str
    meaning: str
    passed: bool
    found: str
    settings: tuple[str, ...]
    advice: str
    judged_by: str
    offences: list[Offence]


@dataclass(frozen=True)
class Verdict:
    """How the table was judged; lists have an entry for each row of the table."""

    findings: list[Finding]
    classes: list[str]
    splits: list[str | None]
    dropped: list[str | None]
    counts: dict[str, dict[str, int]]

    @property
    def passed(self) -> bool:
        """Whether the data may be used."""
        return all(finding.passed for finding in self.findings)

    @property
    def failed(self) -> list[Finding]:
        """The expectations that were not met."""
        return [finding for finding in self.findings if not finding.passed]

    @property
    def reasons(self) -> dict[str, int]:
        """Number of dropped images for each kind of reason."""
        return dict(Counter(reason.partition(":")[0] for reason in self.dropped if reason is not None))


def judge_table(table: "pa.Table", params: ValidateParams) -> Verdict:
    """Drop what the policies drop, assign splits, and have the rest judged."""
    facts: Facts = {name: table[name].to_pylist() for name in table.column_names}
    fractions: dict[SplitName, float] = {
        "train": params.fractions.train,
        "val": params.fractions.val,
        "test": params.fractions.test,
    }
    facts["split"] = assign_splits(facts["split"], facts["pixels_sha256"], fractions, params.seed)
    dropped = _drop(facts, params)
    kept = [row for row, reason in enumerate(dropped) if reason is None]
    classes = sorted({label for label in facts["label"] if label is not None})
    counts = _count(facts, kept, classes)
    findings = _findings({name: [values[row] for row in kept] for name, values in facts.items()}, kept, counts, params)
    return Verdict(findings, classes, facts["split"], dropped, counts)


def result_json(verdict: Verdict, table: "pa.Table") -> dict[str, Any]:
    """The verdict as plain values, for result.json: the same for the same data, with no times and no names of hosts."""
    paths = table["path"].to_pylist()
    return {
        "format": FORMAT,
        "passed": verdict.passed,
        "images": {
            "total": len(verdict.dropped),
            "kept": verdict.dropped.count(None),
            "dropped": verdict.reasons,
        },
        "splits": {name: sum(counts[name] for counts in verdict.counts.values()) for name in SPLITS},
        "classes": verdict.counts,
        "expectations": [
            {
                **{key: value for key, value in asdict(finding).items() if key != "offences"},
                "critical": True,
                "offences": len(finding.offences),
                "first_offences": [
                    {"paths": [paths[row] for row in offence.rows], "what": offence.words}
                    for offence in finding.offences[:_SHOWN]
                ],
            }
            for finding in verdict.findings
        ],
    }


def failure_message(verdict: Verdict, report: str) -> str:
    """All that failed, for the terminal: counts, the first offenders, what to change, and where the report is."""
    failed = verdict.failed
    lines = [f"The data did not pass: {len(failed)} of {len(verdict.findings)} expectations failed."]
    for finding in failed:
        lines += ["", f"  {finding.meaning}: {finding.found}"]
        lines += [f"    {offence.words}" for offence in finding.offences[:_SHOWN]]
        if (more := len(finding.offences) - _SHOWN) > 0:
            lines.append(f"    and {more:,} more")
        lines.append(f"  {finding.advice} ({_places(finding.settings)})")
    return "\n".join([*lines, "", f"The report with pictures: {report}"])


def summary(verdict: Verdict) -> str:
    """One line for the terminal when the data passed."""
    sizes = ", ".join(f"{name} {sum(counts[name] for counts in verdict.counts.values()):,}" for name in SPLITS)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(verdict.reasons.items()))
    met = f"{len(verdict.findings)} expectations met"
    return f"{met}. {len(verdict.classes)} classes; {sizes}; dropped: {reasons or 'none'}."


Facts = dict[str, list[Any]]


def _places(settings: tuple[str, ...]) -> str:
    named = (f"line {line}: {name}" if (line := setting_line(name)) else name for name in settings)
    return "params.yaml, " + " and ".join(named)


def _drop(facts: Facts, params: ValidateParams) -> list[str | None]:
    """Why each row is dropped, or None; contradictions go before leaks, since they leave fewer of those."""
    dropped: list[str | None] = [None] * len(facts["id"])
    if params.on_broken == "drop":
        dropped = [None if error is None else f"broken: {error}" for error in facts["error"]]
    if params.on_contradiction == "drop":
        pixels = _where_kept(facts["pixels_sha256"], dropped)
        for row, labels in enumerate(distinct_per_pixels(pixels, facts["label"])):
            if labels > 1:
                dropped[row] = "contradiction: identical pixels under another label"
    if params.on_leak == "drop":
        pixels = _where_kept(facts["pixels_sha256"], dropped)
        for row, leaks in enumerate(leaked(pixels, facts["split"])):
            if leaks:
                dropped[row] = "leak: identical pixels in a later split"
    return dropped


def _where_kept(values: Sequence[str | None], dropped: Sequence[str | None]) -> list[str | None]:
    return [value if reason is None else None for value, reason in zip(values, dropped, strict=True)]


def _count(facts: Facts, kept: Sequence[int], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Usable images of each class in each split."""
    usable = [row for row in kept if facts["error"][row] is None]
    pairs = Counter((facts["label"][row], facts["split"][row]) for row in usable)
    return {label: {name: pairs[label, name] for name in SPLITS} for label in classes}


@dataclass(frozen=True)
class _Expected:
    """An expectation before it is judged; `offences` turns the rows that Great Expectations refused into words."""

    name: str
    meaning: str
    table: str
    rule: Rule
    settings: tuple[str, ...]
    advice: str
    offences: Callable[[Judgement], Iterator[Offence]]


def _findings(
    facts: Facts, rows: Sequence[int], counts: dict[str, dict[str, int]], params: ValidateParams
) -> list[Finding]:
    """Judge the kept `facts`, which are the table's `rows`, and the `counts` of their classes and splits."""
    largest = max((sum(count.values()) for count in counts.values()), default=0)
    groups = [(label, name, count[name]) for label, count in counts.items() for name in SPLITS]
    totals = [(label, sum(count.values())) for label, count in counts.items()]
    tables: dict[str, Columns] = {
        "images": {
            **{name: facts[name] for name in ("id", "error", "width", "height", "mode")},
            "splits_of_pixels": distinct_per_pixels(facts["pixels_sha256"], facts["split"]),
            "labels_of_pixels": distinct_per_pixels(facts["pixels_sha256"], facts["label"]),
        },
        "groups": {"images": [images for _, _, images in groups]},
        "classes": {"imbalance": [largest / images if images else float(largest) for _, images in totals]},
    }

    def each(words: Callable[[int], str]) -> Callable[[Judgement], Iterator[Offence]]:
        return lambda judgement: (
            Offence((rows[row],), f"{facts['path'][row]}: {words(row)}") for row in judgement.rows
        )

    def twins(judgement: Judgement) -> Iterator[Offence]:
        by_pixels: dict[str, list[int]] = defaultdict(list)
        for row in judgement.rows:
            by_pixels[facts["pixels_sha256"][row]].append(row)
        for same in by_pixels.values():
            named = [f"{facts['path'][row]} ({facts['label'][row]}, {facts['split'][row]})" for row in same]
            more = [f"{len(same) - _TWINS_NAMED:,} more"] if len(same) > _TWINS_NAMED else []
            yield Offence(tuple(rows[row] for row in same), " = ".join([*named[:_TWINS_NAMED], *more]))

    def size(row: int) -> str:
        return f"{facts['width'][row]} x {facts['height'][row]} pixels"

    sides = {"min_value": params.min_side_px, "max_value": params.max_side_px}
    side_settings = ("validate.min_side_px", "validate.max_side_px")
    expected = [
        _Expected(
            "images",
            "There are images",
            "images",
            Rule("ExpectTableRowCountToBeBetween", {"min_value": 1}),
            ("ingest.path",),
            "Point it at a folder with images, or drop less",
            lambda judgement: iter([Offence((), f"{judgement.observed or 0} images are left")]),
        ),
        _Expected(
            "unique_ids",
            "Every image has an id of its own",
            "images",
            Rule("ExpectColumnValuesToBeUnique", {"column": "id"}),
            ("ingest.path",),
            "Rename one of them",
            each(lambda row: f"id {facts['id'][row]}"),
        ),
        _Expected(
            "decoded",
            "Every image can be decoded",
            "images",
            Rule("ExpectColumnValuesToBeNull", {"column": "error"}),
            ("validate.on_broken",),
            "Mend or remove them, or set it to drop",
            each(lambda row: str(facts["error"][row])),
        ),
        _Expected(
            "width",
            f"Widths are {params.min_side_px:,} to {params.max_side_px:,} pixels",
            "images",
            Rule("ExpectColumnValuesToBeBetween", {"column": "width", **sides}),
            side_settings,
            "Remove them, or widen the range",
            each(size),
        ),
        _Expected(
            "height",
            f"Heights are {params.min_side_px:,} to {params.max_side_px:,} pixels",
            "images",
            Rule("ExpectColumnValuesToBeBetween", {"column": "height", **sides}),
            side_settings,
            "Remove them, or widen the range",
            each(size),
        ),
        _Expected(
            "mode",
            f"Colour modes are {', '.join(params.modes)}",
            "images",
            Rule("ExpectColumnValuesToBeInSet", {"column": "mode", "value_set": list(params.modes)}),
            ("validate.modes",),
            "Convert them, or add their mode",
            each(lambda row: f"mode {facts['mode'][row]}"),
        ),
        _Expected(
            "no_leak",
            "No pixel-identical images are in two splits",
            "images",
            Rule("ExpectColumnValuesToBeBetween", {"column": "splits_of_pixels", "max_value": 1}),
            ("validate.on_leak",),
            "Remove them from one, or set it to drop, which keeps those in the last split",
            twins,
        ),
        _Expected(
            "no_contradiction",
            "No pixel-identical images are under two labels",
            "images",
            Rule("ExpectColumnValuesToBeBetween", {"column": "labels_of_pixels", "max_value": 1}),
            ("validate.on_contradiction",),
            "Remove the wrong ones, or set it to drop, which drops them all",
            twins,
        ),
        _Expected(
            "enough_images",
            f"Each class has at least {params.min_images_per_class:,} images in each split",
            "groups",
            Rule("ExpectColumnValuesToBeBetween", {"column": "images", "min_value": params.min_images_per_class}),
            ("validate.min_images_per_class", "validate.seed"),
            "Add images, or lower that number; where splits are drawn, another seed too mends one that is just short",
            lambda judgement: (
                Offence((), f'Class "{groups[i][0]}" has {groups[i][2]} images in {groups[i][1]}')
                for i in judgement.rows
            ),
        ),
        _Expected(
            "balance",
            f"No class has more than {params.max_imbalance:g} times the images of another",
            "classes",
            Rule("ExpectColumnValuesToBeBetween", {"column": "imbalance", "max_value": params.max_imbalance}),
            ("validate.max_imbalance",),
            "Add images of the small classes, or raise that number",
            lambda judgement: (
                Offence((), f'Class "{totals[i][0]}" has {totals[i][1]} images and the largest has {largest:,}')
                for i in judgement.rows
            ),
        ),
    ]
    judgements = judge(tables, [(entry.table, entry.rule) for entry in expected])
    return [_finding(entry, judgement) for entry, judgement in zip(expected, judgements, strict=True)]


def _finding(expected: _Expected, judgement: Judgement) -> Finding:
    offences = [] if judgement.passed else list(expected.offences(judgement))
    images = len(judgement.rows)
    if judgement.passed:
        found = "met"
    elif expected.table == "images" and offences and offences[0].rows:
        found = f"{images:,} images do not meet it" + (
            f", in {len(offences):,} sets" if len(offences) != images else ""
        )
    else:
        found = "not met"
    return Finding(
        name=expected.name,
        meaning=expected.meaning,
        passed=judgement.passed,
        found=found,
        settings=expected.settings,
        advice=expected.advice,
        judged_by=expected.rule.expectation,
        offences=offences,
    )
