"""sweep.yaml: what is wrong with it, all at once, and where a training lies in its space."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from twinrun.base.errors import ParamsError
from twinrun.core.params import Params, parse_params
from twinrun.project.presets import params_text, preset_params
from twinrun.sweep.launcher import Launcher
from twinrun.sweep.plan import EXAMPLE, Range, here, load_plan, trial_params
from twinrun.sweep.sweep import open_sweep


@pytest.fixture(scope="module")
def params() -> Params:
    """A training of thirty epochs."""
    return preset_params("digits")


def written(folder: Path, space: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A sweep.yaml like the example, with that space and those settings."""
    content = {**YAML(typ="safe", pure=True).load(EXAMPLE), **settings}
    content = {name: value for name, value in content.items() if value is not ...}
    if space is not None:
        content["space"] = space
    path = folder / "sweep.yaml"
    YAML().dump(content, path)
    return path


def test_the_example_is_a_plan_whose_ranges_and_choices_are_read(params: Params, tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path), params)

    assert plan.dimensions() == {
        "train.learning_rate": Range(1e-4, 1e-1, "log", False),
        "train.optimizer": ["sgd", "adamw"],
    }
    assert plan.maximise
    assert {name for name in vars(plan) if name not in plan.decisive()} == {"seeds"}


LR = {"from": 1e-4, "to": 1e-1, "scale": "log"}


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ({}, "space: must name at least one setting"),
        ({"train.learning_rat": LR}, "did you mean train.learning_rate?"),
        ({"validate.seed": [1, 2]}, "validate.seed is not a setting of training"),
        ({"train.seed": [1, 2]}, "train.seed cannot vary: a trial is one training"),
        ({"train.threads": [1, 2]}, "train.threads cannot vary: it changes no weights"),
        ({"train.optimizer": ["sgd"]}, "a list of choices needs two or more different values"),
        ({"train.optimizer": ["sgd", "sgd"]}, "two or more different values"),
        ({"train.optimizer": ["sgd", "sdg"]}, "train.optimizer:"),
        ({"train.weight_decay": [0, 0.0]}, "two or more different values, got [0, 0.0]"),
        ({"train.weight_decay": [0.001, "1e-3"]}, "two or more different values"),
        ({"train.pretrained": [None, "nowhere.safetensors"]}, "train.pretrained: there is no file nowhere.safetensors"),
        ({"train.optimizer": {"from": 1, "to": 2, "scale": "log"}}, "takes no number; list its choices"),
        ({"train.learning_rate": {"from": 1, "to": 2}}, "must be {from: NUMBER, to: NUMBER, scale: linear or log}"),
        ({"train.learning_rate": {**LR, "to": True}}, "from and to must be finite numbers"),
        ({"train.weight_decay": {**LR, "to": 10**400}}, "from and to must be finite numbers"),
        ({"train.batch_size": [2, 10**400]}, "a choice is an integer of more than 308 digits"),
        ({"train.learning_rate": {**LR, "from": 0.1}}, "from must be less than to, got 0.1 and 0.1"),
        ({"train.learning_rate": {**LR, "from": 0}}, "with scale: log, from must be above 0, got 0"),
        ({"train.batch_size": {"from": 8, "to": 64.5, "scale": "linear"}}, "takes integers, got [8, 64.5]"),
    ],
)
def test_a_space_that_cannot_be_searched_says_why(
    space: dict[str, Any], problem: str, params: Params, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError) as raised:
        load_plan(written(tmp_path, space), params)

    assert problem in str(raised.value)


