"""Versions are made once, champions moved on purpose, and both can be traced."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tracking_support import AB, HASHES, FaultyTracker, evaluate, train

from twinrun.base.errors import BundleError, RegistryError, TrackingError
from twinrun.doctor import promotions as doctor_promotions
from twinrun.tracking import registry as module
from twinrun.tracking.promotions import Judgement, Promotions
from twinrun.tracking.registry import Registry, Version
from twinrun.tracking.runs import find_run
from twinrun.tracking.store import find_tracker, open_client
from twinrun.tracking.sync import run_of, sync, training_data

# Of promotions and rollbacks in each of 8 processes: TWINRUN_TEST_ROUNDS=10 for a longer run.
ROUNDS = int(os.environ.get("TWINRUN_TEST_ROUNDS", "3"))


def _register(project: Path, weights: str = "ab", *, passed: bool = True, name: str = "digits") -> Version:
    train(project, weights_hash=HASHES[weights], epochs=1)
    metrics = evaluate(project, weights_hash=HASHES[weights])
    sync()
    return Registry(find_tracker(project), name).register(
        project / "data/out/train/bundle",
        metrics,
        passed=passed,
        fingerprint="f" * 64,
        run_id=run_of(project, HASHES[weights]),
        data=training_data(project),
    )


def _aliases(project: Path) -> dict[int, tuple[str, ...]]:
    return {each.version: each.aliases for each in Registry(find_tracker(project), "digits").versions()}


def test_a_version_carries_what_made_it(project: Path) -> None:
    version = _register(project)

    facts = find_run(find_tracker(project), "1", "digits")
    assert version.version == 1
    assert version.aliases == ("candidate",)
    assert version.metrics["test/accuracy"] == 0.99
    assert (version.weights_hash, version.fingerprint, version.passed) == (AB, "f" * 64, True)
    assert facts.run_id == version.run_id
    assert facts.card is not None
    assert facts.card["weights_hash"] == AB


def test_a_model_and_its_versions_are_described_and_what_a_person_wrote_stays(project: Path) -> None:
    first, client = _register(project), open_client(find_tracker(project))
    described = str(client.get_model_version("digits", "1").description)
    client.update_model_version("digits", "1", "Ours at the fair")
    client.update_registered_model("digits", "For the fair")

    _register(project)
    _register(project, "cd")

    assert "**Accuracy 99.0% (95% interval 95.0% to 100.0%) of 10 test images.**" in described
    assert "Classes: 2 (0, 1). Data: digits, 10 training images." in described
    assert f"Run {str(first.run_id)[:8]}. Weights {AB[:12]}." in described
    assert client.get_model_version("digits", "1").description == "Ours at the fair"
    assert f"Weights {HASHES['cd'][:12]}." in str(client.get_model_version("digits", "2").description)
    assert client.get_registered_model("digits").description == "For the fair"


def test_versions_and_runs_of_earlier_versions_are_read_under_the_names_in_use(project: Path) -> None:
    version, client = _register(project), open_client(find_tracker(project))
    client.delete_model_version_tag("digits", "1", "twinrun.test/accuracy")
    client.set_model_version_tag("digits", "1", "twinrun.test_accuracy", "0.75")
    run = client.create_run(client.get_run(str(version.run_id)).info.experiment_id)
    for name in ("test_accuracy", "val_loss", "data_no_leaks", "learning_rate", "images_per_second"):
        client.log_metric(run.info.run_id, name, 0.5)

    (read,) = Registry(find_tracker(project), "digits").versions()
    facts = find_run(find_tracker(project), run.info.run_id[:8], "digits")

    assert read.metrics["test/accuracy"] == 0.75
    assert set(facts.metrics) == {
        *("test/accuracy", "val/loss", "data/no_leaks"),
        *("train/learning_rate", "system/images_per_second"),
    }


def test_the_same_bundle_never_makes_a_second_version(project: Path) -> None:
    first = _register(project)
    again = _register(project)
    other = _register(project, "cd")

    assert [first.version, again.version, other.version] == [1, 1, 2]
    assert _aliases(project) == {2: ("candidate",), 1: ()}


def test_a_request_whose_answer_is_lost_makes_one_version(tracker: FaultyTracker, project: Path) -> None:
    lost = []
    for after in range(0, 16, 4):
        weights = f"{after:02x}"
        tracker.break_down("lost", after)
        try:
            _register(project, weights, name="lossy")
        except TrackingError:
            lost.append(after)
        tracker.break_down(None)
        _register(project, weights, name="lossy")

    versions = Registry(find_tracker(project), "lossy").versions()
    assert lost
    assert {each.weights_hash for each in versions} == {HASHES[f"{after:02x}"] for after in range(0, 16, 4)}
    assert len(versions) == 4


def test_no_file_of_a_version_is_a_pickle(project: Path) -> None:
    version = _register(project)

    client = open_client(find_tracker(project))
    place = Path(client.get_model_version_download_uri("digits", str(version.version)).removeprefix("file://"))
    names = {file.name for file in Path(str(place).replace("%20", " ")).rglob("*") if file.is_file()}
    assert {"MLmodel", "weights.safetensors", "model.json", "manifest.json", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]


def test_a_changed_bundle_is_refused_and_makes_no_version(project: Path) -> None:
    _register(project)
    weights = project / "data/out/train/bundle/weights.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])

    with pytest.raises(BundleError, match=r"weights\.safetensors has sha256"):
        Registry(find_tracker(project), "digits").register(
            weights.parent, {"accuracy": 1.0}, passed=True, fingerprint="f", run_id=None
        )

    assert list(_aliases(project)) == [1]


def test_a_version_that_fails_its_gates_is_no_candidate(project: Path) -> None:
    _register(project, "ab", passed=True)
    _register(project, "cd", passed=False)

    assert _aliases(project) == {2: (), 1: ("candidate",)}


def test_promotions_are_recorded_and_rolled_back_one_by_one(project: Path) -> None:
    for weights in ("ab", "cd", "ef"):
        _register(project, weights)
    registry = Registry(find_tracker(project), "digits")
    for version in (1, 2, 3):
        registry.promote(version, reason="better")

    registry.rollback("worse")
    after_one = _aliases(project)
    registry.rollback()
    after_two = _aliases(project)

    record = registry.history()
    assert "champion" in after_one[2]
    assert "champion" in after_two[1]
    assert [(each.action, each.before, each.after, each.reason) for each in record] == [
        ("promote", None, 1, "better"),
        ("promote", 1, 2, "better"),
        ("promote", 2, 3, "better"),
        ("rollback", 3, 2, "worse"),
        ("rollback", 2, 1, None),
    ]
    assert {each.outcome for each in record} == {"done"}
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback()


def test_a_promotion_that_the_tracker_refuses_is_recorded_as_failed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient, MlflowException

    _register(project)
    registry = Registry(find_tracker(project), "digits")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", _refuse(MlflowException("the disk is full")))
        with pytest.raises(TrackingError, match="the disk is full"):
            registry.promote(1)
    registry.promote(1)

    failed, done = registry.history()
    assert (failed.outcome, done.outcome) == ("failed", "done")
    assert "the disk is full" in str(failed.detail)
    assert "champion" in _aliases(project)[1]


def _refuse(error: Exception) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise error

    return refuse


def test_a_version_that_has_not_passed_is_promoted_only_by_force_and_with_a_reason(project: Path) -> None:
    _register(project, passed=False)
    registry = Registry(find_tracker(project), "digits")

    with pytest.raises(RegistryError, match="has not passed its gates"):
        registry.promote(1)
    with pytest.raises(RegistryError, match="needs a reason"):
        registry.promote(1, force=True)
    registry.promote(1, force=True, reason="a demonstration")

    refused, entry = registry.history()
    assert (refused.outcome, entry.outcome) == ("refused", "done")
    assert entry.reason == "a demonstration"
    assert "champion" in _aliases(project)[1]


@pytest.mark.parametrize("made", [True, False])
def test_a_promotion_that_was_cut_off_is_completed_in_the_record_by_what_the_registry_says(
    project: Path, made: bool
) -> None:
    _register(project)
    registry = Registry(find_tracker(project), "digits")
    registry.promote(1)
    journal = project / "mlruns/promotions.jsonl"
    begun, _ = journal.read_text(encoding="utf-8").splitlines()
    cut = json.dumps({**json.loads(begun), "id": "0" * 32, "to": 1 if made else 7})
    journal.write_text(f'{begun}\n{cut}\n{{"id": "half a li', encoding="utf-8")

    entries = registry.history()

    assert [each.outcome for each in entries] == ["done", "done" if made else "failed"]
    assert all(json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())


def test_a_line_that_cannot_be_written_whole_is_not_there_and_nothing_was_changed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(project)
    registry = Registry(find_tracker(project), "digits")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _refuse(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(RegistryError, match=r"Input/output error.*so nothing was changed"):
            registry.promote(1)

    assert (project / "mlruns/promotions.jsonl").read_bytes() == b""
    assert _aliases(project)[1] == ("candidate",)


def test_a_champion_that_was_set_by_hand_is_noticed_and_no_version_is_twice_in_the_former_ones(project: Path) -> None:
    for weights in ("ab", "cd"):
        _register(project, weights)
    tracker = find_tracker(project)
    registry = Registry(tracker, "digits")
    for version in (1, 2, 1, 2):
        registry.promote(version)

    open_client(tracker).set_registered_model_alias("digits", "champion", "1")

    last = registry.history()[-1]
    assert (last.action, last.before, last.after, last.outcome) == ("elsewhere", 2, 1, "done")
    former = open_client(tracker).get_registered_model("digits").tags["twinrun.former_champions"]
    assert json.loads(former) == [2, 1]


def _registry_of_three(project: Path) -> Registry:
    for weights in ("ab", "cd", "ef"):
        _register(project, weights)
    return Registry(find_tracker(project), "digits")


@pytest.mark.parametrize("moved_to", ["3", None])
def test_a_rollback_goes_back_to_the_champion_whose_alias_was_moved_or_removed_in_mlflow(
    project: Path, moved_to: str | None
) -> None:
    registry = _registry_of_three(project)
    registry.promote(1)
    registry.promote(2)
    if moved_to is None:
        open_client(registry.tracker).delete_registered_model_alias("digits", "champion")
    else:
        open_client(registry.tracker).set_registered_model_alias("digits", "champion", moved_to)

    back = [registry.rollback().after, registry.rollback().after]

    assert back == [2, 1]
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback()


def test_a_promotion_after_a_champion_was_removed_in_mlflow_keeps_that_one_to_go_back_to(project: Path) -> None:
    registry = _registry_of_three(project)
    registry.promote(1)
    registry.promote(2)
    open_client(registry.tracker).delete_registered_model_alias("digits", "champion")
    registry.promote(3)

    assert [registry.rollback().after, registry.rollback().after] == [2, 1]


def test_a_rollback_passes_over_a_former_champion_that_was_deleted_in_mlflow(project: Path) -> None:
    registry = _registry_of_three(project)
    for version in (1, 2, 3):
        registry.promote(version)
    open_client(registry.tracker).delete_model_version("digits", "2")

    assert registry.rollback().after == 1
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback()


def test_a_version_that_is_worse_than_the_champion_is_refused_by_its_judge_and_that_is_recorded(project: Path) -> None:
    for weights in ("ab", "cd"):
        _register(project, weights)
    registry = Registry(find_tracker(project), "digits")
    registry.promote(1)

    with pytest.raises(RegistryError, match=r"was not promoted\. It loses a class"):
        registry.promote(2, judge=lambda *_: Judgement(refusal="It loses a class.", gates=("It loses a class.",)))

    refused = registry.history()[-1]
    assert (refused.outcome, refused.gates) == ("refused", ("It loses a class.",))
    assert "champion" in _aliases(project)[1]


def test_what_the_gates_said_and_how_often_a_test_set_decided_is_in_the_history(project: Path) -> None:
    for weights in ("ab", "cd"):
        _register(project, weights)
    registry = Registry(find_tracker(project), "digits")
    same, other = "a" * 64, "b" * 64

    def judge(test_set: str, refusal: str | None = None) -> Callable[..., Judgement]:
        return lambda *_: Judgement(refusal=refusal, gates=("accuracy passed: 99.0%",), test_set=test_set)

    registry.promote(1, judge=judge(same))
    with pytest.raises(RegistryError):
        registry.promote(2, judge=judge(same, "It is worse."))
    registry.promote(2, judge=judge(same))
    registry.rollback()
    registry.promote(2, judge=judge(other))

    assert (registry.uses(same), registry.uses(other), registry.uses("c" * 64)) == (2, 1, 0)
    assert registry.history()[0].gates == ("accuracy passed: 99.0%",)


def _promote_and_roll_back(project: Path, seed: int, rounds: int, ready: Any) -> None:
    os.chdir(project)
    ready.wait()
    registry = Registry(find_tracker(project), "digits")
    for step in range(rounds):
        with suppress(RegistryError):  # it is the champion already, or there was none before it
            if step % 3 == 2:
                registry.rollback()
            else:
                registry.promote(1 + (seed + step) % 3)


def test_processes_that_promote_at_once_and_are_killed_leave_one_champion_and_a_linear_history(project: Path) -> None:
    for weights in ("ab", "cd", "ef"):
        _register(project, weights)
    processes, context = 8, multiprocessing.get_context("fork")
    ready = context.Barrier(processes)
    children = [
        context.Process(target=_promote_and_roll_back, args=(project, seed, ROUNDS, ready)) for seed in range(processes)
    ]
    for child in children:
        child.start()
    for number, child in enumerate(children[:4]):
        child.join(0.3 + 0.5 * number)
        child.kill()
    for child in children:
        child.join(120)

    registry = Registry(find_tracker(project), "digits")
    entries = registry.history()
    versions = registry.versions()

    assert [child.exitcode for child in children[4:]] == [0] * 4
    champions = [version for version in versions if "champion" in version.aliases]
    assert len(champions) == 1
    assert champions[0].passed
    assert len({version.weights_hash for version in versions}) == len(versions) == 3
    made = [each for each in entries if each.outcome == "done"]
    assert all(each.outcome for each in entries)
    assert len(made) > ROUNDS
    assert [each.before for each in made[1:]] == [each.after for each in made[:-1]]
    assert made[-1].after == champions[0].version


def test_each_database_has_its_own_champion_in_the_record(
    project: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(project)
    shutil.copytree(new_store, project / "other")
    Registry(find_tracker(), "digits").promote(1)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'other/mlflow.db'}")
    client, registry = open_client(find_tracker()), Registry(find_tracker(), "digits")
    client.create_registered_model("digits")
    for _ in range(2):
        client.create_model_version("digits", source=str(project / "other"))
    registry.promote(2, force=True, reason="made by another program")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    Registry(find_tracker(), "digits").history()

    lines = map(json.loads, (project / "mlruns/promotions.jsonl").read_text().splitlines())
    assert {line["tracker"] for line in lines if "tracker" in line} == {
        "local",
        "other/mlflow.db",
    }  # a project may move
    assert [(each.action, each.before, each.after) for each in registry.history()] == [
        ("promote", None, 1),
        ("promote", None, 2),
    ]


def test_an_unknown_version_or_run_is_named(project: Path) -> None:
    registry = Registry(find_tracker(project), "digits")
    with pytest.raises(RegistryError, match=r"There is no model 'digits'[\s\S]*dvc repro"):
        registry.promote(1)
    _register(project)

    with pytest.raises(RegistryError, match="has no version 7; it has 1"):
        registry.promote(7)
    with pytest.raises(TrackingError, match="No run or version is called 'abcd'"):
        find_run(find_tracker(project), "abcd", "digits")


def _die_while_registering(project: Path, metrics: dict[str, Any], run_id: str | None) -> None:
    registry = Registry(find_tracker(project), "digits")
    registry._client.create_model_version = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign]
    bundle = project / "data/out/train/bundle"
    registry.register(bundle, metrics, passed=True, fingerprint="f" * 64, run_id=run_id)


def test_a_register_that_was_killed_half_way_leaves_nothing_double(project: Path) -> None:
    train(project)
    metrics = evaluate(project)
    sync()
    run_id = run_of(project, AB)
    child = multiprocessing.get_context("fork").Process(target=_die_while_registering, args=(project, metrics, run_id))
    child.start()
    child.join(60)

    Registry(find_tracker(), "digits").register(
        project / "data/out/train/bundle", metrics, passed=True, fingerprint="f" * 64, run_id=run_id
    )
    client = open_client(find_tracker(project))
    experiments = [each.experiment_id for each in client.search_experiments()]

    assert child.exitcode == -signal.SIGKILL
    assert list(_aliases(project)) == [1]
    assert len([each for each in client.search_logged_models(experiments) if each.source_run_id == run_id]) == 1


def test_a_champion_that_changed_while_it_was_compared_is_not_replaced(project: Path) -> None:
    _register(project)
    _register(project, "cd")
    registry = Registry(find_tracker(project), "digits")

    def judge(*_: object) -> Judgement:
        open_client(find_tracker(project)).set_registered_model_alias("digits", "champion", "1")  # on another machine
        return Judgement(refusal=None)

    with pytest.raises(RegistryError, match="it was no version and is version 1"):
        registry.promote(2, judge=judge)

    assert _aliases(project) == {2: ("candidate",), 1: ("champion",)}


def test_of_two_clones_that_promote_at_once_one_notices_that_the_champion_changed(
    tracker: FaultyTracker, project: Path, tmp_path: Path
) -> None:
    clones = [project, tmp_path / "clone"]
    clones[1].mkdir()
    for weights in ("ab", "cd", "ef"):
        _register(project, weights, name="raced")
    Registry(find_tracker(project), "raced").promote(1)
    judged = threading.Barrier(2)

    def judge(version: Version, champion: Version | None) -> Judgement:
        judged.wait(60)
        return Judgement(refusal=None, gates=(f"{version.version} against {champion and champion.version}",))

    def promote(clone: Path, number: int) -> str:
        try:
            return f"was {Registry(find_tracker(clone), 'raced').promote(number, judge=judge).before}"
        except RegistryError as error:
            return str(error)

    tracker.break_down("slow", only="registered-models/alias")  # after the look at the champion and before it is moved
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(promote, clones, (2, 3)))
    tracker.break_down(None)

    won = ended.index("was 1")
    champion, other = 2 + won, 3 - won
    changed = f"The champion of 'raced' was changed while version {other} was compared with it: it was version 1 and"
    model = open_client(find_tracker()).get_registered_model("raced")
    entries = [Promotions(clone / "mlruns/promotions.jsonl").read()[0][-1] for clone in clones]
    assert f"{changed} is version {champion}. Nothing was changed." in ended[1 - won]
    assert int(model.aliases["champion"]) == champion
    assert [entries[at].outcome for at in (won, 1 - won)] == ["done", "refused"]
    assert [entry.gates[0] for entry in entries] == ["2 against 1", "3 against 1"]
    assert entries[1 - won].gates[1].startswith(changed)
    assert not [tag for tag in model.tags if "changing" in tag]
    assert [doctor_promotions.check(find_tracker(clone))[1] for clone in clones] == [[], []]
    again = Registry(find_tracker(clones[1 - won]), "raced")
    assert again.promote(other).before == champion
    assert [entry.action for entry in again.history()][-2:] == ["elsewhere", "promote"]


def test_a_promotion_that_was_killed_while_it_moved_the_champion_holds_no_other_one_up(
    tracker: FaultyTracker, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    _register(project, name="left")
    open_client(find_tracker()).set_registered_model_tag("left", f"twinrun.changing_champion.{'0' * 32}", "true")
    monkeypatch.setattr(module, "_LEFT_S", 1.0)
    tried, set_tag = list[str](), MlflowClient.set_registered_model_tag

    def noted(client: MlflowClient, name: str, key: str, value: str) -> None:
        tried.extend([key] if "changing" in key else [])
        set_tag(client, name, key, value)

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", noted)

    Registry(find_tracker(), "left").promote(1)

    assert len(tried) == len(set(tried)) > 1  # a tag that stayed would count as left by a killed process
    model = open_client(find_tracker()).get_registered_model("left")
    assert tracker.fault is None
    assert model.aliases["champion"] == "1"
    assert not [tag for tag in model.tags if "changing" in tag]
