"""Which expectations params.yaml may ask for, with which arguments, and the conditions on rows. Runs none of them.

Great Expectations would evaluate a condition as a program of pandas, with access to this process, and a value such as
`{"$PARAMETER": ...}` as an expression. So params.yaml names expectations and arguments of the lists below, values are
plain, and a condition is parsed here into comparisons of a column with a value.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is null", "is not null"]
Value = str | int | float | bool

_ROWS = ("mostly", "row_condition", "condition_parser")
_BETWEEN = ("column", "min_value", "max_value", "strict_min", "strict_max", "row_condition", "condition_parser")
_VALUES = ("column", *_ROWS)
_PAIRS = ("column_A", "column_B", "ignore_row_if", *_ROWS)
_COLUMNS = ("column_list", "ignore_row_if", *_ROWS)
# What looks at no more than the table: none that runs SQL, asks another source, or fetches a schema.
EXPECTATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "ExpectColumnMaxToBeBetween",
            "ExpectColumnMeanToBeBetween",
            "ExpectColumnMedianToBeBetween",
            "ExpectColumnMinToBeBetween",
            "ExpectColumnProportionOfNonNullValuesToBeBetween",
            "ExpectColumnProportionOfUniqueValuesToBeBetween",
            "ExpectColumnStdevToBeBetween",
            "ExpectColumnSumToBeBetween",
            "ExpectColumnUniqueValueCountToBeBetween",
        ),
        _BETWEEN,
    ),
    **dict.fromkeys(
        (
            "ExpectColumnDistinctValuesToBeInSet",
            "ExpectColumnDistinctValuesToContainSet",
            "ExpectColumnDistinctValuesToEqualSet",
        ),
        ("column", "value_set", "row_condition", "condition_parser"),
    ),
    "ExpectColumnMostCommonValueToBeInSet": ("column", "value_set", "ties_okay", "row_condition", "condition_parser"),
    "ExpectColumnPairValuesAToBeGreaterThanB": (*_PAIRS, "or_equal"),
    "ExpectColumnPairValuesToBeEqual": _PAIRS,
    "ExpectColumnToExist": ("column", "column_index"),
    "ExpectColumnValueLengthsToBeBetween": (*_BETWEEN, "mostly"),
    "ExpectColumnValueLengthsToEqual": (*_VALUES, "value"),
    "ExpectColumnValueZScoresToBeLessThan": (*_VALUES, "threshold", "double_sided"),
    "ExpectColumnValuesToBeBetween": (*_BETWEEN, "mostly"),
    "ExpectColumnValuesToBeDecreasing": (*_VALUES, "strictly"),
    "ExpectColumnValuesToBeInSet": (*_VALUES, "value_set"),
    "ExpectColumnValuesToBeIncreasing": (*_VALUES, "strictly"),
    "ExpectColumnValuesToBeNull": _VALUES,
    "ExpectColumnValuesToBeUnique": _VALUES,
    "ExpectColumnValuesToMatchRegex": (*_VALUES, "regex"),
    "ExpectColumnValuesToMatchRegexList": (*_VALUES, "regex_list", "match_on"),
    "ExpectColumnValuesToNotBeInSet": (*_VALUES, "value_set"),
    "ExpectColumnValuesToNotBeNull": _VALUES,
    "ExpectColumnValuesToNotMatchRegex": (*_VALUES, "regex"),
    "ExpectColumnValuesToNotMatchRegexList": (*_VALUES, "regex_list"),
    "ExpectCompoundColumnsToBeUnique": _COLUMNS,
    "ExpectMulticolumnSumToEqual": (*_COLUMNS, "sum_total"),
    "ExpectMulticolumnValuesToBeEqual": _COLUMNS,
    "ExpectSelectColumnValuesToBeUniqueWithinRecord": _COLUMNS,
    "ExpectTableRowCountToBeBetween": _BETWEEN[1:],
    "ExpectTableRowCountToEqual": ("value", "row_condition", "condition_parser"),
}

FACTS = (
    "id", "path", "label", "split", "group", "error", "width", "height", "mode", "format", "file_bytes", "brightness",
    "contrast", "sharpness", "red", "green", "blue", "entropy", "gray_p5", "gray_p95", "camera",
    "bytes_sha256", "pixels_sha256", "phash",
)  # fmt: skip
COLUMNS = (  # of the table of images that expectations are asked of
    *FACTS,
    *("splits_of_pixels", "splits_of_group", "labels_of_pixels", "copy_of", "likely_label"),
    *("quality_dark", "quality_bright", "quality_blurred", "quality_low_information"),
    *("quality_odd_size", "quality_odd_aspect", "quality_gray"),
)

# Of the table of metrics, one row, that the gates of users are asked of; worst_* are those of the weakest class.
METRICS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error", "test_accuracy", "images"),
    *("worst_precision", "worst_recall", "worst_f1", "parameters", "model_bytes"),
    *("latency_ms", "agreement_shift", "agreement_brightness", "agreement_mirror"),
)

_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAMED_COLUMNS = ("column", "column_A", "column_B")
_LISTS = ("value_set", "regex_list", "column_list")
_REGEXES = ("regex", "regex_list")
_FLAGS = ("strict_min", "strict_max", "or_equal", "strictly", "double_sided", "ties_okay")
_FLAGS_OR_NULL = ("or_equal", "strictly", "ties_okay")
_WHOLE = ("RowCount", "UniqueValueCount", "ValueLengths")  # parts of names whose numbers are counts
_CHOICES = {
    "match_on": ("any", "all"),
    "ignore_row_if": (
        *("all_values_are_missing", "any_value_is_missing", "both_values_are_missing", "either_value_is_missing"),
        "never",
    ),
}
_NUMBERS = ("value", "threshold", "sum_total")
_ENDS = ("min_value", "max_value")
# regex is not required by Great Expectations: without it, every text matches.
_REQUIRED = (*_NAMED_COLUMNS, "column_list", "value_set", *_NUMBERS, "double_sided", *_REGEXES)
_LONGEST_TEXT = 4096
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>'[^'"`\\\x00-\x1f\x7f]*'|"[^'"`\\\x00-\x1f\x7f]*")
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<sign>==|!=|<=|>=|<|>|\[|\]|,)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*))""",
    re.VERBOSE,
)
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_GRAMMAR = (
    "Write comparisons such as width >= 64 and label in ['cat', 'dog'], joined by and or by or: a column, then ==, !=, "
    "<, <=, >, >=, in [...], not in [...], is null or is not null; texts in quotes"
)


