"""Stage `train`: pack + manifest -> bundle, history and card. Run with `dvc repro train`."""

import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinrun.base.errors import PausedTraining, RecordError, duration, run_main, running_s
from twinrun.base.files import canonical_json, ensure_writable, write_json, write_table, write_text
from twinrun.base.printing import percent, print
from twinrun.core.params import PARAMS, Params, load_params
from twinrun.dataset.prediction_table import beside_table, prediction_table
from twinrun.models.bundle import save_bundle
from twinrun.record.card import (
    Code,
    build_card,
    collect_code,
    collect_dvc_lock,
    collect_environment,
    collect_hardware,
)
from twinrun.record.energy import EnergyMeter, GpuEnergyMeter
from twinrun.record.home import TWIN_OF, TWIN_VARIABLE, home
from twinrun.record.journal import Journal
from twinrun.record.trial import Trial, current_trial
from twinrun.record.trust import remember
from twinrun.tracking.publisher import publishing
from twinrun.training.fit import Trained, announce
from twinrun.training.folds import OutOfFold
from twinrun.training.history import history_csv
from twinrun.training.interruption import StopRequest, training_lock
from twinrun.training.job import Job, prepare_job
from twinrun.training.launch import launch
from twinrun.training.module import EpochScores
from twinrun.training.numerics import describe_gpus, gpu_uuids
from twinrun.training.processes import local_process_count, node_count, rank
from twinrun.training.shards import thread_count

if TYPE_CHECKING:
    import pyarrow as pa

PROJECT = Path()
PACK = Path("data/out/ingest/images.npy")
MANIFEST = Path("data/out/validate/manifest.parquet")
VALIDATION = Path("data/out/validate/journal.jsonl")
OUT = Path("data/out/train")
STATE = Path(".twinrun")


def main() -> None:
    started = datetime.now(UTC) - timedelta(seconds=running_s())
    trial, folder = current_trial() or (None, None)
    out, state, file = (OUT, STATE, PARAMS) if folder is None else (folder, folder, folder / PARAMS)
    stop = StopRequest(trial.pause_after if trial else None)
    stop.install()
    stop.watch_parent()
    notice = launch().check()
    params = load_params(file)
    if rank() > 0:
        with stop.quietly():
            _prepare(params, state).run(stop, on_epoch=lambda *_: None)
        return
    if notice is not None:
        print(f"Warning: {notice}", file=sys.stderr, flush=True)
    code = collect_code(PROJECT, params.track.untracked)
    remember(PROJECT, code.commit, code.diff)
    for line in code.lines():
        print(line, flush=True)
    with training_lock(state):
        stop.check()
        job = _prepare(params, state)
        job.checkpoints.forget_recorded(PROJECT / "dvc.lock")
        ensure_writable(out, needed_bytes=job.bundle_bytes())
        ensure_writable(state, needed_bytes=job.checkpoint_bytes())
        journal = _open_journal(job, params, code, started, trial)
        processes = local_process_count(params.train)
        with publishing(journal, live=trial is None) as publication:
            energy, gpu_energy = EnergyMeter(), GpuEnergyMeter(gpu_uuids(params.train, processes))
            trained = _run(job, stop, journal, out)
            job.require_source()
            digest = _write_model(job, trained, out)
            card = build_card(
                code=code,
                params=asdict(params),
                environment=collect_environment(PROJECT),
                hardware=collect_hardware(describe_gpus()),
                dvc_lock=collect_dvc_lock(PROJECT),
                weights_hash=digest,
                fingerprint=job.fingerprint,
                fingerprint_parts=job.parts,
                threads=thread_count(params.train.threads),
                shards=params.train.shards,
                processes=processes * node_count(),
                machines=node_count(),
                precision=job.parts["numerics"]["precision"],
                started=started,
                wall_time_s=trained.earlier_s + running_s(),
                energy_j=None if trained.resumed else energy.joules(),
                gpu_energy_j=None if trained.resumed else gpu_energy.joules(),
                journal_id=journal.id,
            )
            card["kept_epoch"] = trained.kept_epoch
            if trained.probe is not None:
                card["probe"] = trained.probe.describe()
            write_json(card, out / "card.json")
            _finish(journal, card, out)
            job.checkpoints.finish(out / "journal.jsonl")
    print(_ending(trained, card["wall_time_s"]))
    print(f"Weights hash: {digest}\n{publication.notice() or ''}".rstrip(), flush=True)


