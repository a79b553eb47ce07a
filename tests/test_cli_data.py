"""The commands `twinrun data check` and `twinrun data mend`, called as a person calls them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_support import REPOSITORY, Project, Ran
from PIL import Image, ImageOps


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


def _twinrun(folder: Path, *arguments: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "twinrun.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return Ran(done.returncode, done.stdout + done.stderr)


def _decisions(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_a_clean_folder_passes_in_one_line_and_one_with_faults_is_shown_on_a_page(photos: Path) -> None:
    clean = _twinrun(photos.parent, "data", "check", "photos", "--out", "clean")
    ImageOps.mirror(Image.open(photos / "cat/3.png")).save(photos / "dog/copy.jpg", quality=70)
    (photos / "cat/page.jpg").write_text("<!doctype html><p>Not found</p>")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    found = _twinrun(photos.parent, "data", "check", "photos")
    again = _twinrun(photos.parent, "data", "check", "photos")

    assert clean.code == 0, clean.said
    assert clean.said.startswith("24 checks met. 2 classes; 60 images; dropped: none.")
    assert "The report" not in clean.said
    assert found.code == 1
    assert "cat/page.jpg: is an HTML page named .jpg" in found.said
    assert "cat/3.png (cat) ~ dog/copy.jpg (dog): mirrored" in found.said
    assert "params.yaml" not in found.said
    assert "Traceback" not in found.said
    assert "dog/copy.jpg" in (photos.parent / "twinrun-check/index.html").read_text(encoding="utf-8")
    assert again.said == found.said
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_a_folder_without_labels_is_checked_too(photos: Path) -> None:
    for path in sorted(photos.rglob("*.png")):
        path.rename(photos / f"{path.parent.name}{path.name}")
    for label in ("cat", "dog"):
        (photos / label).rmdir()
    Image.open(photos / "cat3.png").save(photos / "other.jpg", quality=70)

    found = _twinrun(photos, "data", "check", ".")

    assert found.code == 1, found.said
    assert "cat3.png (no label) ~ other.jpg (no label): re-encoded" in found.said
    result = json.loads((photos / "twinrun-check/result.json").read_bytes())
    assert [each["name"] for each in result["expectations"] if not each["passed"]] == ["no_duplicate"]


@pytest.mark.parametrize(("name", "words"), [("nowhere", "does not exist"), ("file", "is not a folder"), ("empty", "")])
def test_a_folder_that_cannot_be_checked_is_refused_in_words(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()

    ran = _twinrun(tmp_path, "data", "check", name)

    assert ran.code == 1
    assert name in ran.said
    assert words in ran.said
    assert "Traceback" not in ran.said


def test_what_mend_proposes_is_edited_by_a_person_and_lets_the_data_pass(photos: Path) -> None:
    folder = photos.parent
    (folder / "params.yaml").write_bytes((REPOSITORY / "presets/folder.yaml").read_bytes())
    project = Project(folder).set(ingest__path="photos", validate__label_errors={"folds": 0, "budget_s": 60})
    project.set(validate__min_images_per_class=1, validate__seed=1)
    (photos / "cat/page.jpg").write_text("<html>")
    (photos / "dog/copy.png").write_bytes((photos / "cat/3.png").read_bytes())
    assert project.run("ingest").code == 0
    stopped = project.run("validate")

    first = _twinrun(folder, "data", "mend")
    proposed = _decisions(folder / "data/decisions/decisions.csv")
    (folder / "data/decisions/decisions.csv").write_text(
        "path,action,label,reason\ncat/page.jpg,drop,,no picture\ndog/copy.png,relabel,cat,it is a cat\n"
    )
    second = _twinrun(folder, "data", "mend")
    passed = project.set(validate__decisions="data/decisions/decisions.csv").run("validate")

    assert stopped.code == 1, stopped.said
    assert first.code == 0, first.said
    assert "validate.decisions: data/decisions/decisions.csv" in first.said
    assert {(row["path"], row["action"]) for row in proposed} == {
        ("cat/page.jpg", "drop"),
        ("cat/3.png", "drop"),
        ("dog/copy.png", "drop"),
    }
    assert second.code == 0, second.said
    assert [row["path"] for row in _decisions(folder / "data/decisions/decisions.csv")][:2] == [
        "cat/page.jpg",
        "dog/copy.png",
    ]
    assert passed.code == 0, passed.said
    assert "dropped: 2 decision" in passed.said  # cat/3.png too, which the second proposal added


def test_mend_without_a_validation_names_the_command_that_makes_one(tmp_path: Path) -> None:
    ran = _twinrun(tmp_path, "data", "mend")

    assert ran.code == 1
    assert "data/out/validate/findings.parquet is missing. Make it: dvc repro validate" in ran.said
