"""Presets: a full params.yaml with comments from the defaults and a few lines."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_support import run_twinrun
from pydantic import TypeAdapter
from typer.testing import CliRunner

from twinrun.base.errors import ParamsError
from twinrun.cli.main import app
from twinrun.core.params import Params, load_params
from twinrun.project.presets import params_text, preset_names, preset_params, with_values, write_preset

PROJECT = Path("src/twinrun/project")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_describes_a_run_and_explains_every_setting(name: str) -> None:
    text = params_text(name)

    assert preset_params(name)
    defaults = (PROJECT / "defaults.yaml").read_text().partition("\n\n")[2]
    assert [line.partition(" # ")[2] for line in text.partition("\n\n")[2].splitlines()] == [
        line.partition(" # ")[2] for line in defaults.splitlines()
    ]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_set_with_published_test_images_goes_on_without_training_images_that_nearly_equal_them(name: str) -> None:
    assert preset_params(name).validate.on_near_leak == "drop"  # each of these sets has some


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_repeats_no_default(name: str) -> None:
    preset, defaults = params_text(name).splitlines(), params_text("digits").splitlines()

    overlay = (PROJECT / f"presets/{name}.yaml").read_text().splitlines()
    changed = set(preset) - set(defaults) - {line for line in overlay if line.startswith("#")}
    values = [line for line in overlay if line and line[0] != "#" and not line.endswith(":")]

    assert len(changed) == len(values)


def test_the_command_writes_the_preset_with_what_a_person_sets(folder: Path) -> None:
    (folder / "dvc.yaml").touch()
    changes = ["--set", "train.epochs=5", "--set", "train.probe.l2=1e-3", "--set", 'ingest.leave_out=["*/masks/*"]']

    result = CliRunner().invoke(app, ["preset", "mnist", *changes], catch_exceptions=False)

    assert result.stdout == "params.yaml holds the preset mnist. Run it: dvc repro\n"
    params = load_params(folder / "params.yaml", inputs=True)
    assert (params.ingest.source, params.train.epochs, params.train.probe.l2) == ("mnist", 5, 0.001)
    assert params.ingest.leave_out == ["*/masks/*"]
    assert '  leave_out: ["*/masks/*"] # patterns of paths' in (folder / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["mnsit"], "There is no preset 'mnsit'. Did you mean mnist?"),
        (["mnist", "train.lr=1"], "train.lr: not a setting; did you mean train.learning_rate?"),
        (["mnist", "train.epochs=0"], "train.epochs: must be at least 1, got 0"),
        (["mnist", "train.augment=1"], "train.augment is a section"),
        (["mnist", "train.epochs"], "is not setting=value"),
        (["mnist", "train.epochs=["], "the value is not YAML"),
        (["mnist", "register.model_name=2025-31-12"], "2025-31-12 is not a date that exists"),
        (["mnist", "train.model=a: b"], "Put a text that has : or , or # in quotes"),
        (["mnist", "train.epochs=1\nseed: 3"], "is not setting=value on one line"),
    ],
)
def test_what_is_no_preset_or_no_setting_is_refused_and_params_yaml_stays(
    folder: Path, arguments: list[str], problem: str
) -> None:
    write_preset(folder, "digits")

    with pytest.raises(ParamsError) as raised:
        write_preset(folder, arguments[0], arguments[1:])

    assert problem in str(raised.value)
    assert (folder / "params.yaml").read_text() == params_text("digits")


def test_without_a_name_every_preset_is_described_with_its_command_and_nothing_is_written(folder: Path) -> None:
    result = CliRunner().invoke(app, ["preset"], catch_exceptions=False)

    lines = result.stdout.splitlines()
    assert {line for line in lines if line and line[0] != " "} == {
        f"twinrun preset {name} && dvc repro" for name in preset_names()
    }
    assert lines[0] == "twinrun preset photos && dvc repro"
    assert not list(folder.iterdir())


def test_settings_of_a_persons_own_are_kept_when_a_preset_replaces_them(folder: Path) -> None:
    (folder / "dvc.yaml").touch()
    write_preset(folder, "digits", ["train.epochs=7"])
    edited = (folder / "params.yaml").read_text()

    result = CliRunner().invoke(app, ["preset", "mnist"], catch_exceptions=False)

    (kept,) = (folder / ".twinrun/params").iterdir()
    assert kept.read_text() == edited
    assert str(kept.relative_to(folder)) in result.stdout


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command", ["preset mnist", "models", "show", "sync", "ui", "doctor", "data feedback", "train --on ray"]
)
def test_outside_a_project_a_command_says_so_and_writes_nothing(command: str) -> None:
    missing = "dvc.yaml" if command == "preset mnist" else "params.yaml"

    with pytest.raises(ParamsError, match=f"not a project: {missing} is missing.*twinrun init demo"):
        CliRunner().invoke(app, command.split(), catch_exceptions=False)

    assert not list(Path.cwd().iterdir())


OWN = """train:
  epochs: 3   # of a day
  augment: {shift_px: 2, flip: true}  # small
  model: "a # b"
  patience:
  modes:
    - L
    - RGB
  seed: &seed 5
  folds: *seed
