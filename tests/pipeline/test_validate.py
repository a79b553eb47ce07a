"""Stage `validate`, on what `ingest` made of real images."""

import gzip
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from clock import takes_at_most
from data_support import Project, Ran
from PIL import Image
from tracking_support import runs

WriteDigits = Callable[..., Path]
Stage = Callable[..., Ran]


@pytest.fixture
def validated() -> Stage:
    """Ingest, then validate."""

    def run(project: Project, first_ingest: bool = True) -> Ran:
        if first_ingest and (ran := project.run("ingest")).code:
            return ran
        return project.run("validate")

    return run


def _unmet(project: Project, severity: str) -> set[str]:
    """Names of the checks of a severity that were not met."""
    checks = project.result()["expectations"]
    return {check["name"] for check in checks if not check["passed"] and check["severity"] == severity}


def test_data_that_dvc_repro_refuses_are_a_failed_run_in_mlflow(
    project: Project, write_digits: WriteDigits, validated: Stage, new_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (write_digits(each=10) / "1/broken.png").write_bytes(b"no image")
    shutil.copytree(new_store, project.folder / "mlruns")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_STAGE", "validate")

    refused = validated(project.set(ingest__source="folder", ingest__path="images"))
    (run,) = runs(project.folder)

    assert refused.code == 1
    assert run.status == "FAILED"
    assert "data of images" in run.tags["mlflow.runName"]


def test_good_data_get_a_manifest_of_all_rows_a_result_and_a_report(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    write_digits(each=150)

    ran = validated(project.set(ingest__source="folder", ingest__path="images"))

    assert ran.code == 0, ran.said
    assert "Calculating" not in ran.said
    first, second = ran.said.splitlines()
    assert first.startswith("The data passed all 22 checks. 3 classes; ")
    assert "67 test images: the 95% interval" in second
    rows = project.manifest()
    assert [row["row"] for row in rows] == list(range(450))
    assert [row["id"] for row in rows] == [row["id"] for row in project.table()]
    assert all(row["dropped"] is None and row["target"] == int(row["label"]) for row in rows)
    shares = Counter(row["split"] for row in rows)
    assert 0.6 < shares["train"] / 450 < 0.8
    assert project.result()["passed"]
    assert project.result()["splits"] == shares
    assert "The data passed" in project.report()
    assert "http" not in project.report().replace("http-equiv", "")


def test_data_that_fail_stop_the_pipeline_on_the_terminal_and_leave_a_report_but_no_manifest(
    project: Project, write_digits: WriteDigits
) -> None:
    root = write_digits(each=20)
    (root / "1/broken.png").write_bytes((root / "1/000.png").read_bytes()[:60])
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    assert project.run("ingest").code == 0
    (project.folder / "data/out/validate").mkdir()
    (project.folder / "data/out/validate/manifest.parquet").write_bytes(b"of an earlier run")

    ran = project.run_apart("validate")

    assert ran.code == 1
    assert "Traceback" not in ran.said
    assert "1 of 22 checks failed" in ran.said
    assert len(ran.said.strip().splitlines()) <= 10
    assert "1/broken.png: " in ran.said
    line = 1 + (project.folder / "params.yaml").read_text().splitlines().index(
        next(line for line in (project.folder / "params.yaml").read_text().splitlines() if "on_broken" in line)
    )
    assert f"Fix or remove them, or set on_broken to drop (params.yaml, line {line}: validate.on_broken)" in ran.said
    assert "data/out/validate/report/index.html" in ran.said
    assert "1/broken.png" in project.report()
    assert not (project.folder / "data/out/validate/manifest.parquet").exists()


def test_broken_images_are_dropped_where_the_policy_says_so(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    root = write_digits(each=20)
    (root / "1/broken.png").write_bytes(b"")
    project.set(ingest__source="folder", ingest__path="images")
    project.set(validate__min_images_per_class=1, validate__on_broken="drop")

    ran = validated(project)

    assert ran.code == 0, ran.said
    assert "dropped: 1 unreadable." in ran.said
    dropped = [row for row in project.manifest() if row["dropped"] is not None]
    assert [(row["dropped"], row["target"]) for row in dropped] == [("unreadable: is empty", -1)]
    assert "1/broken.png" in project.report()


@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_all_images_broken_is_refused_whatever_the_policy(
    project: Project, write_digits: WriteDigits, validated: Stage, policy: str
) -> None:
    for path in write_digits(each=3).rglob("*.png"):
        path.write_bytes(b"GIF89a")
    project.set(ingest__source="folder", ingest__path="images", validate__on_broken=policy)

    ran = validated(project)

    assert ran.code == 1
    assert ("9 images are unreadable" if policy == "stop" else "0 images are left") in ran.said
    assert 'Class "0" has 0 images in train' in ran.said


def test_a_class_that_has_another_name_in_another_split_is_asked_about_and_no_setting_lets_it_pass(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    for split, names in {"train": ("glass", "male", "size_1"), "test": ("glas", "female", "size_2")}.items():
        folder = write_digits(each=24, root=f"images/{split}")
        for digit, name in enumerate(names):
            for path in sorted((folder / str(digit)).iterdir())[slice(12) if split == "test" else slice(12, None)]:
                path.unlink()
            (folder / str(digit)).rename(folder / name)

    stopped = validated(project.set(ingest__source="folder", ingest__path="images"))

    assert '"glas" has images in test, and "glass" in train and val: are they one class?' in stopped.said
    assert "Give a class the same name in every split, and add images of the other classes, or lower" in stopped.said
    assert "on_classes" not in stopped.said
    assert not {"size_1", "male"} & set(re.findall(r'"(\w+)"', stopped.said.partition(";")[2].partition("?")[0]))


def test_every_class_with_too_few_images_is_named_with_the_one_setting_that_lets_it_pass(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    root = write_digits(each=60, classes=(0, 1, 2, 3, 4, 5))
    for label in range(1, 6):
        for path in sorted((root / str(label)).iterdir())[7 if label == 5 else 8 :]:
            path.unlink()
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=3)
    project.set(validate__max_imbalance=8)

    stopped = validated(project)
    project.set(validate__min_images_per_class=1, validate__max_imbalance=9)
    passed = validated(project, first_ingest=False)

    assert stopped.code == 1
    assert "5 classes have fewer than 3 images in a split (1, 2, 3, 4, 5)." in stopped.said
    assert re.search(r"set validate.min_images_per_class: 1 \(params.yaml, line \d+\)", stopped.said)
    assert re.search(r'Class "1" has [12] images? in val and [12] in test', stopped.said)
    assert 'Class "0" has' not in stopped.said
    assert "1 class has less than 1/8 of the largest one's images (5)." in stopped.said
    assert "set validate.max_imbalance: 9 (params.yaml" in stopped.said
    assert passed.code == 0, passed.said


def test_a_class_without_any_image_in_a_split_is_named_with_the_policy_that_allows_it(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    root = write_digits(each=30, classes=(0, 1, 2))
    for label, name, images in ((0, "0", 30), (1, "glass", 1), (2, "glas", 1)):
        for path in sorted((root / str(label)).iterdir())[images:]:
            path.unlink()
        (root / str(label)).rename(root / name)
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    project.set(validate__fractions={"train": 0.34, "val": 0.33, "test": 0.33})

    ran = validated(project)

    assert ran.code == 1
    alone = [re.search(rf'Class "{name}" has 0 images in (\w+) and 0 in (\w+)', ran.said) for name in ("glas", "glass")]
    assert len({place.groups() for place in alone if place}) == 2
    assert "are they one class?" not in ran.said  # no split is the person's
    assert "Add images, or set validate.on_classes: warn (params.yaml, line" in ran.said


def test_sizes_and_modes_outside_the_set_ranges_are_named(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    root = write_digits(each=20)
    Image.new("L", (16, 500)).save(root / "0/tall.png")
    Image.new("RGBA", (16, 16), "red").save(root / "2/see-through.png")
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    project.set(validate__max_side_px=400)

    ran = validated(project)

    assert ran.code == 1
    assert "0/tall.png: 16 x 500 pixels" in ran.said
    assert "2/see-through.png: mode RGBA" in ran.said
    assert _unmet(project, "critical") == {"height", "mode"}
    assert "not_odd_aspect" in _unmet(project, "warning")


def test_identical_pixels_in_two_splits_are_a_leak_whatever_the_files_and_can_be_dropped_from_the_earlier(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    for name in ("train", "val", "test"):
        write_digits(each=0, classes=(0, 1), root=f"images/{name}")
    digits = sorted(path for path in write_digits(each=9, classes=(0, 1), root="all").rglob("*.png"))
    for number, path in enumerate(digits):
        split = ("train", "val", "test")[number % 3]
        path.rename(project.folder / "images" / split / path.parent.name / path.name)
    copy = project.folder / "images/test/0/copy.bmp"
    Image.open(project.folder / "images/train/0/000.png").save(copy)
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)

    stopped = validated(project)
    dropped = validated(project.set(validate__on_leak="drop"), first_ingest=False)

    assert stopped.code == 1
    assert "  1 image of 0 is also in test. " in stopped.said
    assert "test/0/copy.bmp (0, test) = train/0/000.png (0, train)" in stopped.said
    assert dropped.code == 0, dropped.said
    paths = [row["path"] for row in project.table()]
    gone = [(paths[row["row"]], row["dropped"]) for row in project.manifest() if row["dropped"] is not None]
    assert gone == [("train/0/000.png", "leak: of test/0/copy.bmp")]


def test_identical_images_with_conflicting_labels_stop_the_pipeline_and_can_be_dropped_on_both_sides(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    root = write_digits(each=30)
    (root / "2/same.png").write_bytes((root / "0/004.png").read_bytes())
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)

    stopped = validated(project)
    dropped = validated(project.set(validate__on_contradiction="drop"), first_ingest=False)

    assert stopped.code == 1
    assert "0/004.png (0, " in stopped.said
    assert " = 2/same.png (2, " in stopped.said
    assert "no_leak" not in _unmet(project, "critical")
    assert dropped.code == 0, dropped.said
    assert [row["dropped"] for row in project.manifest() if row["dropped"] is not None] == [
        "conflicting labels: of 2/same.png, label 2",
        "conflicting labels: of 0/004.png, label 0",
    ]


def test_a_folder_of_three_small_classes_is_split_evenly_and_the_seed_decides_how(
    project: Project, write_digits: WriteDigits, validated: Stage
) -> None:
    write_digits(each=50)
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=2)

    first = validated(project)
    drawn = {row["id"]: row["split"] for row in project.manifest()}
    counts = project.result()["classes"]
    second = validated(project.set(validate__seed=1), first_ingest=False)

    assert first.code == second.code == 0, first.said + second.said
    assert all(count["train"] == 35 and {count["val"], count["test"]} == {7, 8} for count in counts.values())
    assert re.search(r"2[23] test images: the 95% interval of their accuracy is up to 3[89] points wide", first.said)
    assert {row["id"]: row["split"] for row in project.manifest()} != drawn


def test_the_same_data_give_the_same_bytes(project: Project, write_digits: WriteDigits, validated: Stage) -> None:
    root = write_digits(each=20)
    (root / "0/broken.png").write_bytes(b"BM")
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    out = project.folder / "data/out/validate"

    found: list[dict[Path, bytes]] = []
    for _ in range(2):
        assert validated(project.set(validate__on_broken="drop"), first_ingest=not found).code == 0
        files = [path for path in out.rglob("*") if path.is_file() and path.name != "journal.jsonl"]  # of one run
        found.append({path: path.read_bytes() for path in files})

    assert found[0] == found[1]
    assert {"manifest.parquet", "findings.parquet", "facts.csv", "index.html", "result.json", "images.html"} <= {
        path.name for path in found[0]
    }


def test_without_ingest_the_missing_file_is_named(project: Project, validated: Stage) -> None:
    ran = validated(project, first_ingest=False)

    assert ran.code == 1
    assert "data/out/ingest/images.npy is missing. Create it: dvc repro ingest" in ran.said


def test_a_quarter_of_fashion_mnist_takes_seconds_and_has_val_carved_out_of_train(
    project: Project, real_images: Path
) -> None:
    files = project.folder / "files"
    files.mkdir()
    for name, images in {"train": 15_000, "t10k": 2500}.items():
        for kind, header, size in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            file = f"{name}-{kind}-ubyte.gz"
            whole = gzip.decompress((real_images / "fashion-mnist" / file).read_bytes())
            part = whole[:4] + struct.pack(">I", images) + whole[8 : header + images * size]
            (files / file).write_bytes(gzip.compress(part, 1))
    project.set(ingest__source="fashion-mnist", ingest__path="files")

    # A few of its test images are in training as well, and a few have another label there.
    project.set(validate__on_near_leak="drop", validate__on_contradiction="drop")
    with takes_at_most(25):  # of which the search for near duplicates takes most
        for stage in ("ingest", "validate"):
            ran = project.run(stage)
            assert ran.code == 0, ran.said

    splits = project.result()["splits"]
    assert splits["test"] == 2500
    dropped = project.result()["images"]["dropped"]
    assert splits["train"] + splits["val"] == 15_000 - sum(dropped.values())
    assert 0 < dropped["near leak"] < 10
    assert abs(splits["val"] / 15_000 - 0.15 / 0.85) < 0.01
    assert {row["split"] for row in project.manifest()[:2500]} == {"test"}


def test_trashnet_stops_and_names_the_three_contradicting_pairs_and_dropping_them_lets_it_pass(
    project: Project, real_images: Path, validated: Stage
) -> None:
    project.set(ingest__source="trashnet", ingest__path=str(real_images / "trashnet"), ingest__channels="rgb")

    with takes_at_most(40):
        assert project.run("ingest").code == 0
    stopped = validated(project, first_ingest=False)
    pictures = project.report().count("data:image/")
    shown = project.report()
    project.set(validate__on_leak="drop", validate__on_near_leak="drop", validate__on_contradiction="drop")
    dropped = validated(project, first_ingest=False)

    rows = project.table()
    assert Counter(row["split"] for row in rows) == {"train": 1768, "val": 328, "test": 431}
    assert Counter(row["label"] for row in rows)["trash"] == 137
    assert stopped.code == 1
    pairs = (
        ("glass/glass115", "metal/metal91"),
        ("glass/glass176", "plastic/plastic152"),
        ("glass/glass389", "plastic/plastic332"),
    )
    for pair in pairs:
        assert any(all(f"{name}.jpg" in line for name in pair) for line in stopped.said.splitlines()), pair
    assert pictures > 10
    assert dropped.code == 0, dropped.said
    assert project.result()["images"]["dropped"]["conflicting labels"] == 6
    assert project.result()["images"]["dropped"].get("near leak", 0) <= 15  # one object on two photos
    assert "paper385.jpg" not in shown.partition('id="no_duplicate"')[0].partition('id="checks"')[2]
