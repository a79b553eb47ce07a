"""The commands `twinrun data check | mend | split`, called as a person calls them."""

import csv
import json
import re
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import Project, run_twinrun
from PIL import Image, ImageOps

from twinrun.project.presets import write_preset
from twinrun.validate.results import findings_schema


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty pictures with content of their own, in two folders: upright blots and lying ones."""
    rng = np.random.default_rng(3)
    for label, shape in (("cat", (3, 14, 3)), ("dog", (14, 3, 3))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(30):
            coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            coarse.resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


def _decisions(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_a_clean_folder_passes_in_one_line_and_one_with_faults_is_shown_on_a_page(photos: Path) -> None:
    clean = run_twinrun(photos.parent, "data", "check", "photos", "--out", "clean")
    ImageOps.mirror(Image.open(photos / "cat/3.png")).save(photos / "dog/copy.jpg", quality=70)
    (photos / "cat/page.jpg").write_text("<!doctype html><p>Not found</p>")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    found = run_twinrun(photos.parent, "data", "check", "photos")
    again = run_twinrun(photos.parent, "data", "check", "photos")

    assert clean.code == 0, clean.said
    names = {each["name"] for each in json.loads((photos.parent / "clean/result.json").read_bytes())["expectations"]}
    assert not names & {"no_leak", "no_near_leak", "enough_images"}
    assert clean.said.splitlines()[-1].startswith("The data passed all 21 checks. 2 classes; 60 images; dropped: none.")
    assert clean.said.startswith("Folders read as [label], as in cat: 2 classes (cat 30, dog 30).\n")
    assert len(clean.said.splitlines()) == 2
    assert "The report" not in clean.said
    shown = (photos.parent / "clean/index.html").read_text(encoding="utf-8")
    assert re.findall(r'<td>(\w+)</td>\s*<td class="number">(\d+)</td>', shown) == [("cat", "30"), ("dog", "30")]
    assert shown.partition("Samples of each class")[2].count("<img") == 20
    assert found.code == 1
    assert "cat/page.jpg: is an HTML page named .jpg" in found.said
    assert "cat/3.png (cat) ~ dog/copy.jpg (dog): mirrored" in found.said
    assert "params.yaml" not in found.said
    assert "Traceback" not in found.said
    page = (photos.parent / "twinrun-check/index.html").read_text(encoding="utf-8")
    assert "dog/copy.jpg" in page
    assert "Fix or remove them." in page
    assert not re.search(r"params\.yaml|validate\.|on_broken|set it to", page)
    assert again.said == found.said
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_a_folder_without_labels_is_checked_too(photos: Path) -> None:
    for path in sorted(photos.rglob("*.png")):
        path.rename(photos / f"{path.parent.name}{path.name}")
    for label in ("cat", "dog"):
        (photos / label).rmdir()
    Image.open(photos / "cat3.png").save(photos / "other.jpg", quality=70)

    found = run_twinrun(photos, "data", "check", ".")

    assert found.code == 1, found.said
    assert "1 image duplicates another one: cat3.png (no label) ~ other.jpg (no label) (re-encoded, " in found.said
    result = json.loads((photos / "twinrun-check/result.json").read_bytes())
    assert [each["name"] for each in result["expectations"] if not each["passed"]] == ["classes", "no_duplicate"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist. Name a folder of images."),
        (["file"], "file is not a folder. Name a folder of images."),
        (["photos.zip"], "photos.zip is an archive: unpack it first. Name a folder of images."),
        (["empty"], "empty has no images in it. Name a folder of images."),
        (["photos", "--out", "file"], "file cannot be used as a folder: File exists. Name another one: --out."),
        (["photos", "--out", "/proc/there/it"], "/proc/there/it cannot be used as a folder"),
        (["photos", "--out", "file/in/it"], "file/in/it cannot be used as a folder"),
        (["photos", "--reference", "file"], "Name another table of facts (--reference)"),
        (["photos", "--reference", "nowhere"], "nowhere is missing. Name another table of facts (--reference)."),
    ],
)
def test_what_cannot_be_checked_is_said_in_words_and_with_another_code_than_findings(
    photos: Path, arguments: list[str], words: str
) -> None:
    for name in ("file", "photos.zip"):
        (photos.parent / name).write_text("text")
    (photos.parent / "empty").mkdir()

    ran = run_twinrun(photos.parent, "data", "check", *arguments)

    assert ran.code == 2, ran.said
    assert words in ran.said
    assert "params.yaml" not in ran.said
    assert "Traceback" not in ran.said


@pytest.mark.parametrize("name", ["index.html", "result.json", "findings.parquet"])
def test_a_check_replaces_its_own_report_and_no_file_of_a_person(photos: Path, name: str) -> None:
    place = photos.parent / "site"
    place.mkdir()
    (place / name).write_text("<title>My own page</title>")

    refused = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--out", "site")

    assert refused.code == 2
    assert f"site/{name} exists, is not what this command writes, and would be lost. Name another place" in refused.said
    assert [path.name for path in place.iterdir()] == [name]
    assert (place / name).read_text() == "<title>My own page</title>"

    (place / name).write_bytes(b"")
    first, again = (
        run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--out", "site") for _ in range(2)
    )

    assert (first.code, again.said) == (0, first.said)


def test_a_report_written_into_a_folder_of_images_hides_none_of_them(photos: Path) -> None:
    (photos / "cat/broken.png").write_bytes(b"no image")

    first, again = (
        run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--out", "photos/cat") for _ in range(2)
    )

    assert (first.code, again.code) == (1, 1)
    for ran in (first, again):
        assert "cat/broken.png" in ran.said
    assert json.loads((photos / "cat/result.json").read_bytes())["images"]["total"] == 61


def test_the_codes_are_in_the_help(tmp_path: Path) -> None:
    ran = run_twinrun(tmp_path, "data", "check", "--help")

    assert "0 clean, 1 findings, 2 not checked" in " ".join(ran.said.replace("│", " ").split())


def test_labels_that_no_model_can_tell_are_not_judged_and_no_findings(photos: Path) -> None:
    for number in range(0, 30, 2):
        one, other = photos / f"cat/{number}.png", photos / f"dog/{number}.png"
        one.rename(photos / "swapped")
        other.rename(one)
        (photos / "swapped").rename(other)

    judged = run_twinrun(photos.parent, "data", "check", "photos")
    unasked = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--out", "unasked")

    assert judged.code == 0, judged.said
    _, first, second = judged.said.splitlines()
    assert first.startswith("The data passed 19 of 20 checks, 1 could not be judged.")
    assert second.startswith("  Not judged: The quick model agrees with only ")
    assert '<td class="nj">? <span>not judged</span></td>' in (photos.parent / "twinrun-check/index.html").read_text(
        "utf-8"
    )
    assert unasked.code == 0, unasked.said
    assert "abels" not in unasked.said


def test_drift_is_measured_against_a_table_of_an_earlier_data_set(photos: Path) -> None:
    write_preset(photos.parent, "folder")
    ingested = Project(photos.parent).set(ingest__path="photos").run("ingest")
    table = "data/out/ingest/table.parquet"
    same = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--reference", table)
    for path in photos.rglob("*.png"):
        Image.open(path).point(lambda value: value // 4).save(path)

    darker = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels", "--reference", table)

    assert ingested.code == 0, ingested.said
    assert same.code == 0, same.said
    assert darker.code == 1, darker.said
    assert "facts are distributed differently than in table.parquet" in darker.said


def test_what_lies_about_in_a_folder_is_passed_over_with_a_note(photos: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (photos / split / label).mkdir(parents=True)
            for path in sorted((photos / label).glob(f"{'[0-4]' if split == 'test' else '[5-9]'}*.png")):
                path.rename(photos / split / label / path.name)
    for label in ("cat", "dog"):
        (photos / label).rmdir()
    (photos / "docs").mkdir()
    (photos / "docs/how.txt").write_text("text")
    (photos / "train/cat/.directory.swp").write_text("text")
    (photos / "train/cat/.7.png").write_bytes((photos / "train/cat/7.png").read_bytes())
    old = run_twinrun(photos, "data", "check", ".", "--out", "train/cat/old", "--no-labels")
    inside = run_twinrun(photos, "data", "check", ".", "--out", ".", "--no-labels")
    again = run_twinrun(photos, "data", "check", ".", "--out", ".", "--no-labels")

    result = json.loads((photos / "result.json").read_bytes())
    unmet = {each["name"]: each["first_violations"] for each in result["expectations"] if not each["passed"]}
    assert unmet == {"no_duplicate": unmet["no_duplicate"]}  # a hidden image counts
    assert unmet["no_duplicate"][0]["what"] == "train/cat/.7.png (cat, train) = train/cat/7.png (cat, train)"
    for ran in (old, inside, again):
        assert ran.code == 1, ran.said
        assert "Folders without images where classes are expected: docs." in ran.said
        assert (
            "Left out: 1 file that is not an image (.txt) and 1 file or folder of other programs (.directory.swp)."
            in ran.said
        )
        assert len(ran.said.splitlines()) <= 10
    assert "is the report of a check: train/cat/old." in inside.said
    assert "is the report of a check: ., train/cat/old" in again.said


def test_many_faults_and_notes_are_told_in_ten_lines(photos: Path) -> None:
    (photos / "cat/.hidden").write_text("text")
    (photos / "readme.txt").write_text("text")
    for number in range(5):
        (photos / f"cat/page{number}.jpg").write_text("<!doctype html>")
        Image.new("F", (9000, 2)).save(photos / f"cat/thin{number}.tif")
        Image.new("RGB", (12000, 4), (number, 9, 9)).save(photos / f"dog/long{number}.png")
        Image.open(photos / f"cat/{number}.png").save(photos / f"dog/copy{number}.png")
        ImageOps.mirror(Image.open(photos / f"cat/1{number}.png")).save(photos / f"dog/mirrored{number}.png")

    ran = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels")

    assert ran.code == 1
    assert "Left out" in ran.said
    assert 5 < len(ran.said.splitlines()) <= 10, ran.said


def test_what_mend_proposes_is_edited_by_a_person_and_lets_the_data_pass(photos: Path) -> None:
    folder = photos.parent
    write_preset(folder, "folder")
    project = Project(folder).set(ingest__path="photos", validate__label_errors={"folds": 0, "budget_s": 60})
    project.set(validate__min_images_per_class=1, validate__seed=1)
    (photos / "cat/page.jpg").write_text("<html>")
    (photos / "dog/copy.png").write_bytes((photos / "cat/3.png").read_bytes())
    assert project.run("ingest").code == 0
    stopped = project.run("validate")

    first = run_twinrun(folder, "data", "fix")
    proposed = _decisions(folder / "data/decisions/decisions.csv")
    (folder / "data/decisions/decisions.csv").write_text(
        "path,action,label,reason\ncat/page.jpg,drop,,no picture\ndog/copy.png,relabel,cat,it is a cat\n"
    )
    project.set(validate__decisions="data/decisions/decisions.csv")
    second = run_twinrun(folder, "data", "mend")
    passed = project.run("validate")

    assert stopped.code == 1, stopped.said
    assert first.code == 0, first.said
    assert "Then set validate.decisions: data/decisions/decisions.csv" in first.said
    assert {(row["path"], row["action"]) for row in proposed} == {
        ("cat/page.jpg", "drop"),
        ("cat/3.png", "drop"),
        ("dog/copy.png", "drop"),
    }
    assert second.code == 0, second.said
    assert "params.yaml names the file already. Apply it: dvc repro" in second.said
    assert [row["path"] for row in _decisions(folder / "data/decisions/decisions.csv")][:2] == [
        "cat/page.jpg",
        "dog/copy.png",
    ]
    assert passed.code == 0, passed.said
    # cat/3.png is dropped too, which the second proposal added.
    assert "By your decisions: 2 dropped, 1 relabelled." in passed.said


def test_mend_without_a_validation_names_the_command_that_makes_one(tmp_path: Path) -> None:
    write_preset(tmp_path, "digits")

    ran = run_twinrun(tmp_path, "data", "fix")

    assert ran.code == 1
    assert "data/out/validate/findings.parquet is missing. Create it: dvc repro validate" in ran.said


def test_what_a_check_found_can_be_mended_as_its_page_says(photos: Path) -> None:
    (photos / "cat/page.jpg").write_text("<!doctype html>")
    run_twinrun(photos.parent, "data", "check", "photos", "--no-labels")

    inside = run_twinrun(photos.parent, "data", "fix", "--findings", "twinrun-check/findings.parquet")
    write_preset(photos.parent, "digits")
    outside = run_twinrun(
        photos.parent, "data", "fix", "--findings", "twinrun-check/findings.parquet", "--out", "other/mine.csv"
    )
    refused = run_twinrun(
        photos.parent, "data", "fix", "--findings", "twinrun-check/findings.parquet", "--out", "photos/cat/page.jpg/a"
    )

    assert inside.code == outside.code == 0, inside.said + outside.said
    for file in ("data/decisions/decisions.csv", "other/mine.csv"):
        assert [row["path"] for row in _decisions(photos.parent / file)] == ["cat/page.jpg"]
    assert "DVC watches" not in inside.said
    assert "copy data/decisions/decisions.csv into data/decisions of a project" in inside.said
    assert "those lines take effect" in inside.said
    assert "DVC watches only data/decisions: move it there, or add other/mine.csv to the deps" in outside.said
    assert refused.code == 1
    assert "photos/cat/page.jpg/a cannot be written: " in refused.said
    assert "Traceback" not in refused.said


def test_mend_leaves_the_lines_and_columns_of_a_person_as_they_are(photos: Path) -> None:
    mine = photos.parent / "data/decisions/decisions.csv"
    mine.parent.mkdir(parents=True)
    before = '\ufeffWho,Action,Path,label\r\nann, keep ,"cat/1.png",\r\n\r\nbob,DROP,cat/2.png,""'.encode()
    mine.write_bytes(before)
    row = {
        "check": "decoded",
        "severity": "critical",
        "violation": 0,
        "path": "cat/page.jpg",
        "words": "is not an image",
        "action": "drop",
        "label": None,
    }
    pq.write_table(pa.Table.from_pylist([row], findings_schema()), photos.parent / "findings.parquet")

    ran = run_twinrun(photos.parent, "data", "fix", "--findings", "findings.parquet")

    assert ran.code == 0, ran.said
    assert mine.read_bytes() == before + b"\r\n,drop,cat/page.jpg,\r\n"
    assert "1 drop proposed, 0 labels to look at, 2 decisions kept" in ran.said


def test_mend_asks_for_the_column_that_relabels_need(photos: Path) -> None:
    mine = photos.parent / "decisions.csv"
    mine.write_text("path,action\n")
    row = {
        "check": "labels",
        "severity": "critical",
        "violation": 0,
        "path": "cat/1.png",
        "words": "looks like dog",
        "action": "relabel",
        "label": "dog",
    }
    pq.write_table(pa.Table.from_pylist([row], findings_schema()), photos.parent / "findings.parquet")

    ran = run_twinrun(photos.parent, "data", "fix", "--findings", "findings.parquet", "--out", "decisions.csv")

    assert ran.code == 1
    assert "no column label, which relabels need" in ran.said
    assert mine.read_text() == "path,action\n"
    mine.unlink()
    shown = run_twinrun(photos.parent, "data", "fix", "--findings", "findings.parquet", "--out", "decisions.csv")
    assert "Look at the images.\n" in shown.said
    assert [(row["action"], row["label"]) for row in _decisions(mine)] == [("", "dog")]
    again = run_twinrun(photos.parent, "data", "fix", "--findings", "findings.parquet", "--out", "decisions.csv")
    assert "0 drops proposed, 1 label to look at, 0 decisions kept" in again.said


SPLITS = "data/decisions/splits.csv"


@pytest.fixture
def drawn(photos: Path) -> Project:
    """A project on the sixty pictures, after a first validate, which drew their splits."""
    write_preset(photos.parent, "folder")
    project = Project(photos.parent).set(ingest__path="photos", validate__label_errors={"folds": 0, "budget_s": 60})
    _draw(project)
    return project


def _draw(project: Project) -> None:
    for stage in ("ingest", "validate"):
        ran = project.run(stage)
        assert ran.code == 0, ran.said


def _splits(project: Project) -> dict[str, str]:
    """The split of each usable image by its path."""
    paths = [row["path"] for row in project.table()]
    return {paths[row["row"]]: row["split"] for row in project.manifest() if row["dropped"] is None}


def _picture(seed: int) -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 14, 3), dtype=np.uint8))
    return coarse.resize((96, 96), Image.Resampling.BICUBIC)


def test_thirty_images_added_after_the_split_was_written_move_none_and_fill_the_quotas(drawn: Project) -> None:
    before = _splits(drawn)
    first = run_twinrun(drawn.folder, "data", "split")
    for number in range(30):
        _picture(100 + number).save(drawn.folder / f"photos/cat/new{number}.png")
    drawn.set(validate__splits=SPLITS, validate__seed=5)

    _draw(drawn)
    second = run_twinrun(drawn.folder, "data", "split")
    third = run_twinrun(drawn.folder, "data", "split")

    assert first.code == 0, first.said
    assert f"{SPLITS}: 60 images (train 42, val 9, test 9), of which 60 were added." in first.said
    assert f"set validate.splits: {SPLITS} in params.yaml" in first.said
    after = _splits(drawn)
    assert {path: after[path] for path in before} == before
    of_cats = Counter(split for path, split in after.items() if path.startswith("cat/"))
    assert of_cats["train"] == 42
    assert of_cats["val"] + of_cats["test"] == 18
    assert second.code == 0, second.said
    assert "90 images (train 63, val 1" in second.said
    assert "of which 30 were added" in second.said
    assert "It was up to date." in third.said
    lines = _decisions(drawn.folder / SPLITS)
    assert {line["path"]: line["split"] for line in lines} == after
    assert [line["path"] for line in lines[:60]] == list(before)


def test_a_picture_keeps_its_split_when_it_is_renamed_relabelled_swapped_copied_or_replaced(drawn: Project) -> None:
    before = _splits(drawn)
    assert run_twinrun(drawn.folder, "data", "split").code == 0
    of = {
        name: [path for path in before if before[path] == name and path.startswith("cat/")]
        for name in ("train", "val", "test")
    }
    photos = drawn.folder / "photos"
    (photos / of["test"][0]).rename(photos / 'cat/renamed #1, "quoted".png')
    (photos / of["val"][0]).rename(photos / "dog/relabelled.png")
    (photos / of["train"][0]).rename(photos / "swapped")
    (photos / of["test"][1]).rename(photos / of["train"][0])
    (photos / "swapped").rename(photos / of["test"][1])
    Image.open(photos / of["test"][2]).save(photos / "cat/copy.jpg", quality=60)
    _picture(77).save(photos / of["val"][1])
    (photos / of["train"][3]).unlink()
    drawn.set(validate__splits=SPLITS, validate__seed=5)

    _draw(drawn)
    again = run_twinrun(drawn.folder, "data", "split")

    after = _splits(drawn)
    assert after['cat/renamed #1, "quoted".png'] == "test"
    assert after["dog/relabelled.png"] == "val"
    assert after[of["train"][0]] == "test"
    assert after[of["test"][1]] == "train"
    assert after["cat/copy.jpg"] == "test"
    assert after[of["val"][1]] == "val"
    moved = {of["train"][0], of["test"][1]}
    assert all(after[path] == before[path] for path in before if path in after and path not in moved)
    assert again.code == 0, again.said
    lines = {line["path"]: line["split"] for line in _decisions(drawn.folder / SPLITS)}
    assert lines == {**before, **after}


def test_a_split_file_that_was_not_used_is_not_changed_to_what_was_drawn_without_it(drawn: Project) -> None:
    assert run_twinrun(drawn.folder, "data", "split").code == 0
    written = (drawn.folder / SPLITS).read_bytes()
    drawn.set(validate__seed=5)
    _draw(drawn)

    ran = run_twinrun(drawn.folder, "data", "split")

    assert ran.code == 1
    assert f"images are in another split than in {SPLITS}, for example" in ran.said
    assert f"set validate.splits: {SPLITS} in params.yaml, and run: dvc repro validate" in ran.said
    assert "Traceback" not in ran.said
    assert (drawn.folder / SPLITS).read_bytes() == written


def test_a_split_file_that_a_person_saved_with_a_spreadsheet_keeps_its_form(drawn: Project) -> None:
    first = run_twinrun(drawn.folder, "data", "split")
    file, elsewhere = drawn.folder / SPLITS, drawn.folder / "elsewhere.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [[row["split"], row["path"], "look, again", row["pixels_sha256"]] for row in csv.DictReader(lines)]
    saved = "\r\n".join(map(";".join, [["split", "path", "note", "pixels_sha256"], *rows[3:]])) + "\r\n"
    elsewhere.write_bytes(f"\ufeff{saved}".encode())
    elsewhere.chmod(0o640)
    file.unlink()
    file.symlink_to(elsewhere)

    second, third = (run_twinrun(drawn.folder, "data", "split") for _ in range(2))

    assert (first.code, second.code, third.code) == (0, 0, 0), second.said
    added = "".join(f"{split};{path};;{pixels}\r\n" for split, path, _, pixels in rows[:3])
    assert elsewhere.read_bytes().decode() == f"\ufeff{saved}{added}"
    assert file.is_symlink()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o640
    assert "60 images" in second.said
    assert "of which 3 were added" in second.said
    assert "of which 0 were added" in third.said


def test_a_split_cannot_be_written_before_there_is_one(photos: Path) -> None:
    folder = photos.parent
    write_preset(folder, "folder")
    project = Project(folder).set(ingest__path="photos")

    nothing = run_twinrun(folder, "data", "split")
    ingested = project.run("ingest")
    unjudged = run_twinrun(folder, "data", "split")

    assert ingested.code == 0, ingested.said
    assert nothing.code == unjudged.code == 1
    for ran in (nothing, unjudged):
        assert "data/out/validate/manifest.parquet is missing. Create it: dvc repro validate" in ran.said
    assert not (folder / SPLITS).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,split\na.png,val\n\"b/\n2.png\",tset\n", "line 3: the split must be train, val or test, found 'tset'"),
        ("path,split\n\"a\nb\",val\ncat/1.png,train\ncat/1.png,train\n", "line 5: 'cat/1.png' already has a line"),
        ("path|split\ncat/1.png|train\n", "line 1: expected the columns path, split, pixels_sha256, separated"),
        ("", "line 1: expected the columns path, split, pixels_sha256"),
        ("path,split\n,train\n", "line 2: the path is empty"),
        ("path,split\ncat/a,b.png,train\n", "line 2: 3 cells, but the header has 2"),
        ('path,split\n"cat/1.png,train\n', "line 2: this is not CSV"),
        (None, "splits.csv is missing (params.yaml: validate.splits). Write it: twinrun data split"),
    ],
)  # fmt: skip
def test_a_split_file_that_cannot_be_used_is_refused_with_its_line(
    drawn: Project, content: str | None, message: str
) -> None:
    if content is not None:
        (drawn.folder / "data/decisions").mkdir(parents=True)
        (drawn.folder / SPLITS).write_text(content)

    ran = drawn.set(validate__splits=SPLITS).run("validate")

    assert ran.code == 1
    assert message in ran.said
    assert "Traceback" not in ran.said


def test_a_published_split_that_contradicts_the_file_is_refused_and_val_carved_out_of_train_is_not(
    drawn: Project,
) -> None:
    before = _splits(drawn)
    (drawn.folder / "published.csv").write_text(
        "path,split\n" + "".join(f"{path},{'test' if name == 'test' else 'train'}\n" for path, name in before.items())
    )
    drawn.set(ingest__splits_file="published.csv")
    _draw(drawn)
    carved = _splits(drawn)
    assert run_twinrun(drawn.folder, "data", "split").code == 0
    drawn.set(validate__splits=SPLITS)
    _draw(drawn)
    kept = _splits(drawn)
    first = next(path for path, name in before.items() if name == "test")
    published = (drawn.folder / "published.csv").read_text().replace(f"{first},test", f"{first},train")
    (drawn.folder / "published.csv").write_text(published)
    assert drawn.run("ingest").code == 0

    ran = drawn.run("validate")

    assert kept == carved
    assert ran.code == 1
    assert "1 line contradicts the splits of the source:" in ran.said
    assert f"test, but the source has '{first}' in train" in ran.said


def test_of_identical_images_the_one_that_is_named_as_a_copy_goes(photos: Path) -> None:
    copies = {
        "IMG": ["IMG (1)", "IMG (2)"],
        "x": ["Copy of x", "Copy (2) of x"],
        "y": ["y - Copy", "y - Copy (2)"],
        "z": ["z copy", "z copy 2"],
        "w": ["w_copy"],
        "v": ["v (another copy)"],
        "a copy": ["Copy of a copy (1)"],
    }
    for number, (name, others) in enumerate(copies.items()):
        picture = (photos / f"cat/{number}.png").rename(photos / f"cat/{name}.png")
        for other in others:
            (photos / f"cat/{other}.png").write_bytes(picture.read_bytes())

    checked = run_twinrun(photos.parent, "data", "check", "photos", "--no-labels")
    fixed = run_twinrun(photos.parent, "data", "fix", "--findings", "twinrun-check/findings.parquet")

    assert (checked.code, fixed.code) == (1, 0), checked.said + fixed.said
    proposed = {row["path"]: row for row in _decisions(photos.parent / "data/decisions/decisions.csv")}
    assert set(proposed) == {f"cat/{other}.png" for others in copies.values() for other in others}
    assert {row["action"] for row in proposed.values()} == {"drop"}
    assert "cat/IMG.png (cat) = cat/IMG (1).png (cat)" in proposed["cat/IMG (1).png"]["reason"]
