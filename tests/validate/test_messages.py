"""The verdict as a few lines: the worst first, and never more of them than there is room for."""

from dataclasses import replace
from typing import Any, cast

import pytest

from twinrun.validate.evidence import Evidence
from twinrun.validate.findings import Finding, Status, Verdict, Violation
from twinrun.validate.messages import headline, summary


def finding(name: str, status: Status, violations: int = 0, **more: Any) -> Finding:
    settings = more.pop("settings", (f"validate.on_{name}",))
    return Finding(
        name, f"No image is {name}", "warning", status, "" if status == "passed" else f"{name} images", settings,
        "Fix them", "us", [Violation((row,), f"{name}{row}.png: dark", "dark") for row in range(violations)], **more,
    )  # fmt: skip


def verdict(*findings: Finding, test: int = 1000, decisions: tuple[str | None, ...] = ()) -> Verdict:
    counts = {label: {"train": 2000, "val": 500, "test": test // 2} for label in ("cat", "dog")}
    return Verdict(
        list(findings), ["cat", "dog"], [], [], ["leak: of a.png", None, "leak: of b.png"], {}, list(decisions), [],
        counts, cast(Evidence, None),
    )  # fmt: skip


PASSED = finding("blurred", "passed")


def test_where_all_is_well_it_is_one_line_with_sizes_and_drops() -> None:
    assert summary(verdict(PASSED), "report.html", {}) == (
        "The data passed all 1 checks. 2 classes; train 4,000, val 1,000, test 1,000; dropped: 2 leak."
    )


def test_a_folder_of_one_image_without_splits_has_one_image() -> None:
    alone = replace(verdict(PASSED), dropped=[None], counts={})

    assert ". 2 classes; 1 image; dropped: none." in summary(alone, "report.html", None)


def test_decisions_of_a_person_are_counted_by_kind() -> None:
    said = summary(verdict(PASSED, decisions=("drop", "drop: dark", None, "relabel: it barks")), "report.html", {})

    assert said.endswith("dropped: 2 leak. By your decisions: 2 dropped, 1 relabelled.")


def test_what_a_person_dropped_is_counted_once() -> None:
    decided = replace(verdict(PASSED, decisions=("drop: dark",)), dropped=["decision: dark"])

    said = summary(decided, "report.html", {})

    assert said.endswith("test 1,000. By your decisions: 1 dropped.")


def test_a_small_test_split_gets_a_line_with_the_width_of_its_interval() -> None:
    small, large = (summary(verdict(PASSED, test=test), "r", {}).splitlines() for test in (60, 1000))

    assert small[1].startswith("  60 test images: the 95% interval of their accuracy is up to ")
    assert len(large) == 1


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([PASSED, finding("odd", "warning")], "The data passed 1 of 2 checks, 1 gave a warning"),
        ([PASSED, finding("odd", "not judged")], "The data passed 1 of 2 checks, 1 could not be judged"),
        (
            [finding("odd", "failed"), finding("dim", "not judged")],
            "The data did not pass: 1 of 2 checks failed and 1 could not be judged",
        ),
    ],
)
def test_the_headline_counts_what_passed_warned_failed_and_was_not_judged(findings: list[Finding], said: str) -> None:
    assert headline(verdict(*findings)) == said


@pytest.mark.parametrize("most_lines", [6, 10])
@pytest.mark.parametrize(
    ("failed", "warnings", "unjudged"), [(1, 0, 0), (3, 1, 1), (20, 20, 1), (0, 20, 1), (12, 0, 0)]
)
def test_never_more_lines_than_there_is_room_for(failed: int, warnings: int, unjudged: int, most_lines: int) -> None:
    findings = [finding(f"bad{number}", "failed", violations=9) for number in range(failed)]
    findings += [finding(f"odd{number}", "warning", violations=2) for number in range(warnings)]
    findings += [finding(f"dim{number}", "not judged") for number in range(unjudged)]

    lines = summary(verdict(*findings), "report.html", {}, most_lines).splitlines()

    assert len(lines) <= most_lines
    fix = "; twinrun data fix proposes what to drop, and which labels to look at" if failed else ""
    assert lines[-1] == f"The report with pictures: report.html{fix}"
    assert not unjudged or "Not judged: dim0 images" in lines[-2]
    shown = sum(line.startswith("  bad") for line in lines)
    assert shown == failed or f"  and {failed - shown} more" in lines


def test_a_stop_names_the_setting_with_its_line_and_the_images() -> None:
    places = {"validate.on_dark": (12, "on_dark: stop")}
    lines = summary(verdict(finding("dark", "failed", violations=5)), "r", places).splitlines()

    assert lines[1] == "  dark images. Fix them (params.yaml, line 12: validate.on_dark)"
    assert lines[2:5] == ["    dark0.png: dark", "    dark1.png: dark", "    dark2.png: dark"]


def test_a_setting_that_lets_the_data_pass_is_written_out() -> None:
    few = finding("few", "failed", recommended="validate.min_images_per_class: 7")

    assert ". Add images, or set validate.min_images_per_class: 7 (params.yaml, line 3)" in summary(
        verdict(few), "r", {"validate.min_images_per_class": (3, "")}
    )


def test_without_params_yaml_no_setting_is_named() -> None:
    said = summary(verdict(finding("dark", "failed", violations=1), finding("odd", "warning")), "r", None)

    assert "params.yaml" not in said
    assert "validate." not in said
    assert "twinrun data fix" not in said


def test_a_warning_about_one_image_names_it() -> None:
    said = summary(verdict(PASSED, finding("odd", "warning", violations=1)), "r", {})

    assert "  Warning: odd images: odd0.png (dark)" in said.splitlines()
