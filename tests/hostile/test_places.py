"""Disks that fail, clocks that are wrong, repositories of other users, projects that were copied."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from training_support import REPOSITORY, git

from pipeline import register
from twinrun import before_dvc
from twinrun.base.errors import PublishError, RepositoryError, os_problem, run_main
from twinrun.base.files import write_json
from twinrun.cli import main as cli
from twinrun.doctor.doctor import examine
from twinrun.record.card import collect_code
from twinrun.record.journal import Journal, read_events
from twinrun.twins.worktree import require_commit

OF_A_DISK = {
    errno.EIO: "input/output error. Check it",
    errno.EROFS: "Make .* writable",
    errno.EACCES: "Make .* writable",
    errno.EMFILE: "this process has too many files open",
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "the disk is full for this user .quota.",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ESTALE: "its network share",
}


@pytest.mark.parametrize(("number", "advice"), OF_A_DISK.items(), ids=errno.errorcode.get)
def test_a_disk_that_fails_leaves_the_old_file_and_a_whole_journal_and_says_what_to_do(
    number: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.create(tmp_path, name="lenet5", experiment="digits")
    write_json({"epoch": 1}, tmp_path / "facts.json")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", fail)
        disk.setattr(os, "ftruncate", fail)
        with pytest.raises(PublishError, match=f"facts.json cannot be written: .*{advice}"):
            write_json({"epoch": 2}, tmp_path / "facts.json")
        with pytest.raises(PublishError, match=f"journal.jsonl cannot be written: .*{advice}"):
            journal.metrics(1, {"loss": 0.5})
    journal.metrics(2, {"loss": 0.4})

    assert (tmp_path / "facts.json").read_text() == '{\n  "epoch": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".unfinished")] == []
    assert [event.get("step") for event in read_events(journal.file)] == [None, 2]


@pytest.mark.parametrize("number", [*OF_A_DISK, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENOLCK, errno.EBUSY])
def test_whatever_the_system_refuses_an_entry_point_ends_with_a_sentence(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "data/out/images.npy")

    with pytest.raises(SystemExit, match="1"):
        run_main(main)

    assert capsys.readouterr().err.startswith("\ndata/out/images.npy cannot be used: ")


def test_a_file_that_a_stage_needs_and_is_gone_is_named(
    tracked_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (tracked_project / "data").exists()

    with pytest.raises(SystemExit, match="1"):
        run_main(register.main)

    said = capsys.readouterr().err
    assert "data/out/evaluate/metrics.json is missing. Create it: dvc repro evaluate" in said
    assert "dvc repro" in said


def test_temporary_folders_that_cannot_be_written_are_named_as_such() -> None:
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    assert os_problem(error).startswith("No temporary folder is writable: TMPDIR, /tmp")


def test_a_copy_that_finds_no_space_names_the_file_that_could_not_be_written(tmp_path: Path) -> None:
    source, target = tmp_path / "photo.tif", tmp_path / "copy.tif"
    source.write_bytes(bytes(1_000_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as full:
            shutil.copyfile(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(FileNotFoundError) as missing:
        shutil.copyfile(tmp_path / "none.tif", target)

    assert os_problem(full.value).startswith(f"{target} cannot be used: it would be larger than")
    assert os_problem(missing.value).startswith(f"{tmp_path / 'none.tif'} cannot be used: there is no such file")


def test_a_part_that_the_disk_does_not_show_has_the_remedy_of_the_disk(
    tracked_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "dvc.yaml")

    monkeypatch.setattr("twinrun.core.dependencies.unlisted_imports", fail)
    (found,) = (check for check in examine(tracked_project) if check.name == "dvc.yaml")

    assert found.findings[0].problem == "dvc.yaml cannot be used: the disk reports an input/output error"
    assert found.findings[0].fix.startswith("Check it (dmesg)")


def test_checkpoints_of_a_training_that_runs_are_never_to_be_removed_whatever_the_clock_says(
    tracked_project: Path,
) -> None:
    checkpoint = tracked_project / ".twinrun/resume/abc/epoch-00001/state.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    for path in (checkpoint, checkpoint.parent, checkpoint.parents[1]):
        os.utime(path, (time.time() - 30 * 86400,) * 2)

    with FileLock(tracked_project / ".twinrun/train.lock"):
        (running,) = (check for check in examine(tracked_project) if check.name == "resume")
    (over,) = (check for check in examine(tracked_project) if check.name == "resume")

    assert running.findings == ()
    assert "from a training that stopped 30 d ago" in over.findings[0].problem


def test_a_repository_of_another_user_has_gits_own_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").touch()
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "Begin")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for this

    for ask in (
        lambda: collect_code(tmp_path),
        lambda: require_commit(tmp_path, "HEAD"),
        lambda: before_dvc._git(tmp_path, "ls-files"),
    ):
        with pytest.raises(RepositoryError, match=r"another user owns it .*\n.*git config --global --add safe.dir"):
            ask()


def test_a_repository_that_git_cannot_read_has_gits_own_reason(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".git/config").write_text("[core\n")

    with pytest.raises(RepositoryError, match=r"It says: .*bad config line 1"):
        collect_code(tmp_path)


def test_a_copied_project_runs_its_own_code_and_a_foreign_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makefile = (REPOSITORY / "Makefile").read_text().splitlines()
    (line,) = (each for each in makefile if "_impl_twinrun.pth" in each)
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    asked = subprocess.run([sys.executable, "-m", "twinrun", "--help"], capture_output=True, text=True, check=True)

    assert "echo ../../../../src >" in line  # relative, so it moves with the project
    assert f"not that of this project, {tmp_path / 'src/twinrun'}" in str(cli.foreign_code())
    assert "the code that runs is" in asked.stderr
    monkeypatch.chdir(REPOSITORY)
    assert cli.foreign_code() is None
