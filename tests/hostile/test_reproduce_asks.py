"""`twinrun reproduce` runs a run's code. Code that is not of this branch is shown and asked about before it runs."""

import getpass
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
from tracking_support import runs, train
from training_support import git

from twinrun.base.files import write_json, write_table, write_text
from twinrun.cli import main as cli
from twinrun.dataset.table import table_schema
from twinrun.record.card import collect_code
from twinrun.record.objects import file_md5
from twinrun.record.trust import minimal_environment, remember
from twinrun.tracking.sync import sync
from twinrun.twins.material import MANIFEST, NEEDED, PACK, TABLE

TRAIN = """import json, os
from pathlib import Path
Path({mark!r}).write_text(json.dumps(dict(os.environ)))
raise SystemExit(1)
"""
MANIFEST_COLUMNS = ("row", "id", "label", "target", "split", "dropped", "given")
KEYS = {
    "AWS_SECRET_ACCESS_KEY": "k1",
    "MLFLOW_TRACKING_PASSWORD": "k2",
    "MLFLOW_TRACKING_TOKEN": "k3",
    "HF_TOKEN": "k4",
    "GITHUB_TOKEN": "k5",
    "HTTPS_PROXY": "http://joe:k6@proxy.example",
    "SSH_AUTH_SOCK": "/tmp/k7",
    "MY_OWN_SECRET": "k8",
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What the run's code writes when it runs."""
    return tmp_path / "it-ran.json"


@pytest.fixture
def project(tracked_project: Path, mark: Path) -> Path:
    """A repository with the data of a run; its code stands in the first commit of the branch `theirs`."""
    write_text("no pixels", tracked_project / PACK)
    write_table(table_schema().empty_table(), tracked_project / TABLE)
    write_table(pa.schema([(name, pa.string()) for name in MANIFEST_COLUMNS]).empty_table(), tracked_project / MANIFEST)
    write_text("mlruns\ndata\n.twinrun\n", tracked_project / ".gitignore")
    git(tracked_project, "init", "--quiet", "--initial-branch", "ours")
    git(tracked_project, "add", "--all")
    git(tracked_project, "commit", "--quiet", "--message", "Begin")
    git(tracked_project, "checkout", "--quiet", "-b", "theirs")
    write_text(TRAIN.format(mark=str(mark)), tracked_project / "pipeline/train.py")
    git(tracked_project, "add", "--all")
    git(tracked_project, "commit", "--quiet", "--message", "Faster\x1b[2J training")
    return tracked_project


def record(project: Path, diff: str = "") -> str:
    """Publish a run that was trained with the code as it is now, and go back to the own branch; returns its id."""
    commit = collect_code(project).commit
    git(project, "checkout", "--quiet", "--force", "ours")
    journal = train(project, end=False)
    outs = {name: file_md5(project / name) for name in NEEDED}
    card = {
        **json.loads((project / "data/out/train/card.json").read_text()),
        "commit": commit,
        "diff": diff,
        "params": {"ingest": {"source": "digits"}},
        "fingerprint_parts": {"numerics": {}},
        "dvc_lock": {
            stage: {"outs": {n: m for n, m in outs.items() if f"/{stage}/" in n}} for stage in ("ingest", "validate")
        },
    }
    write_json(card, project / "data/out/train/card.json")
    journal.artifact(project / "data/out/train/card.json")
    journal.end()
    journal.copy_to(project / "data/out/train/journal.jsonl")
    assert sync(project).failed is False
    return runs(project)[0].id


@pytest.fixture
def reproduce(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, list[str]]]:
    """The real entry point; returns what it printed and which questions it asked."""

    def run(*arguments: str, answer: bool | None = None) -> tuple[str, list[str]]:
        asked: list[str] = []

        def confirm(text: str, **_: Any) -> bool:
            asked.append(text)
            return bool(answer)

        monkeypatch.setattr(typer, "confirm", confirm)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
        monkeypatch.setattr(sys, "argv", ["twinrun", "reproduce", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main()
        return "".join(capsys.readouterr()), asked

    return run


def test_code_of_another_branch_does_not_run_without_a_yes(
    project: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    run_id = record(project)

    in_a_script, _ = reproduce(run_id)
    refused, asked = reproduce(run_id, answer=False)

    for printed in (in_a_script, refused):
        assert "This runs code that is not in the history of the current branch, with your rights" in printed
        assert r"of Somebody <somebody@example.com>" in printed
        assert r"Faster\x1b[2J training (not in this branch)" in printed
        assert f"run by  {getpass.getuser()}" in printed
        assert "Nothing was run." in printed
    assert "--trust" in in_a_script
    assert asked == ["Run it?"]
    assert not mark.exists()
    assert not list((project / ".twinrun/twins").glob("*"))


def test_a_patch_is_listed_by_its_files_and_asked_about_even_on_a_commit_of_the_branch(
    project: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    git(project, "checkout", "--quiet", "ours")
    write_text(TRAIN.format(mark=str(mark)), project / "pipeline/train.py")
    write_text("{}", project / "src/more.json")
    diff = collect_code(project).diff
    files = ("pipeline/train.py", "src/more.json")
    for name in files:
        (project / name).unlink()
    run_id = record(project, diff)

    printed, _ = reproduce(run_id, answer=False)

    listed = ["  patch   2 files, not committed when it was trained:", *[f"{10 * ' '}{name}" for name in files]]
    assert "\n".join(listed) in printed
    assert not mark.exists()


def test_what_was_agreed_to_runs_without_keys_and_is_not_asked_about_again(
    project: Path,
    mark: Path,
    reproduce: Callable[..., tuple[str, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = record(project)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    _, first = reproduce(run_id, answer=True)
    environment = json.loads(mark.read_text())
    mark.unlink()
    _, second = reproduce(run_id)

    assert first == ["Run it?"]
    assert second == []
    assert mark.exists()
    assert not environment.keys() & KEYS.keys()
    assert {"PATH", "PYTHONPATH", "MLFLOW_TRACKING_URI"} <= environment.keys()


def test_trust_asks_nothing_and_says_what_runs(
    project: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    printed, asked = reproduce(record(project), "--trust")

    assert "(not in this branch)" in printed
    assert asked == []
    assert mark.exists()


@pytest.mark.parametrize("known", ["an ancestor", "it ran here"])
def test_code_that_is_known_here_is_not_asked_about(
    known: str, project: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    if known == "it ran here":
        remember(project, collect_code(project).commit, "")
    run_id = record(project)
    if known == "an ancestor":
        git(project, "merge", "--quiet", "theirs")

    printed, asked = reproduce(run_id)

    assert asked == []
    assert "This runs code" not in printed
    assert mark.exists()


def test_a_clone_cannot_bring_trust_along(
    project: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]], tmp_path: Path
) -> None:
    remember(project, collect_code(project).commit, "")
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    run_id = record(project)
    (project / ".git").rename(tmp_path / "old.git")
    (tmp_path / "clone/.git").rename(project / ".git")
    git(project, "checkout", "--quiet", "--force", "ours")

    printed, _ = reproduce(run_id)

    assert "Nothing was run." in printed
    assert not mark.exists()


def test_the_password_in_a_trackers_address_is_not_handed_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://joe:secret@mlflow.example")

    assert not any("secret" in value for value in minimal_environment().values())
    assert minimal_environment({"PATH": "/bin", "LC_ALL": "C", "API_KEY": "x"}) == {"PATH": "/bin", "LC_ALL": "C"}
    assert os.environ["MLFLOW_TRACKING_URI"]


def test_a_worktree_of_the_user_that_is_not_mounted_is_not_forgotten(
    project: Path, tmp_path: Path, mark: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    run_id = record(project)
    git(project, "worktree", "add", "--quiet", "--detach", str(tmp_path / "usb/stick"))
    (tmp_path / "usb").rename(tmp_path / "away")

    printed, _ = reproduce(run_id, "--trust")
    (tmp_path / "away").rename(tmp_path / "usb")

    assert mark.exists()
    assert "The twin's stage train failed" in printed
    git(tmp_path / "usb/stick", "status")
    assert len(list((project / ".git/worktrees").iterdir())) == 1


def test_a_patch_is_listed_although_git_is_to_refuse_spaces_at_the_ends_of_lines(
    project: Path, reproduce: Callable[..., tuple[str, list[str]]]
) -> None:
    git(project, "checkout", "--quiet", "ours")
    git(project, "config", "apply.whitespace", "error")
    write_text("x = 1 \n", project / "src/more.py")
    diff = collect_code(project).diff
    (project / "src/more.py").unlink()
    run_id = record(project, diff)

    printed, _ = reproduce(run_id, answer=False)

    assert "  patch   1 file, not committed when it was trained:\n          src/more.py" in printed


@pytest.mark.parametrize("variable", ["GIT_INDEX_FILE", "GIT_DIR"])
def test_a_twin_that_is_made_in_a_hook_leaves_the_index_of_the_repository_alone(
    variable: str,
    project: Path,
    mark: Path,
    reproduce: Callable[..., tuple[str, list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = record(project)
    write_text("x = 1\n", project / "staged.py")
    git(project, "add", "staged.py")
    index = (project / ".git/index").read_bytes()
    monkeypatch.setenv(variable, str(project / ".git" / ("index" if variable == "GIT_INDEX_FILE" else "")))

    printed, _ = reproduce(run_id, "--trust")

    assert "The twin's stage train failed" in printed
    assert mark.exists()
    assert (project / ".git/index").read_bytes() == index
