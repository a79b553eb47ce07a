"""Every finding is about what is really wrong, and names what fixes it."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock
from tracking_support import REPOSITORY

from twinrun.base.files import write_json
from twinrun.cli import main as cli
from twinrun.doctor.doctor import examine
from twinrun.doctor.findings import Finding
from twinrun.record.card import REINSTALL
from twinrun.record.home import this_process
from twinrun.record.journal import Journal
from twinrun.tracking.store import find_tracker, open_client

PACK, BUNDLE = "data/out/ingest/images.npy", "data/out/train/bundle"
REPORT = "data/out/validate/report"


def findings(project: Path, part: str, *, deep: bool = False) -> list[Finding]:
    """What is found about one part of the set-up."""
    return next(list(check.findings) for check in examine(project, deep=deep) if check.name == part)


def fix(finding: Finding) -> None:
    """Do what the finding says."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(finding.fix, shell=True, check=True, capture_output=True, env={**environment, "PYTHONPATH": "src"})


def dead_process() -> dict[str, object]:
    return {**asdict(this_process()), "started": 1.0}


def test_a_project_in_order_has_no_findings_but_those_of_its_environment(trained: Path) -> None:
    checks = {check.name: list(check.findings) for check in examine(trained, deep=True)}

    checks.pop("environment")  # of whoever runs the tests
    store = checks.pop("store")
    assert not any(checks.values()), checks
    assert "was moved here from" in store[0].problem


def test_images_that_dvc_cannot_read_or_share_are_named_with_what_fixes_it(trained: Path) -> None:
    folder = trained / "data/raw/folder"
    (folder / "train/0/gone.bmp").symlink_to("/nowhere")
    (folder / "twice").symlink_to("train")
    subprocess.run(["git", "rm", "-r", "--quiet", "--cached", "data/raw/folder"], cwd=trained, check=True)

    found = {finding.problem.split(" (")[0]: finding for finding in findings(trained, "source")}
    broken, linked, unshared = sorted(found)
    fix(replace(found[broken], fix=found[broken].fix.partition(": ")[2]))
    fix(found[unshared])

    assert broken == "data/raw/folder has a link that points to no file"
    assert linked == "data/raw/folder has a link to a folder"
    assert "is neither in DVC nor in git" in unshared
    assert findings(trained, "source") == [found[linked]]


def test_a_moved_store_is_fixed_by_what_the_finding_says(trained: Path) -> None:
    (finding,) = findings(trained, "store")

    fix(finding)

    assert findings(trained, "store") == []


def test_a_moved_store_without_a_record_of_its_place_is_found(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix(findings(trained, "store")[0])
    (trained / "mlruns/.location").unlink()
    assert findings(trained, "store") == []

    moved = trained.rename(trained.with_name("moved"))
    monkeypatch.chdir(moved)

    (finding,) = findings(moved, "store")
    assert f"was moved here from {trained / 'mlruns'}" in finding.problem
    fix(finding)
    assert findings(moved, "store") == []


def test_uncommitted_changes_are_named(trained: Path) -> None:
    (trained / "params.yaml").write_text((trained / "params.yaml").read_text() + "\n# a remark\n")

    (finding,) = findings(trained, "code")

    assert "1 file (params.yaml) is not committed" in finding.problem
    assert finding.fix.startswith("git add")


def test_a_package_in_another_version_than_the_locks_is_named(trained: Path) -> None:
    lock = trained / "requirements.lock"
    lock.write_text(lock.read_text().replace("\nnumpy==", "\nnumpy==1."))

    found = findings(trained, "environment")

    assert "numpy" in found[0].problem
    assert found[0].fix == REINSTALL


def test_what_fixes_the_environment_installs_it_again_though_its_mark_is_right(tmp_path: Path) -> None:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name, does in (("uv", f"echo $1 $2 >> '{tmp_path}/asked'"), ("python", f"echo '{tmp_path}'")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)

    for command in ("make setup", "make setup", REINSTALL):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)

    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked.count("pip sync") == 2


def test_secrets_and_images_that_are_untracked_are_named_and_never_added(trained: Path) -> None:
    (trained / ".env").write_text("PASSWORD=x\n")
    (trained / "photo.png").write_bytes(b"pixels")

    secret, image = findings(trained, "code")
    fix(secret)

    assert "1 file (.env) is untracked, not ignored, and named like secrets" in secret.problem
    assert "photo.png" in image.problem
    assert [".gitignore" in f.problem for f in findings(trained, "code")] == [True, False]


