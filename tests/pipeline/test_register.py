"""The stage `register`: from files to a version, by its real entry point."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_support import AB, CD, REPOSITORY, evaluate, predict, runs, train

from pipeline import register
from twinrun.core.errors import DataError
from twinrun.core.files import write_json
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


@pytest.mark.parametrize(
    ("accuracy", "images", "commonest", "passes"),
    [(0.36, 300, 100, False), (0.40, 300, 100, True), (0.92, 300, 270, False), (1.0, 3, 2, False), (1.0, 30, 15, True)],
)
def test_a_model_that_may_be_guessing_the_commonest_class_is_no_candidate_whatever_the_bar(
    project: Path, capsys: pytest.CaptureFixture[str], accuracy: float, images: int, commonest: int, passes: bool
) -> None:
    train(project)
    metrics = evaluate(project, accuracy=accuracy)
    others = images - commonest
    counts = {"common": commonest, "rare": others // 2, "other": others - others // 2}
    per_class = [{"label": label, "images": count} for label, count in counts.items()]
    write_json({**metrics, "images": images, "per_class": per_class}, project / "data/out/evaluate/metrics.json")
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(re.sub(r"min_accuracy: [\d.]+", "min_accuracy: 0.0", text), encoding="utf-8")

    register.main()

    (version,) = Registry(find_tracker(), "twinrun-digits").versions()
    registered = json.loads((project / "data/out/register/registered.json").read_text())
    assert version.passed is registered["passed"] is passes
    assert version.aliases == (("candidate",) if passes else ())
    said = capsys.readouterr().out
    if passes:
        assert registered["refusal"] is None
    else:
        assert 'not shown to be better than always guessing "common", the commonest class' in said
        assert registered["refusal"] in said


def champion(project: Path) -> Registry:
    """A first model that is in use, and that classifies 10 of 300 images wrongly."""
    train(project)
    evaluate(project, accuracy=0.97)
    predict(project, wrong=10)
    register.main()
    registry = Registry(find_tracker(), "twinrun-digits")
    registry.promote(1)
    return registry


@pytest.mark.parametrize(
    ("wrong", "gate", "said"),
    [
        (10, None, "has passed and is the candidate"),
        (5, None, "has passed and is the candidate"),
        (
            30,
            "not worse than the champion",
            "90.0% against the 96.7% of the champion (version 1) on the same 300 images",
        ),
    ],
)
def test_a_model_is_compared_with_the_champion_on_the_same_images(
    project: Path, capsys: pytest.CaptureFixture[str], wrong: int, gate: str | None, said: str
) -> None:
    registry = champion(project)
    train(project, weights_hash=CD)
    evaluate(project, weights_hash=CD, accuracy=0.97)
    predict(project, wrong=wrong)

    register.main()

    printed = capsys.readouterr().out
    assert said in printed
    version = registry.version(2)
    assert version.aliases == (() if gate else ("candidate",))
    gates = json.loads((project / "data/out/register/registered.json").read_bytes())["gates"]
    refused = [each["name"] for each in gates if not each["passed"]]
    assert refused[:1] == ([gate] if gate else [])
    if gate:
        assert f"Refused by the gate “{gate}”" in printed


def test_a_champion_that_cannot_be_compared_is_a_gate_that_is_not_passed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = champion(project)
    train(project, weights_hash=CD)
    evaluate(project, weights_hash=CD, accuracy=0.97)
    predict(project, wrong=0, prefix="other-")

    register.main()

    assert "no image with the same label in common" in capsys.readouterr().out
    assert registry.version(2).aliases == ()


def test_metrics_of_another_model_are_refused(project: Path) -> None:
    train(project, weights_hash=AB)
    evaluate(project, weights_hash=CD)

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
