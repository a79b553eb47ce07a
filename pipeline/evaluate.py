"""Stage `evaluate`: bundle + test images -> metrics, predictions and a report. Run with `dvc repro evaluate`."""

from pathlib import Path

from twinrun.data.manifest import read_manifest
from twinrun.data.pack import open_pack
from twinrun.data.table import read_table
from twinrun.errors import run_main
from twinrun.evaluation.history import read_history
from twinrun.evaluation.metrics import score
from twinrun.evaluation.predict import follow_one, predict
from twinrun.evaluation.predictions import confusion_csv, mistakes, predictions_table
from twinrun.evaluation.report import Mistakes, Model, verdict, write_report
from twinrun.models.bundle import load_bundle
from twinrun.params import load_params
from twinrun.publish import ensure_writable, write_json, write_table, write_text
from twinrun.tracking.sync import sync

IMAGES = Path("data/out/ingest/images.npy")
TABLE = Path("data/out/ingest/table.parquet")
MANIFEST = Path("data/out/validate/manifest.parquet")
BUNDLE = Path("data/out/train/bundle")
HISTORY = Path("data/out/train/history.csv")
OUT = Path("data/out/evaluate")


def main() -> None:
    """Score the bundle on the test split; metrics.json is written last."""
    params = load_params().evaluate
    ensure_writable(OUT, needed_bytes=20_000_000)
    bundle = load_bundle(BUNDLE)
    images, manifest, history = open_pack(IMAGES), read_manifest(MANIFEST), read_history(HISTORY)
    test = manifest.split("test")

    predictions = predict(bundle, images, manifest, "test")
    scores = score(
        predictions.targets,
        predictions.probabilities,
        predictions.classes,
        bins=params.calibration_bins,
        samples=params.bootstrap_samples,
        seed=params.bootstrap_seed,
    )
    worst = mistakes(predictions, params.mistakes_shown)
    worst_rows = test.rows[[mistake.position for mistake in worst]]
    model = Model(
        architecture=bundle.architecture,
        weights_hash=bundle.weights_hash,
        parameters=sum(parameter.numel() for parameter in bundle.network.parameters()),
        bytes=sum(file.stat().st_size for file in BUNDLE.iterdir()),
    )

    write_table(predictions_table(predictions), OUT / "predictions.parquet")
    write_text(confusion_csv(predictions), OUT / "confusion.csv")
    write_report(
        OUT / "report",
        model=model,
        scores=scores,
        predictions=predictions,
        history=history,
        mistakes=Mistakes(
            mistakes=worst, images=images[worst_rows], paths=read_table(TABLE)["path"].take(worst_rows).to_pylist()
        ),
        example=follow_one(bundle, images, test.rows, predictions),
        bins=params.calibration_bins,
        samples=params.bootstrap_samples,
    )
    (OUT / "metrics.json").unlink(missing_ok=True)  # until it is there again, nothing was evaluated
    write_json({"weights_hash": model.weights_hash}, OUT / "model.json")
    write_json(scores.shown(), OUT / "scores.json")
    write_json(
        {
            **scores.headlines(),
            "images": scores.images,
            "parameters": model.parameters,
            "model_bytes": model.bytes,
            **scores.details(),
        },
        OUT / "metrics.json",
    )
    print(f"{verdict(scores)} Report: {OUT / 'report/index.html'}")
    print("\n".join(sync().lines()))


if __name__ == "__main__":
    run_main(main, "evaluate")
