"""What is said of two trainings by their weights, by what differs between them, and by their metrics."""

import pytest

from twinrun.twins.difference import Change, Differences, Kind, MetricPair
from twinrun.twins.verdict import TwinReport, Verdict, judge


def differing(*kinds: Kind) -> Differences:
    """Differences of those kinds, each of which can change weights."""
    differences = Differences()
    for kind in kinds:
        differences.deciding[kind] = differences.changes[kind] = [Change(f"one of {kind}", "old", "new")]
    return differences


def pair(name: str, after: float | None, interval: tuple[float, float] | None = (0.9, 1.0)) -> MetricPair:
    return MetricPair(name, 0.95, after, interval, None)


INSIDE, OUTSIDE, UNKNOWN = pair("accuracy", 0.92), pair("macro_f1", 0.8), pair("log_loss", 0.1, None)


@pytest.mark.parametrize(
    ("kinds", "metrics", "tag", "exit_code"),
    [
        ((), [], "different: unknown", 4),
        (("hardware",), [INSIDE], "equivalent: hardware", 3),
        (("environment", "hardware"), [INSIDE, UNKNOWN], "equivalent: environment", 3),
        (("hardware",), [INSIDE, OUTSIDE], "different: hardware", 4),
        (("hardware",), [UNKNOWN], "different: hardware", 4),
        (("hardware",), [], "different: hardware", 4),
        (("code", "hardware"), [INSIDE], "different: code", 4),
        (("params", "data"), [INSIDE], "different: params", 4),
        (("data",), [INSIDE], "different: data", 4),
    ],
)
def test_other_weights_are_equivalent_only_by_a_known_reason_and_with_every_known_metric_in_its_interval(
    kinds: tuple[Kind, ...], metrics: list[MetricPair], tag: str, exit_code: int
) -> None:
    verdict = judge("aa", "bb", differing(*kinds), metrics)

    assert (verdict.tag, verdict.exit_code) == (tag, exit_code)


def test_the_same_weights_are_identical_whatever_else_differs() -> None:
    verdict = judge("aa", "aa", differing("code", "hardware"), [OUTSIDE])

    assert (verdict.tag, verdict.exit_code) == ("identical", 0)


def test_a_metric_outside_its_interval_is_named() -> None:
    assert "macro_f1 outside the run's interval" in judge("aa", "bb", differing("hardware"), [INSIDE, OUTSIDE]).reason
    assert "no intervals to compare with" in judge("aa", "bb", differing("hardware"), [UNKNOWN]).reason


def test_names_in_the_report_are_text_and_no_markup() -> None:
    report = TwinReport(
        verdict=Verdict(word="different", cause="data", reason="Other data."),
        run_id="r" * 32, run_name="<img src=x>", weights_hash="aa", twin_weights_hash="bb", commit="c", data="here",
        metrics=[INSIDE], differences=differing("data"),
    )  # fmt: skip

    assert "<img" not in report.markdown()
    assert "  accuracy: 0.9500 [0.9000, 1.0000], now 0.9200" in report.lines()
    assert report.json()["verdict"]["exit_code"] == 4
