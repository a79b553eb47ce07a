"""A new model beside the champion: both on the same images, and the gates that ask whether it may take its place."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinrun.core.errors import TwinrunError
from twinrun.core.files import read_json
from twinrun.core.params import GateParams
from twinrun.evaluation.comparison import Contender, align
from twinrun.evaluation.gate import Gate, judge_beside
from twinrun.evaluation.headline import Source
from twinrun.evaluation.predictions import Predictions, read_predictions
from twinrun.tracking.in_use import fetch_bundle
from twinrun.tracking.registry import CHAMPION, Registry, Version
from twinrun.tracking.runs import fetch_artifact
from twinrun.tracking.store import Tracker

_OUT_OF_FOLD = "out_of_fold.parquet"
_PREDICTIONS = "predictions.parquet"
_PACK, _MANIFEST = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")
_TRAIN, _EVALUATE = Path("data/out/train"), Path("data/out/evaluate")


def judge_with_champion(
    root: Path, registry: Registry, metrics: Mapping[str, Any], weights_hash: str, gates: GateParams
) -> list[Gate]:
    """The gates that compare the model in `root` with the champion; none where there is no other champion.

    `metrics` are the model's. Where the champion's recorded predictions do not cover the test images of today, its
    bundle is scored on them. A champion that cannot be compared, with other classes for example, makes a gate that is
    not passed, which says why.
    """
    champion = next((version for version in registry.versions() if CHAMPION in version.aliases), None)
    if champion is None or champion.weights_hash == weights_hash:
        return []
    return _judge(root, registry.tracker, champion, _predictions_here(root, metrics), gates)


def judge_version(root: Path, tracker: Tracker, version: Version, champion: Version, gates: GateParams) -> list[Gate]:
    """The same gates for a version that is registered, from what MLflow has of its run."""
    mine = {} if version.run_id is None else recorded_predictions(tracker, version.run_id)
    return [] if champion.weights_hash == version.weights_hash else _judge(root, tracker, champion, mine, gates)


def _judge(
    root: Path, tracker: Tracker, champion: Version, mine: Mapping[Source, Predictions], gates: GateParams
) -> list[Gate]:
    name = f"the champion (version {champion.version})"
    try:
        theirs = _champions(root, tracker, champion, mine)
        source: Source = "cross-validation" if all("cross-validation" in each for each in (mine, theirs)) else "test"
        both = ((name, theirs), ("this model", mine))
        aligned = align([Contender(name=who, members=(each[source],)) for who, each in both])
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
    found: dict[Source, Predictions] = {"test": read_predictions(root / _EVALUATE / _PREDICTIONS)}
    if metrics.get("accuracy_from") == "cross-validation":
        found["cross-validation"] = read_predictions(root / _TRAIN / _OUT_OF_FOLD)
    return found


def _champions(
    root: Path, tracker: Tracker, champion: Version, mine: Mapping[Source, Predictions]
) -> dict[Source, Predictions]:
    """The champion's predictions: recorded ones, and computed here where those lack a test image of today."""
    theirs = {} if champion.run_id is None else recorded_predictions(tracker, champion.run_id)
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
    predictions = predict(bundle, open_pack(root / _PACK), read_manifest(root / _MANIFEST), "test")
    return replace(predictions, pixels=mine.pixels) if predictions.ids == mine.ids else predictions


def recorded_predictions(tracker: Tracker, run_id: str) -> dict[Source, Predictions]:
    """What MLflow has of a run: on the test split, and out of fold where that is its headline; maybe nothing."""
    found: dict[Source, Predictions] = {}
    with tempfile.TemporaryDirectory() as folder, suppress(TwinrunError):
        place = Path(folder)
        if table := fetch_artifact(tracker, run_id, f"evaluation/{_PREDICTIONS}", place):
            found["test"] = read_predictions(table)
        metrics = fetch_artifact(tracker, run_id, "evaluation/metrics.json", place)
        out_of_fold = metrics is not None and read_json(metrics).get("accuracy_from") == "cross-validation"
        if out_of_fold and (table := fetch_artifact(tracker, run_id, _OUT_OF_FOLD, place)):
            found["cross-validation"] = read_predictions(table)
    return found
