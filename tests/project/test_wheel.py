"""The wheel: installed where there is no checkout, it makes projects, and sees when it is upgraded."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinrun.project.environment import closure

REPOSITORY = Path(__file__).parents[2]
SITE = next(path for path in map(Path, sys.path) if path.name == "site-packages")


def run(*command: str | Path, folder: Path, code: int = 0, **environment: str) -> str:
    """Run a command that sees nothing of this environment but what it is given; returns what it printed."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    known = {f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = {"PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**kept, **known, **path, "DVC_NO_ANALYTICS": "true", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    run(uv, "build", "--wheel", "--no-build-isolation", "--offline", "--quiet", "--python", sys.executable,
        "--out-dir", out, REPOSITORY, folder=REPOSITORY)  # fmt: skip
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel installed, which finds all other packages in this one."""
    folder = tmp_path_factory.mktemp("environment")
    uv = Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--offline", "--python", sys.executable, "venv", folder=folder)
    python = folder / "venv/bin/python"
    run(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel, folder=folder)
    site = next((folder / "venv/lib").glob("python3*/site-packages"))
    (site / "reuse.pth").write_text(f"{SITE}\n")
    return python


def test_the_installed_wheel_makes_a_project_whose_stages_run_again_after_an_upgrade_that_concerns_them(
    python: Path, tmp_path: Path
) -> None:
    twinrun = python.with_name("twinrun")
    quick = ("--set", "validate.label_errors.folds=0")
    said = run(twinrun, "init", "demo", *quick, folder=tmp_path)
    project = tmp_path / "demo"
    installed = next(python.parents[1].glob("lib/python3*/site-packages/twinrun"))
    assert said.splitlines()[-1].endswith("cd demo && dvc repro")

    run(python, "-m", "dvc", "repro", "--quiet", "ingest", folder=project)
    assert (project / "data/out/ingest/images.npy").is_file()
    assert "up to date" in run(python, "-m", "dvc", "status", "ingest", folder=project)

    try:
        (installed / "tracking/new.py").write_text("# decides nothing\n")
        assert "up to date" in run(python, "-m", "dvc", "status", "ingest", folder=project)
        (installed / "ingest/new.py").write_text("# might decide something\n")
        assert "code.yaml" in run(python, "-m", "dvc", "status", "ingest", folder=project)
    finally:
        (installed / "tracking/new.py").unlink()
        (installed / "ingest/new.py").unlink()
    assert "train.lr: not a setting" in run(  # which before_dvc refuses, since the wheel installs its hook
        python, "-m", "dvc", "exp", "run", "-S", "train.lr=1", folder=project, code=1
    )


def test_the_folder_check_runs_with_the_packages_of_the_extra_check_alone(wheel: Path, tmp_path: Path) -> None:
    site, photos = tmp_path / "site", tmp_path / "photos"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--target", site, "--python", sys.executable, wheel,
        folder=tmp_path)  # fmt: skip
    python = (sys._base_executable, "-S", "-m")  # type: ignore[attr-defined]
    needed = run(*python, "twinrun.requirements", folder=tmp_path, PYTHONPATH=str(site)).split()
    names = closure(requirement.partition(">")[0].partition("=")[0] for requirement in needed)
    for name in names:
        link_package(name, site)
    rng = np.random.default_rng(0)
    for number in range(24):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            photos / "ab"[number % 2] / f"{number}.png"
        )

    assert not {"torch", "mlflow", "dvc", "pytorch-lightning"} & set(names)
    assert not (site / "torch").exists()
    said = run(*python, "twinrun", "data", "check", "photos", folder=tmp_path, PYTHONPATH=str(site), code=0)
    assert "2 classes (a 12, b 12)" in said
    (site / "pyarrow").unlink()
    said = run(*python, "twinrun", "data", "check", "photos", folder=tmp_path, PYTHONPATH=str(site), code=1)
    assert "needs the package pyarrow, which is not installed. Install all of Twinrun: pip install twinrun" in said


def link_package(name: str, site: Path) -> None:
    """Make a package of this environment importable from `site`, and no other."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:  # of another platform
        return
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(SITE / top)
