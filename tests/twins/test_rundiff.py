"""Two runs side by side, as `twinrun diff` prints them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from twin_support import first_run, relabel_one

from twinrun.base.files import write_json, write_table
from twinrun.record.journal import Journal
from twinrun.tracking.store import find_tracker
from twinrun.tracking.sync import sync
from twinrun.twins.rundiff import diff_runs, draw

MODEL = "twinrun-digits"


def printed(project: Path, before: str, after: str) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in draw(diff_runs(project, find_tracker(project), before, after, MODEL)):
        console.print(part)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def another_run(project: Path) -> str:
    """A run with other settings on data of which one image was relabelled, and that says otherwise of one image."""
    card: dict[str, Any] = json.loads((project / "data/out/train/card.json").read_bytes())
    card["weights_hash"] = "ab" * 32
    card["params"]["train"]["epochs"] = 7
    relabel_one(project, card)
    metrics = json.loads((project / "data/out/evaluate/metrics.json").read_bytes())
    metrics["accuracy"] = 0.5
    predictions = pq.read_table(project / "data/out/evaluate/predictions.parquet")
    said = predictions["predicted"].to_pylist()
    said[0] = "1" if said[0] == "0" else "0"
    predictions = predictions.set_column(2, "predicted", pa.array(said))

    journal = Journal.create(project, name="another", experiment=MODEL)
    out = project / "another"
    write_json(card, out / "card.json")
    write_json(metrics, out / "metrics.json")
    write_table(predictions, out / "predictions.parquet")
    journal.artifact(out / "card.json")
    journal.artifact(out / "metrics.json", "evaluation")
    journal.artifact(out / "predictions.parquet", "evaluation")
    journal.end()
    sync(project)
    return journal.id


def test_a_run_and_itself_are_the_same_in_one_line(trained: Path) -> None:
    run_id = first_run(trained)

    text = printed(trained, run_id, run_id)

    assert "are the same: code, params, data, environment, hardware and results." in text
    assert f"{run_id[:8]} mlp on folder and " in text
    assert run_id not in text


def test_params_images_metrics_and_predictions_that_differ_are_listed(trained: Path) -> None:
    text = printed(trained, first_run(trained), another_run(trained))

    assert "The same in both: code, environment, hardware." in text
    assert "train.epochs" in text
    assert "test/0/080.bmp (test): relabelled from '0' to '1'" in text
    assert "0.5000" in text
    assert "images with another prediction: 1 of 60" in text
    assert "test/0/080.bmp  0" in text


def test_predictions_that_cannot_be_read_do_not_lose_the_rest(trained: Path) -> None:
    first, other = first_run(trained), another_run(trained)
    for file in (trained / "mlruns/artifacts").rglob("predictions.parquet"):
        file.write_bytes(b"no table")

    text, same = printed(trained, first, other), printed(trained, first, first)

    assert "and results" not in same
    assert "The predictions could not be compared. " in text
    assert "train.epochs" in text
