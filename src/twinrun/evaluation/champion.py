"""A new model beside the champion: both on the same images, and the gates that ask whether it may take its place."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinrun.base.errors import DataError, RecordError, TwinrunError
from twinrun.core.arrays import IntArray
from twinrun.core.params import GateParams, RegisterParams
from twinrun.evaluation.comparison import Contender, align
from twinrun.evaluation.gate import (
    CHANGES,
    LOADED,
    SAME_IN_ONNX,
    Gate,
    agreement,
    judge_agreement,
    judge_alone,
    judge_beside,
    judge_expectations,
    judge_latency,
    judge_loaded,
    judge_onnx,
    metrics_row,
    refusal,
)
from twinrun.evaluation.headline import Source
from twinrun.evaluation.predictions import Predictions, read_predictions
from twinrun.evaluation.trial import Question, Trial, try_bundle
from twinrun.models.stored import StoredBundle
from twinrun.record.card import collect_hardware
from twinrun.record.records import MetricsRecord, read_record
from twinrun.tracking.in_use import fetch_bundle
from twinrun.tracking.metric_names import LATENCY
from twinrun.tracking.promotions import Judgement
from twinrun.tracking.registry import CHAMPION, REGISTER, Registry, Version
from twinrun.tracking.runs import fetch_artifact, run_metrics
from twinrun.tracking.store import Tracker

_TRIED = 200  # images
_THEN = "when it was registered"
_AGREEMENT = "test/agreement_"  # and a change of the images, in MLflow
_OUT_OF_FOLD = "out_of_fold.parquet"
_PREDICTIONS = "predictions.parquet"
_PACK, _MANIFEST = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
_TRAIN, _EVALUATE = Path("data/out/train"), Path("data/out/evaluate")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the gates say of the model in the working folder, and what was measured for them.

    `test_set` is the hash of the images that decided. `machine` is the processor that `trial` was measured on.
    """

    gates: list[Gate]
    test_set: str
    trial: Trial
    machine: str
    agreement: Mapping[str, float]


def judge_here(
    root: Path,
    registry: Registry,
    metrics: Mapping[str, Any],
    bundle: StoredBundle,
    params: RegisterParams,
    *,
    mirror: bool,
) -> Judged:
    """Ask every gate of the model in `root`: alone, as it is loaded in a separate process, beside the champion.

    `metrics` are the model's; with `mirror` a mirror image should keep its label. Raises BundleError where the model
    cannot be loaded, and DataError where what evaluate wrote is not of the images of today.
    """
    mine = _predictions_here(root, metrics)
    question, expected = _question(root, mine["test"], mirror)
    trial, machine = try_bundle(bundle, question), str(collect_hardware()["cpu"])
    kept = agreement(trial, expected)
    shares: dict[str, float | None] = {name: kept.get(name) for name in CHANGES if name != "mirror" or mirror}
    away = f"the images ({_PACK}) are not here. Fetch them and ask again: dvc pull && {REGISTER}"
    gates = judge_alone(metrics, params.min_accuracy, params.gates)
    gates.append(Gate(name=LOADED, passed=None, sentence=away) if question is None else judge_loaded(trial, expected))
    gates += _judge_onnx(root, trial, mine["test"])
    gates += judge_agreement(shares, expected, params.gates, away)
    gates += judge_latency(trial.latency_ms, f"on one thread of {machine} (median of {trial.repeats})", params.gates)
    gates += judge_expectations(metrics_row(metrics, trial.latency_ms, shares), params.gates.expectations)
    champion = next((version for version in registry.versions() if CHAMPION in version.aliases), None)
    if champion is not None and champion.weights_hash != bundle.model.weights_hash:
        gates += _judge(root, registry.tracker, champion, mine, params.gates)
    return Judged(
        gates=gates,
        test_set=_deciding(mine).images_hash,
        trial=trial,
        machine=machine,
        agreement=kept,
    )


def _judge_onnx(root: Path, trial: Trial, test: Predictions) -> list[Gate]:
    """The gate on the model's ONNX file; none where the images are not here. Without a file it cannot be judged."""
    from twinrun.dataset.manifest import read_manifest
    from twinrun.dataset.pack import open_pack
    from twinrun.evaluation.onnx_file import onnx_logits

    if trial.onnx is None:
        reason = f"{trial.no_onnx.rstrip('.')}; twinrun serve cannot serve it"
        return [Gate(name=SAME_IN_ONNX, passed=None, sentence=reason)]
    if not (root / _PACK).is_file():
        return []
    rows = read_manifest(root / _MANIFEST).split("test").rows
    return [judge_onnx(onnx_logits(trial.onnx, open_pack(root / _PACK), rows), test)]


