"""Settings that are wrong end a command of DVC before it writes or deletes anything."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from training_support import change_params

from twinrun.base.errors import ParamsError, SourceError
from twinrun.before_dvc import check
from twinrun.core.params import ALL_SETTINGS
from twinrun.ingest.sharing import advice


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project on the digits, without any output."""
    folder = tmp_path / "project"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "data/raw/digits").mkdir(parents=True)
    for name in ("pipeline/ingest.py", "dvc.yaml", "params.yaml"):
        shutil.copy(name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("train.learning_rate=abc", "train.learning_rate: must be a valid number, got 'abc'"),
        ("train.lr=0.1", "train.lr: not a setting; did you mean train.learning_rate?"),
        ("+train.lr=0.1", "train.lr: not a setting; did you mean train.learning_rate?"),
        ("params.yaml:train.epoch=3", "train.epoch: not a setting; did you mean train.epochs?"),
        ("train.probe.L2=1", "train.probe.L2: not a setting; did you mean train.probe.l2?"),
        ("train.probe=0.1", "train.probe: must be a section with settings, got 0.1"),
        ("evaluate.min_accuracy=0.5", "evaluate.min_accuracy: not a setting; did you mean register.min_accuracy?"),
        ("train.model=resnet-18", 'train.model: no network is called "resnet-18"; did you mean resnet18'),
        ("train.augment={flip: perhaps}", "train.augment.flip: must be a valid boolean, got 'perhaps'"),
        ("train.batch_size=8,1", "train.batch_size: must be at least 2, got 1"),
        ("~train.seed", "train.seed: missing"),
    ],
)
def test_a_wrong_setting_of_an_experiment_is_named_before_dvc_writes_it(
    project: Path, change: str, problem: str
) -> None:
    for form in (["-S", change], [f"--set-param={change}"], ["--set-par", change], [f"-S{change}"], ["-fS", change]):
        with pytest.raises(ParamsError) as raised:
            check(["exp", "run", *form], project)

        said = str(raised.value).splitlines()
        assert said[0] == "params.yaml with the values of -S does not describe a run:"
        assert said[1].startswith(f"  {problem}")
        assert said[2:-1] == ([ALL_SETTINGS] if problem.endswith("missing") else [])
        assert said[-1] == "Nothing was run, written or deleted."


@pytest.mark.parametrize(
    "change",
    [
        "train.epochs=1,2,3",
        "train.seed=range(0, 3)",
        "train.learning_rate=1e-3",
        "train.probe.l2=auto",
        "train.augment={flip: true}",
        "validate.modes=[L, RGB]",
        "other.yaml:train.lr=0.1",
    ],
)
def test_right_settings_and_sweeps_of_them_pass(project: Path, change: str) -> None:
    check(["exp", "run", "--queue", "-S", change], project)
    check(["repro"], project)


def test_a_setting_that_is_wrong_in_the_file_is_named_before_every_run_and_can_be_put_right_by_an_experiment(
    project: Path,
) -> None:
    check(["repro"], project)
    change_params(project / "params.yaml", "train", {"epochs": 0})
    change_params(project / "params.yaml", "validate", {"decisions": "data/decisions/none.csv"})

    for command in (["repro"], ["repro", "ingest"], ["exp", "run"], ["experiments", "run"]):
        with pytest.raises(ParamsError, match="does not describe a run") as raised:
            check(command, project)
        assert "train.epochs: must be at least 1, got 0" in str(raised.value)
        assert "validate.decisions: there is no file data/decisions/none.csv" in str(raised.value)
    check(["status"], project)
    check(["exp", "run", "-S", "train.epochs=1", "-S", "validate.decisions=null"], project)


@pytest.mark.parametrize("line", ["path: 2024-02-30", "path: !!int many"])
def test_a_value_that_cannot_be_read_is_named_with_its_line_before_dvc_reads_it(project: Path, line: str) -> None:
    params = project / "params.yaml"
    text = "".join(own for own in params.read_text().splitlines(keepends=True) if not own.startswith("  path:"))
    params.write_text(text.replace("ingest:\n", f"ingest:\n  {line}\n", 1))

    for command in (["repro"], ["status"], ["exp", "run", "-S", "train.epochs=3"]):
        with pytest.raises(ParamsError, match=r"params.yaml is not YAML: (2024-02-30|many) [\s\S]*line \d"):
            check(command, project)
    check(["add", "data"], project)


