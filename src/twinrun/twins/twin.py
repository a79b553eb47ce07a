"""The twin of a run: its code in a worktree, its data by their hashes, trained again and compared with it.

Whatever is missing is reported before anything is computed. The stages run in separate processes, since this module
does not import torch and since they are the run's code, not this one.
"""

import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from twinrun.base.errors import InterruptedTraining, RecordError, TrackingError, TwinError, TwinrunError
from twinrun.base.files import write_json, write_text
from twinrun.base.printing import one_line
from twinrun.core.dependencies import of_another_version
from twinrun.core.yaml import read_yaml
from twinrun.record.card import LOCK, REINSTALL, collect_hardware, installed_gpus, installed_versions, locked_versions
from twinrun.record.home import TWIN_OF, TWIN_VARIABLE
from twinrun.record.journal import FILE, Journal, summarize
from twinrun.record.objects import file_md5, place_copy
from twinrun.record.records import CardRecord, MetricsRecord, read_record, require_plain
from twinrun.record.trust import Ask, minimal_environment, require_trust
from twinrun.tracking.metric_names import TEST_METRICS
from twinrun.tracking.presentation import short
from twinrun.tracking.replay import Published
from twinrun.tracking.runs import RunFacts, fetch_artifact, find_run, writable_run
from twinrun.tracking.store import URI_VARIABLE, Tracker, find_tracker, open_client, require_reachable
from twinrun.tracking.sync import evaluated_weights, sync
from twinrun.tracking.translation import describe
from twinrun.twins.difference import (
    compare_cards,
    compare_metrics,
    compare_packages,
    compare_predictions,
    flat_changes,
    is_deciding,
)
from twinrun.twins.material import (
    MANIFEST,
    NEEDED,
    PACK,
    TABLE,
    Choice,
    Material,
    absolute_source,
    choose,
    compare_data,
    shortened,
)
from twinrun.twins.verdict import TwinReport, Verdict, judge
from twinrun.twins.worktree import require_commit, worktree

TWIN, VERDICT = "twinrun.twin", "twinrun.twin_verdict"
CARD, JOURNAL, METRICS, PREDICTIONS = (
    "data/out/train/card.json",
    "data/out/train/journal.jsonl",
    "data/out/evaluate/metrics.json",
    "data/out/evaluate/predictions.parquet",
)
_STOP_S = 30.0

Say = Callable[[str], None]


def reproduce(
    root: Path,
    reference: str,
    model_name: str,
    *,
    data: Choice = "auto",
    keep: bool = False,
    say: Say = print,
    ask: Ask | None = None,
) -> TwinReport:
    """Make the twin of the run that `reference` names, in .twinrun/twins/, and compare it with the run.

    The twin is a separate run in the same store, and the report is an artifact of both runs. `ask` must agree before
    code runs that is neither in this branch's history nor trusted here. Raises TwinError or RepositoryError, before
    anything is computed, where the run cannot be rebuilt or its code may not run.
    """
    root = root.resolve()
    tracker = find_tracker(root)
    sync(root)
    run = recorded_run(root, tracker, reference, model_name)
    card = _usable_card(run)
    say(f"Run {run.title}, weights {card['weights_hash'][:12]}")
    material = _require_all(root, card, data)
    require_trust(root, card["commit"], card.get("diff") or "", run.tags.get("mlflow.user"), ask)
    report = TwinReport(
        verdict=Verdict(word="different", cause="unknown", reason=""),
        run_id=run.run_id,
        run_name=run.title,
        weights_hash=card["weights_hash"],
        commit=card["commit"],
        data=material.described(),
    )

    def note(text: str) -> None:
        report.notes.append(text)
        say(f"! {text}")

    say(f"  code      commit {card['commit'][:12]}" + (" and its uncommitted changes" if card.get("diff") else ""))
    say(f"  data      {material.described()}")
    for text in _notes_on_data(card, material):
        note(text)
    with (
        _stoppable(),
        worktree(
            root, name=short(run.run_id), commit=card["commit"], diff=card.get("diff") or "", keep=keep
        ) as project,
    ):
        report.folder = str(project) if keep else None
        for name in (*NEEDED, "params.yaml", "dvc.lock", ".dvc/config.local"):
            require_plain(project / name, project)  # a link there could make us write outside the twin's folder
        if (problem := of_another_version(project)) is not None:
            raise TwinError(
                f"{problem} Nothing was computed. Install the run's version of Twinrun in an environment of its own, "
                "and make the twin there."
            )
        _share_cache(root, project)
        for text in [*_place_params(project, card), *_notes_on_environment(root, project, card)]:
            note(text)
        for text in _notes_on_hardware(card):
            note(text)
        stages = _Stages(project, tracker, run.run_id, say)
        problem = _place_data(root, project, card, material, stages)
        files = {name: project / name for name in NEEDED if (project / name).is_file()}
        report.images = material.edited or compare_data(material.recorded, files)
        if problem is not None:
            report.verdict = Verdict(word="different", cause="data", reason=problem)
            _record(tracker, report, None)
            return report
        stages.run("train")
        stages.run("evaluate")
        _compare(root, project, tracker, run, card, report, note)
        synced = sync(project)
        journal_id = _card(project)["journal_id"]
        report.twin_run_id = Published.load(tracker, journal_id).run_id
        report.problem = synced.problem
        _record(tracker, report, journal_id)
    return report