def test_a_version_that_is_not_in_the_registry_is_named(trained: Path) -> None:
    facts = {"name": "twinrun-digits", "version": 3, "weights_hash": "ab" * 32}
    write_json(facts, trained / "data/out/register/registered.json")

    (lacking,) = findings(trained, "registry")
    shutil.rmtree(trained / "mlruns")
    (removed,) = findings(trained, "registry")

    assert "names version 3 of twinrun-digits, which sqlite:" in lacking.problem
    assert lacking.fix == removed.fix == "dvc repro -f -s register"
    assert not (trained / "mlruns").exists()


def test_a_training_given_up_a_week_ago_is_told_and_is_no_error(trained: Path) -> None:
    for name, age_s in (("old", 9 * 86400), ("new", 86400)):
        file = trained / ".twinrun/resume" / name / "epoch-00001/state.json"
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(3_000_000))
        for path in (file, *file.parents[:2]):
            os.utime(path, (time.time() - age_s,) * 2)

    (finding,) = findings(trained, "resume")
    fix(finding)

    assert finding.harmless
    assert ".twinrun/resume/old (3.0 MB) is from a training that stopped 9 d ago" in finding.problem
    assert findings(trained, "resume") == []
    assert (trained / ".twinrun/resume/new").exists()


def test_a_finished_training_whose_journal_is_kept_is_none_to_go_on_with(trained: Path) -> None:
    resume = trained / ".twinrun/resume"
    shutil.rmtree(resume, ignore_errors=True)
    for name in ("finished", "stopped"):
        (resume / name / "epoch-00001").mkdir(parents=True)
    (resume / "finished/journal.jsonl").touch()

    stopped = next(check.seen for check in examine(trained) if check.name == "resume")
    subprocess.run(stopped.partition("to discard: ")[2], shell=True, cwd=trained, check=True)
    forgotten = next(check.seen for check in examine(trained) if check.name == "resume")

    assert stopped.startswith("1 stopped training; dvc repro with the same settings resumes; to discard: rm -r ")
    assert stopped.endswith("resume/stopped")
    assert forgotten == "none to resume"


def test_a_journal_that_a_newer_version_may_have_written_is_not_to_be_deleted(trained: Path) -> None:
    journal = Journal.create(trained, name="mlp on digits", experiment="digits")
    journal.close()
    with journal.file.open("a") as file:
        file.write('{"event": "video", "path": "training.mp4"}\n')

    (finding,) = findings(trained, "journals")

    assert "has no readable journal" in finding.problem
    assert finding.fix.startswith("upgrade Twinrun, ")


def test_a_copy_of_a_journal_is_removed_by_what_the_finding_says(trained: Path) -> None:
    journal = Journal.create(trained, name="mlp on digits", experiment="digits")
    journal.end()
    journal.close()
    shutil.copytree(journal.folder, journal.folder.with_name("my backup"))

    copied = next(
        finding for finding in findings(trained, "journals") if "is a copy of another journal" in finding.problem
    )
    fix(copied)

    assert [folder.name for folder in journal.folder.parent.iterdir()] == [journal.id]
    assert copied not in findings(trained, "journals")


def test_outputs_that_a_failed_run_left_deleted_are_restored_by_what_the_finding_says(trained: Path) -> None:
    before = sorted((trained / "data/out/train").rglob("*"))
    shutil.rmtree(trained / "data/out/train")

    (gone,) = findings(trained, "data")
    fix(gone)

    assert "data/out/train/bundle" in gone.problem
    assert "are in dvc.lock and not in the workspace" in gone.problem
    assert sorted((trained / "data/out/train").rglob("*")) == before
    assert findings(trained, "data") == []


def test_images_that_were_changed_since_ingest_read_them_are_named(trained: Path) -> None:
    images = sorted((trained / "data/raw/folder").rglob("*.bmp"))
    images[0].unlink()

    (changed,) = findings(trained, "data")

    assert changed.harmless
    assert "data/raw/folder was changed since ingest read it" in changed.problem
    assert f"it had {len(images)} files" in changed.problem
    assert f"and has {len(images) - 1} files" in changed.problem


