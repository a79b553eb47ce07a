"""What stage `validate` does about copies, groups, decisions, drift and expectations of a person's own."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import Project, Ran
from PIL import Image, ImageEnhance, ImageOps

from twinrun.dataset.manifest import read_manifest

WriteImages = Callable[..., Path]


@pytest.fixture
def write_photos(project: Project) -> WriteImages:
    """Write pictures with content of their own: images/<split>/<class>/<number>.png, smooth noise of 96 x 96 pixels."""

    def write(each: int = 12, splits: tuple[str, ...] = ("train", "val", "test"), root: str = "images") -> Path:
        folder = project.folder / root
        rng = np.random.default_rng(7)
        for split in splits:
            for label in ("cat", "dog"):
                (folder / split / label).mkdir(parents=True, exist_ok=True)
                for number in range(each):
                    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
                    picture = coarse.resize((96, 96), Image.Resampling.BICUBIC)
                    picture.save(folder / split / label / f"{number:03d}.png")
        return folder

    return write


@pytest.fixture
def photos(project: Project, write_photos: WriteImages) -> Path:
    """A project on such pictures, in all three splits."""
    root = write_photos()
    project.set(ingest__source="folder", ingest__path="images", ingest__channels="rgb", ingest__size_px=64)
    project.set(validate__min_images_per_class=1)
    return root


def _validated(project: Project, ingest: bool = True) -> Ran:
    if ingest:
        ran = project.run("ingest")
        assert ran.code == 0, ran.said
    return project.run("validate")


def _finding(project: Project, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in project.result()["expectations"] if each["name"] == name)
    return found


def _dropped(project: Project) -> dict[str, str]:
    paths = [row["path"] for row in project.table()]
    return {paths[row["row"]]: row["dropped"] for row in project.manifest() if row["dropped"] is not None}


def _changed(picture: Image.Image, change: str) -> Image.Image:
    match change:
        case "mirrored":
            return ImageOps.mirror(picture)
        case "brighter":
            return ImageEnhance.Brightness(picture).enhance(1.15)
        case "smaller":
            return picture.resize((77, 77), Image.Resampling.BICUBIC)
    return picture


@pytest.mark.parametrize("change", ["mirrored", "brighter", "smaller", "jpeg"])
def test_a_changed_copy_in_another_split_stops_the_pipeline_and_is_shown_beside_its_source(
    project: Project, photos: Path, change: str
) -> None:
    copy = photos / "test/cat/copy.jpg"
    _changed(Image.open(photos / "train/cat/003.png"), change).save(copy, quality=60)

    stopped = _validated(project)

    assert stopped.code == 1, stopped.said
    assert "test/cat/copy.jpg (cat, test) ~ train/cat/003.png (cat, train): " in stopped.said
    assert ": validate.on_near_leak)" in stopped.said
    page = project.report()
    assert "test/cat/copy.jpg" in page
    assert "on_near_leak: stop" in page
    assert "distance 0." in page
    assert [e["name"] for e in project.result()["expectations"] if e["severity"] == "critical" and not e["passed"]] == [
        "no_near_leak"
    ]


def test_a_near_leak_is_dropped_from_the_earlier_split_or_only_warned_of_as_the_policy_says(
    project: Project, photos: Path
) -> None:
    Image.open(photos / "train/cat/003.png").save(photos / "test/cat/copy.jpg", quality=60)

    dropped = _validated(project.set(validate__on_near_leak="drop"))
    gone = _dropped(project)
    warned = _validated(project.set(validate__on_near_leak="warn"), ingest=False)

    assert dropped.code == 0, dropped.said
    assert list(gone) == ["train/cat/003.png"]
    assert re.fullmatch(
        r"near leak: of test/cat/copy\.jpg \(re-encoded, distance 0\.\d{3}\)", gone["train/cat/003.png"]
    )
    assert warned.code == 0, warned.said
    assert "Warning: 1 image of cat has a near duplicate in test: test/cat/copy.jpg" in warned.said
    assert len(warned.said.splitlines()) <= 10
    assert _dropped(project) == {}
    assert _finding(project, "no_near_leak")["severity"] == "warning"


def test_a_changed_copy_under_another_label_is_a_contradiction(project: Project, photos: Path) -> None:
    Image.open(photos / "train/cat/003.png").save(photos / "train/dog/copy.jpg", quality=60)

    stopped = _validated(project)
    dropped = _validated(project.set(validate__on_contradiction="drop"), ingest=False)

    assert stopped.code == 1
    assert "train/cat/003.png (cat, train) ~ train/dog/copy.jpg (dog, train): " in stopped.said
    assert dropped.code == 0, dropped.said
    gone = _dropped(project)
    assert set(gone) == {"train/cat/003.png", "train/dog/copy.jpg"}
    assert gone["train/cat/003.png"].startswith(
        "conflicting labels: of train/dog/copy.jpg, label dog (re-encoded, distance"
    )
    assert gone["train/dog/copy.jpg"].startswith(
        "conflicting labels: of train/cat/003.png, label cat (re-encoded, distance"
    )


def test_a_leak_under_another_label_is_not_dropped_where_contradictions_stop_the_pipeline(
    project: Project, photos: Path
) -> None:
    shutil.copy(photos / "train/cat/003.png", photos / "test/dog/same.png")
    Image.open(photos / "train/cat/005.png").save(photos / "test/dog/similar.jpg", quality=60)
    project.set(validate__on_leak="drop", validate__on_near_leak="drop", validate__on_duplicate="drop")

    stopped = _validated(project)
    dropped = _validated(project.set(validate__on_contradiction="warn"), ingest=False)

    assert stopped.code == 1, stopped.said
    assert "test/dog/same.png (dog, test) = train/cat/003.png (cat, train)" in stopped.said
    assert "test/dog/similar.jpg (dog, test) ~ train/cat/005.png (cat, train): " in stopped.said
    assert dropped.code == 0, dropped.said
    assert set(_dropped(project)) == {"train/cat/003.png", "train/cat/005.png"}


def test_copies_within_a_split_are_a_warning_and_can_be_dropped_but_for_the_first(
    project: Project, photos: Path
) -> None:
    shutil.copy(photos / "train/cat/003.png", photos / "train/cat/same.png")
    Image.open(photos / "train/cat/005.png").save(photos / "train/cat/similar.jpg", quality=60)

    warned = _validated(project)
    warnings = _finding(project, "no_duplicate")
    dropped = _validated(project.set(validate__on_duplicate="drop"), ingest=False)

    assert warned.code == 0, warned.said
    assert warnings["violations"] == 2
    assert dropped.code == 0, dropped.said
    gone = _dropped(project)
    assert set(gone) == {"train/cat/same.png", "train/cat/similar.jpg"}
    assert gone["train/cat/same.png"] == "duplicate: of train/cat/003.png"
    assert gone["train/cat/similar.jpg"].startswith("duplicate: of train/cat/005.png (re-encoded, distance 0.0")
    assert _finding(project, "no_duplicate")["passed"]


def test_a_split_that_is_drawn_keeps_changed_copies_and_groups_together(
    project: Project, write_photos: WriteImages
) -> None:
    root = write_photos(each=40, splits=("all",))
    for number in range(40):
        Image.open(root / f"all/cat/{number:03d}.png").save(root / f"all/cat/{number:03d}-copy.jpg", quality=60)
    bursts = [f"dog/{number:03d}.png,burst {number // 4}" for number in range(40)]
    (project.folder / "groups.csv").write_text("\n".join(["path,group", *bursts]))
    project.set(ingest__source="folder", ingest__path="images/all", ingest__splits_file="groups.csv")
    project.set(ingest__channels="rgb", ingest__size_px=64, validate__min_images_per_class=1)

    ran = _validated(project)

    assert ran.code == 0, ran.said
    paths = [row["path"] for row in project.table()]
    splits = {paths[row["row"]]: row["split"] for row in project.manifest()}
    assert len({split for path, split in splits.items() if path.startswith("cat/")}) == 3
    assert all(splits[f"cat/{n:03d}.png"] == splits[f"cat/{n:03d}-copy.jpg"] for n in range(40))
    assert all(splits[f"dog/{n:03d}.png"] == splits[f"dog/{n - n % 4:03d}.png"] for n in range(40))
    assert len({splits[f"dog/{n:03d}.png"] for n in range(40)}) > 1


def test_labels_that_the_search_cannot_judge_are_said_to_be_so(project: Project, photos: Path) -> None:
    assert photos.is_dir()  # noise, which tells no label
    project.set(validate__label_errors={"folds": 3, "budget_s": 600}, validate__on_label_error="stop")

    ran = _validated(project)

    assert ran.code == 0, ran.said
    assert "  Not judged: The quick model agrees with only" in ran.said
    assert "The quick model agrees with only" in project.report()
    search = _finding(project, "label_search")
    assert (search["status"], search["passed"], search["stops"]) == ("not judged", False, False)
    assert [each for each in project.result()["expectations"] if each["name"] == "labels"] == []


def test_decisions_of_a_person_are_applied_and_recorded_in_the_manifest(project: Project, photos: Path) -> None:
    decisions = project.folder / "decisions.csv"
    decisions.write_text(
        "path,action,label,reason\ntrain/cat/003.png,relabel,dog,it barks\ntrain/cat/004.png,drop,,blurred\n"
        "train/cat/005.png,keep,,\ntrain/cat/005.png,keep,dog,\ntrain/cat/006.png,,dog,not decided\n"
    )

    ran = _validated(project.set(validate__decisions="decisions.csv"))

    assert ran.code == 0, ran.said
    assert "decisions.csv: lines without an action have no effect (1)." in ran.said
    assert photos.is_dir()
    rows = {row["path"]: manifest for row, manifest in zip(project.table(), project.manifest(), strict=True)}
    assert (rows["train/cat/003.png"]["label"], rows["train/cat/003.png"]["given"]) == ("dog", "cat")
    assert rows["train/cat/003.png"]["target"] == rows["train/dog/001.png"]["target"]
    assert rows["train/cat/004.png"]["dropped"] == "decision: blurred"
    assert {path: row["decision"] for path, row in rows.items() if row["decision"] is not None} == {
        "train/cat/003.png": "relabel: it barks",
        "train/cat/004.png": "drop: blurred",
        "train/cat/005.png": "keep",
    }
    assert project.result()["decisions"] == {"drop": 1, "relabel": 1, "keep": 1}
    assert "By your decisions: 1 dropped, 1 relabelled, 1 kept." in ran.said
    assert all(row["label"] == row["given"] for path, row in rows.items() if path != "train/cat/003.png")


def test_a_class_of_which_all_images_are_dropped_is_no_class_of_the_manifest(
    project: Project, write_digits: WriteImages
) -> None:
    images = [path.relative_to(project.folder / "images") for path in write_digits().rglob("1/*.png")]
    decisions = project.folder / "decisions.csv"
    decisions.write_text("path,action\n" + "".join(f"{path},drop\n" for path in images), encoding="utf-8")
    project.set(ingest__source="folder", ingest__path="images", validate__decisions="decisions.csv")

    ran = _validated(project.set(validate__min_images_per_class=1, validate__on_classes="warn"))

    manifest = read_manifest(project.folder / "data/out/validate/manifest.parquet")
    assert ran.code == 0, ran.said
    assert 'Class "1" has 0 images in train, 0 in val and 0 in test' in ran.said
    assert "groups" not in ran.said
    assert manifest.classes == ("0", "2")
    assert {target for split in manifest.splits.values() for target in split.targets.tolist()} == {0, 1}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "decisions.csv is missing"),
        ("image,what\n", "line 1: expected the columns path, action, label, reason; action and path is missing"),
        ("path,action\nnowhere.png,drop\n", "line 2: there is no image 'nowhere.png'"),
        ("path,action\n\ntrain/cat/003.png,remove\n", "line 3: the action must be drop, relabel or keep"),
        ("path,action\ntrain/cat/003.png,relabel\n", "line 2: relabel needs the new label"),
        ("path,action,reason\ntrain/cat/003.png,drop,dark, blurred\n", "line 2: 4 cells, but the header has 3"),
        ("path,action,label,Label\ntrain/cat/003.png,relabel,dog,cat\n", "line 1: two columns are called label"),
        ("path,action,label\ntrain/cat/003.png,relabel,catt\n", "no image has the label 'catt'; there are cat, dog"),
        (
            "path,action\ntrain/cat/page.png,keep\n",
            "line 2: train/cat/page.png cannot be kept, since it cannot be decoded",
        ),
        (
            "path,action\ntrain/cat/003.png,drop\ntrain/cat/003.png,keep\n",
            "line 3: train/cat/003.png has another decision already, drop",
        ),
    ],
)
def test_decisions_that_cannot_be_applied_are_refused_with_their_line(
    project: Project, photos: Path, lines: str | None, words: str
) -> None:
    (photos / "train/cat/page.png").write_text("<!doctype html><p>Not found</p>")
    if lines is not None:
        (photos.parent / "decisions.csv").write_text(lines)

    assert project.run("ingest").code == 0

    ran = _validated(project.set(validate__decisions="decisions.csv"), ingest=False)

    assert ran.code == 1
    assert words in ran.said


def test_copies_that_a_person_kept_are_not_dropped_and_are_settled_once_all_of_them_are_kept(
    project: Project, photos: Path
) -> None:
    shutil.copy(photos / "train/cat/001.png", photos / "test/cat/leak.png")
    Image.open(photos / "train/cat/002.png").save(photos / "test/cat/near.jpg", quality=60)
    shutil.copy(photos / "train/cat/003.png", photos / "train/dog/other.png")
    Image.open(photos / "train/cat/004.png").save(photos / "train/dog/other.jpg", quality=60)
    shutil.copy(photos / "train/cat/005.png", photos / "train/cat/same.png")
    (photos.parent / "groups.csv").write_text("path,group\ntrain/cat/006.png,b\ntest/cat/006.png,b\n")
    pairs = [
        ("train/cat/001.png", "test/cat/leak.png"),
        ("train/cat/002.png", "test/cat/near.jpg"),
        ("train/cat/003.png", "train/dog/other.png"),
        ("train/cat/004.png", "train/dog/other.jpg"),
        ("train/cat/same.png", "train/cat/same.png"),
        ("train/cat/006.png", "test/cat/006.png"),
    ]
    dropping = {f"validate__on_{name}": "drop" for name in ("leak", "near_leak", "contradiction", "duplicate")}
    project.set(ingest__splits_file="groups.csv", validate__decisions="decisions.csv", **dropping)

    def decide(*kept: str) -> None:
        (project.folder / "decisions.csv").write_text("\n".join(["path,action", *(f"{path},keep" for path in kept)]))

    decide()
    dropped = _validated(project)
    gone = set(_dropped(project))
    decide(*dict.fromkeys(path for pair in pairs for path in pair))
    settled = _validated(project, ingest=False)
    left = _dropped(project)
    decide(*(first for first, _ in pairs))
    half = _validated(project, ingest=False)

    assert dropped.code == 0, dropped.said
    assert gone == {*(first for first, _ in pairs), "train/dog/other.png", "train/dog/other.jpg"}
    assert settled.code == 0, settled.said
    assert left == {}
    assert half.code == 1, half.said
    unmet = {each["name"] for each in project.result()["expectations"] if not each["passed"]}
    assert unmet == {"no_leak", "no_near_leak", "no_group_in_two_splits"}  # the other sides of both others are dropped


def test_dropped_copies_are_shown_beside_what_they_are_copies_of_and_relabelled_images_with_the_reason(
    project: Project, photos: Path
) -> None:
    Image.open(photos / "train/cat/003.png").save(photos / "test/cat/copy.jpg", quality=60)
    (project.folder / "decisions.csv").write_text("path,action,label,reason\ntrain/cat/005.png,relabel,dog,it barks\n")

    ran = _validated(project.set(validate__on_near_leak="drop", validate__decisions="decisions.csv"))

    assert ran.code == 0, ran.said
    shown = project.report().partition("Dropped images")[2].partition("<h2>")[0]
    assert re.findall(r"<b>(.*?)</b><br>(.*?)</figcaption>", shown) == [
        ("train/cat/003.png", "cat, train"),
        ("test/cat/copy.jpg", "cat, test"),
    ]
    assert re.search(r"<p>of test/cat/copy\.jpg \(re-encoded, distance 0\.\d{3}\)</p>", shown)
    relabelled = project.report().partition("Relabelled images")[2].partition("<h2>")[0]
    assert "<b>train/cat/005.png</b><br>dog, train" in relabelled
    assert "<p>from cat to dog: it barks</p>" in relabelled


def test_two_hundred_sets_are_shown_and_the_page_says_where_the_others_are(
    project: Project, write_photos: WriteImages
) -> None:
    root = write_photos(each=105, splits=("train", "val"))
    shutil.copytree(root / "val", root / "test")
    project.set(ingest__source="folder", ingest__path="images", ingest__channels="rgb", ingest__size_px=64)

    stopped = _validated(project)
    page = project.report()
    dropped = _validated(project.set(validate__on_leak="drop", validate__on_classes="warn"), ingest=False)
    after = project.report()

    assert stopped.code == 1
    leaks = page.partition('<section id="no_leak">')[2].partition("</section>")[0]
    assert "The first 200 of 210; all are in <code>findings.parquet</code>" in leaks
    assert leaks.count("<img") == 400
    assert dropped.code == 0, dropped.said
    gone = after.partition("Dropped images")[2].partition("</section>")[0]
    assert "The first 200; all are in <code>manifest.parquet</code>" in gone
    assert gone.count("<img") == 400
    assert max(len(page), len(after)) < 5_000_000


def test_an_expectation_of_ones_own_is_judged_on_the_facts_with_its_severity(project: Project, photos: Path) -> None:
    Image.new("RGB", (96, 96), "white").save(photos / "train/cat/white.png")
    own = {"name": "ExpectColumnValuesToBeBetween", "arguments": {"column": "brightness", "max_value": 0.9}}

    critical = _validated(project.set(validate__expectations=[{**own, "severity": "critical"}]))
    said = critical.said
    warning = _validated(project.set(validate__expectations=[{**own, "severity": "warning"}]), ingest=False)

    assert critical.code == 1
    assert "train/cat/white.png (cat, train): brightness is 1.0" in said
    assert warning.code == 0, warning.said
    assert _finding(project, "ExpectColumnValuesToBeBetween")["violations"] == 1


def test_an_expectation_of_a_column_that_there_is_not_ends_the_first_stage(project: Project, photos: Path) -> None:
    own = {"name": "ExpectColumnMeanToBeBetween", "arguments": {"column": "age", "max_value": 1}}

    ran = project.set(validate__expectations=[{**own, "severity": "warning"}]).run("ingest")

    assert photos.is_dir()
    assert ran.code == 1
    assert "there is no column 'age' in the table of images; there are id, path, label" in ran.said


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ExpectColumnDistinctValuesToContainSet", {"value_set": ["cat", "cow"]}, "partial missing list ['cow']"),
        ("ExpectColumnDistinctValuesToBeInSet", {"value_set": ["cat"]}, "partial unexpected list ['dog']"),
        ("ExpectColumnUniqueValueCountToBeBetween", {"max_value": 1}, "label: observed 2"),
    ],
)
def test_an_expectation_on_a_column_as_a_whole_says_what_was_found(
    project: Project, photos: Path, name: str, arguments: dict[str, Any], words: str
) -> None:
    own = {"name": name, "arguments": {"column": "label", **arguments}, "severity": "critical"}

    ran = _validated(project.set(validate__expectations=[own]))

    assert photos.is_dir()
    assert ran.code == 1
    assert words in ran.said
    assert len(ran.said.strip().splitlines()) <= 10


def test_an_expectation_that_a_column_exists_is_met(project: Project, photos: Path) -> None:
    own = {"name": "ExpectColumnToExist", "arguments": {"column": "label"}, "severity": "critical"}

    ran = _validated(project.set(validate__expectations=[own]))

    assert photos.is_dir()
    assert ran.code == 0, ran.said
    assert _finding(project, "ExpectColumnToExist")["passed"]
    assert (project.folder / "data/out/validate/data_docs/images.html").is_file()


def test_a_number_that_great_expectations_cannot_hold_ends_the_first_stage(project: Project, photos: Path) -> None:
    own = {"name": "ExpectColumnMeanToBeBetween", "arguments": {"column": "width", "min_value": 10**400}}

    ran = project.set(validate__expectations=[{**own, "severity": "warning"}]).run("ingest")

    assert photos.is_dir()
    assert ran.code == 1
    assert "min_value must be a finite number, got 1000" in ran.said


def test_an_expectation_may_ask_for_hashes(project: Project, photos: Path) -> None:
    own = {"name": "ExpectColumnValuesToBeUnique", "arguments": {"column": "bytes_sha256"}, "severity": "critical"}
    shutil.copy(photos / "train/cat/003.png", photos / "train/cat/same.png")

    ran = _validated(project.set(validate__expectations=[own]))

    assert ran.code == 1
    assert "train/cat/same.png (cat, train): bytes_sha256 is " in ran.said


def test_facts_that_moved_since_the_reference_are_a_warning_or_stop_the_pipeline(
    project: Project, photos: Path
) -> None:
    assert _validated(project).code == 0
    reference = project.folder / "data/reference/old.parquet"
    reference.parent.mkdir(parents=True)
    shutil.copy(project.folder / "data/out/ingest/table.parquet", reference)
    same = _validated(project.set(validate__reference="data/reference/old.parquet"), ingest=False)
    shifts = [shift["significant"] for shift in project.result()["drift"]["shifts"]]
    for path in sorted(photos.rglob("*.png")):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.5).save(path)
    (photos / "train/cat").rename(photos / "train/lion")

    warned = _validated(project)
    shifted = {shift["name"] for shift in project.result()["drift"]["shifts"] if shift["significant"]}
    stopped = _validated(project.set(validate__on_drift="stop"), ingest=False)

    assert same.code == 0, same.said
    assert not any(shifts)
    assert "brightness" in shifted
    assert "width" not in shifted
    assert warned.code == 1  # lion has no images in val and test
    assert "facts are distributed differently than in old.parquet" in warned.said
    assert 'Label "lion" is new' in json.dumps(project.result(), ensure_ascii=False).replace('\\"', '"')
    assert "distributed differently than in old.parquet" in stopped.said
    assert "Changes since old.parquet" in project.report()


def test_images_that_came_went_or_have_another_label_than_in_the_reference_are_named_and_shown(
    project: Project, photos: Path
) -> None:
    assert project.run("ingest").code == 0
    shutil.copy(project.folder / "data/out/ingest/table.parquet", project.folder / "old.parquet")
    (photos / "train/cat/003.png").unlink()
    (photos / "train/cat/004.png").rename(photos / "train/dog/moved.png")
    rng = np.random.default_rng(1)
    for number in range(25):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(photos / f"train/cat/new-{number:02d}.png")

    ran = _validated(project.set(validate__reference="old.parquet"))

    assert ran.code == 0, ran.said
    drift = project.result()["drift"]
    assert drift["removed_paths"] == ["train/cat/003.png"]
    assert drift["added_paths"] == [f"train/cat/new-{number:02d}.png" for number in range(25)]
    assert drift["relabelled"] == [{"path": "train/dog/moved.png", "was": "cat", "is": "dog"}]
    page = project.report()
    against = page.partition("Changes since old.parquet")[2].partition("<h2>")[0]
    assert "Gone: train/cat/003.png." in against
    assert "train/cat/new-19.png and 5 more, all in <code>result.json</code>" in against
    assert against.count("<img") == 12
    moved = page.partition('<section id="same_images">')[2].partition("</section>")[0]
    assert "<b>train/dog/moved.png</b>" in moved
    assert "<p>was cat, is dog</p>" in moved


@pytest.mark.parametrize(
    ("content", "words"), [(None, "old.parquet is missing"), (b"no table", "old.parquet is not a table of facts")]
)
def test_a_reference_that_cannot_be_read_is_refused(
    project: Project, photos: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (photos.parent / "old.parquet").write_bytes(content)

    assert project.run("ingest").code == 0

    ran = _validated(project.set(validate__reference="old.parquet"), ingest=False)

    assert ran.code == 1
    assert words in ran.said


def test_every_hostile_file_has_a_verdict_in_words_and_the_report_shows_it(project: Project, real_images: Path) -> None:
    project.set(ingest__source="folder", ingest__path=str(real_images / "hostile-images"), ingest__channels="rgb")
    project.set(ingest__max_pixels=60_000_000)

    stopped = _validated(project)
    findings = pq.read_table(project.folder / "data/out/validate/findings.parquet").to_pylist()

    assert stopped.code == 1
    assert len(stopped.said.strip().splitlines()) <= 10
    broken = {row["path"]: row["error"] for row in project.table() if row["error"] is not None}
    told = {row["path"]: row["words"] for row in findings if row["check"] == "decoded"}
    assert told == {path: f"{path}: {error}" for path, error in broken.items()}
    assert len(broken) > 100
    assert any(words.startswith("truncated after ") for words in broken.values())
    assert any("claims 3,158,064 x 48 pixels" in words for words in broken.values())
    assert "image-rs-image/" in project.report()


def test_the_distribution_of_facts_is_drawn_by_dvc_for_each_split(project: Project, photos: Path) -> None:
    assert _validated(project).code == 0

    lines = (project.folder / "data/out/validate/facts.csv").read_text().splitlines()
    columns = lines[0].split(",")
    values = np.array([[float(cell) for cell in line.split(",")] for line in lines[1:]])

    assert photos.is_dir()
    for split in ("train", "val", "test"):
        np.testing.assert_allclose(values[:, columns.index(f"brightness_{split}")].sum(), 1, atol=1e-4)


def test_a_group_in_two_published_splits_is_a_leak_and_can_be_dropped_from_the_earlier(
    project: Project, photos: Path
) -> None:
    groups = ["train/cat/003.png,burst-3", "train/cat/004.png,burst-3", "test/cat/007.png,burst-3"]
    (photos.parent / "groups.csv").write_text("\n".join(["path,group", *groups, "test/dog/001.png,burst-4"]))

    stopped = _validated(project.set(ingest__splits_file="groups.csv"))
    page = project.report()
    proposed = pq.read_table(project.folder / "data/out/validate/findings.parquet").to_pylist()
    dropped = _validated(project.set(validate__on_leak="drop"), ingest=False)
    gone = _dropped(project)
    warned = _validated(project.set(validate__on_leak="warn"), ingest=False)

    assert stopped.code == 1, stopped.said
    assert 'group "burst-3": test/cat/007.png (cat, test), train/cat/003.png (cat, train)' in stopped.said
    assert "on_leak: stop" in page
    assert [row["path"] for row in proposed if row["action"] == "drop"] == ["train/cat/003.png", "train/cat/004.png"]
    assert dropped.code == 0, dropped.said
    assert set(gone) == {"train/cat/003.png", "train/cat/004.png"}
    assert set(gone.values()) == {'leak: group "burst-3" is in a later split, test/cat/007.png'}
    assert warned.code == 0, warned.said
    assert "Warning: 1 group is in two splits" in warned.said


def test_images_without_a_published_split_follow_their_group_and_their_copies_into_the_one_that_is(
    project: Project, write_photos: WriteImages
) -> None:
    root = write_photos(each=40, splits=("all",))
    Image.open(root / "all/cat/005.png").save(root / "all/cat/copy.jpg", quality=60)
    shutil.copy(root / "all/dog/005.png", root / "all/dog/same.png")
    published = [
        f"{label}/{number:03d}.png,test,{'burst' if number < 2 else ''}"
        for label in ("cat", "dog")
        for number in range(10)
    ]
    (project.folder / "splits.csv").write_text("\n".join(["path,split,group", *published, "cat/020.png,,burst"]))
    project.set(ingest__source="folder", ingest__path="images/all", ingest__splits_file="splits.csv")
    project.set(ingest__channels="rgb", ingest__size_px=64, validate__min_images_per_class=1)

    ran = _validated(project)

    assert ran.code == 0, ran.said
    paths = [row["path"] for row in project.table()]
    splits = {paths[row["row"]]: row["split"] for row in project.manifest()}
    assert [splits[path] for path in ("cat/copy.jpg", "dog/same.png", "cat/020.png")] == ["test"] * 3
    assert sum(split == "test" for split in splits.values()) == 23
    assert set(splits.values()) == {"train", "val", "test"}


@pytest.mark.parametrize(("policy", "code"), [("warn", 0), ("stop", 1), ("drop", 1)])
def test_a_search_for_wrong_labels_that_has_no_time_stops_the_pipeline_but_where_labels_only_warn(
    project: Project, photos: Path, policy: str, code: int
) -> None:
    project.set(validate__label_errors={"folds": 2, "budget_s": 1e-6}, validate__on_label_error=policy)

    ran = _validated(project)

    assert photos.is_dir()
    assert ran.code == code, ran.said
    assert "The search for wrong labels does not finish within 1e-06 s" in ran.said
    search = _finding(project, "label_search")
    assert (search["status"], search["stops"]) == ("not judged", bool(code))
    assert project.result()["label_search"] == {"accuracy": 0.0, "finished": False}


def test_images_of_poor_quality_are_dropped_for_all_of_their_flaws_or_stop_the_pipeline(
    project: Project, photos: Path
) -> None:
    Image.new("RGB", (96, 20), (2, 2, 2)).save(photos / "train/cat/lens-cap.png")
    Image.new("RGB", (96, 96), "white").save(photos / "train/dog/white.png")

    dropped = _validated(project.set(validate__on_quality="drop"))
    gone = _dropped(project)
    stopped = _validated(project.set(validate__on_quality="stop"), ingest=False)

    assert dropped.code == 0, dropped.said
    assert set(gone) == {"train/cat/lens-cap.png", "train/dog/white.png"}
    flaws = [flaw.split(",")[0] for flaw in gone["train/cat/lens-cap.png"].removeprefix("quality: ").split("; ")]
    assert {"dark", "low information", "odd aspect"} <= set(flaws)
    proposed = pq.read_table(project.folder / "data/out/validate/findings.parquet").to_pylist()
    drops = {row["check"] for row in proposed if row["action"] == "drop"}
    assert drops == {"not_dark", "not_bright", "not_low_information"}
    assert "; bright, 95%" in gone["train/dog/white.png"].replace("quality: ", "; ")
    assert stopped.code == 1
    assert "1 image is dark" in stopped.said
    assert "train/cat/lens-cap.png: 95% of it is at most 0.01 of white" in stopped.said


@pytest.mark.parametrize(("policy", "code"), [("stop", 1), ("drop", 0), ("warn", 0)])
def test_broken_images_sizes_and_modes_stop_the_pipeline_are_dropped_or_warned_of_as_their_policies_say(
    project: Project, photos: Path, policy: str, code: int
) -> None:
    (photos / "train/cat/page.png").write_text("<!doctype html><p>Not found</p>")
    Image.open(photos / "train/cat/003.png").resize((200, 200)).rotate(90).save(photos / "train/cat/003.png")
    Image.open(photos / "train/dog/003.png").convert("L").save(photos / "train/dog/003.png")
    project.set(validate__max_side_px=100, validate__modes=["RGB"])
    project.set(validate__on_broken=policy, validate__on_size=policy, validate__on_mode=policy)

    ran = _validated(project)

    assert ran.code == code, ran.said
    unmet = {each["name"]: each["severity"] for each in project.result()["expectations"] if not each["passed"]}
    named = {name: unmet.get(name) for name in ("decoded", "width", "height", "mode")}
    severity = {"stop": "critical", "drop": None, "warn": "warning"}[policy]
    assert set(named.values()) == {severity}
    if code == 0:
        gone = _dropped(project)
        assert gone.pop("train/cat/page.png").startswith("unreadable: is an HTML page")
        sizes = {"train/cat/003.png": "size: 200 x 200 pixels", "train/dog/003.png": "mode: L"}
        assert gone == (sizes if policy == "drop" else {})


@pytest.mark.parametrize(("policy", "code"), [("stop", 1), ("warn", 0)])
def test_small_classes_and_names_that_are_alike_stop_the_pipeline_or_are_warned_of(
    project: Project, photos: Path, policy: str, code: int
) -> None:
    for split in ("train", "val", "test"):
        (photos / split / "CAT").mkdir()
        (photos / split / "cat/003.png").rename(photos / split / "CAT/003.png")
    project.set(validate__min_images_per_class=2, validate__on_classes=policy, validate__on_names=policy)

    ran = _validated(project)

    assert ran.code == code, ran.said
    unmet = {each["name"]: each["severity"] for each in project.result()["expectations"] if not each["passed"]}
    severity = "critical" if code else "warning"
    assert unmet == dict.fromkeys(("enough_images", "balance", "distinct_names"), severity)


@pytest.mark.parametrize(("policy", "code"), [("stop", 1), ("warn", 0)])
def test_a_shortcut_stops_the_pipeline_or_is_warned_of(project: Project, photos: Path, policy: str, code: int) -> None:
    for path in photos.rglob("dog/*.png"):
        ImageEnhance.Brightness(Image.open(path)).enhance(0.3).save(path)

    ran = _validated(project.set(validate__on_shortcut=policy))

    assert ran.code == code, ran.said
    assert _finding(project, "no_shortcut")["severity"] == ("critical" if code else "warning")
    assert any("alone tells" in each["what"] for each in _finding(project, "no_shortcut")["first_violations"])
    assert "Shortcuts to the labels" in project.report()


def test_wrong_labels_stop_the_pipeline_or_are_dropped_and_those_that_a_person_kept_are_not(
    project: Project, write_digits: WriteImages
) -> None:
    root = write_digits(each=100, classes=(0, 1, 2))
    for number in range(6):
        (root / f"0/{number:03d}.png").rename(root / f"1/zero-{number}.png")
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    project.set(validate__label_errors={"folds": 3, "budget_s": 600}, validate__on_shortcut="warn")

    stopped = _validated(project.set(validate__on_label_error="stop"))
    proposed = pq.read_table(project.folder / "data/out/validate/findings.parquet").to_pylist()
    found = sorted(row["path"] for row in proposed if (row["action"], row["label"]) == ("relabel", "0"))
    dropped = _validated(project.set(validate__on_label_error="drop"), ingest=False)
    gone = _dropped(project)
    (project.folder / "decisions.csv").write_text(f"path,action\n{found[0]},keep\n")
    kept = _validated(project.set(validate__decisions="decisions.csv"), ingest=False)

    assert stopped.code == 1, stopped.said
    assert sum(path.startswith("1/zero-") for path in found) >= 3
    assert dropped.code == 0, dropped.said
    assert {gone[path] for path in found} == {"label error: looks like 0"}
    assert kept.code == 0, kept.said
    assert gone.keys() - _dropped(project).keys() == {found[0]}
