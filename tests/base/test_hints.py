"""What other tools call a setting or a value leads to the one that it is here."""

from typing import Any

import pytest

from twinrun.base.hints import meant_by_name, meant_by_value, several_values, yes_or_no

SETTINGS = ["train", "train.learning_rate", "train.epochs", "train.pretrained", "train.augment.flip", "validate.seed"]


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("train.lr", 0.1, "did you mean train.learning_rate?"),
        ("train.lerning_rate", 0.1, "did you mean train.learning_rate?"),
        ("train.horizontal_flip", True, "did you mean train.augment.flip?"),
        ("train.weights", True, "did you mean train.pretrained: imagenet?"),
        ("train.seed", 1, "did you mean validate.seed?"),
        ("train.resume_from", "last", "a stopped training resumes by itself: dvc repro"),
    ],
)
def test_a_name_of_another_tool_or_a_slip_leads_to_the_setting(name: str, value: Any, hint: str) -> None:
    assert meant_by_name(name.split("."), value, SETTINGS) == hint


def test_a_name_that_nothing_comes_near_has_no_hint() -> None:
    assert meant_by_name(["train", "zzz"], 1, SETTINGS) is None


def test_values_of_other_tools_lists_and_yes_and_no_are_translated() -> None:
    assert meant_by_value("train.precision", "16-mixed") == "bf16"
    assert meant_by_value("train.epochs", "16-mixed") is None
    assert several_values("train.seed", [1, 2]).endswith("dvc exp run --queue -S 'train.seed=1,2'")
    assert (yes_or_no("Yes"), yes_or_no("off"), yes_or_no(3)) == ("true", "false", None)
