"""The facts of the champion's data, and later data compared with them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tracking_support import AB, CD, evaluate, train

from pipeline import register
from twinrun.base.errors import run_main
from twinrun.base.files import write_json, write_table
from twinrun.cli.main import app
from twinrun.dataset.manifest import write_manifest
from twinrun.dataset.table import table_schema
from twinrun.record.objects import file_md5

TABLE, MANIFEST = Path("data/out/ingest/table.parquet"), Path("data/out/validate/manifest.parquet")


@pytest.fixture
def project(tracked_project: Path) -> Path:
    """A project with a table of three images, of which one was dropped and one relabelled, and a model."""
    names = table_schema().names
    rows = [dict.fromkeys(names, None) | {"id": str(i), "path": f"{i}.png", "label": "cat"} for i in range(3)]
    write_table(pa.Table.from_pylist(rows, table_schema()), tracked_project / TABLE)
    write_manifest(
        tracked_project / MANIFEST,
        ids=["0", "1", "2"],
        labels=["cat", "dog", "cat"],
        splits=["train"] * 3,
        dropped=[None, None, "leak: identical pixels in a later split"],
        given=["cat"] * 3,
    )
    return tracked_project


def _twinrun(*arguments: str) -> int:
    """Run a command in this process; returns its exit code."""
    try:
        run_main(lambda: app(list(arguments), standalone_mode=False))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _registered(project: Path, known: bool, weights_hash: str = AB) -> None:
    md5 = {str(name): file_md5(project / name) if known else "0" * 32 for name in (TABLE, MANIFEST)}
    lock = {
        "ingest": {"outs": {str(TABLE): md5[str(TABLE)]}},
        "validate": {"outs": {str(MANIFEST): md5[str(MANIFEST)]}},
    }
    journal = train(project, end=False, weights_hash=weights_hash)
    card = json.loads((project / "data/out/train/card.json").read_bytes())
    write_json({**card, "dvc_lock": lock}, project / "data/out/train/card.json")
    journal.artifact(project / "data/out/train/card.json")
    journal.end()
    journal.copy_to(project / "data/out/train/journal.jsonl")
    evaluate(project, weights_hash=weights_hash)
    register.main()


def _cache(project: Path) -> None:
    """Put table and manifest into DVC's cache."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    for name in (TABLE, MANIFEST):
        md5 = file_md5(project / name)
        (project / ".dvc/cache/files/md5" / md5[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, project / ".dvc/cache/files/md5" / md5[:2] / md5[2:])


def test_promote_says_which_class_has_another_name_and_how_many_images_are_gone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = dict.fromkeys(table_schema().names)
    rows = [columns | {"id": str(i), "path": f"{i}.png", "label": "cat", "pixels_sha256": str(i)} for i in range(3)]
    write_table(pa.Table.from_pylist(rows, table_schema()), project / TABLE)
    _registered(project, known=True)
    _twinrun("promote", "1")
    _cache(project)
    write_manifest(
        project / MANIFEST,
        ids=["0", "1", "2"],
        labels=["kitten", "dog", "kitten"],
        splits=["train"] * 3,
        dropped=[None, "a person's decision", None],
        given=["cat"] * 3,
    )
    _registered(project, known=True, weights_hash=CD)

    _twinrun("promote", "2", "--force", "--reason", "try it")

    said = capsys.readouterr().out
    assert 'Class "cat" is renamed to "kitten" (1 identical image).' in said
    assert 'Class "dog" is gone (1 image).' in said
    assert "1 earlier image is gone." in said


def test_the_data_of_the_champion_are_compared_with_those_of_now_and_promoting_writes_no_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _registered(project, known=True)
    before = set((project / "data").rglob("*"))
    _twinrun("promote", "1")
    promoted = set((project / "data").rglob("*"))

    same = _twinrun("data", "drift")
    _cache(project)
    write_manifest(
        project / MANIFEST,
        ids=["0", "1", "2"],
        labels=["cat", "dog", "cow"],
        splits=["train"] * 3,
        dropped=[None, None, None],
        given=["cat"] * 3,
    )
    changed = _twinrun("data", "drift")

    assert promoted == before
    assert (same, changed) == (0, 1)
    said = capsys.readouterr().out
    assert "the same distributions, labels and images as those of the champion" in said
    assert "new label: cow\n" in said
    assert "new image: 2.png\n" in said


def test_facts_of_a_champion_that_are_nowhere_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _registered(project, known=False)
    _twinrun("promote", "1")

    ended = _twinrun("data", "drift")

    assert ended == 2
    assert "are neither in the workspace nor in DVC's cache or remote" in capsys.readouterr().err
