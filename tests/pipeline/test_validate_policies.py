"""What stage `validate` does about copies, groups, decisions, drift and expectations of a person's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import Project, Ran
from PIL import Image, ImageEnhance, ImageOps

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
    assert gone == {"train/cat/003.png": "near leak: a changed copy is in a later split"}
    assert warned.code == 0, warned.said
    assert "Warning: No changed copies of one picture are in two splits: test/cat/copy.jpg" in warned.said
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
    assert set(_dropped(project)) == {"train/cat/003.png", "train/dog/copy.jpg"}


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
    assert warnings["offences"] == 2
    assert dropped.code == 0, dropped.said
    assert _dropped(project) == {
        "train/cat/same.png": "duplicate: of train/cat/003.png",
        "train/cat/similar.jpg": "duplicate: of train/cat/005.png",
    }
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
    assert "Labels could not be judged: the quick model agrees with only" in ran.said
    assert "Labels could not be judged: the quick model agrees with only" in project.report()
    assert _finding(project, "label_search")["passed"]
    assert [each for each in project.result()["expectations"] if each["name"] == "labels"] == []


def test_decisions_of_a_person_are_applied_and_recorded_in_the_manifest(project: Project, photos: Path) -> None:
    decisions = project.folder / "decisions.csv"
    decisions.write_text(
        "path,action,label,reason\ntrain/cat/003.png,relabel,dog,it barks\ntrain/cat/004.png,drop,,blurred\n"
    )

    ran = _validated(project.set(validate__decisions="decisions.csv"))

    assert ran.code == 0, ran.said
    assert photos.is_dir()
    rows = {row["path"]: manifest for row, manifest in zip(project.table(), project.manifest(), strict=True)}
    assert (rows["train/cat/003.png"]["label"], rows["train/cat/003.png"]["given"]) == ("dog", "cat")
    assert rows["train/cat/003.png"]["target"] == rows["train/dog/001.png"]["target"]
    assert rows["train/cat/004.png"]["dropped"] == "decision: blurred"
    assert all(row["label"] == row["given"] for path, row in rows.items() if path != "train/cat/003.png")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (None, "decisions.csv is missing"),
        ("image,what\n", "line 1: wanted the columns path, action, label, reason; action and path is missing"),
        ("path,action\nnowhere.png,drop\n", "line 2: there is no image 'nowhere.png'"),
        ("path,action\n\ntrain/cat/003.png,remove\n", "line 3: the action must be drop, relabel or keep"),
        ("path,action\ntrain/cat/003.png,relabel\n", "line 2: relabel wants the new label"),
        ("path,action,label\ntrain/cat/003.png,relabel,catt\n", "no image has the label 'catt'; there are cat, dog"),
        ("path,action\ntrain/cat/003.png,drop\ntrain/cat/003.png,keep\n", "line 3: train/cat/003.png was to drop"),
    ],
)
def test_decisions_that_cannot_be_applied_are_refused_with_their_line(
    project: Project, photos: Path, lines: str | None, words: str
) -> None:
    if lines is not None:
        (photos.parent / "decisions.csv").write_text(lines)

    ran = _validated(project.set(validate__decisions="decisions.csv"))

    assert ran.code == 1
    assert words in ran.said


def test_an_expectation_of_ones_own_is_judged_on_the_facts_with_its_severity(project: Project, photos: Path) -> None:
    Image.new("RGB", (96, 96), "white").save(photos / "train/cat/white.png")
    own = {"name": "ExpectColumnValuesToBeBetween", "arguments": {"column": "brightness", "max_value": 0.9}}

    critical = _validated(project.set(validate__expectations=[{**own, "severity": "critical"}]))
    said = critical.said
    warning = _validated(project.set(validate__expectations=[{**own, "severity": "warning"}]), ingest=False)

    assert critical.code == 1
    assert "train/cat/white.png (cat, train): brightness is 1.0" in said
    assert warning.code == 0, warning.said
    assert _finding(project, "ExpectColumnValuesToBeBetween")["offences"] == 1


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"name": "ExpectColumnMeanToBeBetwen", "arguments": {}}, "did you mean ExpectColumnMeanToBeBetween?"),
        ({"name": "ExpectColumnMeanToBeBetween", "arguments": {"colum": "width"}}, "column: field required"),
        ({"name": "ExpectColumnMeanToBeBetween", "arguments": {"column": "age", "max_value": 1}}, "age"),
    ],
)
def test_an_expectation_that_cannot_be_judged_is_refused_in_words(
    project: Project, photos: Path, own: dict[str, Any], words: str
) -> None:
    ran = _validated(project.set(validate__expectations=[{**own, "severity": "critical"}]))

    assert ran.code == 1
    assert photos.is_dir()
    assert words in ran.said


def test_facts_that_moved_since_the_reference_are_a_warning_or_stop_the_pipeline(
    project: Project, photos: Path
) -> None:
    assert _validated(project).code == 0
    reference = project.folder / "data/reference/twinrun-digits.parquet"
    reference.parent.mkdir(parents=True)
    shutil.copy(project.folder / "data/out/ingest/table.parquet", reference)
    same = _validated(project, ingest=False)
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
    assert "no_drift" in warned.said
    assert 'Label "lion" is new' in json.dumps(project.result(), ensure_ascii=False).replace('\\"', '"')
    assert "Facts and labels are spread as in the champion's data" in stopped.said
    assert "Against the champion" in project.report()


@pytest.mark.parametrize(
    ("content", "words"), [(None, "old.parquet is missing"), (b"no table", "old.parquet is not a table of facts")]
)
def test_a_reference_that_cannot_be_read_is_refused(
    project: Project, photos: Path, content: bytes | None, words: str
) -> None:
    if content is not None:
        (photos.parent / "old.parquet").write_bytes(content)

    ran = _validated(project.set(validate__reference="old.parquet"))

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
