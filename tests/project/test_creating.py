"""`twinrun init`: a whole project, or nothing."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from twinrun.base.errors import ParamsError, PublishError, SourceError, TwinrunError
from twinrun.cli.main import app
from twinrun.core.params import load_params
from twinrun.doctor.doctor import examine
from twinrun.project.creating import create_project
from twinrun.project.environment import outdated, refresh


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and a person whom git knows."""
    for name, value in (("NAME", "Ada"), ("EMAIL", "ada@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos #1 für 😀"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        Image.new("RGB", (20, 20), "white").save(folder / label / "1.png")
    return folder


def test_a_new_project_is_committed_and_the_last_line_says_what_to_type_next(place: Path) -> None:
    result = CliRunner().invoke(app, ["init", "demo", "--set", "train.epochs=3"], catch_exceptions=False)

    assert result.stdout.splitlines()[-1].endswith("cd demo && dvc repro")
    assert [path.name for path in place.iterdir()] == ["demo"]
    assert load_params(place / "demo/params.yaml", inputs=True).train.epochs == 3
    status = subprocess.run(["git", "-C", "demo", "status", "--short"], capture_output=True, text=True, check=True)
    assert status.stdout == ""
    assert (place / "demo/pipeline/train.py").read_bytes() == Path(__file__).parents[2].joinpath(
        "pipeline/train.py"
    ).read_bytes()
    stages = YAML(typ="safe").load(place / "demo/dvc.yaml")["stages"]
    deps = {dep for stage in stages.values() for dep in stage["deps"] if not dep.startswith(("data/out/", "$"))}
    assert all((place / "demo" / dep).exists() for dep in deps)
    assert not any(dep.startswith("src/") for dep in deps)
    assert "Development of Twinrun" not in (place / "demo/.gitignore").read_text()


def test_photos_are_copied_and_given_to_dvc(place: Path, photos: Path) -> None:
    result = CliRunner().invoke(app, ["init", "demo", "--data", str(photos)], catch_exceptions=False)

    assert "preset photos" in result.stdout
    assert "2 images. " in result.stdout
    assert "2 classes (cat 1, dog 1)" in result.stdout
    copy = place / "demo/data/raw" / photos.name
    params = (place / "demo/params.yaml").read_text(encoding="utf-8")
    assert f'  path: "data/raw/{photos.name}" ' in params
    assert YAML(typ="safe").load(params)["ingest"]["path"] == f"data/raw/{photos.name}"
    assert (copy / "cat/1.png").read_bytes() == (photos / "cat/1.png").read_bytes()
    assert copy.with_name(f"{photos.name}.dvc").is_file()
    tracked = subprocess.run(["git", "-C", "demo", "ls-files"], capture_output=True, text=True, check=True).stdout
    assert ".dvc" in tracked
    assert "1.png" not in tracked


def test_in_a_repository_of_ones_own_the_project_is_left_to_commit(place: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=place, check=True)
    (place / "demo").mkdir()
    link = place.parent / "a link from outside"
    link.symlink_to(place / "demo")

    created = create_project(link, "fashion-mnist")

    assert created.committed is None
    assert not (place / "demo/.git").exists()
    assert (place / "demo/.dvc/config").is_file()
    assert (place / "demo/data/raw/fashion-mnist").is_dir()


def test_a_project_can_lie_in_another_project_and_leaves_its_git_index_alone(place: Path, photos: Path) -> None:
    create_project(Path("outer"), "digits")

    created = create_project(place / "outer/demo", "photos", photos)

    assert created.committed is None
    status = ["git", "-C", "outer", "status", "--short", "--untracked-files=all"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "?? demo/.dvc/config" in changed
    assert "?? demo/data/raw/.gitignore" in changed
    assert all(line.startswith("?? demo/") or line.startswith('?? "demo/') for line in changed)
    assert not any("1.png" in line for line in changed)


def test_what_cannot_become_a_project_is_refused_and_nothing_is_left(place: Path, photos: Path) -> None:
    (place / "full").mkdir()
    (place / "full/notes.txt").write_text("mine")
    for name in ("file", "photos.zip"):
        (place / name).write_text("mine")
    (place / "empty/cat").mkdir(parents=True)
    (place / "old").mkdir()
    for name in ("code.yaml", "dvc.yaml"):
        (place / "old" / name).touch()
    linked = photos.parent / "linked"
    linked.mkdir()
    (linked / "more").symlink_to(photos)
    broken, odd, spaced = photos.parent / "a\nb", photos.parent / "odd.dvc", photos.parent / "spaced "
    for folder in (broken, odd, spaced):
        folder.mkdir()
    flat = photos / "cat"
    left_out = photos.parent / "sets/mnist"
    shutil.copytree(photos, left_out)
    (left_out / "cat-ubyte").mkdir()
    Image.new("RGB", (20, 20)).save(left_out / "cat-ubyte/1.png")
    before = sorted(path.as_posix() for path in place.rglob("*"))

    refused: list[tuple[type[TwinrunError], str, tuple[str, str, Path | None, tuple[str, ...]]]] = [
        (PublishError, "full is not empty; nothing was written", ("full", "digits", None, ())),
        (PublishError, "file is not a folder", ("file", "digits", None, ())),
        (PublishError, "old is a project already; nothing was written", ("old", "digits", None, ())),
        (ParamsError, "Did you mean mnist?", ("demo", "mnits", None, ())),
        (ParamsError, "did you mean train.learning_rate", ("demo", "mnist", None, ("train.lr=1",))),
        (ParamsError, "did you mean train.learning_rate", ("new/above/demo", "mnist", None, ("train.lr=1",))),
        (SourceError, "does not exist", ("demo", "photos", place / "nowhere", ())),
        (SourceError, "is an archive: unpack it first", ("demo", "photos", place / "photos.zip", ())),
        (SourceError, "has no images in it", ("demo", "photos", place / "empty", ())),
        (SourceError, "brings its own images", ("demo", "digits", photos, ())),
        (SourceError, "is a link to a folder", ("demo", "photos", linked, ())),
        (SourceError, "has a control character", ("demo", "photos", broken, ())),
        (SourceError, "ends with .dvc", ("demo", "photos", odd, ())),
        (SourceError, "ends with a space", ("demo", "photos", spaced, ())),
        (SourceError, "would not store 1 of the images in", ("demo", "photos", left_out, ())),
        (SourceError, "has no class folders and a classifier needs at least", ("demo", "photos", flat, ())),
        (SourceError, "Make the project elsewhere", ("demo", "photos", place, ())),
    ]
    for kind, message, (name, preset, data, changes) in refused:
        with pytest.raises(kind) as raised:
            create_project(Path(name), preset, data, changes)
        assert message in str(raised.value)

    assert sorted(path.as_posix() for path in place.rglob("*")) == before


def test_an_error_of_dvc_leaves_nothing(place: Path, photos: Path) -> None:
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    (photos / "cat" / name).write_bytes(b"no image")

    with pytest.raises(TwinrunError, match=r"dvc add failed: .*\w"):
        create_project(Path("demo"), "photos", photos)

    assert list(place.iterdir()) == []


def test_an_upgrade_is_seen_before_dvc_compares(tmp_path: Path) -> None:
    refresh(tmp_path)
    assert outdated(tmp_path) == []
    lock = (tmp_path / "requirements.lock").read_text()
    assert "\ntorch==" in lock

    (tmp_path / "requirements.lock").write_text(lock.replace("\ntorch==", "\ntorch==0."))
    (tmp_path / "code.yaml").write_text("core: old\n")
    assert outdated(tmp_path) == ["code.yaml", "requirements.lock"]
    refresh(tmp_path)

    assert outdated(tmp_path) == []
    assert (tmp_path / "requirements.lock").read_text() == lock


def test_an_empty_folder_is_filled_where_its_parent_is_read_only_or_on_another_disk(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = place / "demo"
    folder.mkdir()
    rename, inode = Path.rename, folder.stat().st_ino

    def as_a_mount_point(path: Path, target: Path) -> Path:
        if path.is_relative_to(folder) != target.is_relative_to(folder) or folder in (path, target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", as_a_mount_point)
    place.chmod(0o555)
    try:
        created = create_project(folder, "digits")
    finally:
        place.chmod(0o755)

    assert created.committed
    assert folder.stat().st_ino == inode
    assert load_params(folder / "params.yaml")
    assert not list(folder.glob(".creating-*"))


@pytest.mark.parametrize("is_taken", [True, False])
def test_a_failure_while_an_empty_folder_is_filled_leaves_what_is_a_persons_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    folder = place / "demo"
    folder.mkdir()
    rename, moved = Path.rename, list[Path]()

    def fail_at_the_fourth(path: Path, target: Path) -> Path:
        if path.parent.name.startswith(".creating-") and target.parent == folder:
            moved.append(target)
            if len(moved) == 4 and not is_taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if len(moved) == 3 and is_taken:
                for name in ("README.md", "params.yaml", "dvc.yaml", ".gitignore"):
                    if not (folder / name).exists() and (path.parent / name).exists() and name != path.name:
                        (folder / name).write_text("mine")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_fourth)
    with pytest.raises(PublishError, match="appeared meanwhile" if is_taken else "the disk is full"):
        create_project(folder, "digits")

    left = list(folder.iterdir())
    assert bool(left) == is_taken
    assert all(path.read_text() == "mine" for path in left)
    for path in left:
        path.unlink()
    monkeypatch.setattr(Path, "rename", rename)
    assert create_project(folder, "digits").committed


def test_what_a_killed_attempt_left_in_the_folder_is_named(place: Path) -> None:
    (place / "demo/.creating-demo-0a1b2c3d").mkdir(parents=True)

    with pytest.raises(PublishError, match=r"interrupted left \.creating-demo-0a1b2c3d; nothing was written"):
        create_project(place / "demo", "digits")


@pytest.mark.parametrize("place_of_error", ["file", "folder", "dvc"])
def test_a_full_disk_is_named_by_the_project_and_leaves_nothing(
    place: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, place_of_error: str
) -> None:
    is_full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "source", None, "target")
    run = subprocess.run

    def fail(*_: object, **__: object) -> None:
        raise is_full

    def fail_to_add(command: list[str], **options: Any) -> Any:
        if "add" in command and "dvc" in command:
            return subprocess.CompletedProcess(command, 1, "", f"ERROR: unexpected error - {is_full}")
        return run(command, **options)

    if place_of_error == "file":
        monkeypatch.setattr(shutil, "copyfile", fail)
    elif place_of_error == "folder":
        monkeypatch.setattr(shutil, "copytree", fail)
    else:
        monkeypatch.setattr(subprocess, "run", fail_to_add)
    with pytest.raises(PublishError) as caught:
        create_project(Path("demo"), "folder", photos)

    advice = "cannot be written: the disk is full. Free some space and run again; finished results are kept."
    assert str(caught.value) == f"{place / 'demo'} {advice}"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("installed", "other"), [("twinrun.base.", "twinrun.core."), ("import run_main", "import run_stage")]
)
def test_stages_of_another_version_end_dvc_repro_with_the_command_that_replaces_them(
    place: Path, installed: str, other: str
) -> None:
    create_project(place / "demo", "digits")
    result = place / "demo/data/out/ingest/images.npy"
    result.parent.mkdir(parents=True)
    result.write_bytes(b"the last result")
    for stage in (place / "demo/pipeline").glob("*.py"):
        stage.write_text(stage.read_text().replace(installed, other))

    run = subprocess.run(["dvc", "repro"], cwd="demo", capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "was written by another version of Twinrun: it imports twinrun." in run.stderr
    assert run.stderr.endswith("this version: twinrun upgrade\nNothing was run, written or deleted.\n")
    assert result.read_bytes() == b"the last result"
    command = [sys.executable, "-m", "pipeline.ingest"]
    by_hand = subprocess.run(command, cwd="demo", capture_output=True, text=True, check=False)
    assert by_hand.returncode == 1
    assert "Traceback" not in by_hand.stderr
    assert by_hand.stderr.endswith("this version: twinrun upgrade\n")
    finding = next(check.findings for check in examine(place / "demo") if check.name == "dvc.yaml")[0]
    assert finding.fix == "twinrun upgrade"


def test_a_sweep_that_cannot_begin_leaves_the_reason_to_dvc(place: Path) -> None:
    create_project(place / "demo", "digits")
    (place / "demo/pipeline/ingest.py").write_text("from twinrun.publish import write_json\n")
    space = "{train.learning_rate: {from: 0.001, to: 0.01, scale: log}}"
    more = {"trials": 2, "width": 2, "seed": 0, "metric": "val_accuracy", "rungs": [1], "keep": 0.5, "seeds": 0}
    lines = [f"space: {space}", *(f"{name}: {value}" for name, value in more.items())]
    (place / "demo/sweep.yaml").write_text("\n".join(lines))

    run = subprocess.run(["twinrun", "sweep"], cwd="demo", capture_output=True, text=True, check=False)

    assert run.returncode == 1
    assert "this version: twinrun upgrade" in run.stderr
    assert run.stderr.endswith("`dvc repro validate` failed, see its message above. Nothing was trained.\n")
    assert "did not pass" not in run.stderr
