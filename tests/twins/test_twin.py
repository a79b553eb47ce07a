"""A run is trained again, from its commit and its data, and compared: what is said, when, and what is left behind."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tracking_support import runs
from training_support import git
from twin_support import first_run

from twinrun.base.errors import TwinError
from twinrun.base.files import write_json
from twinrun.record.objects import Objects
from twinrun.tracking.runs import find_run
from twinrun.tracking.store import find_tracker, open_client
from twinrun.twins.material import NEEDED, PACK, choose
from twinrun.twins.twin import reproduce

IMAGE = "train/1/007.bmp"
MODEL = "twinrun-digits"


class Stop(Exception):
    """Raised in place of the first computation."""


def said_before_training(project: Path, **options: str) -> str:
    """What is said of the first run's twin before anything is computed."""
    said: list[str] = []

    def say(text: str) -> None:
        if text.startswith("\nTwin: "):
            raise Stop
        said.append(text)

    with pytest.raises(Stop):
        reproduce(project, first_run(project), MODEL, say=say, **options)  # type: ignore[arg-type]
    return "\n".join(said)


def change_one_byte(file: Path, place: int = -1) -> None:
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[place] ^= 0x40
    file.write_bytes(content)


def test_a_run_of_three_commits_ago_with_uncommitted_changes_has_an_identical_twin(trained: Path) -> None:
    run_id = first_run(trained)
    here = (trained / "params.yaml").read_bytes()

    report = reproduce(trained, run_id[:8], MODEL)

    assert (report.verdict.tag, report.verdict.exit_code) == ("identical", 0)
    found = {run.id: run for run in runs(trained)}
    twin = found[str(report.twin_run_id)]
    assert (twin.status, twin.tags["twinrun.twin_of"]) == ("FINISHED", run_id)
    assert twin.tags["twinrun.weights_hash"] == found[run_id].tags["twinrun.weights_hash"]
    assert twin.metrics["test/accuracy"] == found[run_id].metrics["test/accuracy"]
    for run in found.values():
        assert run.tags["twinrun.twin_verdict"] == "identical"
        assert {f"twin/{twin.id[:8]}/report.md", f"twin/{twin.id[:8]}/report.json"} <= set(run.artifacts)
    assert (trained / "params.yaml").read_bytes() == here
    assert left_behind(trained) == []


def test_after_one_byte_of_a_training_image_the_twin_is_different_and_names_it(trained: Path) -> None:
    run_id = first_run(trained)
    change_one_byte(trained / "data/raw/folder" / IMAGE)

    report = reproduce(trained, run_id, MODEL)

    assert (report.verdict.tag, report.verdict.exit_code) == ("different: data", 4)
    assert f"{IMAGE} (train)" in report.verdict.reason
    (run,) = [run for run in runs(trained) if run.id == run_id]
    assert run.tags["twinrun.twin_verdict"] == "different: data"


def nothing(project: Path) -> None:
    """The run can be had again."""


def another_processor(project: Path) -> None:
    """The run's card is of an older processor, which rounded otherwise."""
    card_file = next((project / "mlruns/artifacts").rglob("card.json"))
    card = json.loads(card_file.read_bytes())
    card["hardware"].update(cpu="An older processor")
    write_json({**card, "weights_hash": "ab" * 32}, card_file)


def damaged_predictions(project: Path) -> None:
    """The predictions of the run cannot be read any more, in MLflow and here."""
    for place in ("mlruns/artifacts", "data/out/evaluate"):
        file = next((project / place).rglob("predictions.parquet"))
        file.chmod(0o644)
        file.write_bytes(b"no table")


def damaged_metrics(project: Path) -> None:
    """The metrics of the run cannot be read any more, in MLflow and here."""
    for place in ("mlruns/artifacts", "data/out/evaluate"):
        file = next((project / place).rglob("metrics.json"))
        file.chmod(0o644)
        file.write_bytes(b"{")


def broken_image(project: Path) -> None:
    """An image that the run used cannot be decoded now."""
    (project / "data/raw/folder" / IMAGE).write_bytes(b"BM no image")


