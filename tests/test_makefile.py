"""What `make` sets up and says, in a folder whose path has spaces, with programs in place of uv, npm and twinrun."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGE = Path("src/twinrun/serving/page")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without an environment, in a folder with spaces; its uv does nothing."""
    folder = tmp_path / "my own project"
    (folder / PAGE).mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", PAGE / "ort.sha256"):
        shutil.copy(REPOSITORY / name, folder / name)
    packages = folder / ".venv/lib/site-packages"
    packages.mkdir(parents=True)
    (folder / ".venv/bin").mkdir()
    (folder / ".venv/bin/activate").write_text(f"VIRTUAL_ENV='{folder}/.venv'; PATH=\"$VIRTUAL_ENV/bin:$PATH\"\n")
    _program(folder / ".venv/bin/uv", "exit 0")
    _program(folder / ".venv/bin/python", f"echo '{packages}'")
    _program(folder / ".venv/bin/twinrun", 'echo "twinrun $*"')
    return folder


def _program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _make(folder: Path, *arguments: str, path: str = os.defpath) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PATH": path}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_project_in_a_folder_with_spaces_is_set_up(project: Path) -> None:
    ran = _make(project, "setup")

    assert ran.returncode == 0, ran.stderr
    assert (project / ".venv/lib/site-packages/_editable_impl_twinrun.pth").read_text() == "../../../../src\n"
    assert "before_dvc" in (project / ".venv/lib/site-packages/_twinrun.pth").read_text()


@pytest.mark.parametrize(
    ("npm", "reason"),
    [
        (
            "echo 'npm error network request to http://mirror failed, reason: ENOTFOUND' >&2; exit 1",
            "reason: ENOTFOUND",
        ),
        ("echo 'npm error nospc ENOSPC: no space left on device' >&2; exit 1", "no space left on device"),
        (None, "npm is not here"),
    ],
)
def test_the_app_starts_without_the_files_for_the_browser_and_says_why_they_are_missing(
    project: Path, npm: str | None, reason: str
) -> None:
    programs = project / "programs"
    for name in (
        "bash",
        "make",
        "sh",
        "awk",
        "cat",
        "cp",
        "cut",
        "mkdir",
        "mktemp",
        "python3",
        "rm",
        "sed",
        "sha256sum",
    ):
        program = shutil.which(name)
        assert program is not None
        programs.mkdir(exist_ok=True)
        (programs / name).symlink_to(program)
    if npm is not None:
        _program(programs / "npm", npm)

    ran = _make(project, "app", path=str(programs))

    said = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert said[-1] == "twinrun app"
    assert "by this machine's server, and not in the browser, for the reason above" in said[-2]
    assert reason in ran.stdout
    assert ("npm is not here" in ran.stdout) == (npm is None)