def judge_version(
    root: Path, tracker: Tracker, version: Version, champion: Version | None, params: RegisterParams
) -> Judgement:
    """The gates of today for a version that is registered, from what MLflow has of its run.

    The model is not loaded for it: what was measured when it was registered is judged by the limits of today.
    """
    mine: dict[Source, Predictions] = {}
    metrics: Mapping[str, Any] | None = None
    missing = Gate(name="accuracy", passed=None, sentence="MLflow has no metrics.json of its run")
    try:
        if version.run_id is not None:
            mine, metrics = recorded_results(tracker, version.run_id)
    except (DataError, RecordError) as error:
        sentence = f"what MLflow has of its run is damaged ({error}). Evaluate it again: dvc repro -f evaluate"
        missing = replace(missing, passed=False, sentence=sentence)
    gates = [missing] if metrics is None else judge_alone(metrics, params.min_accuracy, params.gates)
    gates += _judge_measured(tracker, version, metrics, mine.get("test"), params.gates)
    if champion is not None and champion.weights_hash != version.weights_hash:
        gates += _judge(root, tracker, champion, mine, params.gates)
    return Judgement(
        refusal=refusal(gates),
        gates=tuple(f"{gate.name} {gate}" for gate in gates),
        test_set=_deciding(mine).images_hash if mine else None,
    )


def _judge_measured(
    tracker: Tracker, version: Version, metrics: Mapping[str, Any] | None, test: Predictions | None, gates: GateParams
) -> list[Gate]:
    """The gates on a version as it was loaded and timed, by what register recorded of it."""
    unknown = f"it was not measured {_THEN}. Registering it again does that"
    measures = {} if version.run_id is None else run_metrics(tracker, version.run_id)
    kept = {name: None if test is None else measures.get(_AGREEMENT + name) for name in CHANGES}
    shares = {name: share for name, share in kept.items() if name != "mirror" or share is not None}
    latency_ms = measures.get(LATENCY)
    judged = [
        Gate(name=LOADED, passed=None, sentence=unknown),
        *judge_agreement(shares, None if test is None else test.at(_tried(test)), gates, unknown, f", {_THEN}"),
        *judge_latency(latency_ms, unknown if latency_ms is None else _THEN, gates),
    ]
    if metrics is not None:
        judged += judge_expectations(metrics_row(metrics, latency_ms, shares), gates.expectations)
    return [_answered_then(version, gate) if gate.passed is None else gate for gate in judged]


def _answered_then(version: Version, gate: Gate) -> Gate:
    """A gate that cannot be judged now, with its answer of when the version was registered, if it has one."""
    answer, _, sentence = version.answer(gate.name).partition(": ")
    passed = {"passed": True, "refused": False}.get(answer)
    return gate if passed is None else replace(gate, passed=passed, sentence=f"{sentence}, {_THEN}")


def used_sentence(uses: int) -> str:
    """How often a test set has decided promotions, for a person: each one makes the next a little less sure."""
    times = "no promotion" if uses == 0 else "one promotion" if uses == 1 else f"{uses:,} promotions"
    return f"This test set has decided {times} so far." + (
        " The more it decides, the more its favourites owe to luck: add test images now and then." if uses > 2 else ""
    )


def measured(judged: Judged) -> str:
    """How long one image takes, and where that was measured."""
    trial = judged.trial
    return (
        f"One image takes {trial.latency_ms:.1f} ms from pixels to probabilities: the median of {trial.repeats} runs "
        f"on one thread of {judged.machine}, in a separate process."
    )


def metrics_of(judged: Judged) -> dict[str, float]:
    """What was measured, by its names in MLflow."""
    return {LATENCY: judged.trial.latency_ms} | {_AGREEMENT + name: share for name, share in judged.agreement.items()}


def _deciding(predictions: Mapping[Source, Predictions]) -> Predictions:
    """The predictions that a model is judged by."""
    return predictions["cross-validation" if "cross-validation" in predictions else "test"]


def _question(root: Path, test: Predictions, mirror: bool) -> tuple[Question | None, Predictions]:
    """Which images to try the model on, at most 200 evenly spread over the test split, and what evaluate said of them.

    No question where the images are not here, which cannot be when DVC runs the stage.
    """
    from twinrun.dataset.manifest import read_manifest

    at = _tried(test)
    if not (root / _PACK).is_file():
        return None, test.at(at)
    split = read_manifest(root / _MANIFEST).split("test")
    if split.ids != test.ids:
        raise DataError(
            f"{_EVALUATE / _PREDICTIONS} has {len(test.ids):,} images that are not the {len(split):,} of the test "
            f"split in {_MANIFEST}. Evaluate again: dvc repro -f evaluate"
        )
    return Question(pack=str(root / _PACK), rows=split.rows[at].tolist(), mirror=mirror), test.at(at)


