"""`twinrun upgrade`: an old project's files become those of the installed Twinrun, and no value is lost."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinrun.base.errors import ParamsError, RepositoryError
from twinrun.cli.main import app
from twinrun.core.params import load_params
from twinrun.project.creating import stage_files
from twinrun.project.presets import default_settings, params_text
from twinrun.project.upgrading import with_missing


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=Ada", "-c", "user.email=a@example.org", *arguments], check=True)


def without(text: str, *settings: str) -> str:
    """params.yaml as an earlier version wrote it: lines that begin so, and what is indented below them, left out."""
    lines: list[str] = []
    dropped = ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if dropped and line.strip() and indent <= len(dropped) - len(dropped.lstrip()):
            dropped = ""
        dropped = dropped or next((name for name in settings if line.startswith(f"{name}:")), "")
        if not dropped:
            lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A committed project of an earlier version: settings are missing, a value and a comment are its owner's."""
    monkeypatch.chdir(tmp_path)
    old = without(params_text("digits", ["train.epochs=7"]), "  seeds", "    erase", "  label_errors", "serve")
    Path("params.yaml").write_text(old.replace("  batch_size", "  # as on the big machine\n  batch_size", 1))
    for name, text in stage_files().items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path("dvc.yaml").write_text("stages: {}\n")
    Path(".gitignore").write_text("/mine/\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "old")


@pytest.mark.usefixtures("_project")
def test_missing_settings_come_back_with_defaults_and_the_rest_stays_as_it_was() -> None:
    old = Path("params.yaml").read_text()
    with pytest.raises(ParamsError, match="twinrun upgrade"):
        load_params()

    result = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    said = "Added to params.yaml, with defaults: validate.label_errors, train.seeds, train.augment.erase, serve"
    assert said in result.stdout.replace("\n", " ")
    assert "Replaced: dvc.yaml, .gitignore" in result.stdout
    assert Path(".gitignore").read_text().startswith("/mine/\n")
    assert "/data/feedback/\n" in Path(".gitignore").read_text()
    assert Path("dvc.yaml").read_text() == stage_files()["dvc.yaml"]
    new = Path("params.yaml").read_text()
    assert [line for line in new.splitlines() if line in old.splitlines() and line] == [
        line for line in old.splitlines() if line
    ]
    assert load_params().train.epochs == 7
    again = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)
    assert again.stdout.startswith("The project's files are those of this version")


@pytest.mark.parametrize("mark", [None, "--assume-unchanged", "--skip-worktree"])
@pytest.mark.usefixtures("_project")
def test_a_file_that_git_does_not_have_stops_the_upgrade_before_it_writes_anything(mark: str | None) -> None:
    if mark is not None:
        git("update-index", mark, "dvc.yaml")
    Path("dvc.yaml").write_text("stages: {} # mine\n")
    old = Path("params.yaml").read_text()

    result = CliRunner().invoke(app, ["upgrade"])

    assert isinstance(result.exception, RepositoryError)
    assert "dvc.yaml would be changed, and git does not have" in str(result.exception)
    assert Path("dvc.yaml").read_text() == "stages: {} # mine\n"
    assert Path("params.yaml").read_text() == old


@pytest.mark.usefixtures("_project")
def test_a_file_that_git_does_not_track_stops_the_upgrade_whatever_git_is_to_show() -> None:
    git("rm", "--quiet", "--cached", "dvc.yaml")
    git("commit", "--quiet", "--message", "no stages")
    git("config", "status.showUntrackedFiles", "no")

    result = CliRunner().invoke(app, ["upgrade"])

    assert isinstance(result.exception, RepositoryError)
    assert "dvc.yaml would be changed, and git does not have" in str(result.exception)
    assert Path("dvc.yaml").read_text() == "stages: {}\n"


@pytest.mark.parametrize(
    "setting", ["  rotate_deg", "  min_side_px", "  l2", "  margin", "ingest", "register", "train"]
)
def test_each_setting_and_section_comes_back_where_it_was(setting: str) -> None:
    text = default_settings()
    indented = next(line for line in text.splitlines() if line.lstrip().startswith(f"{setting.strip()}:"))
    name = indented[: len(indented) - len(indented.lstrip())] + setting.strip()

    restored, added = with_missing(without(text, name), text)

    assert [line for line in restored.splitlines() if line] == [line for line in text.splitlines() if line]
    assert len(added) == 1


def test_a_section_on_one_line_is_left_to_its_owner() -> None:
    defaults = "train:\n  augment:\n    flip: true\n    erase: 0.0\n"

    with pytest.raises(ParamsError, match="cannot be added to it as it is written"):
        with_missing("train:\n  augment: {flip: false}\n", defaults)


