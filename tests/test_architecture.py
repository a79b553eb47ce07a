"""The map in the README and in dvc.yaml is the house as it stands."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from twinrun.core.dependencies import unlisted_imports
from twinrun.core.params import Params
from twinrun.project.presets import params_text
from twinrun.training.fingerprint import _deciding_files

STAGES = ("ingest", "validate", "train", "evaluate", "register")
DVC: dict[str, Any] = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]


def _paths(entries: list[Any]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_the_stages_of_dvc_are_the_sections_of_the_params_in_the_same_order() -> None:
    assert tuple(DVC) == STAGES
    assert tuple(field.name for field in fields(Params)) == (*STAGES, "track")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name_in_five_places(stage: str) -> None:
    outs = _paths([*DVC[stage]["outs"], *DVC[stage].get("metrics", []), *DVC[stage].get("plots", [])])

    assert DVC[stage]["cmd"] == f"PYTHONPATH=src python -m pipeline.{stage}"
    assert stage in DVC[stage]["params"]
    assert all(out.startswith(f"data/out/{stage}/") for out in outs)
    assert Path(f"pipeline/{stage}.py").is_file()
    assert Path(f"tests/pipeline/test_{stage}.py").is_file()


def test_the_deps_of_the_stages_are_the_folders_of_the_code_that_they_run() -> None:
    assert unlisted_imports(Path.cwd()) == {}


def test_nothing_that_decides_weights_lies_outside_the_deps_of_train() -> None:
    deciding = {path for path in _deciding_files() if not path.startswith("training/")}

    assert {f"src/twinrun/{path.split('/')[0]}" for path in deciding} <= set(DVC["train"]["deps"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_nothing_that_changes_from_run_to_run(stage: str) -> None:
    assert not {"data/out/train/card.json", "data/out/train/journal.jsonl"} & set(DVC[stage]["deps"])


def test_every_module_of_the_map_in_the_readme_exists_and_every_package_is_on_it() -> None:
    readme = Path("README.md").read_text(encoding="utf-8")
    packages = [path.name for path in Path("src/twinrun").iterdir() if (path / "__init__.py").is_file()]

    assert all(f"{package}/" in readme for package in packages)
    for name in ("pipeline/", "params.yaml", "dvc.yaml", "requirements.lock", "benchmarks/", "tests/"):
        assert name in readme
        assert Path(name).exists()


def test_params_yaml_is_the_digits_preset_as_twinrun_preset_digits_writes_it() -> None:
    assert Path("params.yaml").read_text(encoding="utf-8") == params_text("digits")


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, twinrun.cli.main; "
        "print([m for m in ('torch', 'mlflow', 'great_expectations', 'pandas', 'sklearn') if m in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.strip() == "[]"


def test_pip_in_the_environment_that_make_sets_up_is_locked_and_installs_into_that_environment() -> None:
    pip = Path(sys.prefix, "bin/pip")

    said = subprocess.run([pip, "--version"], check=True, capture_output=True, text=True).stdout

    assert sys.prefix in said
    assert f"\npip=={said.split()[1]} \\\n    --hash=sha256:" in Path("requirements.lock").read_text()