def test_every_problem_is_reported_at_once(params: Params, tmp_path: Path) -> None:
    path = written(tmp_path, {"train.epochs": [10, 20], "train.momentu": LR}, rungs=[9, 3, 30])

    with pytest.raises(ParamsError) as raised:
        load_plan(path, params)

    said = str(raised.value).splitlines()
    assert said[0] == f"{path} does not describe a sweep:"
    for problem in (
        "rungs: must rise, got [9, 3, 30]",
        "rungs: must be less than train.epochs, 30, got 30",
        "space: train.epochs cannot vary with rungs",
        "space: train.momentu is not a setting of training; did you mean train.momentum?",
    ):
        assert any(line.startswith(f"  {problem}") for line in said), problem


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"trials": ...}, "trials: missing"),
        ({"trails": 4}, "trails: not a setting; did you mean trials?"),
        ({"keep": 0}, "keep: must be greater than 0, got 0"),
        ({"metric": "accuracy"}, "metric: must be 'val_accuracy' or 'val_loss', got 'accuracy'"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(
    settings: dict[str, Any], problem: str, params: Params, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError) as raised:
        load_plan(written(tmp_path, **settings), params)

    assert problem in str(raised.value)


def test_a_probe_has_neither_rungs_nor_seeds(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"set rungs: \[\][\s\S]*set seeds: 0"):
        load_plan(written(tmp_path), preset_params("photos"))


def test_a_file_that_is_missing_or_no_yaml_is_one_message(params: Params, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"is missing\. Write one, such as:"):
        load_plan(tmp_path / "none.yaml", params)
    (tmp_path / "bad.yaml").write_text("space: [")
    with pytest.raises(ParamsError, match="cannot be read as YAML"):
        load_plan(tmp_path / "bad.yaml", params)


def test_params_yaml_is_a_point_of_the_space_only_where_every_setting_lies_in_it(
    params: Params, tmp_path: Path
) -> None:
    plan = load_plan(written(tmp_path), params)
    inside = replace(params, train=replace(params.train, learning_rate=1e-4, optimizer="adamw"))
    outside = replace(params, train=replace(inside.train, learning_rate=0.5))

    assert here(plan, inside) == {"train.learning_rate": 1e-4, "train.optimizer": "adamw"}
    assert here(plan, outside) is None
    assert here(replace(plan, space={"train.optimizer": ["sgd", "muon"]}), inside) is None


@pytest.mark.parametrize("choices", [[0, 1e-3], [0.0, 1e-3], ["0e-1", "1e-3"]])
def test_a_number_is_the_same_choice_however_it_is_written(choices: list[Any], params: Params, tmp_path: Path) -> None:
    plan = load_plan(written(tmp_path, {"train.weight_decay": choices}), params)

    for place, weight_decay in enumerate((0.0, 1e-3)):
        inside = replace(params, train=replace(params.train, weight_decay=weight_decay))
        assert here(plan, inside) == {"train.weight_decay": choices[place]}


def test_a_trial_is_one_training_with_its_values_and_the_comments_stay() -> None:
    text = params_text("digits", ["train.seeds=3", "train.folds=5"])

    changed = trial_params(text, {"train.learning_rate": 0.02, "train.optimizer": "sgd"})

    settings = YAML(typ="safe", pure=True).load(changed)["train"]
    assert (settings["learning_rate"], settings["optimizer"], settings["seeds"], settings["folds"]) == (
        0.02,
        "sgd",
        1,
        0,
    )
    assert changed.count("#") == text.count("#")


def test_a_number_is_rounded_and_stays_in_its_range() -> None:
    assert Range(1e-4, 0.1, "log", False).rounded(0.0123456) == 0.01235
    assert Range(0.12344, 0.5, "linear", False).rounded(0.12344001) == 0.12344


@pytest.mark.parametrize(("low", "high"), [(0.99991, 0.99999), (0.9999, 0.999999), (-0.50002, -0.50001)])
def test_a_narrow_range_has_more_numbers_than_its_ends(low: float, high: float) -> None:
    numbers = [low + (high - low) * i / 50 for i in range(51)]

    assert len({Range(low, high, "linear", False).rounded(number) for number in numbers}) > 40


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 2025-31-12\n", "cannot be read as YAML: 2025-31-12 is not a date that exists"),
        ("2025-01-02: 3\n", "2025-01-02: not a setting"),
        ('metric: "\\ud800"\n', "metric: has half of a character"),
        ("space: &again [*again]\n", "contains itself"),
    ],
)
def test_a_date_where_none_fits_and_half_a_character_are_one_message(
    text: str, problem: str, params: Params, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)

    with pytest.raises(ParamsError, match=problem) as raised:
        load_plan(file, params)

    assert str(file) in str(raised.value)


def test_a_params_yaml_that_takes_no_values_ends_a_sweep_before_it_begins(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = load_plan(written(tmp_path, {"train.augment.shift_px": [1, 2]}), params)
    text = params_text("digits")
    block = text[text.index("  augment:") : text.index("  start_size:")]
    values = YAML(typ="safe", pure=True).load(block)["augment"]
    settings = ", ".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    Path("params.yaml").write_text(text.replace(block, f"  augment: {{{settings}}}\n"))
    trial = trial_params(Path("params.yaml").read_text(), {"train.augment.shift_px": 2})
    assert parse_params(YAML(typ="safe", pure=True).load(trial)).train.augment.shift_px == 2
    Path("params.yaml").write_text(
        text.replace("    shift_px: ", "    shift_px: &same ", 1).replace("    shift_px: 0", "    shift_px: *same", 1)
    )

    def launch(_: Path) -> Launcher:
        raise AssertionError("a worker was started")

    with (
        pytest.raises(ParamsError, match=r"cannot be put into params.yaml[\s\S]*train.augment.shift_px: 1"),
        open_sweep(Path("sweep.yaml"), plan, resume=False, launch=launch, say=print),
    ):
        pass
    assert not Path("data").exists()
