"""Stage `register`: a bundle and its metrics -> a version in the MLflow registry. Run with `dvc repro register`."""

from pathlib import Path

from twinrun.base.errors import DataError, TrackingError, run_main
from twinrun.base.files import replacing_folder, write_json, write_text
from twinrun.base.printing import print
from twinrun.base.progress import phase
from twinrun.core.params import load_params
from twinrun.evaluation.champion import judge_here, measured, metrics_of, used_sentence
from twinrun.evaluation.conformal import with_calibration
from twinrun.evaluation.gate import not_judged, refusal
from twinrun.evaluation.gate_page import gate_page
from twinrun.record.records import CardRecord, MetricsRecord, Record, read_record
from twinrun.tracking.registry import Registry, check_bundle
from twinrun.tracking.runs import add_to_run, writable_run
from twinrun.tracking.store import find_tracker, require_reachable
from twinrun.tracking.sync import evaluated_weights, run_of, sync, training_data

BUNDLE = Path("data/out/train/bundle")
CARD = Path("data/out/train/card.json")
METRICS = Path("data/out/evaluate/metrics.json")
CALIBRATION = Path("data/out/evaluate/calibration.json")
OUT = Path("data/out/register")


def main() -> None:
    """Register the model once, and say which version it is."""
    settings = load_params()
    params = settings.register
    metrics, card = _record(MetricsRecord, METRICS), _record(CardRecord, CARD)
    if evaluated_weights(Path.cwd()) != card["weights_hash"]:
        raise DataError(f"{METRICS} is of another model than {CARD}. Evaluate this one: dvc repro evaluate")
    bundle = check_bundle(BUNDLE)
    tracker = find_tracker()
    require_reachable(tracker)
    with phase("Publishing to MLflow"):
        report = sync(verify=True)
    if report.failed:
        raise TrackingError("\n".join(report.lines()))

    registry = Registry(tracker, params.model_name)
    with phase("Testing the model"):
        judged = judge_here(Path.cwd(), registry, metrics, bundle, params, mirror=settings.train.augment.flip)
    refused = refusal(judged.gates)
    onnx = judged.trial.onnx
    if onnx is not None and CALIBRATION.is_file():
        calibration = CALIBRATION.read_text(encoding="utf-8")
        onnx = with_calibration(onnx, calibration, card["weights_hash"], len(bundle.model.classes))
    with replacing_folder(OUT / "onnx") as folder:
        if onnx is None:  # it cannot be exported; only `twinrun serve` needs it
            (folder / "none.txt").write_text(f"{judged.trial.no_onnx}\n", encoding="utf-8")
        else:
            (folder / "model.onnx").write_bytes(onnx)
    with phase("Registering the model"):
        version = registry.register(
            BUNDLE,
            metrics,
            passed=refused is None,
            gates={gate.name: str(gate) for gate in judged.gates},
            onnx=onnx,
            fingerprint=card["fingerprint"],
            run_id=writable_run(tracker, run_of(Path.cwd(), card["weights_hash"])),
            data=training_data(Path.cwd()),
            refusal=refused,
        )
    uses = used_sentence(registry.uses(judged.test_set))
    page = gate_page(judged.gates, f"{version.name} version {version.version}", refused, [uses, measured(judged)])
    write_text(page, OUT / "report/index.html")
    if (run_id := writable_run(tracker, version.run_id)) is not None:
        add_to_run(tracker, run_id, OUT / "report/index.html", "registration", metrics_of(judged))

    write_json(
        {"latency_ms": judged.trial.latency_ms, "machine": judged.machine, **judged.agreement}, OUT / "trial.json"
    )
    # Nothing that another training with the same weights would change: the stage would not be run again for it.
    facts = {
        "name": version.name,
        "version": version.version,
        "weights_hash": version.weights_hash,
        "accuracy": metrics["accuracy"],
        "passed": version.passed,
        "refusal": refused,
        "gates": [gate.values() for gate in judged.gates],
        "test_set": judged.test_set,
    }
    write_json(facts, OUT / "registered.json")
    verdict = "has passed" if version.passed else "has not passed"
    if "candidate" in version.aliases:
        verdict += " and is the candidate"
    reason = refused or (
        f"Its accuracy is {metrics['accuracy']:.4f}; at least {params.min_accuracy:g} is required "
        "(register.min_accuracy)."
    )
    print("\n".join([f"{version.name} version {version.version} {verdict}. {reason}", *not_judged(judged.gates), uses]))


def _record(kind: type[MetricsRecord] | type[CardRecord], file: Path) -> Record:
    record = read_record(kind, Path.cwd() / file, Path.cwd())
    if record is None:
        raise DataError(f"{file} is missing. Create it: dvc repro evaluate")
    return record


if __name__ == "__main__":
    run_main(main, "register")
