"""`twinrun compare`: what it prints, and its page."""

import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from twin_support import first_run, relabel_one

from twinrun.base.errors import DataError, PublishError, RegistryError
from twinrun.base.files import write_json, write_table
from twinrun.cli.main import app
from twinrun.record.journal import Journal
from twinrun.tracking.store import find_tracker, open_client
from twinrun.tracking.sync import sync

MODEL = "twinrun-digits"
Change = Callable[[dict[str, Any]], None]


def another_run(project: Path, name: str, change: Change, *, wrong: int, journal_id: str | None = None) -> str:
    """A run whose card is changed by `change`, and which classifies the first `wrong` test images wrongly."""
    card: dict[str, Any] = json.loads((project / "data/out/train/card.json").read_bytes())
    card["weights_hash"] = name.encode().hex().ljust(64, "0")
    change(card)
    table = pq.read_table(project / "data/out/evaluate/predictions.parquet")
    classes = json.loads(table.schema.metadata[b"classes"])
    labels = [classes.index(label) for label in table["label"].to_pylist()]
    said = [(label + (at < wrong)) % len(classes) for at, label in enumerate(labels)]
    probabilities = np.full((len(said), len(classes)), 0.01)
    probabilities[np.arange(len(said)), said] = 1 - 0.01 * (len(classes) - 1)
    at = table.schema.get_field_index("probabilities")
    table = table.set_column(at, table.schema.field(at), pa.array(list(probabilities), pa.list_(pa.float64())))

    journal = Journal.resume(project, journal_id or uuid.uuid4().hex, name=name, experiment=MODEL)
    out = project / name
    write_json(card, out / "card.json")
    write_json(json.loads((project / "data/out/evaluate/metrics.json").read_bytes()), out / "metrics.json")
    write_table(table, out / "predictions.parquet")
    journal.artifact(out / "card.json")
    for file in ("metrics.json", "predictions.parquet"):
        journal.artifact(out / file, "evaluation")
    journal.end()
    sync(project)
    return journal.id


def with_nothing(_: dict[str, Any]) -> None:
    """The card of the first run, but for its weights."""


def with_epochs(card: dict[str, Any]) -> None:
    card["params"]["train"]["epochs"] = 7
    card["fingerprint_parts"]["params"]["epochs"] = 7


def with_seed(seed: int) -> Change:
    def change(card: dict[str, Any]) -> None:
        card["params"]["train"]["seed"] = seed
        card["fingerprint_parts"]["params"]["seed"] = seed

    return change


def with_other_weights(seed: int) -> Change:
    """Another seed, and a file of pretrained weights of another content under the same name."""

    def change(card: dict[str, Any]) -> None:
        with_seed(seed)(card)
        card["fingerprint_parts"]["params"]["pretrained"] = "mine.safetensors"
        card["fingerprint_parts"]["pretrained"] = {"sha256": f"{seed}" * 64}

    return change


def compared(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *runs: str) -> str:
    monkeypatch.chdir(project)
    capsys.readouterr()
    app(["compare", *runs, "--model", MODEL, "--out", "page.html"], standalone_mode=False)
    return capsys.readouterr().out