@dataclass(frozen=True)
class Comparison:
    """A column compared with a value, with several for `in`, or with none for `is null`."""

    column: str
    operator: Operator
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Condition:
    """Which rows an expectation is asked of: those that meet all comparisons, or any of them."""

    comparisons: tuple[Comparison, ...]
    joined_by: Literal["and", "or"] = "and"


def unfit_expectation(
    name: str, arguments: Mapping[str, Any], columns: Sequence[str] = COLUMNS, table: str = "the table of images"
) -> str | None:
    """Why an expectation may not be asked for on a table with these columns; None where it may."""
    if name not in EXPECTATIONS:
        return f"{name} is not one of the expectations that may be asked for{_meant(name, EXPECTATIONS)}"
    allowed = EXPECTATIONS[name]
    for key, value in arguments.items():
        if key not in allowed:
            return (
                f"{key} is not an argument of {name} that may be given{_meant(key, allowed)}; there are {_all(allowed)}"
            )
        if problem := _unfit_value(key, value):
            return f"{name}: {key} {problem}"
        if unknown := next((column for column in _columns_named(key, value) if column not in columns), None):
            hint = _meant(unknown, columns) or f"; there are {', '.join(columns)}"
            return f"{name}: {key} is wrong: there is no column {unknown!r} in {table}{hint}"
    if missing := next((key for key in _REQUIRED if key in allowed and key not in arguments), None):
        return f"{name} needs the argument {missing}"
    if any(part in name for part in _WHOLE):
        for key in ("value", *_ENDS):
            if isinstance(number := arguments.get(key), float) and not number.is_integer():
                return f"{name}: {key} must be a whole number, got {_shown(number)}"
    return _unfit_range(name, arguments) if "min_value" in allowed else None


def _unfit_range(name: str, arguments: Mapping[str, Any]) -> str | None:
    low, high = arguments.get("min_value"), arguments.get("max_value")
    if low is None and high is None:
        return f"{name} needs the argument min_value or max_value"
    if low is not None and high is not None and low > high:
        return f"{name}: min_value must be at most max_value, got {_shown(low)} and {_shown(high)}"
    return None


def parse_condition(text: str) -> Condition:
    """The condition that `text` writes; raises ValueError, with the grammar, where it is none."""
    tokens, comparisons, joins = _tokens(text), list[Comparison](), set[str]()
    while True:
        comparison, tokens = _comparison(tokens, text)
        comparisons.append(comparison)
        if not tokens:
            break
        join, tokens = tokens[0], tokens[1:]
        joins.add(join[1].lower())
        if join[0] != "word" or not joins <= {"and", "or"} or len(joins) > 1:
            raise _unread(text)
    return Condition(tuple(comparisons), "or" if joins == {"or"} else "and")