def _tried(test: Predictions) -> IntArray:
    """Positions of the test images that a model is tried on, evenly spread, shape (n,)."""
    return np.unique(np.linspace(0, len(test.ids) - 1, _TRIED).astype(np.int64))


def _judge(
    root: Path, tracker: Tracker, champion: Version, mine: Mapping[Source, Predictions], gates: GateParams
) -> list[Gate]:
    name = f"the champion (version {champion.version})"
    try:
        theirs = _champions(root, tracker, champion, mine)
        source: Source = (
            "cross-validation" if all("cross-validation" in answers for answers in (mine, theirs)) else "test"
        )
        both = ((name, theirs), ("this model", mine))
        aligned = align([Contender(name=who, members=(answers[source],)) for who, answers in both])
    except (TwinrunError, KeyError) as error:
        reason = str(error) if isinstance(error, TwinrunError) else "the predictions of one of them are not recorded"
        return [
            Gate(
                name="compared with the champion",
                passed=False,
                sentence=f"it cannot be compared with {name}: {reason.rstrip('.')}",
            )
        ]
    return judge_beside(aligned, name, gates)


def _predictions_here(root: Path, metrics: Mapping[str, Any]) -> dict[Source, Predictions]:
    """What the model in `root` predicts, as its stages wrote it."""
    predictions: dict[Source, Predictions] = {"test": read_predictions(root / _EVALUATE / _PREDICTIONS)}
    if metrics.get("accuracy_from") == "cross-validation":
        predictions["cross-validation"] = read_predictions(root / _TRAIN / _OUT_OF_FOLD)
    return predictions


def _champions(
    root: Path, tracker: Tracker, champion: Version, mine: Mapping[Source, Predictions]
) -> dict[Source, Predictions]:
    """The champion's predictions: recorded ones, and computed here where those lack a test image of today."""
    theirs: dict[Source, Predictions] = {}
    with suppress(DataError, RecordError):  # damaged ones are computed again
        if champion.run_id is not None:
            theirs = recorded_results(tracker, champion.run_id)[0]
    if "cross-validation" in theirs and "cross-validation" in mine:
        return theirs
    if "test" not in mine:
        return theirs
    known = theirs.get("test")
    if known is None or set(mine["test"].pixels or mine["test"].ids) - set(known.pixels or known.ids):
        with suppress(TwinrunError):
            theirs["test"] = _scored_here(root, tracker, champion, mine["test"])
    return theirs


def _scored_here(root: Path, tracker: Tracker, champion: Version, mine: Predictions) -> Predictions:
    """The champion's predictions on the test split of this folder. Raises TwinrunError where it takes other images."""
    from twinrun.dataset.manifest import read_manifest
    from twinrun.dataset.pack import open_pack
    from twinrun.evaluation.predict import predict
    from twinrun.models.bundle import load_bundle

    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(fetch_bundle(tracker, champion, Path(folder)))
    images = open_pack(root / _PACK)
    predictions = predict(bundle, images, read_manifest(root / _MANIFEST, len(images)), "test")
    return replace(predictions, pixels=mine.pixels) if predictions.ids == mine.ids else predictions


def recorded_results(tracker: Tracker, run_id: str) -> tuple[dict[Source, Predictions], Mapping[str, Any] | None]:
    """What MLflow has of a run: its predictions, out of fold too where those are its headline, and its metrics.json.

    Raises DataError or RecordError where one of them is damaged, and TrackingError where MLflow fails.
    """
    predictions: dict[Source, Predictions] = {}
    metrics: Mapping[str, Any] | None = None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if table := fetch_artifact(tracker, run_id, f"evaluation/{_PREDICTIONS}", place):
            predictions["test"] = read_predictions(table)
        if file := fetch_artifact(tracker, run_id, "evaluation/metrics.json", place):
            metrics = read_record(MetricsRecord, file, place)
        out_of_fold = metrics is not None and metrics.get("accuracy_from") == "cross-validation"
        if out_of_fold and (table := fetch_artifact(tracker, run_id, _OUT_OF_FOLD, place)):
            predictions["cross-validation"] = read_predictions(table)
    return predictions, metrics
