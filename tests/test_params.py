"""params.yaml: strict, and every problem at once."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from twinrun.errors import ParamsError
from twinrun.params import load_params, parse_params


@pytest.fixture
def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(Path("params.yaml"))
    return loaded


@pytest.mark.parametrize("preset", sorted(Path("presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_describes_a_run(preset: Path) -> None:
    load_params(preset)


def test_every_problem_is_reported_at_once_with_the_setting_that_was_meant(settings: dict[str, Any]) -> None:
    settings["train"]["lerning_rate"] = settings["train"].pop("learning_rate")
    settings["train"]["epochs"] = 0
    settings["ingest"]["source"] = "mnits"
    settings["ingest"]["size_px"] = "large"
    del settings["register"]

    with pytest.raises(ParamsError) as raised:
        parse_params(settings)

    said = str(raised.value)
    assert "train.lerning_rate: not a setting; did you mean train.learning_rate?" in said
    assert "train.learning_rate: missing" in said
    assert "train.epochs: must be at least 1, got 0" in said
    assert "ingest.source: must be one of 'digits', 'mnist', 'fashion-mnist', 'cifar10', 'trashnet' or 'folder'" in said
    assert "did you mean mnist?" in said
    assert 'ingest.size_px: must be an integer, which is a square, or [height, width], got "large"' in said
    assert "register: missing" in said


@pytest.mark.parametrize(
    ("value", "kept", "size"), [(32, 32, (32, 32)), ([24, 32], (24, 32), (24, 32)), ([32, 32], 32, (32, 32))]
)
def test_a_size_is_a_square_or_height_and_width(
    settings: dict[str, Any], value: Any, kept: Any, size: tuple[int, int]
) -> None:
    settings["ingest"]["size_px"] = value

    params = parse_params(settings).ingest

    assert params.size_px == kept
    assert params.size == size


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([224, 320, 3], r"must be an integer, which is a square, or \[height, width\], got \[224, 320, 3\]"),
        ([224.5, 320], r"must be an integer, which is a square, or \[height, width\], got \[224.5, 320\]"),
        (True, r"must be an integer, which is a square, or \[height, width\], got true"),
        ([], r"must be an integer, which is a square, or \[height, width\], got \[\]"),
        ([224, 7], r"each side must be 8 to 1024 pixels, got \[224, 7\]"),
        (1025, r"each side must be 8 to 1024 pixels, got 1025"),
    ],
)
def test_a_size_that_is_neither_is_refused_with_both_forms(settings: dict[str, Any], value: Any, problem: str) -> None:
    settings["ingest"]["size_px"] = value

    with pytest.raises(ParamsError, match=rf"ingest\.size_px: {problem}"):
        parse_params(settings)


def test_fractions_that_do_not_add_up_are_refused(settings: dict[str, Any]) -> None:
    settings["validate"]["fractions"]["val"] = 0.5

    with pytest.raises(ParamsError, match=r"validate.fractions: train, val and test must add up to 1, got 1.35"):
        parse_params(settings)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, -1.0])
def test_a_learning_rate_that_is_no_positive_number_is_refused(settings: dict[str, Any], value: float) -> None:
    settings["train"]["learning_rate"] = value

    with pytest.raises(ParamsError, match=r"train.learning_rate"):
        parse_params(settings)


def test_a_number_in_scientific_notation_is_a_number_as_it_is_to_dvc(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text().replace("learning_rate: 3e-3", "learning_rate: 1e-3")
    (tmp_path / "params.yaml").write_text(text)

    assert load_params(tmp_path / "params.yaml").train.learning_rate == 0.001


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "train: [", "train: 1\ntrain: 2\n"])
def test_a_file_that_is_no_params_file_is_refused_in_words(tmp_path: Path, content: str) -> None:
    (tmp_path / "params.yaml").write_text(content)

    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"cp presets/digits\.yaml params\.yaml"):
        load_params(tmp_path / "params.yaml")