def _unfit_value(key: str, value: Any) -> str | None:
    if key in _NAMED_COLUMNS:
        return None if _is_column(value) else f"must be the name of a column, got {_shown(value)}"
    if key == "column_list":
        fits = isinstance(value, list) and all(map(_is_column, value))
        return None if fits else f"must be a list of columns, got {_shown(value)}"
    if key in _LISTS:
        if not isinstance(value, list) or not value or not all(map(_is_plain, value)):
            return f"must be a list with an entry, got {_shown(value)}"
        return next((problem for each in value if (problem := _unfit_regex(each))), None) if key in _REGEXES else None
    if key == "row_condition":
        return _unfit_condition(value)
    if key in _CHOICES:
        fits = value in _CHOICES[key]
        return None if fits else f"must be {', '.join(_CHOICES[key][:-1])} or {_CHOICES[key][-1]}, got {_shown(value)}"
    if key == "condition_parser":
        return None if value == "pandas" else f"may only be pandas, and need not be given, got {_shown(value)}"
    if key == "mostly":
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        return None if fits else f"must be a number from 0 to 1, got {_shown(value)}"
    if not _is_plain(value):
        return f"must be a number, a text, true, false or null, got {_shown(value)}"
    if key in _REGEXES:
        return _unfit_regex(value)
    if key in _FLAGS_OR_NULL and value is None:
        return None
    if key in _FLAGS:
        return None if isinstance(value, bool) else f"must be true or false, got {_shown(value)}"
    if key in _NUMBERS or (key in _ENDS and value is not None):
        return None if _is_finite(value) else f"must be a finite number, got {_shown(value)}"
    return None


def _unfit_regex(value: Any) -> str | None:
    try:
        re.compile(value)
    except (TypeError, re.error, OverflowError, RecursionError) as error:
        return f"must be a regular expression, got {_shown(value)}: {error}"
    return None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that is no float
        return False


def _unfit_condition(value: Any) -> str | None:
    try:
        parse_condition(value if isinstance(value, str) else str(value))
    except ValueError as error:
        return str(error)
    return None


def columns_of(arguments: Mapping[str, Any]) -> list[str]:
    """The columns that the arguments of an allowed expectation name."""
    return [name for key, value in arguments.items() for name in _columns_named(key, value)]


def _columns_named(key: str, value: Any) -> list[str]:
    """The columns that one argument names."""
    if key in _NAMED_COLUMNS:
        return [value]
    if key == "column_list":
        return list(value)
    return [comparison.column for comparison in parse_condition(value).comparisons] if key == "row_condition" else []


def _is_column(value: Any) -> bool:
    return isinstance(value, str) and _COLUMN.fullmatch(value) is not None


def _is_plain(value: Any) -> bool:
    return value is None or (isinstance(value, str | int | float) and len(str(value)) <= _LONGEST_TEXT)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(text) > _LONGEST_TEXT:
            raise _unread(text)
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return tokens


def _comparison(tokens: list[tuple[str, str]], text: str) -> tuple[Comparison, list[tuple[str, str]]]:
    """The comparison that `tokens` begin with, and the tokens behind it."""
    if len(tokens) < 3 or tokens[0][0] != "word":
        raise _unread(text)
    column, operators = tokens[0][1], [token[1].lower() for token in tokens[1:4]]
    if operators[:2] == ["is", "null"]:
        return Comparison(column, "is null"), tokens[3:]
    if operators == ["is", "not", "null"]:
        return Comparison(column, "is not null"), tokens[4:]
    if operators[0] in _COMPARISONS:
        return Comparison(column, _operator(operators[0]), (_value(tokens[2], text),)), tokens[3:]
    start = 2 if operators[0] == "in" else 3 if operators[:2] == ["not", "in"] else 0
    signs = [token[1] for token in tokens]
    if not start or signs[start : start + 1] != ["["] or "]" not in signs:
        raise _unread(text)
    end = signs.index("]")
    inside = tokens[start + 1 : end]
    if not inside or any(token[1] != "," for token in inside[1::2]) or len(inside) % 2 == 0:
        raise _unread(text)
    values = tuple(_value(token, text) for token in inside[::2])
    return Comparison(column, "in" if start == 2 else "not in", values), tokens[end + 1 :]


def _operator(sign: str) -> Operator:
    operators: dict[str, Operator] = {"==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
    return operators[sign]


def _value(token: tuple[str, str], text: str) -> Value:
    kind, written = token
    if kind == "text":
        return written[1:-1]
    if kind == "number":
        return int(written) if re.fullmatch(r"[+-]?\d+", written) else float(written)
    if kind == "word" and written.lower() in ("true", "false"):
        return written.lower() == "true"
    raise _unread(text)


def _unread(text: str) -> ValueError:
    return ValueError(f"{_shown(text)} is not a condition that is understood. {_GRAMMAR}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _meant(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _all(names: tuple[str, ...]) -> str:
    return ", ".join(dict.fromkeys(names))
