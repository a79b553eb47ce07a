"""The card: enough to make the run again."""

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from twinrun.base.errors import RepositoryError
from twinrun.record import card
from twinrun.record.card import (
    build_card,
    collect_code,
    collect_dvc_lock,
    collect_environment,
    collect_hardware,
    run_git,
)


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "train.py").write_text("epochs = 3\n")
    (folder / ".gitignore").write_text("ignored\n")
    (folder / "dvc.lock").write_text("one\n")
    _git(folder, "add", "-A")
    _git(folder, "commit", "-qm", "Begin")
    return folder


def test_a_clean_repository_is_its_commit(repository: Path) -> None:
    (repository / "dvc.lock").write_text("two\n")
    (repository / "ignored").write_text("x")

    code = collect_code(repository)

    assert (code.commit, code.dirty, code.diff) == (_git(repository, "rev-parse", "HEAD"), False, "")


def test_the_patch_makes_the_uncommitted_code_again(repository: Path, tmp_path: Path) -> None:
    (repository / "train.py").write_text("epochs = 4\n")
    (repository / "src").mkdir()
    (repository / "src/new file ä.py").write_text("x = 1")
    (repository / "src/[a-z]*.py").write_text("")
    (repository / "src/run.sh").write_bytes(b"all\r\n")
    index = (repository / ".git/index").read_bytes()
    code = collect_code(repository)

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, input=code.diff, text=True, check=True)

    assert code.dirty
    assert code.left_out == ()
    assert (repository / ".git/index").read_bytes() == index
    for name in ("train.py", "src/new file ä.py", "src/[a-z]*.py", "src/run.sh"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()


@pytest.mark.parametrize(
    "setting",
    ["diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.context=0", "diff.shown.textconv=sed s/^/shown:/"],
)
def test_the_patch_applies_whatever_the_settings_of_git_are(setting: str, repository: Path, tmp_path: Path) -> None:
    lines = [f"line {number}\n" for number in range(20)]
    (repository / ".gitattributes").write_text("*.py diff=shown\n")
    (repository / "train.py").write_text("".join(lines))
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "More")
    _git(repository, "config", *setting.split("=", 1))
    lines[10] = "epochs = 4\n"
    (repository / "train.py").write_text("".join(lines))

    code = collect_code(repository)

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, input=code.diff, text=True, check=True)
    assert (clone / "train.py").read_text() == "".join(lines)


def test_a_change_in_a_submodule_does_not_make_a_patch_that_cannot_be_applied(repository: Path, tmp_path: Path) -> None:
    _git(tmp_path, "clone", "-q", str(repository), str(tmp_path / "library"))
    _git(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "library"))
    _git(repository, "commit", "-qm", "More")
    (repository / "library/train.py").write_text("epochs = 5\n")
    _git(repository / "library", "commit", "-qam", "Five")
    (repository / "train.py").write_text("epochs = 4\n")
    _git(repository, "config", "diff.submodule", "diff")

    code = collect_code(repository)

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, input=code.diff, text=True, check=True)
    assert (clone / "train.py").read_text() == "epochs = 4\n"


def test_the_patch_has_context_whatever_the_environment_of_git_says(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "train.py").write_text("epochs = 3\nlr = 0.1\n")
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")

    code = collect_code(repository)

    assert "\n epochs = 3\n+lr = 0.1\n" in code.diff


def test_a_change_in_the_second_of_the_commit_is_in_the_patch_although_there_are_untracked_files(
    repository: Path,
) -> None:
    file, index = repository / "train.py", repository / ".git/index"
    _git(repository, "config", "core.trustctime", "false")
    time_ns = file.stat().st_mtime_ns
    file.write_text("epochs = 4\n")  # as many bytes as before
    for path in (file, index):
        os.utime(path, ns=(time_ns, time_ns))
    (repository / "src").mkdir()
    (repository / "src/new.py").write_text("x = 1")

    code = collect_code(repository)

    assert "+epochs = 4" in code.diff


