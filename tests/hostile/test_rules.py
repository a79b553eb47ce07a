"""Rules of a params.yaml that somebody else wrote: judged on the table, and never run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_support import Project
from ruamel.yaml import YAML

from twinrun.base.errors import ParamsError
from twinrun.core.params import parse_params

COLUMN = {"column": "path"}
BETWEEN = "ExpectColumnValuesToBeBetween"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a call in a condition": (
        BETWEEN,
        {**COLUMN, "condition_parser": "pandas", "row_condition": "path.map(@__import__('os').system)"},
        "is not a condition that is understood",
    ),
    "a local name in a condition": (BETWEEN, {**COLUMN, "row_condition": "width > @self"}, "not a condition"),
    "a call behind a comparison": (
        BETWEEN,
        {**COLUMN, "row_condition": "width > 3 and path.apply(eval)"},
        "not a cond",
    ),
    "an index": (BETWEEN, {**COLUMN, "row_condition": "path[0] == 'x'"}, "not a condition"),
    "a column in backticks": (BETWEEN, {**COLUMN, "row_condition": "`path` == 'x'"}, "not a condition"),
    "a backtick in a text": (BETWEEN, {**COLUMN, "row_condition": "path == '`x`'"}, "not a condition"),
    "a backslash in a text": (BETWEEN, {**COLUMN, "row_condition": "path == 'x\\'"}, "not a condition"),
    "a line break": (BETWEEN, {**COLUMN, "row_condition": "width > 1\nimport os"}, "not a condition"),
    "and beside or": (
        BETWEEN,
        {**COLUMN, "row_condition": "width > 1 and width < 9 or path == 'x'"},
        "not a condition",
    ),
    "half a comparison": (BETWEEN, {**COLUMN, "row_condition": "width >"}, "not a condition"),
    "an open list": (BETWEEN, {**COLUMN, "row_condition": "label in ['a', 'b'"}, "not a condition"),
    "no text": (BETWEEN, {**COLUMN, "row_condition": ["width > 1"]}, "not a condition"),
    "nothing": (BETWEEN, {**COLUMN, "row_condition": ""}, "not a condition"),
    "another parser": (
        BETWEEN,
        {**COLUMN, "condition_parser": "spark", "row_condition": "width > 1"},
        "only be pandas",
    ),
    "a mapping as a condition": (BETWEEN, {**COLUMN, "row_condition": {"type": "pass_through"}}, "not a condition"),
    "an evaluated parameter": (BETWEEN, {**COLUMN, "max_value": {"$PARAMETER": "1 + 1"}}, "must be a number, a text"),
    "a mapping in a set": (
        "ExpectColumnValuesToBeInSet",
        {**COLUMN, "value_set": [{"$PARAMETER": "x"}]},
        "must be a li",
    ),
    "a column that is an expression": (BETWEEN, {"column": "path.map(print)"}, "must be the name of a column"),
    "a query": ("UnexpectedRowsExpectation", {"unexpected_rows_query": "SELECT 1"}, "is not one of the expectations"),
    "two queries": (
        "ExpectQueryResultsToMatchComparison",
        {"base_query": "SELECT 1"},
        "is not one of the expectations",
    ),
    "a schema": (
        "ExpectColumnValuesToMatchJsonSchema",
        {**COLUMN, "json_schema": {"$ref": "http://x"}},
        "is not one of",
    ),
    "another argument": (BETWEEN, {**COLUMN, "meta": {}}, "meta is not an argument"),
    "result format": (BETWEEN, {**COLUMN, "result_format": "BASIC"}, "result_format is not an argument"),
    "a name with a mistake": ("ExpectColumnMeanToBeBetwen", {}, "did you mean ExpectColumnMeanToBeBetween?"),
    "an argument with a mistake": ("ExpectColumnMeanToBeBetween", {"colum": "width"}, "did you mean column?"),
    "no column": ("ExpectColumnMeanToBeBetween", {"max_value": 1}, "needs the argument column"),
    "a share that is a text": (BETWEEN, {**COLUMN, "mostly": ""}, "mostly must be a number from 0 to 1, got ''"),
    "a share over 1": (BETWEEN, {**COLUMN, "mostly": 95}, "mostly must be a number from 0 to 1, got 95"),
    "no name of an expectation": ("os.system", {"command": "true"}, "is not one of the expectations"),
}


@pytest.mark.parametrize(("name", "arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_rule_that_could_run_code_ends_the_stage_before_any_work(
    project: Project, name: str, arguments: dict[str, Any], reason: str
) -> None:
    project.set(validate__expectations=[{"name": name, "arguments": arguments, "severity": "warning"}])

    ran = project.run("ingest")

    assert ran.code == 1
    assert ran.said.startswith("\nparams.yaml does not describe a run:\n  validate.expectations.0")
    assert reason in ran.said
    assert not (project.folder / "data/out").exists()


def test_conditions_choose_rows_and_texts_in_them_are_only_texts(
    project: Project, write_digits: Callable[..., Path]
) -> None:
    conditions = {
        "label == '1'": 20,
        "label in ['0', \"2\"] and width >= 16": 40,
        "label not in ['0'] and split is not null": 40,
        "label == '0' or label == '1'": 40,
        "camera is null": 60,
        "path == '@os.system(1)'": 0,
        "brightness > 2.5e3": 0,
    }
    own = [
        {
            "name": "ExpectTableRowCountToEqual",
            "arguments": {"value": 999, "row_condition": text},
            "severity": "warning",
        }
        for text in conditions
    ]
    write_digits()
    project.set(ingest__source="folder", ingest__path="images", validate__expectations=own)
    project.set(validate__min_images_per_class=1)

    assert project.run("ingest").code == 0
    ran = project.run("validate")

    found = [each for each in project.result()["expectations"] if each["name"].startswith("ExpectTableRowCount")]
    assert ran.code == 0, ran.said
    assert [each["first_violations"][0]["what"] for each in found] == [
        f"the table: observed {rows}" for rows in conditions.values()
    ]


def test_a_regular_expression_that_would_be_searched_for_without_end_stops_with_the_value(
    project: Project, write_digits: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinrun.core.searching._SEARCH_S", 1)
    root = write_digits()
    long = (root / "0/000.png").rename(root / f"0/{'a' * 50}.png")
    rules: dict[str, dict[str, Any]] = {
        "ExpectColumnValuesToMatchRegex": {"regex": r"([a-z]+\s?)+\.jpg$"},
        "ExpectColumnValuesToNotMatchRegexList": {"regex_list": [r"\.gif$", "(a+)+$"]},
        "ExpectColumnValuesToNotMatchRegex": {"regex": r"\.gif$"},
    }
    own = [
        {"name": name, "arguments": {"column": "path", **arguments}, "severity": "warning"}
        for name, arguments in rules.items()
    ]
    project.set(ingest__source="folder", ingest__path="images", validate__expectations=own)
    project.set(validate__min_images_per_class=1)

    assert project.run("ingest").code == 0
    ran = project.run("validate")

    passed = {each["name"]: each["passed"] for each in project.result()["expectations"] if each["name"] in rules}
    assert ran.code == 1
    for name, pattern in zip(rules, (r"([a-z]+\s?)+\.jpg$", "(a+)+$"), strict=False):
        assert f"{pattern!r} takes more than 1 s for one value, 0/{long.name} ({name})" in ran.said
    assert list(passed.values()) == [False, False, True]


def test_data_docs_show_names_as_text(project: Project, write_digits: Callable[..., Path]) -> None:
    evil, quotes = "<img src=x onerror=alert(1)>", "\"'><svg onload=alert(2)>"
    root = write_digits()
    (root / "1").rename(root / evil)
    (root / "2").rename(root / quotes)
    own = [
        {"name": "ExpectColumnValuesToBeInSet", "arguments": {"column": "label", "value_set": ["<script>"]}},
        {"name": "ExpectColumnDistinctValuesToEqualSet", "arguments": {"column": "label", "value_set": ["0", "$a"]}},
        {"name": "ExpectColumnMostCommonValueToBeInSet", "arguments": {"column": "label", "value_set": [evil]}},
        {"name": "ExpectColumnValuesToMatchRegex", "arguments": {"column": "path", "regex": "<b>[0-9]+</b>"}},
    ]
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    project.set(validate__expectations=[{**each, "severity": "warning"} for each in own])

    assert project.run("ingest").code == 0
    assert project.run("validate").code == 0

    pages = [*(project.folder / "data/out/validate").rglob("*.html")]
    assert len(pages) > 2
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not any(raw in text for raw in ("<img src=x", "<svg onload", "<b>[0-9]", "<script>'"))
    assert any("&lt;img src=x onerror=alert(1)&gt;" in page.read_text(encoding="utf-8") for page in pages)


def test_the_columns_that_may_be_asked_for_are_those_of_the_quality_checks_and_facts() -> None:
    from twinrun.core.rules import COLUMNS, FACTS
    from twinrun.validate.subject import QUALITY, flaw_column

    assert {name for name in COLUMNS if name.startswith("quality_")} == set(map(flaw_column, QUALITY))
    assert set(FACTS) <= set(COLUMNS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"column": "width"}, "there is no column 'width' in the table of metrics; there are accuracy"),
        ({"column": "worst_recal"}, "did you mean worst_recall?"),
        ({"column": "accuracy", "min_value": {"$PARAMETER": "1"}}, "must be a number, a text"),
        ({"column": "accuracy", "min_value": "high"}, "min_value must be a finite number, got 'high'"),
        ({"column": "accuracy", "min_value": float("nan")}, "min_value must be a finite number, got nan"),
        ({"column": "accuracy", "max_value": True}, "max_value must be a finite number, got True"),
        ({"column": "accuracy", "min_value": 0.9, "max_value": 0.1}, "must be at most max_value, got 0.9 and 0.1"),
        ({"column": "accuracy", "min_value": 0.9, "strict_min": 1}, "strict_min must be true or false, got 1"),
        ({"column": "accuracy"}, f"{BETWEEN} needs the argument min_value or max_value"),
    ],
)
def test_a_gate_of_a_user_is_held_to_the_same_list_and_to_the_columns_of_metrics(
    arguments: dict[str, Any], said: str
) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    gate = {"name": BETWEEN, "arguments": arguments, "severity": "critical"}
    settings["register"]["gates"]["expectations"] = [gate]

    with pytest.raises(ParamsError, match=re.escape(said)):
        parse_params(settings)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ExpectColumnValuesToMatchRegex", {"regex": "(["}, "regex must be a regular expression, got '([': untermin"),
        ("ExpectColumnValuesToMatchRegex", {"regex": 5}, "regex must be a regular expression, got 5"),
        ("ExpectColumnValuesToMatchRegex", {}, "needs the argument regex"),
        ("ExpectColumnValuesToNotMatchRegexList", {"regex_list": ["a", "("]}, "must be a regular expression, got '('"),
        ("ExpectColumnValuesToBeInSet", {}, "needs the argument value_set"),
        ("ExpectColumnValueZScoresToBeLessThan", {"threshold": 3}, "needs the argument double_sided"),
        ("ExpectColumnValueLengthsToEqual", {"value": None}, "value must be a finite number, got None"),
        ("ExpectColumnValueLengthsToEqual", {"value": 2.5}, "value must be a whole number, got 2.5"),
        ("ExpectColumnUniqueValueCountToBeBetween", {"min_value": 4.9}, "min_value must be a whole number, got 4.9"),
        ("ExpectColumnValuesToMatchRegexList", {"regex_list": []}, "must be a list with an entry, got []"),
        (
            "ExpectColumnValuesToMatchRegexList",
            {"regex_list": ["a"], "match_on": "some"},
            "must be any or all, got 'some'",
        ),
    ],
)
def test_an_argument_that_great_expectations_cannot_use_is_refused_by_the_first_stage(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    settings = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["validate"]["expectations"] = [
        {"name": name, "arguments": {"column": "path", **arguments}, "severity": "critical"}
    ]

    with pytest.raises(ParamsError, match=re.escape(said)):
        parse_params(settings)


def test_every_argument_that_great_expectations_requires_is_required_here() -> None:
    import great_expectations.expectations as library

    from twinrun.core.rules import EXPECTATIONS, unfit_expectation

    for name, allowed in EXPECTATIONS.items():
        given: dict[str, Any] = {
            "column": "width",
            "column_A": "width",
            "column_B": "height",
            "column_list": ["width", "height"],
        }
        given |= {"value_set": [1], "value": 1, "threshold": 1, "double_sided": True, "sum_total": 1}
        given |= {"regex": "a", "regex_list": ["a"], "min_value": 1}
        given = {key: value for key, value in given.items() if key in allowed}
        assert unfit_expectation(name, given) is None
        for key, field in getattr(library, name).__fields__.items():
            if field.required:
                without = {other: value for other, value in given.items() if other != key}
                assert f"needs the argument {key}" in str(unfit_expectation(name, without))
