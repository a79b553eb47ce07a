"""Great Expectations judges tables here, and nowhere else.

It runs with an ephemeral context: nothing is kept on disk, no process-wide project, no telemetry, no progress bars.
The rules come from validate/checks/; this module only runs them and reads the results.
"""

import difflib
import functools
import html
import logging
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import DataError
from twinrun.base.files import write_text
from twinrun.base.printing import printable
from twinrun.core.params import Severity
from twinrun.core.rules import Condition, parse_condition
from twinrun.core.searching import limited_search
from twinrun.dataset.table import Columns

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class Rule:
    """An expectation by its name in Great Expectations, and its arguments, such as column, min_value, value_set."""

    expectation: str
    settings: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "critical"


@dataclass(frozen=True)
class Judgement:
    """Whether a table meets a rule; the rows that do not, in order; the value observed for the table as a whole.

    `problem` is Great Expectations' reason why a rule could not be judged; such a rule is not met.
    """

    passed: bool
    rows: list[int]
    observed: Any
    problem: str | None = None


def judge(
    tables: Mapping[str, Columns], rules: Sequence[tuple[str, Rule]], docs: Path | None = None
) -> list[Judgement]:
    """The judgement of Great Expectations for each pair of a table's name and a rule, in order.

    Its own pages with the results, one for each table, go into the folder `docs`. A rule that is unknown or does not
    fit its table is not met, and does not affect the others.
    """
    # Read when it is imported. It reports use over the network otherwise.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    # What it cannot judge it says in its result; what it cannot draw on its own page, it would report with a traceback.
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    asset = context.data_sources.add_pandas("twinrun").add_dataframe_asset("tables")
    batch = asset.add_batch_definition_whole_dataframe("all")  # one for all: each writes the configuration again
    result_format = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [_ROW],
        "return_unexpected_index_query": False,
    }
    judgements: dict[int, Judgement] = {}
    for name, columns in tables.items():
        asked = [(index, rule) for index, (table, rule) in enumerate(rules) if table == name]
        if not asked:
            continue
        frame = pd.DataFrame({key: pd.Series(list(values), dtype=_dtype(values)) for key, values in columns.items()})
        frame[_ROW] = range(len(frame))
        suite = ExpectationSuite(name=name)
        for index, rule in asked:
            made = _endless(rule, columns) or _expectation(rule, index)
            if isinstance(made, str):
                judgements[index] = Judgement(False, [], None, made)
            else:
                suite.expectations.append(made)
        validation = batch.get_batch({"dataframe": frame}).validate(suite, result_format=result_format)
        for result in validation.results:
            index = result.expectation_config.meta[_INDEX]  # results come in an order of their own
            judgements[index] = _to_judgement(rules[index][1], result)
        if docs is not None:
            write_text(_page(validation), docs / f"{name}.html")
    return [judgements[index] for index in range(len(rules))]


_ROW = "twinrun_row"
_INDEX = "twinrun_rule"
_TELLING = (
    "missing_count", "partial_missing_list", "partial_missing_set", "unexpected_count", "partial_unexpected_list",
    "partial_unexpected_set", "details",
)  # fmt: skip
_COMPARED = {
    **{"==": operator.eq, "!=": operator.ne},
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
}
_DRAWN_ID = r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
_TIMES = r"(?:\?d=)?\d{8}T\d{6}\.\d{6}Z"


def _endless(rule: Rule, columns: Columns) -> str | None:
    """Why a regular expression of the rule cannot be searched for; None where there is none, or it can.

    Great Expectations would search without end: which engine it searches with depends on the pattern and the values.
    """
    patterns = [rule.settings.get("regex"), *rule.settings.get("regex_list", ())]
    try:
        for pattern in filter(None, patterns):
            with limited_search(pattern, rule.expectation, DataError) as search:
                for value in dict.fromkeys(columns.get(rule.settings.get("column", ""), ())):
                    if value is not None:
                        search(str(value))
    except DataError as error:
        return str(error)
    return None