@pytest.mark.parametrize(
    ("happened", "said", "code"),
    [(nothing, "identical", 0), (another_processor, "equivalent: hardware", 3), (broken_image, "different: data", 4)],
)
def test_the_exit_code_of_the_command_is_its_verdict(
    trained: Path,
    happened: Callable[[Path], None],
    said: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from twinrun.cli import main as cli

    happened(trained)
    monkeypatch.setattr(sys, "argv", ["twinrun", "reproduce", first_run(trained)])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert ended.value.code == code
    assert f"\n{said.upper()}. " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("happened", "said"),
    [(damaged_predictions, "The predictions could not"), (damaged_metrics, "The metrics could not")],
)
def test_results_that_cannot_be_read_do_not_lose_the_verdict(
    happened: Callable[[Path], None], said: str, trained: Path
) -> None:
    happened(trained)

    report = reproduce(trained, first_run(trained), MODEL)

    assert report.verdict.tag == "identical"
    assert any(note.startswith(f"{said} be compared. ") for note in report.notes)


def test_an_image_that_can_no_longer_be_decoded_is_different_without_training(trained: Path) -> None:
    (trained / "data/raw/folder" / IMAGE).write_bytes(b"BM no image")

    report = reproduce(trained, first_run(trained), MODEL, data="workspace")

    assert report.verdict.tag == "different: data"
    assert report.twin_run_id is None
    assert any(IMAGE in str(change) for change in report.images)


def test_one_byte_of_the_pack_in_this_folder_names_the_image(trained: Path) -> None:
    change_one_byte(trained / PACK)

    said = said_before_training(trained)

    assert "val/1/079.bmp (val): its pixels changed" in said
    assert "`--data recorded`" in said


def test_the_recorded_data_are_taken_whatever_the_source_holds(trained: Path) -> None:
    change_one_byte(trained / "data/raw/folder" / IMAGE)

    said = said_before_training(trained, data="recorded")

    assert "the run's own, from the DVC cache" in said
    assert IMAGE not in said


def test_a_damaged_cache_is_named_and_the_workspace_has_the_data(trained: Path) -> None:
    card = _card(trained)
    cached = Objects(trained).find(card["dvc_lock"]["ingest"]["outs"][PACK]).path
    assert cached is not None
    change_one_byte(cached)

    material = choose(trained, card, "auto")

    assert material.kind == "recorded"
    assert material.files[PACK] == trained / PACK
    assert "was changed" in "".join(material.notes)


def test_a_damaged_cache_is_mended_from_the_remote(trained: Path, tmp_path: Path) -> None:
    card = _card(trained)
    # What `dvc remote add -d` and `dvc push` leave.
    shutil.copytree(trained / ".dvc/cache/files", tmp_path / "remote/files")
    settings = f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {tmp_path / 'remote'}\n"
    (trained / ".dvc/config.local").write_text(settings)
    cached = Objects(trained).find(card["dvc_lock"]["ingest"]["outs"][PACK]).path
    assert cached is not None
    change_one_byte(cached)
    shutil.rmtree(trained / "data/out")

    material = choose(trained, card, "recorded")

    assert material.kind == "recorded"
    assert material.places == {"the DVC cache", "the DVC remote"}


def test_lost_data_are_made_again_from_the_source_or_the_run_is_refused(trained: Path) -> None:
    card = _card(trained)
    shutil.rmtree(trained / "data/out")
    shutil.rmtree(trained / ".dvc/cache")

    assert choose(trained, card, "auto").kind == "source"

    shutil.rmtree(trained / "data/raw/folder")
    with pytest.raises(TwinError, match=r"cannot be rebuilt[\s\S]*data are missing[\s\S]*images\.npy"):
        reproduce(trained, first_run(trained), MODEL)
    assert left_behind(trained) == []


def test_a_lost_commit_is_said_at_once(trained: Path) -> None:
    run_id = first_run(trained)
    shutil.rmtree(trained / ".git")
    subprocess.run(["git", "init", "-q"], check=True)

    with pytest.raises(TwinError, match=r"nothing was computed[\s\S]*is not in this repository[\s\S]*git fetch"):
        reproduce(trained, run_id, MODEL)