def recorded_run(root: Path, tracker: Tracker, reference: str, model_name: str) -> RunFacts:
    """The run as MLflow has it or, where it is not in MLflow, as its card in this folder records it.

    Raises TrackingError where neither has it.
    """
    try:
        return find_run(tracker, reference, model_name)
    except TrackingError:
        waiting = sorted((root / ".twinrun" / "journals").glob("*/artifacts/card.json"))
        places = [(root / CARD, root / JOURNAL), *((card, card.parents[1] / FILE) for card in waiting)]
        for place, journal in places:
            card, summary = None, None
            with suppress(RecordError):  # sync has reported it
                card, summary = read_record(CardRecord, place, root), summarize(journal)
            if not card or summary is None or summary.journal_id != card.get("journal_id"):
                continue
            state = Published.load(tracker, summary.journal_id)
            ids = [summary.journal_id, *filter(None, [state.run_id])]
            if len(reference) >= 4 and any(known.startswith(reference) for known in ids):
                name = state.title(summary.name)
                return RunFacts(run_id=ids[-1], name=name, status="FINISHED", tags={}, metrics={}, card=card)
        raise


def results_of(root: Path, tracker: Tracker, run: RunFacts, folder: Path) -> tuple[dict[str, Any], Path | None]:
    """The metrics.json of a run, as far as it is available, and its predictions.parquet, copied to `folder`."""
    metrics: dict[str, Any] = {}
    predictions: Path | None = None
    with suppress(TwinrunError):
        require_reachable(tracker)
        if metrics_file := fetch_artifact(tracker, run.run_id, "evaluation/metrics.json", folder):
            metrics = read_record(MetricsRecord, metrics_file, folder) or {}
        predictions = fetch_artifact(tracker, run.run_id, "evaluation/predictions.parquet", folder)
    if not metrics and run.card is not None and evaluated_weights(root) == run.card["weights_hash"]:
        metrics = read_record(MetricsRecord, root / METRICS, root) or {}
        predictions = root / PREDICTIONS if (root / PREDICTIONS).is_file() else None
    if not metrics:
        metrics = {name: run.metrics[stored] for name, stored in TEST_METRICS.items() if stored in run.metrics}
    return metrics, predictions


def packages_of(card: Mapping[str, Any], lock: bytes | None) -> dict[str, str] | None:
    """Package -> version installed for a run: its lock, with the recorded differences; None without that lock."""
    import hashlib

    environment = card.get("environment", {})
    if lock is None or hashlib.sha256(lock).hexdigest() != environment.get("lock_sha256"):
        return None
    packages = locked_versions(lock.decode("utf-8", "replace"))
    for name, versions in environment.get("differing", {}).items():
        if versions["installed"] is None:
            packages.pop(name, None)
        else:
            packages[name] = versions["installed"]
    return packages


def _usable_card(run: RunFacts) -> dict[str, Any]:
    card = run.card
    if card is None:
        raise TwinError(
            f"The run {run.title} ({run.status}) has no card: its training did not finish, so there is "
            "nothing to compare a twin with."
        )
    missing = [name for name in ("weights_hash", "commit", "params", "fingerprint_parts") if not card.get(name)]
    if missing:
        raise TwinError(f"The card of run {run.title} lacks {', '.join(missing)}, so it cannot be rebuilt.")
    return card


