"""Great Expectations judges tables here, and nowhere else. Refuses to know what happens to what it refuses.

It runs with an ephemeral context: nothing is kept on disk, no process-wide project, no telemetry, no progress bars.
A new expectation is one more `Rule` where rules are made (validation.py); this module only asks and hears.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from twinrun.errors import DataError

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Rule:
    """An expectation by its name in Great Expectations, and what it is given, such as column, min_value, value_set."""

    expectation: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """Whether a table meets a rule; the rows that do not, in order; what was observed of the table as a whole."""

    passed: bool
    rows: list[int]
    observed: Any


def judge(tables: Mapping[str, Columns], rules: Sequence[tuple[str, Rule]]) -> list[Judgement]:
    """Ask Great Expectations, for each pair of a table's name and a rule, in order.

    Raises DataError where a rule does not fit its table.
    """
    # Read when it is imported. It reports use over the network otherwise.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    import pandas as pd
    from great_expectations.core import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source = context.data_sources.add_pandas("twinrun")
    result_format = {
        "result_format": "COMPLETE",
        "unexpected_index_column_names": [_ROW],
        "return_unexpected_index_query": False,
    }
    judgements: dict[int, Judgement] = {}
    for name, columns in tables.items():
        frame = pd.DataFrame({key: pd.Series(list(values), dtype=_dtype(values)) for key, values in columns.items()})
        frame[_ROW] = range(len(frame))
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        asked = [(index, rule) for index, (table, rule) in enumerate(rules) if table == name]
        suite = ExpectationSuite(name=name, expectations=[_expectation(rule, index) for index, rule in asked])
        for result in batch.get_batch({"dataframe": frame}).validate(suite, result_format=result_format).results:
            index = result.expectation_config.meta[_INDEX]  # results come in an order of their own
            judgements[index] = _heard(rules[index][1], result)
    return [judgements[index] for index in range(len(rules))]


_ROW = "twinrun_row"
_INDEX = "twinrun_rule"


def _expectation(rule: Rule, index: int) -> "Expectation":
    import great_expectations.expectations as gxe

    expectation: Expectation = getattr(gxe, rule.expectation)(**rule.settings, meta={_INDEX: index})
    return expectation


def _heard(rule: Rule, result: Any) -> Judgement:
    if result.exception_info.get("raised_exception"):
        raise DataError(
            f"Great Expectations cannot judge {rule.expectation}({rule.settings}): "
            f"{result.exception_info.get('exception_message')}"
        )
    found = result.result
    rows = [int(entry[_ROW]) for entry in found.get("unexpected_index_list") or []]
    return Judgement(bool(result.success), sorted(rows), found.get("observed_value"))


def _dtype(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values} - {type(None)}
    return "float64" if kinds and kinds <= {int, float} else "object"
