"""Rules for waste: the examples cover the classes of the waste presets, and a mistake is reported with its line."""

from pathlib import Path

import pytest

from twinrun.base.errors import DataError
from twinrun.serving.rules import read_region, read_regions

TRASHNET = ("cardboard", "glass", "metal", "paper", "plastic", "trash")
EXAMPLE = Path("src/twinrun/serving/rules/example-kawabe.yaml")


def test_every_class_of_trashnet_has_a_stream_in_all_three_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    regions = read_regions(TRASHNET)

    assert len(regions) == 3
    assert all(region.covers(TRASHNET) for region in regions)
    assert not any(region.covers([*TRASHNET, "shoes"]) for region in regions)
    assert all(set(region.name) == {"en", "de", "ko"} for region in regions)


@pytest.mark.parametrize(
    ("before", "after", "line", "problem"),
    [
        (
            "    stream: hazardous\n",
            "    stream: burnable\n",
            47,
            "a hazardous item may not go to 'burnable', which is",
        ),
        ("    stream: plastic\n", "    stream: plastics\n", 40, "there is no stream 'plastics'; the streams are"),
        ("  trash:\n", "  rubbish:\n", 26, "the model's class 'trash' has no stream"),
        ('    colour: "#2f6fb7"', "    colour: blue", 14, "String should match pattern"),
        ("checked: 2026-11-26\n", "", 1, "Field required"),
        ("    kind: burnable\n", "    kind: burnable\n    color: red\n", 9, "Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_refused_with_its_file_and_line(
    tmp_path: Path, before: str, after: str, line: int, problem: str
) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    file = tmp_path / "town.yaml"
    file.write_text(text.replace(before, after, 1), encoding="utf-8")

    with pytest.raises(DataError) as refused:
        read_region(file, TRASHNET)

    assert before in text
    assert str(refused.value).startswith(f"{file} does not describe where waste goes:\n  line {line}: ")
    assert problem in str(refused.value)


def test_a_date_that_does_not_exist_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "town.yaml"
    file.write_text(EXAMPLE.read_text(encoding="utf-8").replace("checked: 2026-11-26", "checked: 2025-31-01"))

    with pytest.raises(DataError, match=r"town.yaml cannot be read: 2025-31-01 is not a date[\s\S]*line \d"):
        read_region(file, TRASHNET)