def _card(project: Path) -> dict[str, Any]:
    """The card of the model in a folder."""
    card = read_record(CardRecord, project / CARD, project)
    if card is None:
        raise TwinError(f"{project / CARD} is missing: the training there wrote no card.")
    return card


def _require_all(root: Path, card: Mapping[str, Any], choice: Choice) -> Material:
    """Find commit and data; raise TwinError with everything that is missing."""
    problems = []
    try:
        require_commit(root, card["commit"])
    except TwinrunError as error:
        problems.append(str(error))
    material = choose(root, card, choice)
    problems += material.problems
    if problems:
        listed = "\n".join(f"- {problem}" for problem in [*problems, *material.notes])
        raise TwinError(f"This run cannot be rebuilt; nothing was computed.\n{listed}")
    return material


def _notes_on_data(card: Mapping[str, Any], material: Material) -> Iterator[str]:
    yield from material.notes
    if material.edited:
        where = "the source" if material.kind == "source" else "data/out"
        yield (
            f"Images that the run used have changed in {where} since: {'; '.join(shortened(material.edited, 5))}. "
            "The twin is trained on the images as they are now; with `--data recorded` on the run's own data."
        )
    if left_out := card.get("untracked_left_out"):
        yield f"The twin lacks what was not committed of these files, since the run's card lacks it: {_some(left_out)}."


def _place_params(project: Path, card: Mapping[str, Any]) -> list[str]:
    """Write the card's settings to params.yaml, if it has others; returns a note about them."""
    from ruamel.yaml.error import YAMLError

    file = project / "params.yaml"
    try:
        settings = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError):
        settings = {}
    differing = flat_changes(settings, card["params"])
    if not differing:
        return []
    write_json(card["params"], file)  # JSON is YAML
    return [f"params.yaml at the run's commit differs from the card, which is used: {_listed(differing)}."]


def _notes_on_environment(root: Path, project: Path, card: Mapping[str, Any]) -> Iterator[str]:
    """How the environment differs from the run's, or from a lock."""
    installed = installed_versions()
    environment = card.get("environment", {})
    lock = (project / LOCK).read_bytes() if (project / LOCK).is_file() else None
    packages = packages_of(card, lock)
    if packages is None:
        packages = dict(card["fingerprint_parts"].get("environment", {}).get("packages", {}))
        changes = [change for change in compare_packages(packages, installed) if change.name in packages]
    else:
        changes = compare_packages(packages, installed)
    deciding = [change for change in changes if is_deciding(change.name)]
    if environment.get("python") != platform.python_version():
        yield f"The run had Python {environment.get('python')}; this is {platform.python_version()}."
    for change in deciding:
        yield (
            f"The run was trained with {change.name} {change.before or '(none)'}; here {change.after or 'none'} is "
            "installed. The weights may differ; for the run's version, install its requirements.lock."
        )
    if others := [change for change in changes if change not in deciding]:
        yield f"Other packages differ from the run's, but should not change the weights: {_listed(others)}."
    for name, versions in environment.get("differing", {}).items():
        if is_deciding(name):
            yield (
                f"The run's requirements.lock names {name} {versions['locked'] or '(none)'}, but the run was "
                f"trained with {versions['installed'] or 'none'}."
            )
    here = root / LOCK
    if here.is_file():
        wanted = locked_versions(here.read_text(encoding="utf-8", errors="replace"))
        for change in compare_packages(wanted, installed):
            if is_deciding(change.name):
                yield (
                    f"requirements.lock in this folder names {change.name} {change.before or '(none)'}, but "
                    f"{change.after or 'none'} is installed. To fix that: "
                    + (REINSTALL if (root / "Makefile").is_file() else f"pip install -r {LOCK}")
                )