def _expectation(rule: Rule, index: int) -> "Expectation | str":
    """The expectation, or the reason why the rule is not valid."""
    import great_expectations.expectations as gxe
    from pydantic.v1 import ValidationError

    kind = getattr(gxe, rule.expectation, None)
    if kind is None:
        near = difflib.get_close_matches(
            rule.expectation, [name for name in dir(gxe) if name.startswith("Expect")], n=1
        )
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"Great Expectations has no expectation {rule.expectation}{hint}"
    settings = {key: value for key, value in rule.settings.items() if key != "condition_parser"}
    try:
        if isinstance(condition := settings.get("row_condition"), str):
            settings["row_condition"] = _row_condition(parse_condition(condition))
        expectation: Expectation = kind(**settings, severity=rule.severity, meta={_INDEX: index})
    except (ValidationError, ValueError, TypeError, OverflowError) as error:
        faults: list[Any] = getattr(error, "errors", list)()
        problems = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults) or str(error)
        return f"{rule.expectation}({rule.settings}) is not valid for Great Expectations: {problems}"
    return expectation


def _row_condition(condition: Condition) -> Any:
    """The condition as an object of Great Expectations, which would evaluate the text as code."""
    from great_expectations.expectations.row_conditions import Column

    parts = [
        _compared(Column(comparison.column), comparison.operator, comparison.values)
        for comparison in condition.comparisons
    ]
    return functools.reduce(operator.or_ if condition.joined_by == "or" else operator.and_, parts)


def _compared(column: Any, sign: str, values: tuple[Any, ...]) -> Any:
    match sign:
        case "in":
            return column.is_in(values)
        case "not in":
            return column.is_not_in(values)
        case "is null":
            return column.is_null()
        case "is not null":
            return column.is_not_null()
    return _COMPARED[sign](column, values[0])


def _page(validation: Any) -> str:
    """A page of Great Expectations' Data Docs, without its random ids and its time.

    It does not escape the values that it puts into the page, so they are escaped first.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    for result in validation.results:
        result.result = _drawable(result.result)
        result.exception_info = _drawable(result.exception_info)
        arguments = dict(result.expectation_config.kwargs)
        if "row_condition" in arguments:
            arguments["row_condition"] = None  # an object, which the page cannot show
        result.expectation_config.kwargs = _drawable(arguments)
    page = str(_view().render(ValidationResultsPageRenderer().render(validation)))
    ids: dict[str, str] = {}
    page = re.sub(_DRAWN_ID, lambda match: ids.setdefault(match[0], f"id-{len(ids)}"), page)
    return re.sub(_TIMES, "", page)


@functools.cache
def _view() -> Any:
    """One view for all pages of the process, since each view compiles every template again."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _drawable(value: Any) -> Any:
    """The value with all text escaped for HTML, and numpy's numbers, which cannot be rendered, as Python's."""
    if isinstance(value, str):
        return html.escape(printable(value))
    if isinstance(value, Mapping):
        return {_drawable(key): _drawable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_drawable(item) for item in value]
    return value.item() if hasattr(value, "item") else value


def _to_judgement(rule: Rule, result: Any) -> Judgement:
    if problem := _problem(result.exception_info):
        message = f"Great Expectations cannot judge {rule.expectation}({rule.settings}): {problem}"
        return Judgement(False, [], None, message)
    details = result.result
    rows = [int(entry[_ROW]) for entry in details.get("unexpected_index_list") or []]
    return Judgement(bool(result.success), sorted(rows), _observed(details))


def _observed(details: Mapping[str, Any]) -> Any:
    """The observed value or, since an expectation on a set may have none, the details of what is wrong."""
    if (value := details.get("observed_value")) is not None:
        return f"{value}, {details['details']}" if details.get("details") else value
    shares = {name: details[name] for name in _TELLING if details.get(name)}
    if not shares:
        return None
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shares.items())


def _problem(info: Any) -> str | None:
    """The error raised while an expectation was judged; an expectation with several metrics has a record of each."""
    records = [info, *(value for value in info.values() if isinstance(value, dict))]
    return next((str(record["exception_message"]) for record in records if record.get("raised_exception")), None)


def _dtype(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values} - {type(None)}
    return "float64" if kinds and kinds <= {int, float} else "object"
