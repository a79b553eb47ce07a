"""The facts of the champion's data, kept for later data to be compared with."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tracking_support import evaluate, train

from pipeline import register
from twinrun.data.manifest import write_manifest
from twinrun.data.reference import find_reference
from twinrun.data.table import table_schema
from twinrun.publish import write_json, write_table
from twinrun.tracking.champion_data import REFERENCES, keep_reference
from twinrun.tracking.objects import file_md5
from twinrun.tracking.store import find_tracker

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


def _registered(project: Path, known: bool) -> None:
    md5 = {str(name): file_md5(project / name) if known else "0" * 32 for name in (TABLE, MANIFEST)}
    lock = {
        "ingest": {"outs": {str(TABLE): md5[str(TABLE)]}},
        "validate": {"outs": {str(MANIFEST): md5[str(MANIFEST)]}},
    }
    journal = train(project, end=False)
    card = json.loads((project / "data/out/train/card.json").read_bytes())
    write_json({**card, "dvc_lock": lock}, project / "data/out/train/card.json")
    journal.artifact(project / "data/out/train/card.json")
    journal.end()
    journal.copy_to(project / "data/out/train/journal.jsonl")
    evaluate(project)
    register.main()


def test_the_facts_of_a_champion_are_those_of_the_images_that_it_was_trained_on(project: Path) -> None:
    _registered(project, known=True)

    said = keep_reference(project, find_tracker(project), 1, "twinrun-digits")

    kept = pq.read_table(project / REFERENCES / "twinrun-digits.parquet").to_pylist()
    assert said.startswith("data/reference/twinrun-digits.parquet: ")
    assert [(row["path"], row["label"], row["split"]) for row in kept] == [
        ("0.png", "cat", "train"),
        ("1.png", "dog", "train"),
    ]
    reference = find_reference("auto", project / REFERENCES, "twinrun-digits")
    assert reference is not None
    assert reference.facts["label"] == ["cat", "dog"]


def test_facts_that_are_nowhere_leave_no_reference_of_another_champion(project: Path) -> None:
    _registered(project, known=False)
    other = project / REFERENCES / "twinrun-digits.parquet"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of another")

    said = keep_reference(project, find_tracker(project), 1, "twinrun-digits")

    assert "could not be kept for reference" in said
    assert not other.exists()
    assert find_reference("auto", project / REFERENCES, "twinrun-digits") is None