def test_a_run_and_itself_are_said_to_be_the_same(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first_run(trained)

    said = compared(trained, capsys, monkeypatch, run, run)

    assert "have the same weights, so they give the same answers" in said
    assert "no answer changed" in said


def test_a_comparison_in_a_read_only_project_is_printed_and_written_where_it_can_be(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first_run(trained)
    monkeypatch.setattr("twinrun.tracking.store.is_read_only", lambda folder: folder == trained / "mlruns")

    said = compared(trained, capsys, monkeypatch, run, run)

    assert "have the same weights" in said
    assert "The page: page.html" in said
    assert "MLflow's store is read-only, so the page was not added to it" in said


def test_a_comparison_with_a_run_that_a_person_deleted_is_printed_and_written(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = first_run(trained)
    open_client(find_tracker(trained)).delete_run(run)

    said = compared(trained, capsys, monkeypatch, run, run)

    assert "have the same weights" in said
    assert "was deleted in MLflow, so the page was not added to it" in said


def test_two_runs_are_compared_on_the_same_images_with_the_one_setting_that_differs_as_the_cause(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = another_run(trained, "good", with_nothing, wrong=0)
    bad = another_run(trained, "bad", with_epochs, wrong=20)

    said = compared(trained, capsys, monkeypatch, good, bad)

    assert "accuracy  100.0% -> 66.7%  (-33.3 points; 95% interval" in said
    assert "It is significantly worse: p < 0.001, McNemar's mid-p." in said
    assert "20 answers changed: 20 correct to wrong, 0 wrong to correct, 0 wrong to another wrong one." in said
    assert "only train.epochs" in said
    assert "it is the cause" in said
    page = (trained / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 20
    assert "http" not in page
    tracker = find_tracker(trained)
    assert any(
        file.path == "comparison/comparison.html"
        for run in open_client(tracker).search_runs(
            [each.experiment_id for each in open_client(tracker).search_experiments()]
        )
        for file in open_client(tracker).list_artifacts(run.info.run_id, "comparison")
    )


def test_runs_that_differ_in_the_seed_alone_are_one_row_with_a_spread(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [another_run(trained, f"seed{seed}", with_seed(seed), wrong=seed) for seed in (1, 2, 0)]
    other = another_run(trained, "other", with_epochs, wrong=20)

    said = compared(trained, capsys, monkeypatch, seeds[0], other, *seeds[1:])
    of_seeds = compared(trained, capsys, monkeypatch, *seeds)

    assert "seed1, seeds 0, 1, 2  ->  " in said
    assert "Another seed alone changes" in said
    assert "only train.epochs (2, now 7) differs" in said  # beside the run with its seed
    assert "3 models on" in of_seeds


def test_a_twin_is_not_counted_as_a_further_seed(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [another_run(trained, name, with_seed(int(name[-1])), wrong=3) for name in ("seed2", "seed1", "twin1")]

    for order in (runs, runs[::-1]):
        said = compared(trained, capsys, monkeypatch, *order)

        assert "seeds 1, 2" in said
        assert "  ->  " in said


def test_the_page_shows_no_picture_that_has_taken_the_name_of_another(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (another_run(trained, f"run{wrong}", with_nothing, wrong=wrong) for wrong in (0, 20))
    file = trained / "data/out/ingest/table.parquet"
    before = file.read_bytes()
    table = pq.read_table(file)
    pixels = table["pixels_sha256"].to_pylist()
    names = table["path"].to_pylist()
    at = table.schema.get_field_index("pixels_sha256")

    write_table(table.set_column(at, table.schema.field(at), pa.array(["0" * 64] * len(pixels))), file)
    replaced = compared(trained, capsys, monkeypatch, good, bad)
    page = (trained / "page.html").read_text(encoding="utf-8")
    write_table(table.set_column(0, table.schema.field(0), pa.array([f"{i:016x}" for i in range(len(names))])), file)
    compared(trained, capsys, monkeypatch, good, bad)
    renamed = (trained / "page.html").read_text(encoding="utf-8")
    file.write_bytes(before)

    assert "20 answers changed" in replaced
    assert "data:image/webp" not in page
    assert renamed.count("data:image/webp") == 20


def test_of_cameras_and_groups_with_as_many_images_the_first_by_name_come_first(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (another_run(trained, f"run{wrong}", with_nothing, wrong=wrong) for wrong in (0, 20))
    file = trained / "data/out/ingest/table.parquet"
    table, before = pq.read_table(file), file.read_bytes()
    names = pa.array(["abc"[at % 3] for at in range(len(table))], pa.string())
    for column in ("camera", "group"):
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), names)
    write_table(table, file)

    compared(trained, capsys, monkeypatch, good, bad)
    file.write_bytes(before)

    page = (trained / "page.html").read_text(encoding="utf-8")
    shown = re.findall(r'<td class="text">((?:camera|group) .)</td><td>20</td>', page)
    assert shown == [f"{column} {name}" for column in ("camera", "group") for name in "abc"]


def test_runs_with_pretrained_weights_of_other_content_are_two_rows_and_the_seed_is_not_the_only_cause(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [another_run(trained, f"seed{seed}", with_other_weights(seed), wrong=seed) for seed in (1, 2)]
    other = another_run(trained, "other", with_epochs, wrong=20)

    said = compared(trained, capsys, monkeypatch, *runs)
    of_three = compared(trained, capsys, monkeypatch, *runs, other)

    assert "pretrained weights mine.safetensors of" in said
    assert "it is the cause" not in said
    assert "3 models on" in of_three


def test_code_that_differs_is_named_with_its_lines_as_the_cause(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_remark(card: dict[str, Any]) -> None:
        card["fingerprint_parts"]["code"]["training/schedule.py"] = "0" * 64
        card["diff"] = ""

    first, other = (
        another_run(trained, f"run{i}", change, wrong=5 * i) for i, change in enumerate((with_nothing, without_remark))
    )

    said = compared(trained, capsys, monkeypatch, first, other)

    assert "code: src/twinrun/training/schedule.py (+1 -0), uncommitted before" in said
    assert "params.yaml" not in said  # whose settings are listed, and do not differ
    assert "only the code (src/twinrun/training/schedule.py) differs, and training is deterministic" in said


def test_data_that_differ_are_counted_and_named_as_the_cause(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = another_run(trained, "first", with_nothing, wrong=0)
    other = another_run(trained, "other", lambda card: relabel_one(trained, card), wrong=5)

    said = compared(trained, capsys, monkeypatch, first, other)

    assert "images: 1 relabelled (test/0/080.bmp from '0' to '1')" in said
    assert "only the data (1 relabelled (test/0/080.bmp from '0' to '1')) differs" in said


def test_diff_prints_what_differs_between_the_same_two_runs(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = another_run(trained, "good", with_nothing, wrong=0)
    bad = another_run(trained, "bad", with_epochs, wrong=20)
    monkeypatch.chdir(trained)

    app(["diff", good, bad, "--model", MODEL], standalone_mode=False)

    assert "train.epochs" in capsys.readouterr().out


def test_a_run_whose_id_begins_with_digits_alone_is_found_by_them(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = another_run(trained, "digits", with_nothing, wrong=0, journal_id="271828" + uuid.uuid4().hex[6:])
    monkeypatch.chdir(trained)

    app(["diff", "2718", run, "--model", MODEL], standalone_mode=False)
    with pytest.raises(RegistryError, match=r"has no version 314159|There is no model"):
        app(["show", "314159", "--model", MODEL], standalone_mode=False)

    assert "are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photo.jpg", "must end with .html"),
        ("a.html", "is a folder"),
        ("b.html", "is a pipe"),
        ("c.html", "is not what this command writes, and would be lost"),
    ],
)
def test_a_page_replaces_nothing_but_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").touch()
    Path("a.html").mkdir()
    os.mkfifo("b.html")
    Path("c.html").write_text("<title>mine</title>")

    with pytest.raises((DataError, PublishError), match=message):
        app(["compare", "1", "2", "--out", name], standalone_mode=False)

    assert Path("b.html").is_fifo()
    assert Path("c.html").read_text() == "<title>mine</title>"


def test_one_run_is_too_few() -> None:
    from twinrun.base.errors import TwinError

    with pytest.raises(TwinError, match="two runs or more"):
        app(["compare", "3"], standalone_mode=False)