def _notes_on_hardware(card: Mapping[str, Any]) -> Iterator[str]:
    """Whether the processor or GPU is another one, as far as that is known without torch."""
    before, here = card.get("hardware", {}), collect_hardware()
    only_equivalent = 'Another one may round differently, so the best result to expect is "equivalent".'
    if card["fingerprint_parts"].get("numerics", {}).get("device") == "cuda":
        had = [str(gpu.get("gpu") or gpu.get("name")) for gpu in before.get("gpus", [])]
        gpus = [name for name, _ in installed_gpus()]
        if had and not set(had) <= set(gpus):
            yield f"The run was trained on {', '.join(had)}; this has {', '.join(gpus) or 'no GPU'}. {only_equivalent}"
        return
    old, new = set(before.get("cpu_flags", [])), set(here["cpu_flags"])
    if old != new:
        flags = [f"-{name}" for name in sorted(old - new)] + [f"+{name}" for name in sorted(new - old)]
        yield (
            f"The run was trained on {before.get('cpu')}; this is {here['cpu']} ({' '.join(flags)}). {only_equivalent}"
        )
    elif before.get("cpu") != here["cpu"]:
        yield f"The run was trained on {before.get('cpu')}; this is {here['cpu']}, with the same instructions."


def _place_data(
    root: Path, project: Path, card: Mapping[str, Any], material: Material, stages: "_Stages"
) -> str | None:
    """Put pack, table and manifest into the twin's folder; returns a sentence where a stage refuses the data."""
    if material.kind == "source":
        failed = _ingest_again(root, project, card, stages)
        if failed:
            return f"The stage {failed} refuses the data as they are now; see its message above."
    else:
        for name, file in material.files.items():
            place_copy(file, project / name)
    lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
    for stage, names in (("ingest", (PACK, TABLE)), ("validate", (MANIFEST,))):
        outs = [{"path": name, "hash": "md5", "md5": file_md5(project / name)} for name in names]
        lock["stages"][stage] = {"cmd": f"python -m pipeline.{stage}", "outs": outs}
        for entry in outs:
            wanted = card.get("dvc_lock", {}).get(stage, {}).get("outs", {}).get(entry["path"])
            if material.kind == "recorded" and entry["md5"] != wanted:
                raise TwinError(f"{entry['path']} changed while it was copied: the disk or the memory is not reliable.")
    write_json(lock, project / "dvc.lock")  # JSON is YAML; the twin's card reads its data's hashes there
    return None


def _ingest_again(root: Path, project: Path, card: Mapping[str, Any], stages: "_Stages") -> str | None:
    """Ingest and validate the source as it is now; returns the name of the stage that failed, if one did."""
    file = project / "params.yaml"
    kept = file.read_bytes()
    write_json({**card["params"], "ingest": absolute_source(root, card["params"]["ingest"])}, file)
    try:
        for stage in ("ingest", "validate"):
            if stages.exit_code(stage) != 0:
                return stage
    finally:
        file.write_bytes(kept)
    return None