def test_code_that_dvc_yaml_does_not_name_is_to_be_added(trained: Path) -> None:
    text = (trained / "dvc.yaml").read_text()
    (trained / "dvc.yaml").write_text(text.replace("src/twinrun/models, src/twinrun/training]", "src/twinrun/models]"))

    (finding,) = findings(trained, "dvc.yaml")

    assert "the deps of train" in finding.problem
    assert "add src/twinrun/training" in finding.problem


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "dvc.yaml",
            "<<<<<<< HEAD\nstages: {}\n=======\n>>>>>>> theirs\n",
            "dvc.yaml cannot be used: git left a merge conflict",
        ),
        ("dvc.yaml", "", "dvc.yaml cannot be used: it has no stages"),
        ("dvc.yaml", "stages: {train: }\n", "the deps of train are not what pipeline/train.py imports: add "),
        ("dvc.yaml", "stages: [train]\n", "dvc.yaml cannot be used: it has no stages"),
        ("pipeline/train.py", "<<<<<<< HEAD\nx = 1\n", "pipeline/train.py cannot be read: line 1: invalid syntax"),
        ("src/twinrun/training/fit.py", "def fit(:\n", "src/twinrun/training/fit.py cannot be read: line 1: "),
    ],
)
def test_stages_and_code_that_cannot_be_read_are_named(name: str, content: str, problem: str, trained: Path) -> None:
    (trained / name).write_text(content)

    found = findings(trained, "dvc.yaml")

    assert [finding for finding in found if problem in finding.problem], found
    assert not any("bug of Twinrun" in finding.fix for finding in found)