def _prepare(params: Params, state: Path) -> Job:
    # A twin computes its features itself; otherwise experiments share those of the project.
    features = (PROJECT if TWIN_VARIABLE in os.environ else home()) / STATE / "features"
    return prepare_job(params.ingest, params.train, PACK, MANIFEST, state / "resume", features)


def _run(job: Job, stop: StopRequest, journal: Journal, out: Path) -> Trained:
    """Train to the end. Where a trial of a sweep pauses, its scores so far are written first."""
    history: list[EpochScores] = []

    def on_epoch(scores: EpochScores, images_per_second: float | None) -> None:
        history.append(scores)
        _tell(scores, images_per_second, journal, job.params.epochs)

    try:
        return job.run(stop, on_epoch)
    except PausedTraining:
        write_text(history_csv(history), out / "history.csv")
        raise


def _open_journal(job: Job, params: Params, code: Code, started: datetime, trial: Trial | None) -> Journal:
    name = f"{params.train.model} on {params.ingest.data_name}"
    if trial is not None:
        name = f"{trial.name} of {trial.sweep}"
    journal = Journal.resume(
        PROJECT,
        job.checkpoints.owner(),
        name=name,
        experiment=params.register.model_name,
        kept=job.checkpoints.journal,
        began_ms=int(started.timestamp() * 1000),
    )
    journal.code(code)
    journal.params(asdict(params))
    journal.tags({"twinrun.fingerprint": job.fingerprint})
    if "pretrained" in job.parts:
        journal.tags({"twinrun.pretrained": f"{params.train.pretrained}, sha256 {job.parts['pretrained']['sha256']}"})
    if TWIN_VARIABLE in os.environ:
        journal.tags({TWIN_OF: os.environ[TWIN_VARIABLE]})
    if trial is not None:
        journal.tags(trial.tags)
    journal.dataset(
        name=params.ingest.data_name,
        digest=sha256(canonical_json(job.parts["data"])).hexdigest(),
        source=params.ingest.path if params.ingest.source == "folder" else params.ingest.source,
        images=len(job.manifest.split("train")),
    )
    try:
        journal.include(VALIDATION)
    except RecordError as error:
        print(f"Warning: MLflow does not get the validation report: {error}", file=sys.stderr, flush=True)
    return journal


def _tell(scores: EpochScores, images_per_second: float | None, journal: Journal, epochs: int) -> None:
    values: dict[str, float] = {name: value for name, value in asdict(scores).items() if name != "epoch"}
    if images_per_second is None:
        journal.metrics(scores.epoch, values)
        return
    journal.metrics(scores.epoch, {**values, "images_per_second": images_per_second})
    announce(scores, images_per_second, epochs)


def _ending(trained: Trained, wall_time_s: float) -> str:
    """How the training ended: the epoch or head whose weights were kept, its validation accuracy, the time it took."""
    kept = trained.history[trained.kept_epoch - 1]
    if trained.probe is not None:
        return f"{trained.probe.summary()}; validation {percent(kept.val_accuracy)}, {duration(wall_time_s)}"
    which = "best" if kept.val_accuracy == max(scores.val_accuracy for scores in trained.history) else "last"
    return f"{which} epoch {kept.epoch}, validation {percent(kept.val_accuracy)}, {duration(wall_time_s)}"


def _write_model(job: Job, trained: Trained, out: Path) -> str:
    write_text(history_csv(trained.history), out / "history.csv")
    write_table(_out_of_fold(trained.out_of_fold, job.manifest.classes), out / "out_of_fold.parquet")
    write_table(beside_table(job.manifest, trained.beside), out / "beside.parquet")
    return save_bundle(
        out / "bundle",
        trained.tensors,
        architecture=job.params.model,
        classes=job.manifest.classes,
        preprocessing=job.preprocessing,
        source=job.source,
    )


def _out_of_fold(scored: OutOfFold | None, classes: tuple[str, ...]) -> "pa.Table":
    """Predictions out of fold; no rows where there are none."""
    none = OutOfFold([], np.empty(0, np.int64), np.empty((0, len(classes))), np.empty(0, np.int64))
    scored = scored or none
    return prediction_table(scored.ids, scored.targets, scored.probabilities, classes, scored.fold)


def _finish(journal: Journal, card: dict[str, Any], out: Path) -> None:
    journal.tags({"twinrun.weights_hash": card["weights_hash"]})
    for name in ("card.json", "history.csv", "out_of_fold.parquet", "beside.parquet", "bundle"):
        journal.artifact(out / name)
    journal.end("FINISHED")
    journal.copy_to(out / "journal.jsonl")


if __name__ == "__main__":
    run_main(main, "train" if rank() == 0 else None)