def test_another_torch_in_a_lock_is_said_before_training(trained: Path) -> None:
    version = metadata.version("torch").partition("+")[0]
    lock = trained / "requirements.lock"
    lock.write_text(lock.read_text().replace(f"\ntorch=={version}", "\ntorch==2.14.1"))

    said = said_before_training(trained)

    assert f"names torch 2.14.1, but {version} is installed" in said
    assert left_behind(trained) == []


def test_another_torch_or_processor_than_the_runs_is_said_before_training(trained: Path) -> None:
    card_file = next((trained / "mlruns/artifacts").rglob("card.json"))
    card = json.loads(card_file.read_bytes())
    card["environment"]["differing"]["torch"] = {"locked": "2.15.0", "installed": "2.14.1"}
    card["hardware"].update(cpu="An older processor", cpu_flags=["avx2"])
    write_json(card, card_file)

    said = said_before_training(trained)

    assert "The run was trained with torch 2.14.1" in said
    assert "The run was trained on An older processor" in said
    assert 'the best result to expect is "equivalent"' in said


def test_a_run_whose_stages_need_another_version_of_twinrun_is_refused_before_training(trained: Path) -> None:
    stage = trained / "pipeline/train.py"
    stage.write_text(stage.read_text().replace("twinrun.base.files", "twinrun.publish"))
    git(trained, "add", "pipeline")
    git(trained, "rm", "-r", "-q", "--cached", "src")
    git(trained, "commit", "-q", "-m", "A project without code of its own")
    card_file = next((trained / "mlruns/artifacts").rglob("card.json"))
    card = json.loads(card_file.read_bytes())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    write_json({**card, "commit": commit, "diff": ""}, card_file)

    with pytest.raises(
        TwinError, match=r"^pipeline/train\.py was written by another version.*imports twinrun\.publish"
    ):
        reproduce(trained, first_run(trained), MODEL)

    assert left_behind(trained) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_twin_leaves_nothing_behind(trained: Path, number: signal.Signals) -> None:
    said, saying = os.pipe()
    # Forked, since a new process would import MLflow anew.
    process = multiprocessing.get_context("fork").Process(target=_reproduce, args=(first_run(trained), saying))
    process.start()
    os.close(saying)
    with os.fdopen(said) as lines:
        assert any("Twin: train" in line for line in lines)
        time.sleep(0.3)
        os.kill(process.pid or 0, number)
        process.join(60)

    assert process.exitcode == 128 + number
    assert left_behind(trained) == []


def _reproduce(run_id: str, said: int) -> None:
    """The command, in a separate process."""
    from twinrun.cli import main as cli

    os.dup2(said, 1)
    sys.stdout = os.fdopen(1, "w")
    sys.argv = ["twinrun", "reproduce", run_id]
    cli.main()


def test_a_run_that_a_person_deleted_has_a_twin_with_the_verdict(trained: Path) -> None:
    run_id = first_run(trained)
    open_client(find_tracker(trained)).delete_run(run_id)

    report = reproduce(trained, run_id, MODEL)

    (twin,) = runs(trained)
    assert twin.tags["twinrun.twin_verdict"] == report.verdict.tag == "identical"
    assert report.problem == f"the run {run_id[:8]} was deleted there, so nothing was added to it."


def test_a_version_is_found_by_its_alias(trained: Path) -> None:
    from twinrun.tracking.registry import Registry

    run_id, tracker = first_run(trained), find_tracker(trained)
    metrics = json.loads((trained / "data/out/evaluate/metrics.json").read_bytes())
    bundle = trained / "data/out/train/bundle"
    Registry(tracker, MODEL).register(bundle, metrics, passed=True, fingerprint="f", run_id=run_id)

    assert find_run(tracker, "@candidate", MODEL).run_id == run_id
    assert find_run(tracker, f"{MODEL}@candidate", "another").run_id == run_id


def left_behind(project: Path) -> list[str]:
    """Worktrees that git or the folder still know."""
    listed = subprocess.run(["git", "worktree", "list"], cwd=project, capture_output=True, text=True, check=True)
    twins = project / ".twinrun/twins"
    return listed.stdout.splitlines()[1:] + [path.name for path in (twins.iterdir() if twins.is_dir() else ())]


def _card(project: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((project / "data/out/train/card.json").read_bytes())
    assert set(NEEDED) <= {out for stage in card["dvc_lock"].values() for out in stage["outs"]}
    return card
