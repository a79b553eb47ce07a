"""Stage `evaluate`: bundle + test images -> metrics, predictions and a report. Run with `dvc repro evaluate`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinrun.base.errors import run_main
from twinrun.base.files import ensure_writable, write_json, write_table, write_text
from twinrun.base.printing import print
from twinrun.base.progress import phase
from twinrun.core.arrays import Pixels
from twinrun.core.params import EvaluateParams, load_params
from twinrun.dataset.manifest import Manifest, read_manifest
from twinrun.dataset.pack import open_pack
from twinrun.dataset.table import read_table
from twinrun.evaluation.anatomy import anatomy
from twinrun.evaluation.anatomy_page import anatomy_html
from twinrun.evaluation.beside import read_beside
from twinrun.evaluation.conformal import AnswerScores, calibrate, independent, score_answers, with_traffic
from twinrun.evaluation.headline import choose_headline, read_out_of_fold
from twinrun.evaluation.history import read_history
from twinrun.evaluation.metrics import Scores, score
from twinrun.evaluation.predict import follow_one, outputs_of, predict
from twinrun.evaluation.predictions import Predictions, confusion_csv, mistakes, numbered, predictions_table
from twinrun.evaluation.report import Mistakes, Model, verdict, why_out_of_fold, write_report
from twinrun.models.bundle import Bundle, load_bundle
from twinrun.models.views import plain_network
from twinrun.tracking.stage_journals import journal_evaluation, publish

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = Path("data/out/ingest/images.npy")
TABLE = Path("data/out/ingest/table.parquet")
MANIFEST = Path("data/out/validate/manifest.parquet")
BUNDLE = Path("data/out/train/bundle")
BESIDE = Path("data/out/train/beside.parquet")
HISTORY = Path("data/out/train/history.csv")
OUT_OF_FOLD = Path("data/out/train/out_of_fold.parquet")
OUT = Path("data/out/evaluate")


def main() -> None:
    """Score the bundle on the test split, or out of fold where that is too small; metrics.json is written last."""
    settings = load_params()
    params = settings.evaluate
    ensure_writable(OUT, needed_bytes=20_000_000)
    bundle = load_bundle(BUNDLE)
    images, history = open_pack(IMAGES), read_history(HISTORY)
    manifest = read_manifest(MANIFEST, len(images))
    out_of_fold, beside = read_out_of_fold(OUT_OF_FOLD, manifest), read_beside(BESIDE, manifest)

    split = manifest.split("test")
    with phase("Classifying the test images"):
        test = replace(predict(bundle, images, manifest, "test"), units=split.units)
        facts = read_table(TABLE, len(images))
        answers = _calibrated(bundle, images, facts, manifest, test, settings.serve.alpha)
    plain = plain_network(bundle.network)
    if plain is not bundle.network:
        once = predict(replace(bundle, network=plain), images, manifest, "test")
        beside = replace(beside, plain=float((once.predicted == once.targets).mean()))
    headline = choose_headline(test, out_of_fold, params.cross_validate_below, partial(_scored, params=params))
    worst = mistakes(headline.predictions, params.mistakes_shown)
    worst_rows = manifest.rows_of([headline.predictions.ids[mistake.position] for mistake in worst])
    model = Model(
        architecture=bundle.architecture,
        weights_hash=bundle.weights_hash,
        parameters=sum(parameter.numel() for parameter in bundle.network.parameters()),
        bytes=sum(file.stat().st_size for file in BUNDLE.iterdir()),
    )

    pixels = facts["pixels_sha256"].take(split.rows).to_pylist()
    write_table(predictions_table(replace(test, pixels=pixels)), OUT / "predictions.parquet")
    write_text(confusion_csv(headline.predictions), OUT / "confusion.csv")
    example = follow_one(replace(bundle, network=plain), images, split.rows, test)
    with phase("Writing the report"):
        write_report(
            OUT / "report",
            model=model,
            headline=headline,
            beside=beside,
            history=history,
            mistakes=Mistakes(
                mistakes=worst, images=images[worst_rows], paths=facts["path"].take(worst_rows).to_pylist()
            ),
            example=example,
            bins=params.calibration_bins,
            samples=params.bootstrap_samples,
            answers=answers,
            network=anatomy_html(anatomy(bundle, example.image), name="a test image", model=bundle.architecture),
        )
    (OUT / "metrics.json").unlink(missing_ok=True)  # until it is there again, nothing was evaluated
    write_json({"weights_hash": model.weights_hash}, OUT / "model.json")
    write_json({**headline.shown(), **beside.shown()}, OUT / "scores.json")
    metrics = {**headline.values(), **beside.values(), "parameters": model.parameters, "model_bytes": model.bytes}
    write_json(metrics, OUT / "metrics.json")
    journal_evaluation(OUT, metrics, model.weights_hash)
    print(" ".join(filter(None, (verdict(headline), why_out_of_fold(headline)))))
    for line in beside.sentences(headline.test.accuracy):
        print(line)
    print(f"Report: {OUT / 'report/index.html'}")
    publish()


def _calibrated(
    bundle: Bundle, images: Pixels, facts: "pa.Table", manifest: Manifest, test: Predictions, alpha: float
) -> AnswerScores | None:
    """Write how the model's answers are made, and score them; None where the validation split is too small."""
    split = manifest.split("val")
    outputs, groups = outputs_of(bundle, images, split.rows), numbered(split.units or split.ids)
    calibration = calibrate(*outputs, split.targets, alpha, bundle.weights_hash, groups)
    if calibration is not None and test.logits is not None:
        rows = manifest.split("test").rows
        sizes = np.stack([facts[name].take(rows).to_numpy() for name in ("height", "width")], axis=1)
        calibration = with_traffic(calibration, images, sizes, test.logits, test.features, rows)
    write_json(None if calibration is None else calibration.model_dump(), OUT / "calibration.json")
    if calibration is None or test.logits is None:
        return None
    behind = independent(groups, split.targets, len(test.classes))
    return score_answers(
        calibration, test.logits, test.features, test.targets, test.classes, groups=test.groups, calibrated_on=behind
    )


def _scored(predictions: Predictions, params: EvaluateParams) -> Scores:
    return score(
        predictions.targets,
        predictions.probabilities,
        predictions.classes,
        bins=params.calibration_bins,
        samples=params.bootstrap_samples,
        seed=params.bootstrap_seed,
        groups=predictions.groups,
    )


if __name__ == "__main__":
    run_main(main, "evaluate")