@pytest.mark.usefixtures("_project")
def test_a_file_that_is_no_settings_is_named() -> None:
    Path("params.yaml").write_text("- 1\n- 2\n")

    result = CliRunner().invoke(app, ["upgrade"])

    assert isinstance(result.exception, ParamsError)


@pytest.mark.usefixtures("_project")
def test_a_folder_that_is_no_project_or_no_repository_is_named_with_what_to_do() -> None:
    shutil.rmtree(".git")
    without_git = CliRunner().invoke(app, ["upgrade"])
    Path("params.yaml").unlink()
    without_params = CliRunner().invoke(app, ["upgrade"])

    assert "git init && git add . && git commit" in str(without_git.exception)
    assert "params.yaml is missing. Go to a project's folder" in str(without_params.exception)
    assert Path("dvc.yaml").read_text() == "stages: {}\n"


def ignored_by_git(name: str) -> bool:
    return subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], check=False).returncode == 0


@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize("text", [b"/mine/\nsecrets.env", b"\xef\xbb\xbfsecrets.env", b"/mine/\r\nsecrets.env"])
def test_a_gitignore_without_a_final_newline_ignores_what_it_did_before(text: bytes) -> None:
    Path(".gitignore").write_bytes(text)
    git("commit", "--all", "--quiet", "--message", "ignore")
    assert ignored_by_git("secrets.env")

    result = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    assert ".gitignore" in result.stdout
    assert ignored_by_git("secrets.env")
    assert ignored_by_git("data/feedback/photo.jpg")
    new = Path(".gitignore").read_bytes()
    assert new.startswith(text)
    assert (b"\r\n" in text) == (b"\r\n" in new)
    assert new.count(b"\n") == len(new.splitlines())
    assert CliRunner().invoke(app, ["upgrade"]).stdout.startswith("The project's files are those of this version")


@pytest.mark.usefixtures("_project")
def test_a_gitignore_that_is_not_utf_8_is_left_alone_and_named() -> None:
    text = "/Müll/\nsecrets.env\n".encode("latin-1")
    Path(".gitignore").write_bytes(text)
    git("commit", "--all", "--quiet", "--message", "ignore")

    result = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    assert Path(".gitignore").read_bytes() == text
    assert ".gitignore was left as it is, since it cannot be read as UTF-8" in result.stdout
    assert "Replaced: dvc.yaml\n" in result.stdout


@pytest.mark.usefixtures("_project")
def test_params_yaml_keeps_its_line_ends() -> None:
    Path("params.yaml").write_bytes(Path("params.yaml").read_bytes().replace(b"\n", b"\r\n"))
    git("commit", "--all", "--quiet", "--message", "from Windows")

    CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    new = Path("params.yaml").read_bytes()
    assert new.count(b"\n") == new.count(b"\r\n")
    assert load_params().train.epochs == 7


@pytest.mark.usefixtures("_project")
def test_a_link_stays_one_and_leads_to_the_upgraded_settings() -> None:
    Path("settings").mkdir()
    Path("params.yaml").rename("settings/mine.yaml")
    Path("params.yaml").symlink_to("settings/mine.yaml")
    git("add", ".")
    git("commit", "--quiet", "--message", "a link")
    Path("settings/mine.yaml").write_text(Path("settings/mine.yaml").read_text() + "# not committed\n")

    refused = CliRunner().invoke(app, ["upgrade"])
    git("commit", "--all", "--quiet", "--message", "mine")
    CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    assert "settings/mine.yaml would be changed, and git does not have" in str(refused.exception)
    assert Path("params.yaml").is_symlink()
    assert load_params(Path("settings/mine.yaml")).train.epochs == 7


@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "pipeline/train.py"])
def test_a_link_out_of_the_project_is_named_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    shared = tmp_path.parent / f"{tmp_path.name}-shared"
    shared.write_text(Path(name).read_text() + "# shared\n")
    Path(name).unlink()
    Path(name).symlink_to(shared)
    git("commit", "--all", "--quiet", "--message", "a link")
    before = {file: file.read_bytes() for file in (Path("params.yaml"), Path("dvc.yaml"), Path("pipeline/train.py"))}

    result = CliRunner().invoke(app, ["upgrade"])

    assert isinstance(result.exception, RepositoryError)
    assert f"{name} would be changed, and it leads to {shared}, outside the project" in str(result.exception)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.usefixtures("_project")
def test_a_setting_that_no_longer_exists_is_named_each_time() -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("  epochs: 7", "  epochs: 7\n  ticks: 3"))
    git("commit", "--all", "--quiet", "--message", "an old setting")

    first = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)
    again = CliRunner().invoke(app, ["upgrade"], catch_exceptions=False)

    for result in (first, again):
        assert "params.yaml does not describe a run:\n  train.ticks: not a setting" in result.stdout
    assert "The project's files are those" not in again.stdout
