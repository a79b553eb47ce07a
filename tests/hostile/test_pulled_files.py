"""A hostile clone: a colleague's commit and `dvc pull` brought journals, cards, locks and links that nobody trained.

Whatever they hold: nothing outside the project is read or written, nothing of theirs reaches MLflow, and the answer is
a sentence that names the file.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tracking_support import evaluate, runs, train, validate

from pipeline import register
from twinrun.base.errors import RecordError, run_main
from twinrun.base.files import file_sha256, write_json, write_text
from twinrun.record.card import collect_environment
from twinrun.record.journal import Journal, read_events
from twinrun.tracking.store import find_tracker, open_client

JOURNAL = Path("data/out/train/journal.jsonl")
CARD = Path("data/out/train/card.json")
METRICS = Path("data/out/evaluate/metrics.json")
EVALUATION = Path("data/out/evaluate/journal.jsonl")
VALIDATION = Path("data/out/validate/journal.jsonl")
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=\n"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
DEEP = "[" * 100_000 + "]" * 100_000

Attack = Callable[[Path, Path], None]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What lies beside the project and is nobody's business."""
    folder = tmp_path / "home"
    write_text(SECRET, folder / ".ssh/id_rsa")
    write_text("alias ls=ls\n", folder / ".bashrc")
    return folder


@pytest.fixture
def clone(tracked_project: Path) -> Path:
    """A project as a pull leaves it: results of every stage, nothing of them in this store, no journal that waits."""
    validate(tracked_project)
    journal = train(tracked_project)
    evaluate(tracked_project)
    shutil.rmtree(journal.folder)
    return tracked_project


def events(change: Callable[[dict[str, Any], Path], None], kind: str = "artifact", journal: Path = JOURNAL) -> Attack:
    """An attack that changes each event of a kind in the pulled journal."""

    def attack(project: Path, outside: Path) -> None:
        lines = [json.loads(line) for line in (project / journal).read_text().splitlines()]
        for event in lines:
            if event["event"] == kind:
                change(event, outside)
        write_text("".join(json.dumps(event) + "\n" for event in lines), project / journal)

    return attack


def text(place: Path, content: str) -> Attack:
    """An attack that replaces a file."""
    return lambda project, _: write_text(content, project / place)


def field(place: Path, name: str, value: Any) -> Attack:
    """An attack that sets one field of a JSON file."""
    return lambda project, _: write_json({**json.loads((project / place).read_text()), name: value}, project / place)


def link(place: Path, target: str) -> Attack:
    """An attack that puts a link to something outside in the place of a result."""

    def attack(project: Path, outside: Path) -> None:
        shutil.rmtree(project / place, ignore_errors=True)
        (project / place).unlink(missing_ok=True)
        (project / place).symlink_to(outside / target)

    return attack


def secret_as_artifact(event: dict[str, Any], outside: Path) -> None:
    event.update(source=f"../{outside.name}/.ssh/id_rsa", sha256=file_sha256(outside / ".ssh/id_rsa"))


def secret_by_its_place(event: dict[str, Any], outside: Path) -> None:
    event.update(source=str(outside / ".ssh/id_rsa"), sha256=file_sha256(outside / ".ssh/id_rsa"))


def diff_outside(event: dict[str, Any], outside: Path) -> None:  # noqa: ARG001
    event.update(source="uncommitted.diff", path="../../../../home/uncommitted.diff")


def file_of_the_project(event: dict[str, Any], outside: Path) -> None:  # noqa: ARG001
    event.update(source="mlruns/mlflow.db", sha256=file_sha256(Path("mlruns/mlflow.db")))


def in_a_linked_bundle(project: Path, outside: Path) -> None:
    """A folder among the results, one file of which is a link."""
    (project / "data/out/train/bundle/notes.txt").symlink_to(outside / ".ssh/id_rsa")
    names = ("model.json", "notes.txt", "weights.safetensors", "manifest.json")
    hashes = {name: file_sha256(project / "data/out/train/bundle" / name) for name in names[:-1]}
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    events(lambda event, _: event.update(sha256=digest) if event["path"] == "bundle" else None)(project, outside)