@pytest.mark.parametrize("mark", ["--assume-unchanged", "--skip-worktree"])
@pytest.mark.parametrize("untracked", [True, False])
def test_the_patch_has_the_changes_of_files_that_the_index_marks(
    mark: str, untracked: bool, repository: Path, tmp_path: Path
) -> None:
    _git(repository, "update-index", mark, "train.py")
    (repository / "train.py").write_text("epochs = 4\n")
    if untracked:
        (repository / "src").mkdir()
        (repository / "src/new.py").write_text("x = 1\n")
    index = (repository / ".git/index").read_bytes()

    code = collect_code(repository)

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, input=code.diff, text=True, check=True)
    assert (clone / "train.py").read_text() == "epochs = 4\n"
    assert (code.dirty, (clone / "src/new.py").exists()) == (True, untracked)
    assert (repository / ".git/index").read_bytes() == index


def test_in_a_sparse_checkout_the_files_that_are_not_there_are_not_deleted(repository: Path) -> None:
    (repository / "docs").mkdir()
    (repository / "docs/page.md").write_text("A page\n")
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "More")
    _git(repository, "sparse-checkout", "set", "src")
    assert not (repository / "docs").exists()

    code = collect_code(repository)

    assert (code.dirty, code.diff) == (False, "")


def test_images_secrets_and_what_is_too_large_are_named_and_not_copied(repository: Path) -> None:
    left_out = (".env", ".env.yaml", "Credentials.json", "secrets.toml", "server.key", "photo.png", "weights")
    for name in left_out:
        (repository / name).write_text("a password")
    (repository / "large.json").write_text("1" * 2_000_000)

    code = collect_code(repository)

    assert code.dirty
    assert set(code.left_out) == {*left_out, "large.json"}
    assert code.diff == ""


def test_untracked_source_is_taken_in_up_to_a_sum(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "ALL_TAKEN_BYTES", 50_000)
    (repository / "pipeline").mkdir()
    for number in range(7):
        (repository / f"pipeline/{number}.py").write_text("# 3456789\n" * 900)

    code = collect_code(repository)

    assert code.left_out == ("pipeline/5.py", "pipeline/6.py")
    assert "b/pipeline/4.py" in code.diff


def test_a_folder_that_is_no_repository_says_how_to_make_it_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    with pytest.raises(RepositoryError, match=r"is not a git repository[\s\S]*git init"):
        collect_code(tmp_path)


def test_a_repository_without_a_commit_says_how_to_make_one(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")

    with pytest.raises(RepositoryError, match=r"has no commit yet[\s\S]*git commit"):
        collect_code(tmp_path)


def test_a_missing_git_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))

    with pytest.raises(RepositoryError, match="git is not installed"):
        collect_code(repository)


def test_packages_that_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(
        "pytest==0.1 \\\n    --hash=sha256:00\nabsent-package==1.0 ; python_version >= '3.0' \\\n    --hash=sha256:00\n"
        "only-windows==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:00\n"
    )

    differing = collect_environment(tmp_path)["differing"]

    assert differing["pytest"] == {"locked": "0.1", "installed": pytest.__version__}
    assert differing["absent-package"] == {"locked": "1.0", "installed": None}
    assert "only-windows" not in differing


def test_a_package_whose_metadata_is_not_utf_8_has_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_package-1.2.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: old-package\nVersion: 1.2\nAuthor: J\xf6rg\n\nA description\n"
    (tmp_path / "old_package-1.2.dist-info/METADATA").write_bytes(metadata.encode("latin-1"))
    (tmp_path / "requirements.lock").write_text("old-package==1.1\n")
    monkeypatch.syspath_prepend(tmp_path)

    differing = collect_environment(tmp_path)["differing"]

    assert differing["old-package"] == {"locked": "1.1", "installed": "1.2"}
    assert differing["pytest"] == {"locked": None, "installed": pytest.__version__}


def test_dvc_lock_becomes_hashes_by_stage(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  ingest:\n    cmd: x\n    outs:\n    - path: data/images.npy\n      hash: md5\n"
        f"      md5: {'ab' * 16}\n      size: 1\n"
    )

    assert collect_dvc_lock(tmp_path) == {"ingest": {"deps": {}, "outs": {"data/images.npy": "ab" * 16}}}
    assert collect_dvc_lock(tmp_path / "nowhere") == {}