def test_a_tracker_that_is_away_is_one_finding_and_the_rest_is_looked_at(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    (finding,) = findings(trained, "tracker")

    assert "cannot be reached" in finding.problem
    assert findings(trained, "data") == []


def test_a_database_of_another_mlflow_is_one_finding_with_one_command(trained: Path) -> None:
    registered = {"name": "twinrun-digits", "version": 1, "weights_hash": "0" * 64}
    write_json(registered, trained / "data/out/register/registered.json")  # which another part looks for in the store
    with closing(sqlite3.connect(trained / "mlruns/mlflow.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")

    findings = [finding for check in examine(trained) for finding in check.findings]

    named = [finding for finding in findings if "written by an older MLflow" in finding.problem]
    assert [finding.fix.count("mlflow db upgrade") for finding in named] == [1]


def test_a_training_that_died_and_one_that_waits_are_fixed_by_sync(trained: Path) -> None:
    waiting = Journal.create(trained, name="one that waits", experiment="twinrun-digits")
    waiting.end()
    waiting.close()
    died = Journal.create(trained, name="one that died", experiment="twinrun-digits")
    died.close()
    event = json.loads(died.file.read_bytes())
    died.file.write_text(json.dumps({**event, "process": dead_process()}) + "\n")

    found = findings(trained, "journals")

    assert {finding.fix for finding in found} == {"twinrun sync"}
    assert any("not yet in MLflow" in finding.problem for finding in found)
    assert any(f"its process {os.getpid()} died" in finding.problem for finding in found)


@pytest.fixture
def locked(trained: Path) -> Iterator[int]:
    """Another process that holds the lock of a training; its number."""
    (trained / ".twinrun").mkdir(exist_ok=True)
    code = "import sys, time, filelock\nwith filelock.FileLock(sys.argv[1]): print(flush=True), time.sleep(60)"
    lock = trained / ".twinrun/train.lock"
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.wait()


def test_a_run_whose_process_died_and_whose_journal_is_gone_is_marked_killed_by_sync(trained: Path) -> None:
    from twinrun.tracking.replay import PROCESS_TAG

    client = open_client(find_tracker(trained))
    experiment = client.get_experiment_by_name("twinrun-digits")
    assert experiment is not None
    tags = {PROCESS_TAG: json.dumps(dead_process()), "twinrun.journal_id": "gone"}
    run_id = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    client.log_metric(run_id, "train_loss", 0.5, timestamp=1_700_000_000_000)

    (finding,) = findings(trained, "runs")
    fix(finding)

    run = client.get_run(run_id)
    assert finding.fix == "twinrun sync"
    assert (run.info.status, run.info.end_time) == ("KILLED", 1_700_000_000_000)
    assert findings(trained, "runs") == []


def test_looking_changes_nothing_not_even_in_a_store_that_was_moved(trained: Path) -> None:
    write_json(
        {"name": "twinrun-digits", "version": 3, "weights_hash": "ab" * 32},
        trained / "data/out/register/registered.json",
    )
    before = (trained / "mlruns/mlflow.db").read_bytes(), (trained / "mlruns/.location").read_bytes()

    for part in ("runs", "registry", "store"):
        findings(trained, part)

    assert ((trained / "mlruns/mlflow.db").read_bytes(), (trained / "mlruns/.location").read_bytes()) == before
    assert "was moved here from" in findings(trained, "store")[0].problem


def test_another_python_than_that_of_the_model_here_is_named(trained: Path) -> None:
    card = json.loads((trained / "data/out/train/card.json").read_bytes())
    card["environment"]["python"] = "3.2.1"
    (trained / "data/out/train/card.json").unlink()
    write_json(card, trained / "data/out/train/card.json")

    found = [finding for finding in findings(trained, "environment") if "Python" in finding.problem]

    assert "trained with Python 3.2.1" in found[0].problem
    assert found[0].fix == "rm -rf .venv && make setup PYTHON=python3.2"


def test_the_command_exits_with_1_where_something_was_found(trained: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": "src", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}

    done = subprocess.run(
        [sys.executable, "-m", "twinrun", "doctor"], cwd=trained, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert "fix: Start it, correct MLFLOW_TRACKING_URI, or unset it" in done.stdout
    assert "Traceback" not in done.stderr


def test_findings_that_one_command_fixes_are_one_with_examples_unless_all_are_wanted(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for number in range(9):
        journal = Journal.create(trained, name=f"waiting {number}", experiment="twinrun-digits")
        journal.end()
        journal.close()
    shutil.rmtree(trained / ".dvc/cache")  # in a clone whose remote cannot be reached it was never filled
    shutil.rmtree(trained / "data/out")

    short, code = _doctor(monkeypatch, capsys)
    long, code_of_all = _doctor(monkeypatch, capsys, "--all")

    number = len(findings(trained, "data"))
    assert code == code_of_all == 1
    assert (short.count(" of waiting "), long.count(" of waiting ")) == (3, 9)
    assert (short.count("so a twin would lack it"), long.count("so a twin would lack it")) == (3, number)
    more = "      and 6 more with the same fix (twinrun doctor --all lists them)\n"
    assert f"{more}      fix: twinrun sync\n" in short
    assert [said.count("fix: dvc repro --force ingest validate train") for said in (short, long)] == [1, 1]
    (trained / ".dvc/config").write_text("[core]\n    remote = s\n['remote \"s\"']\n    url = /nowhere\n")
    assert all(each.fix.startswith("dvc pull ingest validate train") for each in findings(trained, "data"))
    assert "lists them" not in long
    assert short.splitlines()[-1] == long.splitlines()[-1]


def _doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[str, int | str | None]:
    """What the command prints, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["twinrun", "doctor", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return capsys.readouterr().out, ended.value.code


def test_a_lock_that_is_held_names_who_holds_it_and_since_when(trained: Path, locked: int) -> None:
    (finding,) = findings(trained, "locks")

    assert f"train.lock is held by process {locked}, which began" in finding.problem
    assert finding.fix.endswith(f"kill {locked}")


def test_a_lock_file_that_nobody_holds_is_no_finding(trained: Path) -> None:
    with FileLock(trained / ".twinrun/train.lock"):
        pass

    assert findings(trained, "locks") == []


def test_a_twin_that_was_left_behind_is_fixed_by_what_the_finding_says(trained: Path) -> None:
    folder = trained / ".twinrun/twins/left"
    subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(folder)], check=True)
    write_json({"keep": False, "process": dead_process()}, folder.with_name("left.json"))

    (finding,) = findings(trained, "twins")
    fix(finding)

    assert findings(trained, "twins") == []
    assert not folder.exists()


def test_a_bit_flip_in_the_cache_is_seen_only_by_hashing_again(trained: Path) -> None:
    from twinrun.record.card import collect_dvc_lock

    md5 = collect_dvc_lock(trained)["ingest"]["outs"][PACK]
    cached = trained / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.chmod(0o644)
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)

    assert findings(trained, "data") == []
    (finding,) = findings(trained, "data", deep=True)

    subprocess.run(finding.fix.partition(";")[0], shell=True, check=True)

    assert "is damaged" in finding.problem
    assert cached.with_name(f"{cached.name}.changed").read_bytes() == content  # which the workspace may link to
    assert not cached.exists()


def test_a_file_that_dvc_did_not_finish_in_its_cache_is_only_a_hint(trained: Path) -> None:
    unfinished = trained / ".dvc/cache/files/md5/46/.sn Oc.tmp"
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.write_bytes(b"half")

    (finding,) = findings(trained, "data", deep=True)

    assert finding.harmless
    assert ".sn Oc.tmp) is left in the DVC cache" in finding.problem
    assert shlex.split(finding.fix)[:3] == ["rm", "-f", ".dvc/cache/files/md5/46/.sn Oc.tmp"]


def test_all_that_is_wrong_with_the_settings_and_a_merge_conflict_are_named(trained: Path) -> None:
    params = trained / "params.yaml"
    settings = params.read_text()

    params.write_text(settings.replace("  epochs: ", "  epoch: ", 1).replace("  batch_size: ", "  batch: ", 1))
    (of_settings,) = findings(trained, "params")
    params.write_text(f"<<<<<<< HEAD\n{settings}=======\n>>>>>>> theirs\n")
    (of_conflict,) = findings(trained, "params")
    (trained / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n=======\n")
    lock = next(check for check in examine(trained) if check.name == "data")

    assert "train.epoch: not a setting" in of_settings.problem
    assert "train.batch: not a setting" in of_settings.problem
    assert of_settings.fix == of_conflict.fix == "correct params.yaml"
    assert "has a merge conflict, which git left in line 1." in of_conflict.problem
    assert "git left a merge conflict in it" in lock.findings[0].problem
    assert lock.seen == ""


def members(project: Path, out: str) -> dict[str, Path]:
    """Name below a folder that a stage wrote -> place in the cache."""
    from twinrun.record.card import collect_dvc_lock

    cache = project / ".dvc/cache/files/md5"
    md5 = next(facts["outs"][out] for facts in collect_dvc_lock(project).values() if out in facts["outs"])
    entries = json.loads((cache / md5[:2] / md5[2:]).read_bytes())
    return {each["relpath"]: cache / each["md5"][:2] / each["md5"][2:] for each in entries}


def test_a_file_of_a_folder_that_the_cache_lost_is_named_and_fixed_by_a_commit(trained: Path) -> None:
    members(trained, REPORT)["index.html"].unlink()

    (finding,) = findings(trained, "data")
    fix(finding)

    assert f"1 file ({REPORT}/index.html) is in dvc.lock and not in the DVC cache" in finding.problem
    assert findings(trained, "data", deep=True) == []


def test_a_file_of_a_folder_that_was_changed_here_is_seen_by_hashing_and_fixed(trained: Path) -> None:
    for name, content in (("model.json", b"{}"), ("more.json", b"")):
        (trained / BUNDLE / name).unlink(missing_ok=True)  # it may be a link to the cache
        (trained / BUNDLE / name).write_bytes(content)

    shallow, (finding,) = findings(trained, "data"), findings(trained, "data", deep=True)
    fix(finding)

    assert shallow == []
    assert f"{BUNDLE} (2 files (model.json, more.json)" in finding.problem
    assert findings(trained, "data", deep=True) == []


def test_a_file_of_a_folder_that_is_damaged_in_the_cache_names_the_stage_that_makes_it(trained: Path) -> None:
    cached = members(trained, BUNDLE)["weights.safetensors"]
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-1])

    found = findings(trained, "data", deep=True)

    assert any("is damaged" in each.problem and "dvc repro --force train" in each.fix for each in found)


def test_what_is_missing_in_the_cache_and_is_here_is_fixed_by_a_commit(trained: Path) -> None:
    shutil.rmtree(trained / ".dvc/cache")

    found = findings(trained, "data")

    assert any(PACK in finding.problem and finding.fix.startswith("dvc commit ingest ") for finding in found)


def test_a_merge_conflict_in_dvc_lock_is_a_finding(trained: Path) -> None:
    (trained / "dvc.lock").write_text("schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages: []\n>>>>>>> theirs\n")

    assert any("merge conflict" in finding.problem for finding in findings(trained, "data"))