def waiting(change: Callable[[Path, Path], None]) -> Attack:
    """An attack by a journal that waits, which somebody committed below .twinrun/journals."""

    def attack(project: Path, outside: Path) -> None:
        journal = Journal.create(project, name="mlp on x", experiment="twinrun-digits")
        journal.artifact(project / CARD)
        journal.end()
        change(journal.folder, outside)

    return attack


def linked_artifact(folder: Path, outside: Path) -> None:
    (folder / "artifacts/card.json").unlink()
    (folder / "artifacts/card.json").symlink_to(outside / ".ssh/id_rsa")


def linked_folder(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder / "artifacts")
    (folder / "artifacts").symlink_to(outside)


def climbing_artifact(folder: Path, outside: Path) -> None:
    text = (folder / "journal.jsonl").read_text()
    write_text(
        text.replace('"path":"card.json"', f'"path":"../../../../../{outside.name}/.ssh"'), folder / "journal.jsonl"
    )


def quoted_name(folder: Path, outside: Path) -> None:  # noqa: ARG001
    folder.rename(folder.with_name("x' or '1'='1"))


ATTACKS: dict[str, Attack] = {
    "an artifact that climbs out": events(secret_as_artifact),
    "an artifact by its absolute place": events(secret_by_its_place),
    "an artifact kept outside": events(diff_outside),
    "an artifact kept at an absolute place": events(
        lambda event, out: event.update(path=str(out / "uncommitted.diff"))
    ),
    "an artifact that MLflow is to put elsewhere": events(lambda event, _: event.update(to="../../../x")),
    "an artifact that is another file of the project": events(file_of_the_project),
    "an artifact whose hash is a path": events(lambda event, _: event.update(sha256="../../../x")),
    "a journal named as a path": events(lambda event, _: event.update(journal_id="../../../home/x"), "run"),
    "a journal named with a quote": events(lambda event, _: event.update(journal_id="x' or '1'='1"), "run"),
    "a run without a process": events(lambda event, _: event.pop("process"), "run"),
    "a process whose number is a path": events(lambda event, _: event["process"].update(pid="../../dev/zero"), "run"),
    "an experiment that is a list": events(lambda event, _: event.update(experiment=["x"]), "run"),
    "metrics that are a list": events(lambda event, _: event.update(values=[1]), "metrics"),
    "a metric that is a text": events(lambda event, _: event.update(values={"loss": "rm -rf"}), "metrics"),
    "an end that is none": events(lambda event, _: event.update(status="SUCCESS"), "end"),
    "an event of an unknown kind": events(lambda event, _: event.update(event="command"), "params"),
    "a journal that is not JSON": text(JOURNAL, "{\n"),
    "a journal of lists": text(JOURNAL, "[]\n[]\n"),
    "a journal nested without end": text(JOURNAL, DEEP + "\n"),
    "a journal that is a link": link(JOURNAL, ".ssh/id_rsa"),
    "a journal that is a link to a device": lambda project, _: link(JOURNAL, "zero")(project, Path("/dev")),
    "a card that is a link": link(CARD, ".ssh/id_rsa"),
    "a bundle that is a link": link(Path("data/out/train/bundle"), ".ssh"),
    "a link in a bundle": in_a_linked_bundle,
    "metrics that are a link": link(METRICS, ".ssh/id_rsa"),
    "predictions that are a link": link(Path("data/out/evaluate/predictions.parquet"), ".ssh/id_rsa"),
    "a report that is a link": link(Path("data/out/evaluate/report"), ".ssh"),
    "a page of a report that is a link": link(Path("data/out/evaluate/report/index.html"), ".ssh/id_rsa"),
    "a validation report that is a link": link(Path("data/out/validate/report"), ".ssh"),
    "a validation result that is a link": link(Path("data/out/validate/result.json"), ".ssh/id_rsa"),
    "metrics that are a list of results": text(METRICS, "[]"),
    "metrics nested without end": text(METRICS, DEEP),
    "an accuracy that is a text": field(METRICS, "accuracy", "\x1b[31m1"),
    "intervals that are a number": field(METRICS, "intervals", 1),
    "classes that are a text": field(METRICS, "per_class", "x"),
    "an evaluation whose table is a text": events(lambda event, _: event.update(rows="x"), "table", EVALUATION),
    "an evaluation whose table has a number that JSON lacks": events(
        lambda event, _: event.update(rows=[{"label": "0", "recall": float("inf")}]), "table", EVALUATION
    ),
    "an artifact inside another one": events(
        lambda event, _: event.update(path="card.json/bundle") if event["path"] == "bundle" else None
    ),
    "an evaluation with another file": events(file_of_the_project, journal=EVALUATION),
    "an evaluation nested without end": text(EVALUATION, DEEP + "\n"),
    "an evaluation that is a link": link(EVALUATION, ".ssh/id_rsa"),
    "a validation that is a link": link(VALIDATION, ".ssh/id_rsa"),
    "a validation that is part of a path": events(lambda event, _: event.update(part_of="../x"), "run", VALIDATION),
    "a waiting journal with a link": waiting(linked_artifact),
    "a waiting journal whose folder is a link": waiting(linked_folder),
    "a waiting journal that climbs out": waiting(climbing_artifact),
    "a waiting journal named with a quote": waiting(quoted_name),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_record_is_named_and_reaches_nothing_outside_the_project(
    attack: Attack, clone: Path, outside: Path, twinrun: Callable[..., str]
) -> None:
    attack(clone, outside)
    before = tree(outside)
    beside = {path.name for path in clone.parent.iterdir()}

    printed = twinrun("sync")

    assert tree(outside) == before
    assert {path.name for path in clone.parent.iterdir()} == beside
    assert "PRIVATE KEY" not in stored(clone)
    assert "Not published:" in printed, printed
    assert "Traceback" not in printed
    assert RAW.search(printed) is None, printed


CARDS: dict[str, str] = {
    "a list": "[]",
    "a number": "7",
    "no JSON": "{",
    "nested without end": DEEP,
    "a weights hash that is a path": '{"weights_hash": "../../x", "fingerprint": "%s"}' % ("f" * 64),
    "a commit that is an option": '{"commit": "--upload-pack=touch pwned"}',
    "params that are a list": '{"params": []}',
    "settings that are a text": '{"params": {"ingest": "x"}}',
    "a source that is a path": '{"params": {"ingest": {"source": "../.."}}}',
    "an output outside": '{"dvc_lock": {"ingest": {"outs": {"../../x": "%s"}}}}' % ("0" * 32),
    "a hash that is a path": '{"dvc_lock": {"ingest": {"outs": {"data/out/ingest/images.npy": "../../../x"}}}}',
    "packages that are a list": '{"environment": {"differing": ["torch"]}}',
    "a package without versions": '{"environment": {"differing": {"torch": {}}}}',
    "memory that is a text": '{"hardware": {"memory_bytes": "much"}}',
    "graphics cards that are a number": '{"hardware": {"gpus": 1}}',
    "a fingerprint of texts": '{"fingerprint_parts": {"numerics": "x"}}',
    "left-out files that are a number": '{"untracked_left_out": 3}',
    "an environment that is null": '{"environment": null}',
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, new_store: Path) -> tuple[Path, str, Path]:
    """A project with one run in its store: its folder, the run's id, and the place of the run's card in the store."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(new_store, folder / "mlruns")
    shutil.copy(Path(__file__).parents[2] / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(folder)
        evaluate(folder)
        register.main()
        (run,) = runs(folder)
    return folder, run.id, next((folder / "mlruns/artifacts").rglob("card.json"))


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_from_a_tracker_that_twinrun_never_wrote_is_one_sentence(
    card: str, published: tuple[Path, str, Path], twinrun: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run_id, place = published
    monkeypatch.chdir(folder)
    honest = {"weights_hash": "ab" * 32, "fingerprint": "f" * 64}
    place.write_text(json.dumps({**honest, **json.loads(card)}) if card.startswith('{"') else card)

    printed = {
        command[0]: twinrun(*command) for command in (("show", run_id), ("diff", run_id, "1"), ("reproduce", run_id))
    }

    for command, text in printed.items():
        assert f"card.json of run {run_id}" in text, (command, text)
        assert "Traceback" not in text


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", DEEP, '{"name": "x\' or 1", "version": 1, "weights_hash": "%s"}' % ("a" * 64), '{"name": 1}'],
    ids=["list", "empty", "deep", "quote", "number"],
)
def test_doctor_names_a_registration_that_twinrun_never_wrote(
    content: str, clone: Path, twinrun: Callable[..., str]
) -> None:
    write_text(content, clone / "data/out/register/registered.json")

    printed = twinrun("doctor")

    assert "!!  registry     " in printed
    assert "data/out/register/registered.json is not" in printed


def test_doctor_names_what_dvc_never_wrote_into_its_lock_and_looks_at_nothing_outside(
    clone: Path, twinrun: Callable[..., str]
) -> None:
    (clone / ".dvc").mkdir()
    write_text("[core]\n    no_scm = true\n", clone / ".dvc/config")
    outs = [{"path": "../home/.bashrc", "md5": "0" * 32}, {"path": "data/out", "md5": "../../x"}, 7]
    write_json({"stages": {"train": {"outs": outs}, "evaluate": []}}, clone / "dvc.lock")

    printed = twinrun("doctor", "--deep")

    assert "dvc.lock cannot be used: an entry that DVC does not write: outs of train: {'md5': '0000" in printed
    assert "'path': '../home/.bashrc'}" in printed
    assert "outs of train: 7" in printed


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghijkl")
)
LOCKS = {
    "a date that does not exist": ("made: 2025-31-12\n", "it is not YAML"),
    "a number without end": (f"stages: {{train: {{outs: [0x{'f' * 9000}]}}}}\n", "it is not YAML"),
    "aliases of aliases": (f"{LAUGHS}stages: {{train: {{outs: [*l]}}}}\n", "outs of train: [[["),
    "a stage with a name of several lines": ('stages: {"train\\nforged": {outs: [7]}}\n', r"outs of train\nforged: 7"),
    "a stage that is named by a list": ("stages: {? [a] : {outs: [7]}}\n", "a stage called ('a',)"),
}


@pytest.mark.parametrize(("content", "fault"), LOCKS.values(), ids=LOCKS)
def test_a_lock_that_dvc_never_wrote_stops_no_command_and_doctor_names_what_is_wrong(
    content: str, fault: str, clone: Path, twinrun: Callable[..., str]
) -> None:
    (clone / ".dvc").mkdir()
    write_text("[core]\n    no_scm = true\n", clone / ".dvc/config")
    write_text(content, clone / "dvc.lock")

    synced, found = twinrun("sync"), twinrun("doctor")

    assert "Traceback" not in synced
    assert len(runs(clone)) == 1
    assert f"dvc.lock cannot be used: {'' if 'YAML' in fault else 'an entry that DVC does not write: '}{fault}" in found


def test_what_doctor_advises_is_safe_to_paste_whatever_the_lock_of_dvc_says(
    clone: Path, twinrun: Callable[..., str]
) -> None:
    (clone / ".dvc").mkdir()
    write_text("[core]\n    no_scm = true\n", clone / ".dvc/config")
    outs = [{"path": "data/out/$(touch pwned)", "md5": "0" * 32}]
    write_json({"stages": {"train; touch pwned": {"outs": outs}}}, clone / "dvc.lock")
    write_text("x", clone / "data/out/$(touch pwned)")

    missing = twinrun("doctor")
    cached = clone / ".dvc/cache/files/md5/00" / ("0" * 30)
    write_text("y", cached)
    changed = twinrun("doctor", "--deep")
    (clone / "data/out/$(touch pwned)").unlink()
    gone = twinrun("doctor")

    assert "fix: dvc commit 'train; touch pwned'" in missing
    assert "fix: dvc checkout --force 'data/out/$(touch pwned)'" in changed
    assert "dvc repro --force 'train; touch pwned'" in changed
    assert "fix: dvc checkout 'train; touch pwned'" in gone


@pytest.mark.parametrize("config", [b"<<<<<<< HEAD\n[core]\n", b"\xff\xfe"])
def test_a_configuration_that_dvc_cannot_read_is_named_and_is_not_to_be_initialised_again(
    config: bytes, clone: Path, twinrun: Callable[..., str]
) -> None:
    (clone / ".dvc").mkdir()
    (clone / ".dvc/config").write_bytes(config)

    found = twinrun("doctor")

    assert "DVC cannot open" in found
    assert "fix: Correct .dvc/config, or restore it: git checkout .dvc/config" in found
    assert "dvc init" not in found


def test_doctor_creates_no_tables_in_a_database_that_is_empty(clone: Path, twinrun: Callable[..., str]) -> None:
    write_json(
        {"name": "twinrun-digits", "version": 1, "weights_hash": "a" * 64}, clone / "data/out/register/registered.json"
    )
    database = clone / "mlruns/mlflow.db"
    database.write_bytes(b"")

    found = twinrun("doctor")

    assert database.stat().st_size == 0
    assert "lacks" in found


@pytest.mark.parametrize("lock", ["torch==2.0\n".encode("utf-16"), b'torch==2.0 ; frob == "x"\n'])
def test_a_lock_of_packages_that_cannot_be_read_is_recorded_and_named(
    lock: bytes, clone: Path, twinrun: Callable[..., str]
) -> None:
    """PowerShell writes UTF-16 with `pip freeze > requirements.lock`."""
    (clone / "requirements.lock").write_bytes(lock)

    recorded, found = collect_environment(clone), twinrun("doctor")

    assert recorded["lock_sha256"] == hashlib.sha256(lock).hexdigest()
    assert "torch" in recorded["differing"]
    assert "environment could not be checked" not in found
    assert "as requirements.lock says" in found or "not in requirements.lock" in found


def test_register_refuses_results_that_were_never_written_here(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(DEEP, clone / METRICS)

    with pytest.raises(SystemExit):
        run_main(register.main)

    assert "data/out/evaluate/metrics.json is not JSON that Twinrun wrote" in capsys.readouterr().err


def test_links_into_the_cache_of_dvc_are_followed(clone: Path, twinrun: Callable[..., str]) -> None:
    """`dvc config cache.type symlink` makes every output such a link."""
    for place in (JOURNAL, CARD, METRICS):
        md5 = hashlib.md5((clone / place).read_bytes()).hexdigest()
        cached = clone / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        cached.parent.mkdir(parents=True, exist_ok=True)
        (clone / place).rename(cached)
        (clone / place).symlink_to(cached)

    printed = twinrun("sync")

    assert "Not published" not in printed
    (run,) = runs(clone)
    assert "card.json" in run.artifacts
    assert "evaluation/metrics.json" in run.artifacts


def test_a_newer_card_is_shown_and_what_is_unknown_in_it_is_named(clone: Path, twinrun: Callable[..., str]) -> None:
    field(CARD, "favourite_colour", "blue")(clone, clone)
    events(lambda event, _: event.update(sha256=file_sha256(clone / CARD)) if event["path"] == "card.json" else None)(
        clone, clone
    )
    twinrun("sync")
    (run,) = runs(clone)

    printed = twinrun("show", run.id)

    assert re.search(r"unknown entries +favourite_colour", printed)
    assert "blue" not in printed


def test_a_hostile_journal_does_not_keep_an_honest_one_from_being_published(
    clone: Path, outside: Path, twinrun: Callable[..., str]
) -> None:
    honest = Journal.create(clone, name="lenet5 on digits", experiment="twinrun-digits")
    honest.end()
    ATTACKS["a waiting journal with a link"](clone, outside)
    ATTACKS["metrics that are a list of results"](clone, outside)

    printed = twinrun("sync")

    assert honest.id in {run.tags["twinrun.journal_id"] for run in runs(clone)}
    assert printed.count("Not published:") == 2


def test_a_damaged_line_does_not_keep_a_training_from_going_on(clone: Path) -> None:
    journal = Journal.create(clone, name="lenet5 on digits", experiment="twinrun-digits")
    journal.metrics(0, {"val_accuracy": 0.5})
    journal.close()
    with journal.file.open("ab") as file:
        file.write(b"\0\0\0\n")

    resumed = Journal.resume(clone, journal.id)
    resumed.metrics(0, {"val_accuracy": 0.9})
    resumed.metrics(1, {"val_accuracy": 0.6})

    with pytest.raises(RecordError, match="the event at byte"):
        read_events(resumed.file)
    assert resumed.file.read_text(errors="replace").count("val_accuracy") == 2


def tree(folder: Path) -> dict[str, str]:
    return {str(file): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def stored(project: Path) -> str:
    """All that is in the store's artifacts and in the state of the project, as text."""
    assert open_client(find_tracker(project)) is not None
    files = [*(project / "mlruns").rglob("*"), *(project / ".twinrun").rglob("*")]
    return "".join(file.read_bytes().decode("latin-1") for file in files if file.is_file() and not file.is_symlink())
