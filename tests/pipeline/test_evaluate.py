"""The stage on real handwritten digits, read back from its files as DVC, MLflow and a person would."""

import contextlib
import csv
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import run_twinrun
from PIL import Image
from stage_support import on_terminal

from twinrun.base.errors import run_main
from twinrun.dataset.manifest import read_manifest
from twinrun.dataset.prediction_table import beside_table
from twinrun.evaluation.conformal import read_calibration
from twinrun.models.bundle import load_bundle, save_bundle
from twinrun.project.presets import write_preset

REPOSITORY = Path(__file__).parents[2]
STAGE = REPOSITORY / "pipeline/evaluate.py"
SIZE_PX = 16
OUT = Path("data/out/evaluate")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is after `train`: 600 digits, and a lenet5 that has seen some of them for a second."""
    return make_trained(tmp_path_factory.mktemp("trained"), images=600, steps=40)


@pytest.fixture
def workspace(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained` of its own, as the current folder."""
    folder = tmp_path / "workspace"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def once_evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained` after the stage; to be copied."""
    folder = tmp_path_factory.mktemp("evaluated") / "workspace"
    shutil.copytree(trained, folder)
    with contextlib.chdir(folder):
        evaluate()
    return folder


@pytest.fixture
def evaluated(once_evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the current folder: what the stage wrote from what is there."""
    folder = tmp_path / "workspace"
    shutil.copytree(once_evaluated, folder)
    monkeypatch.chdir(folder)
    return folder


def make_trained(folder: Path, *, images: int, steps: int, size_px: int = SIZE_PX, model: str = "lenet5") -> Path:
    import torch
    from sklearn.datasets import load_digits

    from twinrun.base.files import write_table
    from twinrun.dataset.manifest import write_manifest
    from twinrun.models.architectures import build_network
    from twinrun.models.bundle import Preprocessing, save_bundle

    digits = load_digits()
    ids = [f"{row:016x}" for row in range(images)]
    labels = [str(label) for label in digits.target[:images]]
    splits = [("train", "train", "test", "val")[row % 4] for row in range(images)]
    small = torch.tensor(digits.images[:images, None] * (255 / 16), dtype=torch.float32)
    pixels = torch.nn.functional.interpolate(small, size=(size_px, size_px), mode="bilinear")
    pack = pixels.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()

    out = folder / "data/out"
    (out / "ingest").mkdir(parents=True)
    np.save(out / "ingest/images.npy", pack)
    write_ingest_table(out / "ingest/table.parquet", ids, labels, write_table)
    write_manifest(out / "validate/manifest.parquet", ids=ids, labels=labels, splits=splits, dropped=[None] * images)

    torch.manual_seed(0)
    network = build_network(model, channels=1, size_px=(size_px, size_px), classes=10, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    rows = torch.tensor([row for row in range(images) if splits[row] == "train"])
    targets = torch.tensor(digits.target)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (64,))]
        loss = torch.nn.functional.cross_entropy(network(pixels[batch] / 255 / 0.3 - 1), targets[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_bundle(
        out / "train/bundle",
        network.state_dict(),
        architecture=model,
        classes=tuple("0123456789"),
        preprocessing=Preprocessing(
            size_px=(size_px, size_px),
            channels="gray",
            fit="pad",
            resample="bilinear",
            max_pixels=10**6,
            mean=(0.3,),
            std=(0.3,),
        ),
    )
    (out / "train/history.csv").write_text(
        "epoch,train_loss,val_loss,val_accuracy,learning_rate\n1,1.9,1.2,0.6,0.003\n2,0.9,0.7,0.8,0.002\n3,0.5,0.4,0.9,0.0\n"
    )
    write_preset(folder, "digits")
    return folder


def write_ingest_table(path: Path, ids: list[str], labels: list[str], write: Callable[[pa.Table, Path], None]) -> None:
    from twinrun.dataset.table import table_schema

    known = {"id": ids, "path": [f"{label}/{id_}.png" for id_, label in zip(ids, labels, strict=True)], "label": labels}
    schema = table_schema()
    columns = [pa.array(known.get(field.name, [None] * len(ids)), field.type) for field in schema]
    write(pa.Table.from_arrays(columns, schema=schema), path)


def evaluate() -> None:
    from pipeline.evaluate import main

    run_main(main)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the stage, which must stop with exit code 1, and return what it says."""
    with pytest.raises(SystemExit) as stopped:
        evaluate()
    assert stopped.value.code == 1
    return capsys.readouterr().err


def hashes(folder: Path) -> dict[str, str]:
    """All files but the journal, which is of one run: it has an id and times."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "journal.jsonl"
    }


def metrics() -> dict[str, Any]:
    return dict(json.loads((OUT / "metrics.json").read_text()))


@pytest.mark.usefixtures("evaluated")
def test_images_of_one_group_count_as_less_evidence_in_the_test_split_and_in_the_calibration() -> None:
    before = json.loads((OUT / "metrics.json").read_text())
    manifest = pq.read_table("data/out/validate/manifest.parquet")
    rights = pq.read_table(OUT / "predictions.parquet").to_pylist()
    groups = {row["id"]: f"{row['label']} {row['label'] == row['predicted']}" for row in rights}  # as of one clip
    clips = {row["id"]: f"clip of {row['label']}" for row in manifest.to_pylist() if row["split"] == "val"}
    units = pa.array([(groups | clips).get(name) for name in manifest["id"].to_pylist()], pa.string())
    place = manifest.column_names.index("unit")
    pq.write_table(manifest.set_column(place, "unit", units), "data/out/validate/manifest.parquet")

    evaluate()

    after = json.loads((OUT / "metrics.json").read_text())
    assert after["accuracy"] == before["accuracy"]
    assert np.ptp(after["intervals"]["accuracy"]) > 2 * np.ptp(before["intervals"]["accuracy"])
    assert (OUT / "calibration.json").read_text() == "null\n"  # ten clips guarantee no coverage of 95%


def test_metrics_hold_each_headline_number_inside_its_interval_and_say_which_weights_they_are_of(
    evaluated: Path,
) -> None:
    written = metrics()
    assert list(written) == [
        "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error", "accuracy_from",
        "test_accuracy", "images", "intervals", "per_class", "score_sets", "parameters", "model_bytes",
    ]  # fmt: skip
    for name, (low, high) in written["intervals"].items():
        assert low <= written[name] <= high
        assert low < high
    trained = json.loads((evaluated / "data/out/train/bundle/model.json").read_text())
    assert json.loads((OUT / "model.json").read_text()) == {"weights_hash": trained["weights_hash"]}
    assert json.loads((OUT / "scores.json").read_text()).items() < written.items()
    assert written["images"] == sum(one["images"] for one in written["per_class"]) == 150
    assert written["model_bytes"] > 4 * written["parameters"] > 0
    assert written["accuracy_from"] == "test"
    assert written["test_accuracy"] == written["accuracy"]


@pytest.mark.usefixtures("evaluated")
def test_predictions_give_the_accuracy_of_the_metrics_and_name_only_test_images() -> None:
    table = pq.read_table(OUT / "predictions.parquet")
    assert table.column_names == ["id", "label", "predicted", "probabilities", "pixels_sha256", "unit"]
    right = [
        label == said for label, said in zip(*table.select(["label", "predicted"]).to_pydict().values(), strict=True)
    ]
    assert np.mean(right) == pytest.approx(metrics()["accuracy"])
    assert np.allclose(np.sum(table["probabilities"].to_pylist(), axis=1), 1)
    assert table["id"].to_pylist() == [f"{row:016x}" for row in range(600) if row % 4 == 2]
    assert json.loads(table.schema.metadata[b"classes"]) == list("0123456789")


def test_the_same_inputs_give_the_same_bytes_in_another_process_with_other_threads_locale_and_styles(
    evaluated: Path,
) -> None:
    first = hashes(OUT)
    shutil.rmtree(OUT)
    style = evaluated / "matplotlibrc"
    style.write_text("font.size: 20\nsavefig.dpi: 50\naxes.facecolor: red\n")

    subprocess.run(
        [sys.executable, STAGE],  # no fork, which would have read the styles already
        check=True,
        capture_output=True,
        env=environment(MATPLOTLIBRC=str(style), OMP_NUM_THREADS="1", LC_ALL="C", TZ="Asia/Tokyo"),
    )

    assert hashes(OUT) == first
    assert {"report/index.html", "report/features.png", "report/network.html", "confusion.csv"} < first.keys()


@pytest.mark.usefixtures("evaluated")
def test_no_output_holds_a_time_and_no_picture_says_what_made_it() -> None:
    for picture in (OUT / "report").glob("*.png"):
        chunks = picture.read_bytes()
        assert not any(kind in chunks for kind in (b"tEXt", b"iTXt", b"zTXt", b"tIME"))
    assert not any(word in (OUT / "metrics.json").read_text() for word in ("time", "date", "seconds"))


@pytest.mark.usefixtures("evaluated")
def test_the_page_needs_no_other_file_and_shows_every_picture() -> None:
    page = (OUT / "report/index.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 6
    assert len(list((OUT / "report").glob("*.png"))) == 6
    assert "http" not in page
    assert f"{100 * metrics()['accuracy']:.1f}% of 150 test images" in page


@pytest.mark.usefixtures("evaluated")
def test_answers_are_calibrated_on_the_validation_split_and_the_report_says_how_often_they_cover_the_truth() -> None:
    calibration = read_calibration(
        (OUT / "calibration.json").read_bytes(), json.loads((OUT / "model.json").read_text())["weights_hash"], 10
    )
    page = (OUT / "report/index.html").read_text()
    assert calibration is not None
    assert calibration.alpha == 0.05
    assert sum(calibration.images) == 150
    assert 0 < min(calibration.images) < 19
    assert re.search(r"of the test images get one label, and \d+\.\d% of these are right; ", page)
    assert re.search(r'<td class="text">all</td><td class="text">150</td><td class="text">9\d\.\d%</td>', page)
    assert "Too few validation images for a guarantee of their own: “" in page

    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"alpha: 0\.05", "alpha: 0.025", text))
    evaluate()
    assert "for 97.5% of the photos of each class" in (OUT / "report/index.html").read_text()


@pytest.mark.usefixtures("evaluated")
def test_the_confusion_csv_has_a_line_for_every_test_image() -> None:
    lines = (OUT / "confusion.csv").read_text().splitlines()
    assert lines[0] == "actual,predicted"
    pairs = [line.split(",") for line in lines[1:]]
    assert np.mean([actual == said for actual, said in pairs]) == pytest.approx(metrics()["accuracy"])


def test_a_model_without_convolutions_and_one_without_mistakes_get_a_page_too(tmp_path: Path, monkeypatch: Any) -> None:
    make_trained(tmp_path / "sure", images=240, steps=1, model="mlp")
    monkeypatch.chdir(tmp_path / "sure")
    pretend_everything_is_classified_correctly(tmp_path / "sure")

    evaluate()

    page = (OUT / "report/index.html").read_text()
    assert metrics()["accuracy"] == 1
    assert "every test image is classified correctly" in page
    assert not (OUT / "report/mistakes.png").exists()


def test_the_first_mistake_lowers_the_interval_and_the_report_says_how_it_was_computed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    make_trained(tmp_path / "sure", images=240, steps=1, model="mlp")
    monkeypatch.chdir(tmp_path / "sure")
    found = []
    for wrong in (0, 1):
        pretend_everything_is_classified_correctly(tmp_path / "sure", wrong)
        evaluate()
        found.append(metrics()["intervals"])
        assert "those of accuracies and F1 include Wilson's" in html.unescape((OUT / "report/index.html").read_text())

    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        assert found[1][name][0] < found[0][name][0]


def pretend_everything_is_classified_correctly(folder: Path, wrong: int = 0) -> None:
    """Relabel the images in the manifest with what the model says, keeping all ten classes through the train split.

    All but the first `wrong` test images, which get another label.
    """
    from twinrun.dataset.manifest import read_manifest, write_manifest
    from twinrun.models.bundle import load_bundle
    from twinrun.models.predict import probabilities

    path = folder / "data/out/validate/manifest.parquet"
    manifest = read_manifest(path)
    table = pq.read_table(path).to_pydict()
    said = probabilities(load_bundle(folder / "data/out/train/bundle"), np.load(folder / "data/out/ingest/images.npy"))
    for at, row in enumerate(manifest.split("test").rows):
        table["label"][row] = str((said[row].argmax() + (at < wrong)) % 10)
    write_manifest(path, ids=table["id"], labels=table["label"], splits=table["split"], dropped=table["dropped"])


def write_out_of_fold(right: float, folds: int = 5, only: int | None = None) -> list[str]:
    """Leave what train predicts out of fold, a share `right` of it correctly, and return the ids in its order."""
    table = pq.read_table("data/out/validate/manifest.parquet").to_pylist()[:only]
    order = np.random.default_rng(0).permutation(len(table))
    classes = list("0123456789")
    rows = []
    for place, row in enumerate(table[at] for at in order):
        said = int(row["label"]) if place < right * len(table) else (int(row["label"]) + 1) % 10
        probabilities = [0.9 if index == said else 0.1 / 9 for index in range(10)]
        rows.append({**row, "predicted": classes[said], "probabilities": probabilities, "fold": place % folds})
    schema = pa.schema(
        {
            "id": pa.string(), "label": pa.string(), "predicted": pa.string(),
            "probabilities": pa.list_(pa.float64()), "fold": pa.int64(),
        },
        metadata={"classes": json.dumps(classes)},
    )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema), "data/out/train/out_of_fold.parquet")
    return [row["id"] for row in rows]


@pytest.mark.usefixtures("evaluated")
def test_where_the_test_split_is_small_the_headline_comes_from_cross_validation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = metrics()
    write_out_of_fold(right=0.95)

    evaluate()

    written = metrics()
    assert written["accuracy_from"] == "cross-validation"
    assert written["accuracy"] == pytest.approx(0.95)
    assert written["images"] == sum(one["images"] for one in written["per_class"]) == 600
    assert written["test_accuracy"] == alone["accuracy"]
    shown = json.loads((OUT / "scores.json").read_text())
    assert shown["accuracy"] == written["accuracy"]
    assert shown["test_accuracy"] == alone["accuracy"]
    assert written["intervals"]["test_accuracy"] == alone["intervals"]["accuracy"]
    assert written["intervals"]["accuracy"][0] < 0.95 < written["intervals"]["accuracy"][1]
    assert [(one["from"], one["images"]) for one in written["score_sets"]] == [("test", 150), ("cross-validation", 600)]
    sentence = "95.0% of 600 images out of fold are classified correctly (95% interval 9"
    reason = r"The test split has only 3 images of “\d”, fewer than evaluate\.cross_validate_below = 20\."
    said = capsys.readouterr().out
    assert sentence in said
    assert re.search(reason, said)
    page = (OUT / "report/index.html").read_text()
    assert sentence in page
    assert re.search(rf"{reason} So each image .* Of 150 test images it classifies ", page)
    assert page.count("<img") == 6
    assert len(pq.read_table(OUT / "predictions.parquet")) == 150
    assert len((OUT / "confusion.csv").read_text().splitlines()) == 601


@pytest.mark.usefixtures("evaluated")
def test_labels_that_the_models_of_cross_validation_doubt_are_proposed_to_be_changed() -> None:
    wrong = set(write_out_of_fold(right=0.95)[570:])
    labels = {row["id"]: row["label"] for row in pq.read_table("data/out/validate/manifest.parquet").to_pylist()}
    path_of = {row["id"]: row["path"] for row in pq.read_table("data/out/ingest/table.parquet").to_pylist()}

    ran = run_twinrun(Path(), "data", "fix", "--by-model")

    assert ran.code == 0
    assert "0 drops proposed, 30 labels to look at" in ran.said
    with Path("data/decisions/decisions.csv").open(newline="") as file:
        decisions = {line["path"]: line for line in csv.DictReader(file)}
    assert {path: line["label"] for path, line in decisions.items()} == {
        path_of[i]: str((int(labels[i]) + 1) % 10) for i in wrong
    }
    assert {line["action"] for line in decisions.values()} == {""}  # so that nobody relabels without looking
    page = Path("relabels.html").read_text()
    assert page.count("<img") == 30
    assert all(path in page for path in decisions)
    assert "Look at the pictures: relabels.html\nMany of these labels are right" in ran.said
    assert "30 labels to look at, 0 decisions kept" in run_twinrun(Path(), "data", "fix", "--by-model").said
    text = Path("data/decisions/decisions.csv").read_text()
    Path("data/decisions/decisions.csv").write_text(re.sub(r",,(?=\d,)", ",keep,", text))
    assert "Nothing to propose beyond 30 decisions" in run_twinrun(Path(), "data", "fix", "--by-model").said
    both = run_twinrun(Path(), "data", "fix", "--by-model", "--findings", "findings.parquet")
    assert (both.code, "two sources" in both.said) == (1, True)


@pytest.mark.usefixtures("evaluated")
def test_labels_are_not_doubted_by_models_that_know_too_little_or_are_not_there() -> None:
    absent = run_twinrun(Path(), "data", "fix", "--by-model")
    write_out_of_fold(right=0.6)
    poor = run_twinrun(Path(), "data", "fix", "--by-model")

    assert (absent.code, poor.code) == (1, 1)
    assert "no out-of-fold predictions" in absent.said
    assert "train.probe.folds" in absent.said
    assert "agree with only 60% of the labels" in poor.said
    assert not Path("data/decisions").exists()


@pytest.mark.parametrize("case", ["no rows", "large enough"])
def test_the_headline_comes_from_the_test_split_where_it_is_large_enough_or_there_is_nothing_out_of_fold(
    workspace: Path, case: str
) -> None:
    write_out_of_fold(right=0.95, only=0 if case == "no rows" else None)
    if case == "large enough":
        text = (workspace / "params.yaml").read_text()
        (workspace / "params.yaml").write_text(re.sub(r"cross_validate_below: \d+", "cross_validate_below: 3", text))

    evaluate()

    assert metrics()["accuracy_from"] == "test"
    assert metrics()["images"] == 150
    of_sets = [one["from"] for one in metrics()["score_sets"]]
    assert of_sets == (["test"] if case == "no rows" else ["test", "cross-validation"])
    page = (OUT / "report/index.html").read_text()
    assert ("In cross-validation, 95.0% of 600 images are classified correctly" in page) == (case == "large enough")


@pytest.mark.usefixtures("evaluated")
def test_the_score_without_other_views_stands_beside_the_one_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    without = metrics()["accuracy"]
    unlike_without = json.loads((OUT / "calibration.json").read_bytes())["similarity"]
    place = Path("data/out/train/bundle")
    bundle = load_bundle(place)
    save_bundle(
        place,
        bundle.network.state_dict(),
        architecture="lenet5",
        classes=bundle.classes,
        preprocessing=replace(bundle.preprocessing, test_flip=True),  # mirrored digits are read worse
    )

    evaluate()

    assert metrics()["plain_accuracy"] == without
    assert metrics()["accuracy"] != without
    # A served model compares no features with those of the calibration where there are several of each image.
    assert unlike_without is not None
    assert json.loads((OUT / "calibration.json").read_bytes())["similarity"] is None
    assert f"On each image alone, without the views of train.test_views, it is {100 * without:.1f}%." in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("workspace")
def test_other_seeds_and_the_nearest_neighbour_stand_beside_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(Path("data/out/validate/manifest.parquet"))
    test = manifest.split("test")
    right = {"seed 0": 120, "seed 1": 135, "seed 2": 126, "nearest neighbour": 105}
    probabilities = {}
    for name, images in right.items():
        answers = np.where(np.arange(150) < images, test.targets, (test.targets + 1) % 10)
        probabilities[name] = np.eye(10)[answers]
    pq.write_table(beside_table(manifest, probabilities), "data/out/train/beside.parquet")
    write_out_of_fold(right=0.95)

    evaluate()

    written = metrics()
    assert written["seeds"]["accuracies"] == pytest.approx([0.8, 0.9, 0.84])
    assert written["seeds"]["mean"] == pytest.approx(0.8467, abs=1e-4)
    assert written["seeds"]["sd"] == pytest.approx(0.0503, abs=1e-4)
    assert [written["seeds"][end] for end in ("low", "high")] == pytest.approx([0.7217, 0.9717], abs=1e-3)
    assert written["nearest_neighbour_accuracy"] == pytest.approx(0.7)
    assert json.loads((OUT / "scores.json").read_text())["mean_of_seeds"] == written["seeds"]["mean"]
    journal = (OUT / "journal.jsonl").read_text()
    assert all(f"test/accuracy_{name}" in journal for name in ("mean_of_seeds", "sd_of_seeds", "of_nearest_neighbour"))
    said, page = capsys.readouterr().out, (OUT / "report/index.html").read_text()
    nearest = f"classifies 70.0% of the test images correctly; this model {written['test_accuracy']:.1%}."
    assert written["accuracy_from"] == "cross-validation"
    for sentence in ("3 trainings that differ in the seed classify 84.7%", nearest):
        assert sentence in said
        assert sentence in page


@pytest.mark.parametrize("case", ["other images", "no table", "a column less"])
def test_a_table_out_of_fold_that_is_damaged_or_of_other_images_is_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    write_out_of_fold(right=0.95, only=599 if case == "other images" else None)
    path = workspace / "data/out/train/out_of_fold.parquet"
    if case == "no table":
        path.write_bytes(b"PAR1")
    elif case == "a column less":
        pq.write_table(pq.read_table(path).drop_columns(["fold"]), path)

    said = refusal(capsys)

    expected = {"other images": "is of other images or labels", "no table": "is not a table", "a column less": "fold"}
    assert expected[case] in said
    assert "dvc repro -f train" in said
    assert not list(OUT.glob("metrics.json"))


def test_a_changed_byte_in_the_bundle_is_refused_on_the_command_line_and_nothing_is_written(workspace: Path) -> None:
    weights = workspace / "data/out/train/bundle/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)

    done = subprocess.run([sys.executable, STAGE], capture_output=True, text=True, env=environment(), check=False)

    assert done.returncode == 1
    assert "weights.safetensors has sha256" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(OUT.glob("*"))


def test_on_a_terminal_evaluate_and_predict_say_what_they_do_before_they_have_a_result(workspace: Path) -> None:
    evaluated = on_terminal(str(STAGE))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(workspace / "new.png")
    predicted = on_terminal("-m", "twinrun", "predict", "new.png")

    titles = ("Classifying the test images", "Writing the report", "Report: ")
    assert sorted(titles, key=evaluated.index) == list(titles)
    assert predicted.index("Loading the model") < predicted.index("Model: ")


def test_an_empty_test_split_is_refused_with_the_setting_that_fills_it(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from twinrun.dataset.manifest import write_manifest

    path = workspace / "data/out/validate/manifest.parquet"
    table = pq.read_table(path).to_pydict()
    splits = ["train" if split == "test" else split for split in table["split"]]
    write_manifest(path, ids=table["id"], labels=table["label"], splits=splits, dropped=table["dropped"])

    said = refusal(capsys)

    assert "The test split has no images" in said
    assert "validate.fractions.test" in said
    assert not list(OUT.glob("*"))


def test_a_class_without_validation_images_is_evaluated_with_the_threshold_of_all_classes(workspace: Path) -> None:
    from twinrun.dataset.manifest import write_manifest

    path = workspace / "data/out/validate/manifest.parquet"
    table = pq.read_table(path).to_pydict()
    splits = [
        "train" if (label, split) == ("9", "val") else split
        for label, split in zip(table["label"], table["split"], strict=True)
    ]
    write_manifest(path, ids=table["id"], labels=table["label"], splits=splits, dropped=table["dropped"])

    evaluate()

    calibration = json.loads((OUT / "calibration.json").read_text())
    assert calibration["images"][9] == 0
    assert 0 < min(calibration["least"]) <= calibration["least"][9] < 1
    page = (OUT / "report/index.html").read_text()
    assert "Too few validation images for a guarantee of their own: “" in page
    assert "”. The intervals allow for" in page


def test_a_model_of_other_classes_is_refused_and_both_differences_are_named(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from twinrun.dataset.manifest import write_manifest

    path = workspace / "data/out/validate/manifest.parquet"
    table = pq.read_table(path).to_pydict()
    labels = ["ten" if label == "9" else label for label in table["label"]]
    write_manifest(path, ids=table["id"], labels=labels, splits=table["split"], dropped=table["dropped"])

    said = refusal(capsys)

    assert "Unknown to the model: ten." in said
    assert "Not in the images: 9." in said


def test_images_of_another_size_than_the_model_was_trained_on_are_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.load(workspace / "data/out/ingest/images.npy")
    np.save(workspace / "data/out/ingest/images.npy", images[:, :12, :12])

    said = refusal(capsys)

    assert "12 x 12 pixels with 1 channel" in said
    assert "16 x 16 pixels" in said


def test_a_model_whose_outputs_are_not_finite_is_refused_before_anything_is_written(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = workspace / "data/out/train/bundle"
    bundle = load_bundle(folder)
    tensors = {name: tensor * 1e20 for name, tensor in bundle.network.state_dict().items()}
    save_bundle(
        folder,
        tensors,
        architecture=bundle.architecture,
        classes=bundle.classes,
        preprocessing=bundle.preprocessing,
    )

    said = refusal(capsys)

    assert "The model's outputs for 150 of 150 images are infinite or not numbers" in said
    assert "Train again with a smaller learning rate" in said
    assert not list(OUT.glob("*"))


def test_a_history_without_its_columns_is_refused(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "data/out/train/history.csv").write_text("epoch,loss\n1,0.5\n")

    assert "history.csv is not a training history" in refusal(capsys)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, **more}
