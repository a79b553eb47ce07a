"""What people do with DVC all day, on a folder of images that was added to it and on one that was not."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_support import run_twinrun
from tracking_support import runs
from training_support import change_params, git, made_once
from twin_support import copy_repository, draw_images

PHOTOS = "data/raw/bins"


pytestmark = pytest.mark.usefixtures("preloaded_module")


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    """Run dvc as an activated environment does, without a terminal; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {
        "DVC_NO_ANALYTICS": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=400,
        check=False,
    )
    assert bool(done.returncode) is fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def images_of(folder: Path) -> dict[str, str]:
    """Every file of the source folder, with the hash of its content."""
    files = sorted(path for path in (folder / PHOTOS).rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def wait_for_queue(folder: Path, seconds: int = 300) -> str:
    """Start a worker and wait until no experiment waits or runs; returns the last `dvc queue status`."""
    dvc(folder, "queue", "start")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(2)
        status = dvc(folder, "queue", "status")
        if not any(word in status for word in ("Queued", "Running")):
            return status
    raise AssertionError(status)


def _begin(folder: Path, stages: int) -> None:
    """A repository of this project with its first `stages` stages and small settings; no images yet."""
    copy_repository(folder)
    lines = (folder / "dvc.yaml").read_text().splitlines(keepends=True)
    starts = [n for n, line in enumerate(lines) if line.startswith("  ") and line[2:3].isalpha() and n > 3]
    if stages < len(starts):
        (folder / "dvc.yaml").write_text("".join(lines[: starts[stages]]))
    change_params(folder / "params.yaml", "ingest", {"source": "folder", "path": PHOTOS, "size_px": 8, "workers": 1})
    change_params(folder / "params.yaml", "validate", {"min_images_per_class": 2, "on_leak": "drop"})
    change_params(folder / "params.yaml", "validate", {"label_errors": {"folds": 0, "budget_s": 1}})
    change_params(folder / "params.yaml", "train", {"model": "mlp", "epochs": 2, "batch_size": 32})
    git(folder, "init", "--quiet", "--initial-branch=master")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.com")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    git(folder, "branch", "without")


def _with_images(folder: Path, *, added: bool) -> None:
    _begin(folder, stages=1)
    draw_images(folder / PHOTOS)
    if added:
        dvc(folder, "add", PHOTOS)
        git(folder, "add", f"{PHOTOS}.dvc", "data/raw/.gitignore")
    said = dvc(folder, "repro")
    assert said.count(f"dvc add {PHOTOS}") == (0 if added else 1)
    git(folder, "add", "dvc.lock")
    git(folder, "commit", "--quiet", "--message", "Images")
    dvc(folder, "exp", "run", "-S", "ingest.size_px=9", "--name", "nine")
    git(folder, "checkout", "--quiet", ".")
    dvc(folder, "checkout")


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Projects whose images were ingested, and again by the experiment `nine`; one had them added to DVC."""

    def make(added: bool) -> Path:
        name = f"habits-{'added' if added else 'not-added'}"
        return made_once(tmp_path_factory, name, lambda folder: _with_images(folder, added=added))

    return make


@pytest.fixture(params=[True, False], ids=["added", "not added"])
def added(request: pytest.FixtureRequest) -> bool:
    """Whether the folder was added to DVC."""
    return bool(request.param)


@pytest.fixture
def project(ingested: Callable[[bool], Path], added: bool, tmp_path: Path) -> Path:
    """A copy of one of them."""
    return Path(shutil.copytree(ingested(added), tmp_path / "project", symlinks=True))


def test_no_command_of_dvc_or_git_loses_an_image(project: Path, added: bool) -> None:
    before = images_of(project)
    apart = ["exp", "run", "-S", "ingest.size_px=10"]  # computed by the first of them; the others restore it

    for arguments in (
        ["checkout"],
        ["repro"],
        apart,
        ["exp", "apply", "nine"],
        ["gc", "--workspace", "--force"],
    ):
        dvc(project, *arguments)
        assert images_of(project) == before, arguments
    dvc(project, *apart, "--temp", fails=not added)
    assert images_of(project) == before
    dvc(project, *apart, "--queue", fails=not added)
    assert not added or "Success" in wait_for_queue(project)
    assert images_of(project) == before
    git(project, "stash")
    dvc(project, "checkout", "--allow-missing")
    assert images_of(project) == before
    git(project, "checkout", "--quiet", "without")
    dvc(project, "checkout", "--allow-missing")  # DVC may take an added folder away here, as git does with its files
    assert images_of(project) == before or (added and not images_of(project))
    dvc(project, "gc", "--workspace", "--force", fails=added)
    git(project, "checkout", "--quiet", "master")
    dvc(project, "checkout", "--allow-missing")

    assert images_of(project) == before


def test_an_experiment_that_would_replace_images_stored_nowhere_is_not_applied(project: Path) -> None:
    changed = next(path for path in (project / PHOTOS).rglob("*.bmp"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"\x01")
    shutil.copy(changed, changed.with_name("new.bmp"))
    before = images_of(project)

    said = dvc(project, "exp", "apply", "nine", fails=True)

    assert f"Store them first: dvc add {PHOTOS}" in said
    assert images_of(project) == before


def _with_pattern(project: Path) -> None:
    (project / ".gitignore").open("a", encoding="utf-8").write("/data/raw/*\n!/data/raw/*.dvc\n")


def _with_a_new_image(project: Path) -> None:
    image = next((project / PHOTOS).rglob("*.bmp"))
    image.with_name("new.bmp").write_bytes(image.read_bytes()[:-1] + b"\x01")


def _with_more_on_a_branch(project: Path) -> None:
    git(project, "checkout", "--quiet", "-b", "more")
    _with_a_new_image(project)
    dvc(project, "add", PHOTOS)
    git(project, "commit", "--quiet", "--all", "-m", "One more")
    git(project, "checkout", "--quiet", "master")
    dvc(project, "checkout")


@pytest.mark.parametrize(
    ("change", "command", "reason"),
    [
        (_with_pattern, "checkout", "The pattern /data/raw/* in a .gitignore hides data/raw from DVC"),
        (_with_pattern, "exp run -S ingest.size_px=10", "hides data/raw from DVC"),
        (_with_pattern, "--cd data repro", "hides data/raw from DVC"),
        (_with_a_new_image, "checkout --force", f"Store them first: dvc add {PHOTOS}"),
        (_with_a_new_image, "pull -f", f"Store them first: dvc add {PHOTOS}"),
        (_with_a_new_image, f"remove --outs {PHOTOS}.dvc", f"Store them first: dvc add {PHOTOS}"),
        (_with_more_on_a_branch, "gc -w -f", "more has another"),
    ],
)
def test_a_command_that_would_delete_images_that_nothing_else_has_is_refused(
    ingested: Callable[[bool], Path], tmp_path: Path, change: Callable[[Path], None], command: str, reason: str
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    change(project)
    before, cached = images_of(project), len(list((project / ".dvc/cache").rglob("*")))

    said = dvc(project, *command.split(), fails=True)

    assert reason in said
    assert images_of(project) == before
    assert len(list((project / ".dvc/cache").rglob("*"))) == cached


@pytest.mark.parametrize("part", ["one file in git", "one class in DVC"])
def test_a_folder_of_which_a_part_is_shared_is_not_shared(
    ingested: Callable[[bool], Path], tmp_path: Path, part: str
) -> None:
    project = Path(shutil.copytree(ingested(False), tmp_path / "project", symlinks=True))
    if part == "one file in git":
        (project / PHOTOS / "README.md").write_text("bought at the market", encoding="utf-8")
        git(project, "add", "-f", f"{PHOTOS}/README.md")
    else:
        dvc(project, "add", next((project / PHOTOS).iterdir()).relative_to(project).as_posix())

    assert f"dvc add {PHOTOS}" in dvc(project, "exp", "run", "--temp", "-S", "ingest.size_px=9", fails=True)


def test_an_experiment_apart_from_the_workspace_wants_the_folder_added(
    ingested: Callable[[bool], Path], tmp_path: Path
) -> None:
    project = Path(shutil.copytree(ingested(False), tmp_path / "project", symlinks=True))

    for form in ("--temp", "--queue"):
        said = dvc(project, "exp", "run", form, "-S", "ingest.size_px=9", fails=True)
        assert len(said.strip().splitlines()) == 1
        assert said.strip().endswith(f": dvc add {PHOTOS} && git add {PHOTOS}.dvc data/raw/.gitignore")
    dvc(project, "add", PHOTOS)
    said = dvc(project, "exp", "run", "--temp", "-S", "ingest.size_px=9", fails=True)

    assert said.strip().endswith(f": git add {PHOTOS}.dvc data/raw/.gitignore && git commit")
    git(project, "add", f"{PHOTOS}.dvc", "data/raw/.gitignore")
    assert "Ran experiment" in dvc(project, "exp", "run", "--temp", "-S", "ingest.size_px=9")


def test_status_hashes_an_added_folder_once_and_sees_what_changed_since(
    ingested: Callable[[bool], Path], tmp_path: Path
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    dvc(project, "repro")

    said = dvc(project, "status", "-v")
    assert "up to date" in said
    (images,) = re.findall(r"md5: (\w+\.dir)", (project / f"{PHOTOS}.dvc").read_text())
    assert said.count(f"built tree 'object {images}'") == 1
    next((project / PHOTOS).rglob("*.bmp")).unlink()
    said = dvc(project, "status")

    assert re.search(rf"^{PHOTOS}\.dvc:\n\tchanged outs:\n\t\tmodified: +{PHOTOS}$", said, re.MULTILINE)
    assert re.search(rf"^ingest:\n\tchanged deps:\n\t\tmodified: +{PHOTOS}$", said, re.MULTILINE)
    dvc(project, "repro")
    assert "up to date" in dvc(project, "status")


def test_a_folder_outside_the_project_is_watched_and_read_by_an_experiment_apart(
    ingested: Callable[[bool], Path], tmp_path: Path
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    outside = tmp_path / "photos"
    shutil.copytree(project / PHOTOS, outside)
    change_params(project / "params.yaml", "ingest", {"path": "../photos"})
    relative = dvc(project, "exp", "run", "--temp", fails=True)
    change_params(project / "params.yaml", "ingest", {"path": str(outside)})

    dvc(project, "repro")
    assert "Ran experiment" in dvc(project, "exp", "run", "--temp", "--name", "outside")
    assert "up to date" in dvc(project, "status")
    shutil.copy(next(outside.rglob("*.bmp")), outside / "train/0/new.bmp")
    status = dvc(project, "status")

    assert f"write it in full, ingest.path: {outside}" in relative
    assert f"modified:           {outside}" in status


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: (folder / "gone.bmp").symlink_to("/nowhere"), "link that points to no file (gone.bmp)"),
        (lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\x1b.bmp")).touch(), r"not UTF-8 (\xff\x1b.bmp)"),
        (lambda folder: os.mkfifo(folder / "pipe"), "special file, such as a pipe or a device (pipe)"),
    ],
)
def test_what_dvc_ends_with_an_error_on_is_named_before(
    ingested: Callable[[bool], Path], tmp_path: Path, make: Callable[[Path], Any], problem: str
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    make(project / PHOTOS)

    for command in (["repro"], ["status"], ["add", PHOTOS], ["exp", "run"]):
        said = dvc(project, *command, fails=True)
        assert f"{PHOTOS} has a" in said
        assert problem in said
        assert "ERROR" not in said


def test_a_linked_folder_that_dvc_overlooks_is_named_and_read(ingested: Callable[[bool], Path], tmp_path: Path) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    shutil.move(project / PHOTOS / "train/1", tmp_path / "ones")
    (project / PHOTOS / "train/1").symlink_to(tmp_path / "ones")
    change_params(project / "params.yaml", "ingest", {"follow_links": True})

    said = dvc(project, "repro")

    assert f"{PHOTOS} has a link to a folder (train/1), and DVC does not follow it" in said
    assert "Replace it by a copy of what it points to" in said


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (None, "ingest.path is null, and must name the folder that DVC watches"),
        ("~/photos", "ingest.path is ~/photos, and DVC does not know ~. Write /"),
        (
            "data/raw/bin",
            "The source folder data/raw/bin does not exist (params.yaml: ingest.path). There is data/raw/bins.",
        ),
    ],
)
def test_a_path_that_dvc_cannot_use_is_one_sentence(
    ingested: Callable[[bool], Path], tmp_path: Path, path: str | None, sentence: str
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    change_params(project / "params.yaml", "ingest", {"path": path})

    said = dvc(project, "repro", fails=True)

    assert sentence in said
    assert "ERROR" not in said


def test_a_wrong_setting_of_an_experiment_leaves_the_outputs_and_params_yaml_as_they_were(
    ingested: Callable[[bool], Path], tmp_path: Path
) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    before = (project / "params.yaml").read_bytes(), sorted((project / "data/out").rglob("*"))

    for form in ([], ["--temp"], ["--queue"]):
        said = dvc(project, "exp", "run", *form, "-S", "ingest.size_px=large", "-S", "train.lr=0.1", fails=True)
        assert "train.lr: not a setting; did you mean train.learning_rate?" in said
        assert "ingest.size_px: must be an integer" in said

    assert ((project / "params.yaml").read_bytes(), sorted((project / "data/out").rglob("*"))) == before
    assert "up to date" in dvc(project, "status")


def test_files_of_published_sets_concern_neither_git_nor_dvc(ingested: Callable[[bool], Path], tmp_path: Path) -> None:
    project = Path(shutil.copytree(ingested(True), tmp_path / "project", symlinks=True))
    change_params(project / "params.yaml", "ingest", {"path": "data/raw/mnist"})
    downloads = ["mnist/train-images-idx3-ubyte.gz", "fashion-mnist/t10k-labels-idx1-ubyte.gz"]
    downloads += ["cifar10/cifar-10-batches-bin/data_batch_1.bin", "mnist/train-images-idx3-ubyte"]
    before = dvc(project, "status"), subprocess.check_output(["git", "status", "--short"], cwd=project)

    for name in downloads:
        (project / "data/raw" / name).parent.mkdir(exist_ok=True)
        (project / "data/raw" / name).write_bytes(b"a download")

    assert (dvc(project, "status"), subprocess.check_output(["git", "status", "--short"], cwd=project)) == before
    assert "raw/bins.dvc" not in dvc(project, "check-ignore", "data/raw/bins.dvc", "data/raw/mnist", fails=True)
    dvc(project, "checkout", "--allow-missing")
    assert all((project / "data/raw" / name).is_file() for name in downloads)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> Path:
    """A project with added images, trained and pushed to a git remote and a DVC remote beside it, with its store."""
    folder = tmp_path_factory.mktemp("shared")
    project = folder / "ours"
    project.mkdir()
    _begin(project, stages=5)
    shutil.copytree(new_store, project / "mlruns", dirs_exist_ok=True)
    git(project, "init", "--quiet", "--bare", "--initial-branch=master", str(folder / "git"))
    git(project, "remote", "add", "origin", str(folder / "git"))
    dvc(project, "remote", "add", "--default", "storage", str(folder / "storage"))
    draw_images(project / PHOTOS)
    dvc(project, "add", PHOTOS)
    dvc(project, "repro")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Images and a model")
    return project


def _clone(shared: Path, name: str, new_store: Path) -> Path:
    """A colleague's clone, with a store of its own."""
    clone = shared.with_name(name)
    git(shared, "clone", "--quiet", str(shared.with_name("git")), str(clone))
    git(clone, "config", "user.name", "Colleague")
    git(clone, "config", "user.email", "colleague@example.com")
    shutil.copytree(new_store, clone / "mlruns", dirs_exist_ok=True)
    return clone


def _weights(project: Path) -> str:
    return str(json.loads((project / "data/out/train/card.json").read_bytes())["weights_hash"])


def back_to_the_commit(project: Path) -> None:
    git(project, "checkout", "--quiet", ".")
    dvc(project, "checkout")


def _ran(said: str) -> list[str]:
    """Names of the stages that DVC ran, by what it printed."""
    return re.findall(r"Running stage '(\w+)'", said)


# The tests below go on from one another, in order, on the shared project.


def test_an_experiment_trains_what_changed_in_the_workspace_and_apart_and_can_be_applied(shared: Path) -> None:
    first = _weights(shared)
    assert _ran(dvc(shared, "repro")) == []

    here = dvc(shared, "exp", "run", "-S", "train.epochs=1", "--name", "shorter")
    shorter = _weights(shared)
    back_to_the_commit(shared)
    apart = dvc(shared, "exp", "run", "--temp", "-S", "train.learning_rate=0.01", "--name", "faster")
    dvc(shared, "exp", "apply", "faster")
    faster = _weights(shared)
    back_to_the_commit(shared)

    assert _ran(here) == _ran(apart) == ["train", "evaluate", "register"]
    assert len({first, shorter, faster}) == 3
    assert _weights(shared) == first
    assert sorted(run.tags["twinrun.weights_hash"] for run in runs(shared)) == sorted([first, shorter, faster])


def test_a_queued_experiment_on_the_evaluation_alone_trains_nothing(shared: Path) -> None:
    before = len(runs(shared))

    dvc(shared, "exp", "run", "--queue", "-S", "evaluate.calibration_bins=5")

    assert "Success" in wait_for_queue(shared)
    assert len(runs(shared)) == before


def test_a_colleague_gets_images_model_and_experiments_and_has_nothing_to_run(shared: Path, new_store: Path) -> None:
    dvc(shared, "exp", "branch", "shorter", "short")
    git(shared, "push", "--quiet", "origin", "master", "short")
    dvc(shared, "push", "--all-branches")
    dvc(shared, "exp", "push", "origin", "faster")
    theirs = _clone(shared, "theirs", new_store)

    dvc(theirs, "pull")
    assert images_of(theirs) == images_of(shared)
    assert _ran(dvc(theirs, "repro")) == []
    assert _weights(theirs) == _weights(shared)
    dvc(theirs, "exp", "pull", "origin", "faster")
    dvc(theirs, "exp", "apply", "faster")
    assert _ran(dvc(theirs, "repro")) == []
    assert _weights(theirs) != _weights(shared)
    synced = run_twinrun(theirs, "sync")
    (run,) = (each for each in runs(theirs) if each.tags.get("twinrun.weights_hash") == _weights(theirs))
    shown, asked = (run_twinrun(theirs, name, run.id) for name in ("show", "reproduce"))
    trusted = run_twinrun(theirs, "reproduce", run.id, "--trust")
    assert (synced.code, shown.code, trusted.code) == (0, 0, 0), synced.said + shown.said + trusted.said
    assert _weights(theirs) in shown.said
    assert asked.code == 1
    assert re.search(r"not in the history of the current branch[\s\S]*params\.yaml[\s\S]*Nothing was run", asked.said)
    assert "\nIDENTICAL. " in trusted.said
    git(theirs, "checkout", "--quiet", "--force", "short")
    dvc(theirs, "pull")
    assert _ran(dvc(theirs, "repro")) == []


def test_a_pulled_experiment_whose_journal_leads_out_of_the_project_publishes_nothing(
    shared: Path, new_store: Path
) -> None:
    theirs = _clone(shared, "attacked", new_store)
    theirs.with_name("id_rsa").write_text("private")
    dvc(shared, "exp", "apply", "shorter")
    journal = shared / "data/out/train/journal.jsonl"
    text = journal.read_text()
    journal.unlink()  # a link to the cache, perhaps
    journal.write_text(re.sub(r'"source":"[^"]+"', '"source":"../id_rsa"', text, count=1))
    dvc(shared, "commit", "--force", "train")
    dvc(shared, "exp", "save", "--name", "better")
    dvc(shared, "exp", "push", "origin", "better")
    back_to_the_commit(shared)

    dvc(theirs, "exp", "pull", "origin", "better")
    dvc(theirs, "exp", "apply", "better")
    synced = run_twinrun(theirs, "sync")

    assert synced.code == 1
    assert "data/out/train/journal.jsonl, the event at byte " in synced.said
    assert "artifact.source: must be a relative path that stays inside its folder, got '../id_rsa'" in synced.said
    assert "Traceback" not in synced.said
    assert runs(theirs) == []


def test_a_clone_without_the_images_has_nothing_to_run_where_they_may_be_missing(shared: Path, new_store: Path) -> None:
    clone = _clone(shared, "without images", new_store)

    assert f"Fetch them: dvc pull {PHOTOS}.dvc" in dvc(clone, "repro", fails=True)
    assert _ran(dvc(clone, "repro", "--allow-missing")) == []


def test_the_tables_of_dvc_show_accuracy_first_in_100_columns_and_no_hash(shared: Path) -> None:
    change_params(shared / "params.yaml", "train", {"epochs": 1})
    dvc(shared, "repro")

    shown, diff = dvc(shared, "metrics", "show"), dvc(shared, "metrics", "diff")
    experiments = dvc(shared, "exp", "show", "--no-pager", "--csv").splitlines()[0].split(",")

    (compare,) = re.findall(r"^dvc (exp show .*)", Path("README.md").read_text(), re.MULTILINE)
    compared = dvc(shared, *shlex.split(compare, comments=True)).splitlines()

    assert any("accuracy" in line and "train.epochs" in line for line in compared)
    assert max(map(len, compared)) <= 80
    assert shown.split()[:2] == ["Path", "accuracy"]
    assert max(map(len, [*shown.splitlines(), *diff.splitlines()])) <= 100
    assert _weights(shared) not in shown + diff
    assert experiments.index("accuracy") < experiments.index("balanced_accuracy") < experiments.index("train.epochs")
    assert "weights_hash" not in experiments


def test_promoting_a_version_leaves_the_pipeline_up_to_date(shared: Path) -> None:
    command = [sys.executable, "-m", "twinrun", "promote", "1", "--force", "--reason", "to see"]

    subprocess.run(command, cwd=shared, check=True, capture_output=True)

    assert "Data and pipelines are up to date" in dvc(shared, "status")
