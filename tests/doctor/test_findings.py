"""How the doctor names files, numbers and times."""

import subprocess
from pathlib import Path

import pytest

from twinrun.base.errors import TwinrunError
from twinrun.doctor import code
from twinrun.doctor.findings import Finding, counted, duration, reported, shown


def test_names_are_counted_and_the_first_ones_listed() -> None:
    assert counted(["a"], "file") == "1 file (a) is"
    assert counted(["a", "b"], "file") == "2 files (a, b) are"
    assert counted([*"abcdefgh"], "file") == "8 files (a, b, c, d, e, f and 2 more) are"


def test_times_are_in_their_largest_unit_and_never_negative() -> None:
    assert [duration(seconds) for seconds in (-5, 90, 150, 3 * 3600, 3 * 86400)] == [
        "0 s",
        "90 s",
        "2 min",
        "3 h",
        "3 d",
    ]


def test_a_path_is_shown_below_the_project_or_whole() -> None:
    assert shown(Path("/p/a/b"), Path("/p")) == "a/b"
    assert shown(Path("/q/b"), Path("/p")) == "/q/b"


@pytest.mark.parametrize(
    ("message", "problem", "fix"),
    [
        ("/data/St. Gallen/x is missing. Restore it.", "/data/St. Gallen/x is missing", "Restore it."),
        ("/data/St. Gallen/x is missing.", "/data/St. Gallen/x is missing.", "unset it"),
        ("It is away. Run it: touch /St. Gallen/x", "It is away", "Run it: touch /St. Gallen/x"),
        ("It is away. It was at x. Start it.", "It is away. It was at x", "Start it."),
        ("git. It fails.\nIt says: no.\nRepair it.", "git. It fails.", "It says: no.\n      Repair it."),
    ],
)
def test_the_last_sentence_or_the_lines_after_the_first_of_a_message_are_the_fix(
    message: str, problem: str, fix: str
) -> None:
    assert reported(TwinrunError(message), "unset it") == Finding(problem, fix)


def test_the_fix_for_a_secret_adds_a_line_to_a_gitignore_without_a_final_newline(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "kept.txt").touch()
    subprocess.run(["git", "add", "kept.txt"], cwd=tmp_path, check=True)
    identity = ["-c", "user.name=Ada", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "one"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/mine.env")
    (tmp_path / ".env").write_text("PASSWORD=x")

    result = code.check(tmp_path)
    assert not isinstance(result, str)
    _, findings = result
    subprocess.run(findings[0].fix, shell=True, check=True, cwd=tmp_path)

    for name in ("mine.env", ".env"):
        subprocess.run(["git", "check-ignore", "--quiet", name], cwd=tmp_path, check=True)


@pytest.mark.parametrize("mark", ["--assume-unchanged", "--skip-worktree"])
def test_the_fix_for_a_change_commits_it_although_git_does_not_show_it(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run(["git", "config", "user.name", "Ada"], check=True)
    subprocess.run(["git", "config", "user.email", "a@example.org"], check=True)
    Path("my train.py").write_text("epochs = 3\n")
    subprocess.run('git add -A && git commit --quiet -m "one"', shell=True, check=True)
    subprocess.run(["git", "update-index", mark, "my train.py"], check=True)
    Path("my train.py").write_text("epochs = 4\n")

    result = code.check(tmp_path)
    assert not isinstance(result, str)
    _, (finding,) = result
    subprocess.run(finding.fix, shell=True, check=True)

    assert subprocess.check_output(["git", "show", "HEAD:my train.py"]) == b"epochs = 4\n"
    after = code.check(tmp_path)
    assert not isinstance(after, str)
    assert after[1] == []


def test_no_fix_moves_the_git_file_of_a_worktree_of_another_repository(tmp_path: Path) -> None:
    identity = ["-c", "user.name=Ada", "-c", "user.email=a@example.org"]
    for name in ("project", "other"):
        subprocess.run(["git", "init", "--quiet", name], check=True, cwd=tmp_path)
        command = ["git", *identity, "commit", "--quiet", "--allow-empty", "--message", "one"]
        subprocess.run(command, check=True, cwd=tmp_path / name)
    subprocess.run(["git", "worktree", "add", "--quiet", "../project/tree"], check=True, cwd=tmp_path / "other")
    subprocess.run(["git", "worktree", "add", "--quiet", "own"], check=True, cwd=tmp_path / "project")

    result = code.check(tmp_path / "project")
    assert not isinstance(result, str)
    (finding,) = result[1]

    assert finding.problem.startswith("tree/ is a repository of its own")
    assert finding.fix == "list in .gitignore what no run needs"


@pytest.mark.parametrize("name", [".env", "my[1].env", "a?b.env", "back\\slash.env", "star*.env"])
def test_the_fixes_work_in_a_project_that_lies_in_a_folder_of_its_repository(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "repository/my project"
    project.mkdir(parents=True)
    monkeypatch.chdir(project)
    subprocess.run(["git", "init", "--quiet", ".."], check=True)
    subprocess.run(["git", "config", "user.name", "Ada"], check=True)
    subprocess.run(["git", "config", "user.email", "a@example.org"], check=True)
    Path("train.py").write_text("epochs = 3\n")
    subprocess.run('git add -A && git commit --quiet -m "one"', shell=True, check=True)
    subprocess.run(["git", "update-index", "--assume-unchanged", "train.py"], check=True)
    Path("train.py").write_text("epochs = 4\n")
    Path("weights.bin").write_bytes(bytes(9))
    Path("..", "notes.bin").write_bytes(bytes(9))
    for folder in (".", ".."):
        Path(folder, name).write_text("PASSWORD=x")

    result = code.check(project)
    assert not isinstance(result, str)
    _, (secrets, changes, others) = result
    subprocess.run(secrets.fix, shell=True, check=True)
    subprocess.run(others.fix.partition(", or ")[0], shell=True, check=True)
    subprocess.run(changes.fix, shell=True, check=True)

    tracked = subprocess.check_output(["git", "ls-files", "--full-name", ".."], text=True).splitlines()
    assert sorted(tracked) == [".gitignore", "my project/train.py", "my project/weights.bin", "notes.bin"]
    assert subprocess.check_output(["git", "show", "HEAD:./train.py"]) == b"epochs = 4\n"
    after = code.check(project)
    assert not isinstance(after, str)
    assert after[1] == []
