"""What a person decides about an image is applied to it, and may be written as a spreadsheet writes it."""

from pathlib import Path

import pytest

from twinrun.base.errors import DataError
from twinrun.validate.decisions import Decision, decided, decisions_csv, not_decided, read_decisions

FACTS: dict[str, list[str | None]] = {
    "path": ["a.png", "b.png", "c.png"],
    "label": ["cat", "cat", "dog"],
    "error": [None, None, None],
}
DECISIONS = [
    Decision("a.png", "drop", None, "blurred", ""),
    Decision("b.png", "relabel", "dog", "it barks", ""),
    Decision("c.png", "keep", None, "", ""),
]


def test_a_drop_a_relabel_and_a_keep_do_what_they_say() -> None:
    result = decided(FACTS, DECISIONS)

    assert result.labels == ["cat", "dog", "dog"]
    assert [drop is not None for drop in result.dropped] == [True, False, False]
    assert result.descriptions == ["drop: blurred", "relabel: it barks", "keep"]
    assert (result.looked_at, result.approved) == (frozenset({1, 2}), frozenset({2}))


def test_decisions_are_read_as_they_were_written_and_those_there_are_not_proposed_again(tmp_path: Path) -> None:
    file = tmp_path / "decisions.csv"
    file.write_text(decisions_csv(DECISIONS))
    before = read_decisions(file)

    file.write_text(decisions_csv([Decision("d.png", "drop", None, "new", "")], file.read_text()))

    assert [(d.path, d.action, d.label) for d in before] == [(d.path, d.action, d.label) for d in DECISIONS]
    assert [d.path for d in not_decided(read_decisions(file), before)] == ["d.png"]


def test_a_line_without_an_action_hides_no_drop_and_is_not_written_twice() -> None:
    doubt, drop = Decision("a.png", None, "dog", "", ""), Decision("a.png", "drop", None, "a copy", "")

    assert not_decided([drop], [doubt]) == [drop]
    assert not_decided([doubt], [doubt]) == not_decided([doubt], [drop]) == []
    assert not_decided([drop], [doubt, drop]) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("action\ndrop\n", "path is missing"),
        ("path,action\na.png,remove\n", "line 2: the action must be drop, relabel or keep"),
        ("path,action,label\na.png,relabel,\n", "line 2: relabel needs the new label"),
    ],
)
def test_a_line_that_decides_nothing_is_named(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "decisions.csv").write_text(content)

    with pytest.raises(DataError, match=problem):
        read_decisions(tmp_path / "decisions.csv")
