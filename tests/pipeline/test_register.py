"""The stage `register`: from files to a version, by its real entry point."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient, MlflowException
from ruamel.yaml import YAML
from stage_support import on_terminal
from tracking_support import AB, CD, REPOSITORY, evaluate, evaluate_really, predict, runs, train, train_really

from pipeline import register
from twinrun.base.errors import DataError
from twinrun.base.files import write_json, write_table
from twinrun.cli import main as cli
from twinrun.tracking.registry import Registry
from twinrun.tracking.store import find_tracker, open_client


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


def test_on_a_terminal_each_long_part_of_registering_says_what_it_does(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(project)
    evaluate(project, accuracy=0.99)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")]))

    synced = on_terminal("-m", "twinrun", "sync")
    registered = on_terminal("-m", "pipeline.register")

    assert "Publishing to MLflow" in synced
    titles = ("Publishing to MLflow", "Testing the model", "Registering the model", "has passed")
    assert sorted(titles, key=registered.index) == list(titles)


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


def champion(project: Path, groups: int | None = None) -> Registry:
    """A first model that is in use, and that classifies 10 of 300 images wrongly."""
    train(project)
    evaluate(project, accuracy=0.97)
    predict(project, wrong=10, groups=groups)
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
    refused = [each["name"] for each in gates if each["passed"] is False]
    assert refused[:1] == ([gate] if gate else [])
    if gate:
        assert f"Refused by the gate “{gate}”" in printed


@pytest.mark.parametrize("known", [6, None], ids=["known to both", "unknown when the champion was evaluated"])
def test_images_of_few_groups_do_not_show_that_a_model_is_as_good_as_the_champion(
    project: Path, capsys: pytest.CaptureFixture[str], known: int | None
) -> None:
    champion(project, groups=known)
    train(project, weights_hash=CD)
    evaluate(project, weights_hash=CD, accuracy=0.97)
    predict(project, wrong=10, groups=6)

    register.main()

    assert "Refused by the gate “not worse than the champion”" in capsys.readouterr().out


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


def gates_of(folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    """What each gate says of the model in `folder`, by name, with these settings of register.gates."""
    set_gates(folder, **settings)
    register.main()
    registered = json.loads((folder / "data/out/register/registered.json").read_bytes())
    return {gate["name"]: gate for gate in registered["gates"]}


def set_gates(folder: Path, **settings: Any) -> None:
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["register"]["min_accuracy"] = 0.1
    params["register"]["gates"].update(settings)
    yaml.dump(params, folder / "params.yaml")


def tags_of(folder: Path, number: int = 1) -> dict[str, str]:
    """The tags of a version in the registry, with its description."""
    version = open_client(find_tracker(folder)).get_model_version("twinrun-digits", str(number))
    return {**version.tags, "description": str(version.description)}


def test_a_real_model_is_loaded_anew_shifted_lit_and_timed_and_every_answer_is_in_file_tag_and_page(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_really(project)
    evaluate_really(project)
    worst = {
        "name": "ExpectColumnValuesToBeBetween",
        "arguments": {"column": "worst_recall", "min_value": 1.5},
        "severity": "critical",
    }

    gates = gates_of(project, min_agreement=1.0, max_latency_ms=0.0001, expectations=[worst])

    loaded, latency = gates["same answers when loaded"], gates["latency"]
    assert (loaded["passed"], loaded["value"]) == (True, 0)
    assert {"same label after a small shift", "same label after a change of light"} <= gates.keys()
    assert "same label after mirroring" not in gates  # train.augment.flip is off
    assert not latency["passed"]
    assert latency["value"] > latency["limit"] == 0.0001
    assert "on one thread of" in latency["sentence"]
    own = gates["ExpectColumnValuesToBeBetween of worst_recall"]
    assert not own["passed"]
    assert f"worst_recall is {own['value']:.4g}" in own["sentence"]
    assert "Refused by the gate “latency”" in capsys.readouterr().out
    (version,) = Registry(find_tracker(project), "twinrun-digits").versions()
    tags = tags_of(project)
    assert version.aliases == ()
    assert tags["twinrun.gate.latency"].startswith("refused: one image takes")
    assert tags["twinrun.gate.same_answers_when_loaded"].startswith("passed: ")
    assert "Refused by the gate “latency”: one image takes" in tags["description"]
    artifacts = open_client(find_tracker(project)).list_artifacts(str(version.run_id), "registration")
    assert [file.path for file in artifacts] == ["registration/index.html"]
    page = (project / "data/out/register/report/index.html").read_text(encoding="utf-8")
    assert "has not passed its gates" in page
    assert all(gate["name"] in page for gate in gates.values())


def test_probabilities_that_the_loaded_model_does_not_give_refuse_it(
    project: Path,
) -> None:
    train_really(project)
    evaluate_really(project)
    file = project / "data/out/evaluate/predictions.parquet"
    table = pq.read_table(file)
    at = table.schema.get_field_index("probabilities")
    swapped = pa.array([row[::-1] for row in table["probabilities"].to_pylist()], pa.list_(pa.float64()))
    write_table(table.set_column(at, table.schema.field(at), swapped), file)

    gates = gates_of(project, min_agreement=0.5)

    labels = ["same label after a small shift", "same label after a change of light"]
    assert [name for name, gate in gates.items() if not gate["passed"]] == [
        "same answers when loaded",
        "same answers in ONNX",
        *labels,
    ]
    assert [gates[name]["value"] for name in labels] == [0, 0]
    assert "latency" not in gates


def test_a_model_whose_probabilities_round_to_0_and_1_answers_the_same_in_onnx(project: Path) -> None:
    train_really(project, certain=True)
    evaluate_really(project)

    gate = gates_of(project)["same answers in ONNX"]

    shares = pq.read_table(project / "data/out/evaluate/predictions.parquet")["probabilities"].to_pylist()
    assert any(0.0 in row for row in shares)
    assert gate["passed"], gate["sentence"]


def test_a_class_without_test_images_is_not_the_weakest_one(project: Path) -> None:
    train(project)
    metrics = evaluate(project)
    nothing = {"label": "1", "precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 0}
    write_json({**metrics, "per_class": [*metrics["per_class"], nothing]}, project / "data/out/evaluate/metrics.json")
    rule = {
        "name": "ExpectColumnValuesToBeBetween",
        "arguments": {"column": "worst_recall", "min_value": 0.7},
        "severity": "critical",
    }

    gate = gates_of(project, expectations=[rule])["ExpectColumnValuesToBeBetween of worst_recall"]

    assert (gate["passed"], gate["value"]) == (True, 0.9)


def test_a_model_just_below_a_bar_is_told_from_one_that_reaches_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(project)
    evaluate(project, accuracy=0.94996)

    register.main()

    assert "at least 95.0% is required (register.min_accuracy), 0.004 points more" in capsys.readouterr().out


def test_a_promotion_judges_what_was_measured_at_registration_by_the_limits_of_today(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_really(project)
    evaluate_really(project)
    gates_of(project, min_agreement=0.01)

    set_gates(project, max_latency_ms=0.0001)
    twinrun(monkeypatch, "promote", "1")
    refused = capsys.readouterr().err
    set_gates(project, max_latency_ms=1e6)
    twinrun(monkeypatch, "promote", "1")

    assert "Refused by the gate “latency”: one image takes" in refused
    assert "when it was registered; at most 0.0001 ms is allowed" in refused
    said = capsys.readouterr().out
    assert "same answers when loaded passed: loaded in a separate process" in said
    assert "keep their label, when it was registered; at least 1.0% is required" in said
    assert "not judged" not in said


def test_gates_that_need_images_which_are_not_here_are_recorded_as_not_judged_with_the_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(project)
    evaluate(project)

    gates = gates_of(project, max_model_mb=100.0)

    printed = capsys.readouterr().out
    unjudged = ["same answers when loaded", "same label after a small shift", "same label after a change of light"]
    assert [name for name, gate in gates.items() if gate["passed"] is None] == ["size", *unjudged]
    named = ", ".join(f"“{name}”" for name in unjudged)
    assert f"Not judged: {named}, since the images (data/out/ingest/images.npy) are not here" in printed
    assert "has passed and is the candidate" in printed
    assert tags_of(project)["twinrun.gate.same_answers_when_loaded"].startswith("not judged: the images")
    page = (project / "data/out/register/report/index.html").read_text(encoding="utf-8")
    assert "has passed the gates that could be judged" in page
    assert page.count("<b>not judged</b>") == 4
    _promote_without_what_was_recorded(project, monkeypatch, capsys)
    twinrun(monkeypatch, "promote", "1")
    assert "same answers when loaded not judged: it was not measured when" in capsys.readouterr().out


def _promote_without_what_was_recorded(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a store that fails nor a metrics.json without numbers of images lets a version pass unjudged."""

    def fail(*_: object) -> None:
        raise MlflowException("the disk of the artifacts does not answer")

    metrics, client, run = project / "data/out/evaluate/metrics.json", open_client(find_tracker()), runs(project)[0].id
    write_json({"accuracy": 0.99}, project / "metrics.json")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "download_artifacts", fail)
        twinrun(monkeypatch, "promote", "1")
    client.log_artifact(run, str(project / "metrics.json"), "evaluation")
    twinrun(monkeypatch, "promote", "1")
    (project / "metrics.json").write_text('{"accuracy": 0.9')
    client.log_artifact(run, str(project / "metrics.json"), "evaluation")
    twinrun(monkeypatch, "promote", "1")
    client.log_artifact(run, str(metrics), "evaluation")

    said = capsys.readouterr().err
    assert "failed: the disk of the artifacts does not answer" in said
    assert "Refused by the gate “accuracy”: what MLflow has of its run is damaged" in said
    assert (
        "Refused by the gate “better than guessing”: it is not shown to be better than guessing: metrics.json" in said
    )
    assert "champion" not in Registry(find_tracker(), "twinrun-digits").version(1).aliases


def twinrun(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["twinrun", *arguments])
    with suppress(SystemExit):
        cli.main()


def test_metrics_of_another_model_are_refused(project: Path) -> None:
    train(project, weights_hash=AB)
    evaluate(project, weights_hash=CD)

    with pytest.raises(DataError, match="is of another model"):
        register.main()


def test_a_tracker_that_is_away_ends_the_stage_with_its_address(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        [sys.executable, "-m", "pipeline.register"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
    )