"""


def test_values_go_into_a_section_on_one_line_and_the_rest_stays() -> None:
    values = {"augment.flip": "false", "augment.shift_px": "[1, 2]", "epochs": "10", "model": "c", "patience": "4"}

    changed = with_values(OWN, {("train", *name.split(".")): value for name, value in values.items()})

    assert changed.splitlines()[1:5] == [
        "  epochs: 10  # of a day",
        "  augment: {shift_px: [1, 2], flip: false}  # small",
        "  model: c",
        "  patience: 4",
    ]
    assert changed.splitlines()[5:] == OWN.splitlines()[5:]


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "1"), ("modes", "[L]"), ("augment.flip", "a, b"), ("epochs", "a: b")]
)
def test_a_value_that_would_change_something_else_is_refused(name: str, value: str) -> None:
    with pytest.raises(ParamsError, match=f"  {re.escape(f'train.{name}: {value}')}\nWrite each of these"):
        with_values(OWN, {("train", *name.split(".")): value, ("train", "model"): "c"})


def test_a_params_yaml_that_a_full_disk_cannot_keep_stays_and_no_half_of_it_is_kept(tmp_path: Path) -> None:
    write_preset(tmp_path, "digits")
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("\ntrain:", "\n# mine\ntrain:"))
    (tmp_path / "dvc.yaml").touch()
    before = params.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        ran = run_twinrun(tmp_path, "preset", "mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert ran.code == 1
    assert ".yaml cannot be written: it would be larger than" in ran.said
    assert params.read_bytes() == before
    assert [path for path in (tmp_path / ".twinrun").rglob("*") if path.is_file()] == []


def test_a_params_yaml_that_is_a_link_stays_one(folder: Path) -> None:
    (folder / "dvc.yaml").touch()
    (folder / "settings.yaml").write_text("train:\n  epochs: 7\n")
    (folder / "params.yaml").symlink_to("settings.yaml")

    result = CliRunner().invoke(app, ["preset", "digits"], catch_exceptions=False)

    assert (folder / "params.yaml").is_symlink()
    assert (folder / "settings.yaml").read_text() == params_text("digits")
    kept = re.search(r"is now (\S+)\.\n", result.stdout)
    assert kept is not None
    assert Path(kept[1]).read_text() == "train:\n  epochs: 7\n"


def test_the_comment_of_a_setting_has_every_bound_that_is_enforced() -> None:
    schema, comments = TypeAdapter(Params).json_schema(), _comments()
    bounds = dict(_bounds(schema, schema["$defs"]))

    unsaid = {name: least for name, numbers in bounds.items() if (least := numbers - _numbers(comments[name]))}

    assert unsaid == {}
    assert bounds["train.threads"] == {"1", "4096"}
    assert bounds["validate.fractions.val"] == {"0", "1"}


def _bounds(schema: dict[str, Any], types: dict[str, Any], name: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each setting with a bound, by its full name, and the numbers that bound it."""
    schema = types[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for key, inner in schema.get("properties", {}).items():
        yield from _bounds(inner, types, f"{name}.{key}".lstrip("."))
    kinds = [schema, *schema.get("anyOf", []), schema.get("items", {})]
    limits = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    if numbers := {f"{kind[limit]:.15g}" for kind in kinds for limit in limits if limit in kind}:
        yield name, {"2^63" if number == f"{2**63:.15g}" else number for number in numbers}


def _comments() -> dict[str, str]:
    """The comment of each setting by its full name; one that has none shares that of its section."""
    place: list[str] = []
    comments: dict[str, str] = {}
    for line in (PROJECT / "defaults.yaml").read_text().splitlines():
        if setting := re.match(r"((?:  )*)(\w+):", line):
            place[len(setting[1]) // 2 :] = [setting[2]]
            comments[".".join(place)] = line.partition(" # ")[2] or comments.get(".".join(place[:-1]), "")
        elif place:
            comments[".".join(place)] += line
    return comments


def _numbers(comment: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?(?:\^63)?", comment.replace(",", "")))