class _Stages:
    """Runs stages of the twin's code, each in a separate process."""

    def __init__(self, project: Path, tracker: Tracker, run_id: str, say: Say) -> None:
        self._project, self._say = project, say
        self._environment = {
            **minimal_environment(),
            "PYTHONPATH": str(project / "src"),
            # Without the password: what the twin cannot publish itself, this process publishes afterwards.
            URI_VARIABLE: tracker.shown,
            TWIN_VARIABLE: run_id,
        }

    def run(self, stage: str) -> None:
        """Raise TwinError where the stage fails, InterruptedTraining where it was stopped."""
        code = self.exit_code(stage)
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise InterruptedTraining("The twin was stopped.", code - 128)
        if code != 0:
            raise TwinError(f"The twin's stage {stage} failed (exit code {code}); see its message above.")

    def exit_code(self, stage: str) -> int:
        """Run the stage and wait for it; an interruption ends the stage too."""
        self._say(f"\nTwin: {stage}")
        sys.stdout.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{stage}"], cwd=self._project, env=self._environment
        )
        try:
            return process.wait()
        except BaseException as error:
            # Ctrl-C at a terminal reached it too; a second signal would end it before it has told MLflow.
            if isinstance(error, KeyboardInterrupt):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_S / 6)
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM becomes an exception, so that the worktree is removed before the process ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise InterruptedTraining("The twin was stopped by SIGTERM.", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _share_cache(root: Path, project: Path) -> None:
    """Let `dvc` in the twin's folder use the project's cache, for a person who keeps the folder."""
    local = root / ".dvc" / "config.local"
    settings = local.read_text(encoding="utf-8") if local.is_file() else ""
    if (project / ".dvc").is_dir() and "[cache]" not in settings:
        write_text(f"{settings}\n[cache]\n    dir = {root / '.dvc' / 'cache'}\n", project / ".dvc" / "config.local")


@contextmanager
def continuing(what: str, note: Say) -> Iterator[None]:
    """Report a file of results that cannot be read, and go on without it: the weights can be compared all the same."""
    try:
        yield
    except TwinrunError as error:
        note(f"The {what} could not be compared. {error}")


def _compare(
    root: Path, project: Path, tracker: Tracker, run: RunFacts, card: Mapping[str, Any], report: TwinReport, note: Say
) -> None:
    """Fill in the differences between run and twin, and the verdict."""
    from twinrun.dataset.prediction_table import read_predictions

    twin = _card(project)
    lock = (project / LOCK).read_bytes() if (project / LOCK).is_file() else None
    packages = packages_of(card, lock)
    report.differences = compare_cards(
        card, twin, (packages, installed_versions()) if packages is not None else (None, None)
    )
    report.twin_weights_hash, report.twin_wall_time_s = twin["weights_hash"], twin.get("wall_time_s")
    with tempfile.TemporaryDirectory() as folder, continuing("metrics", note):
        metrics, predictions = results_of(root, tracker, run, Path(folder))
        if predictions is not None:
            with continuing("predictions", note):
                before, after = read_predictions(predictions), read_predictions(project / PREDICTIONS)
                report.predictions, report.compared = compare_predictions(before, after)
        report.metrics = compare_metrics(metrics, read_record(MetricsRecord, project / METRICS, project) or {})
    report.verdict = judge(card["weights_hash"], twin["weights_hash"], report.differences, report.metrics)
    if report.verdict.cause == "data" and report.images:
        images = "; ".join(shortened(report.images, 3))
        reason = f"{report.verdict.reason.removesuffix('.')}: {images}."
        report.verdict = replace(report.verdict, reason=reason)
    elif report.verdict.word == "identical" and report.images:
        report.verdict = replace(
            report.verdict, reason=f"{report.verdict.reason} Images changed, but none that decides the weights."
        )


def _record(tracker: Tracker, report: TwinReport, journal_id: str | None) -> None:
    """Record the verdict on both runs, or, where MLflow cannot be reached, in the twin's journal and the report."""
    if report.problem is None:
        try:
            _record_in_mlflow(tracker, report)
            return
        except Exception as error:  # of any kind: the verdict is known
            report.problem = describe(error, tracker.uri)
    folder = tracker.home / ".twinrun" / "journals" / str(journal_id)
    if journal_id is not None and folder.is_dir():
        journal = Journal(folder)
        journal.tags({TWIN_OF: report.run_id, VERDICT: report.verdict.tag})
        journal.text("report.md", report.markdown(), "twin")
        journal.close()


def _record_in_mlflow(tracker: Tracker, report: TwinReport) -> None:
    require_reachable(tracker)
    client = open_client(tracker)
    tags = {report.run_id: {VERDICT: report.verdict.tag, TWIN: report.twin_run_id or ""}}
    if report.twin_run_id:
        tags[report.twin_run_id] = {VERDICT: report.verdict.tag, TWIN_OF: report.run_id}
    folder = "twin" if report.twin_run_id is None else f"twin/{short(report.twin_run_id)}"
    with tempfile.TemporaryDirectory() as temporary:
        write_text(report.markdown(), Path(temporary, "report.md"))
        write_json(report.json(), Path(temporary, "report.json"))
        for run_id, values in tags.items():
            if writable_run(tracker, run_id) is None:
                report.problem = f"the run {short(run_id)} was deleted there, so nothing was added to it."
                continue
            client.log_artifacts(run_id, temporary, folder)
            for name, value in values.items():
                client.set_tag(run_id, name, value)


def _listed(changes: list[Any], most: int = 8) -> str:
    more = f" and {len(changes) - most} more" if len(changes) > most else ""
    return (
        ", ".join(f"{change.name} {change.before or '(none)'} -> {change.after or 'none'}" for change in changes[:most])
        + more
    )


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(map(one_line, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