def test_a_gpu_has_its_driver_where_nvidia_smi_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ "$1" = --query-gpu=name,driver_version ] && echo "NVIDIA X1, 80GB, 570.12.3"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    told = collect_hardware([{"gpu": "NVIDIA X1, 80GB", "cuda": "13.0"}])["gpus"]
    smi.write_text("#!/bin/sh\nexit 9\n")
    failed = collect_hardware([{"gpu": "NVIDIA X1, 80GB"}])["gpus"]

    assert told == [{"gpu": "NVIDIA X1, 80GB", "cuda": "13.0", "driver": "570.12.3"}]
    assert failed == [{"gpu": "NVIDIA X1, 80GB"}]


def test_the_card_opens_with_what_a_run_is_looked_up_by(repository: Path) -> None:
    card = build_card(
        code=collect_code(repository),
        params={"train": {"epochs": 3}},
        environment=collect_environment(repository),
        hardware=collect_hardware([{"name": "a GPU"}]),
        dvc_lock={"ingest": {"outs": {"a": "1"}}, "validate": {"outs": {"b": "2"}}, "train": {"outs": {"c": "old"}}},
        weights_hash="ab",
        fingerprint="cd",
        fingerprint_parts={"code": "ef"},
        threads=2,
        shards=4,
        processes=1,
        machines=1,
        precision="fp32",
        started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        wall_time_s=1.23456,
        energy_j=None,
        gpu_energy_j=12.34,
        journal_id="j",
    )

    assert list(card)[:2] == ["weights_hash", "fingerprint"]
    assert list(card["dvc_lock"]) == ["ingest", "validate"]
    assert card["started"] == "2026-01-02T03:04:05+00:00"
    assert card["hardware"]["cores_usable"] >= 1
    assert card["hardware"]["gpus"] == [{"name": "a GPU"}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GIT_DIR", "{other}/.git"),
        ("GIT_DIR", ".git"),
        ("GIT_INDEX_FILE", "{other}/.git/index"),
        ("GIT_WORK_TREE", "{other}"),
        ("GIT_OBJECT_DIRECTORY", "{other}/empty"),
    ],
)
def test_the_code_is_that_of_the_folder_whatever_a_git_says_that_runs_this(
    name: str, value: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a hook, an alias or `git rebase --exec`; the project lies in a folder of the repository."""
    _git(tmp_path, "clone", "-q", str(repository), str(tmp_path / "other"))
    (repository / "project/src").mkdir(parents=True)
    (repository / "project/src/new.py").write_text("x = 1\n")
    (repository / "train.py").write_text("epochs = 4\n")
    expected = collect_code(repository / "project")

    monkeypatch.setenv(name, value.format(other=tmp_path / "other"))

    assert collect_code(repository / "project") == expected
    assert expected.taken == ("project/src/new.py",)


def test_a_repository_that_only_the_environment_names_is_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "train.py").write_text("epochs = 4\n")
    (repository / "src").mkdir()
    expected = collect_code(repository)
    (repository / ".git").rename(tmp_path / "store.git")
    monkeypatch.chdir(repository / "src")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_DIR", "../../store.git")
    monkeypatch.setenv("GIT_WORK_TREE", "..")

    assert collect_code(repository) == collect_code(repository / "src") == expected


@pytest.mark.parametrize("name", ["HEAD", "repository ", "repository\n"])
def test_names_that_git_could_take_for_something_else_are_names(name: str, repository: Path) -> None:
    if name == "HEAD":
        (repository / name).touch()
    else:
        repository = repository.rename(repository.with_name(name))
    (repository / "train.py").write_text("epochs = 4\n")

    code = collect_code(repository)

    assert "+epochs = 4" in code.diff
    assert code.left_out == (("HEAD",) if name == "HEAD" else ())


def test_a_repository_inside_of_this_one_is_named_since_a_twin_lacks_it(repository: Path) -> None:
    inner = repository / "networks/library"
    inner.mkdir(parents=True)
    _git(inner, "init", "-q")
    (inner / "net.py").write_text("x = 1\n")
    _git(inner, "add", "-A")
    _git(inner, "commit", "-qm", "Begin")

    code = collect_code(repository)

    assert (code.dirty, code.left_out) == (True, ("networks/library/",))


def test_a_worktree_of_the_repository_itself_is_no_change(repository: Path) -> None:
    _git(repository, "worktree", "add", "-q", "--detach", str(repository / "a tree"))
    _git(repository / "a tree", "worktree", "add", "-q", "--detach", str(repository / "a tree/another"))

    codes = [collect_code(folder) for folder in (repository, repository / "a tree")]

    assert [(code.dirty, code.left_out) for code in codes] == [(False, ())] * 2


def test_code_in_the_middle_of_a_merge_makes_a_patch_that_applies(repository: Path, tmp_path: Path) -> None:
    _git(repository, "checkout", "-q", "-b", "theirs")
    (repository / "train.py").write_text("epochs = 5\n")
    _git(repository, "commit", "-qam", "Five")
    _git(repository, "checkout", "-q", "-")
    (repository / "train.py").write_text("epochs = 4\n")
    (repository / "zoo.py").write_text("x = 1\n")
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "Four")
    merge = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c", "merge", "theirs"]
    assert subprocess.run(merge, capture_output=True, check=False).returncode == 1
    (repository / "zoo.py").write_text("x = 2\n")

    code = collect_code(repository)

    clone = tmp_path / "clone"
    _git(tmp_path, "clone", "-q", str(repository), str(clone))
    subprocess.run(["git", "apply"], cwd=clone, input=code.diff, text=True, check=True)
    for file in ("train.py", "zoo.py"):
        assert (clone / file).read_text() == (repository / file).read_text()


def test_large_changes_of_tracked_files_are_named_and_not_copied(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "LARGEST_TAKEN_BYTES", 20_000)
    monkeypatch.setattr(card, "ALL_TAKEN_BYTES", 50_000)
    (repository / "photos").mkdir()
    for number in range(8):
        (repository / f"photos/{number}.png").write_bytes(bytes(1) + os.urandom(9_000))
    (repository / "table.csv").write_text("1,2,3\n" * 5_000)
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "Photos")
    for file in (*(repository / "photos").iterdir(), repository / "table.csv"):
        file.unlink()
    (repository / "train.py").write_text("epochs = 4\n")
    compared = []

    def counted(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        compared.extend(["a file"] if "--text" in arguments else [])
        return run_git(folder, *arguments, **options)

    monkeypatch.setattr(card, "run_git", counted)

    code = collect_code(repository)

    assert len(compared) < 10  # of 8 photos, a table and the code
    assert "+epochs = 4" in code.diff
    assert len(code.diff) < 60_000
    assert "table.csv" in code.left_out
    assert "photos/7.png" in code.left_out
    assert set(code.left_out) <= code.tracked
    assert code.lines()[0].startswith("Too large for the run's card: the changes of photos/")


def test_more_changes_than_git_can_leave_out_are_to_be_committed(repository: Path) -> None:
    folder = repository.joinpath("secrets", *["deep" * 50] * 9)
    folder.mkdir(parents=True)
    for number in range(4_000):
        (folder / f"{number}.txt").touch()
    _git(repository, "add", "-A")
    _git(repository, "commit", "-qm", "Many")
    shutil.rmtree(repository / "secrets")

    with pytest.raises(RepositoryError, match="Commit the change or deletion of these files"):
        collect_code(repository)


def test_a_worktree_whose_repository_was_moved_is_repaired_by_what_the_message_says(
    repository: Path, tmp_path: Path
) -> None:
    worktree = tmp_path / "linked tree"
    _git(repository, "worktree", "add", "-q", "--detach", str(worktree))
    moved = repository.rename(tmp_path / "moved")

    with pytest.raises(RepositoryError, match="git worktree repair") as raised:
        collect_code(worktree)
    subprocess.run(str(raised.value).rpartition("place: ")[2], shell=True, check=True, cwd=moved)

    assert collect_code(worktree).dirty is False
