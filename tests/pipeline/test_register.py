"""The stage `register`: from files to a version, by its real entry point."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_support import REPOSITORY, evaluate, runs, train

from pipeline import register
from twinrun.errors import DataError
from twinrun.publish import write_json
from twinrun.tracking.registry import Registry
from twinrun.tracking.store import find_tracker


@pytest.fixture
def project(tracked_project: Path) -> Path:
    return tracked_project


def test_a_model_becomes_a_version_that_is_linked_to_its_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(project)
    evaluate(project, accuracy=0.99)

    register.main()
    first = (project / "data/out/register/registered.json").read_bytes()
    card = json.loads((project / "data/out/train/card.json").read_bytes())
    write_json({**card, "fingerprint": "e" * 64}, project / "data/out/train/card.json")
    register.main()

    (run,) = runs(project)
    (version,) = Registry(find_tracker(), "twinrun-digits").versions()
    assert version.run_id == run.id
    assert version.aliases == ("candidate",)
    assert version.fingerprint == "e" * 64
    assert json.loads(first)["version"] == 1
    assert json.loads(first)["passed"] is True
    assert (project / "data/out/register/registered.json").read_bytes() == first
    assert "version 1 has passed and is the candidate" in capsys.readouterr().out


def test_a_model_below_the_bar_is_a_version_and_no_candidate(project: Path) -> None:
    train(project)
    evaluate(project, accuracy=0.5)

    register.main()

    (version,) = Registry(find_tracker(), "twinrun-digits").versions()
    assert version.aliases == ()
    assert json.loads((project / "data/out/register/registered.json").read_text())["passed"] is False


def test_metrics_of_another_model_are_refused(project: Path) -> None:
    train(project, weights_hash="ab" * 32)
    evaluate(project, weights_hash="cd" * 32)

    with pytest.raises(DataError, match="is of another model"):
        register.main()


def test_a_tracker_that_is_away_ends_the_stage_with_its_address(project: Path, monkeypatch) -> None:
    train(project)
    evaluate(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    ended = _run(project)

    assert ended.returncode == 1
    assert "The tracker at http://127.0.0.1:9 (MLFLOW_TRACKING_URI) cannot be reached" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (project / "data/out/register").exists()


def test_a_bundle_changed_by_one_byte_ends_the_stage_and_makes_no_version(project: Path) -> None:
    train(project)
    evaluate(project)
    weights = project / "data/out/train/bundle/weights.safetensors"
    shutil.copy(weights, weights.with_suffix(".copy"))
    weights.unlink()
    content = bytearray(weights.with_suffix(".copy").read_bytes())
    weights.with_suffix(".copy").unlink()
    content[0] ^= 1
    weights.write_bytes(content)

    ended = _run(project)

    assert ended.returncode == 1
    assert "weights.safetensors has sha256" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert Registry(find_tracker(), "twinrun-digits").versions() == []


def _run(project: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "pipeline/register.py")],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