def test_what_passed_is_checked_again_once_a_file_that_it_names_is_gone(project: Path) -> None:
    decisions = project / "data/decisions.csv"
    decisions.write_text("path,action\n")
    change_params(project / "params.yaml", "validate", {"decisions": "data/decisions.csv"})
    check(["repro"], project)
    decisions.unlink()

    with pytest.raises(ParamsError, match=r"there is no file data/decisions\.csv"):
        check(["repro"], project)


def test_a_project_of_another_version_is_left_to_its_own_stages(project: Path) -> None:
    (project / "src/twinrun/core").mkdir(parents=True)
    (project / "src/twinrun/core/params.py").write_text("# other settings\n")

    check(["exp", "run", "-S", "+train.lookahead=5"], project)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "data/raw/bin",
            "The source folder data/raw/bin does not exist (params.yaml: ingest.path). There are data/raw/",
        ),
        ("../photos", "The source folder ../photos does not exist (params.yaml: ingest.path). There are "),
    ],
)
def test_a_source_folder_that_is_missing_is_answered_with_those_that_exist(
    project: Path, path: str, sentence: str
) -> None:
    for folder in ("bins", "clothes"):
        (project / "data/raw" / folder / "a class").mkdir(parents=True)
    (project / "data/raw/empty").mkdir()
    change_params(project / "params.yaml", "ingest", {"source": "folder", "path": path})

    with pytest.raises(SourceError) as raised:
        check(["repro"], project)

    assert str(raised.value).startswith(sentence)
    assert "data/raw/bins" in str(raised.value)
    assert "empty" not in str(raised.value)


def test_the_command_that_fetches_images_can_be_pasted_and_a_remote_is_asked_for_where_there_is_none(
    project: Path,
) -> None:
    (project / "data/raw/my bins.dvc").touch()
    change_params(project / "params.yaml", "ingest", {"source": "folder", "path": "data/raw/my bins"})

    (project / ".dvc").mkdir()
    for config in ("", "['remote \"nas\"']\n    url = /nas/bins\n"):  # one that is not the default is not pulled from
        (project / ".dvc/config").write_text(config)
        with pytest.raises(SourceError, match=r"dvc pull 'data/raw/my bins\.dvc'\nBut no default remote is set here"):
            check(["repro"], project)

    (project / ".dvc/config").write_text("[core]\n    remote = nas\n['remote \"nas\"']\n    url = /nas/bins\n")
    with pytest.raises(SourceError, match=r"Fetch them: dvc pull 'data/raw/my bins\.dvc'\nOr go on"):
        check(["repro"], project)

    (project / ".dvc/config").write_text("[core\n")  # of which DVC itself speaks
    with pytest.raises(SourceError, match=r"Fetch them: dvc pull 'data/raw/my bins\.dvc'\nOr go on"):
        check(["repro"], project)


def test_a_folder_outside_the_project_is_said_not_to_be_shared_and_to_need_its_full_path(project: Path) -> None:
    (project / ".dvc").mkdir()
    outside = project.parent / "photos"
    (outside / "glass").mkdir(parents=True)

    (relative,), (full,) = advice(project, "../photos"), advice(project, str(outside))

    for said in (relative, full):
        assert "is outside the project, so DVC notices changes in it, but no clone gets its images" in said
    assert relative.endswith(f"write its path in full, which experiments in a temporary folder need: {outside}")
    assert "in full" not in full


def test_what_a_stage_writes_is_hashed_anew_in_the_same_dvc_repro(tmp_path: Path) -> None:
    first = {"cmd": "cp given.txt middle.txt", "deps": ["given.txt"], "outs": [{"middle.txt": {"cache": False}}]}
    second = {"cmd": "cp middle.txt result.txt", "deps": ["middle.txt"], "outs": ["result.txt"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"first": first, "second": second}}))
    (tmp_path / "given.txt").write_text("as given")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)

    (tmp_path / "middle.txt").write_text("changed by hand")
    again = subprocess.run(["dvc", "repro"], cwd=tmp_path, check=True, capture_output=True, text=True)

    assert (tmp_path / "middle.txt").read_text() == "as given"
    assert "Stage 'second' didn't change, skipping" in again.stdout
