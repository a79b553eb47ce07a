"""Lists of images as people have them: written by spreadsheets, other systems and other computers."""

import codecs
import csv
import io
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clock import takes_at_most
from data_support import Project
from PIL import Image

from twinrun.base.errors import DataError
from twinrun.tables.sheet import read_sheet, sheet_text
from twinrun.tables.spelling import read_alike, told_apart

NFC, NFD = "café", unicodedata.normalize("NFD", "café")
ODD = ["#/1.png", "a/=cmd|calc.png", "a/x,y.png", "a/x;y.png", 'a/"q".png', "a/l\nb.png", "a/ s .png", f"b/{NFD}.png"]
ROWS = [(name, "test" if number % 3 == 0 else "train") for number, name in enumerate(ODD)]
SPLITS = Counter(split for _, split in ROWS)


def _csv(rows: Sequence[tuple[str, ...]], **settings: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **settings).writerows(rows)
    return text.getvalue().encode()


READ: dict[str, tuple[bytes, str]] = {
    "LF": (_csv([("path", "split"), *ROWS], lineterminator="\n"), "csv"),
    "CR LF": (_csv([("path", "split"), *ROWS], lineterminator="\r\n"), "csv"),
    "a mark of UTF-8": (codecs.BOM_UTF8 + _csv([("path", "split"), *ROWS]), "csv"),
    "UTF-16": (_csv([("path", "split"), *ROWS]).decode().encode("utf-16"), "csv"),
    "semicolons": (_csv([("path", "split"), *ROWS], delimiter=";"), "csv"),
    "tabs": (_csv([("path", "split"), *ROWS], delimiter="\t"), "tsv"),
    "Excel's sep=": (b"sep=;\r\n" + _csv([("path", "split"), *ROWS], delimiter=";"), "csv"),
    "quotes everywhere": (_csv([("path", "split"), *ROWS], quoting=csv.QUOTE_ALL), "csv"),
    "no header": (_csv(ROWS), "csv"),
    "other names and order": (_csv([("subset", "filepath"), *((split, name) for name, split in ROWS)]), "csv"),
    "a comment": (b"# made by hand\n" + _csv([("path", "split"), *ROWS]), "csv"),
    "backslashes": (_csv([("path", "split"), *((name.replace("/", "\\"), split) for name, split in ROWS)]), "csv"),
    "a dot in front": (_csv([("path", "split"), *((f"./{name}", split) for name, split in ROWS)]), "csv"),
    "composed letters": (
        _csv([("path", "split"), *((unicodedata.normalize("NFC", name), split) for name, split in ROWS)]),
        "csv",
    ),
    "guarded formulas": (sheet_text([("path", "split"), *ROWS]).encode(), "csv"),
}
UNREAD: dict[str, tuple[bytes, str]] = {
    "an open quote": (b'path,split\n#/1.png,test\n"a/x,y.png,train\n', "line 3: this is not CSV"),
    "text behind a quote": (b'path,split\n"a"b,test\n', "line 2: this is not CSV"),
    "Latin-1": (b"path,split\n#/1.png,test\nb/caf\xe9.png,train\n", "line 3: the byte 0xe9 is not UTF-8 text"),
    "no split": (b"path,split\n#/1.png,7th\n", "line 2: expected an image and its split"),
    "a number": (b"path,split\n\n\n#/1.png,1\n", "line 4: expected an image and its split"),
    "an image that is not there": (b"path,split\na/none.png,test\n", "names 1 image that is not there: a/none.png"),
    "two splits": (b"path,split\n#/1.png,test\n./#/1.png,train\n", "but another line puts it into test"),
    "NUL": (b"path,split\n#/1.png\0,test\n", "line 2: this is not CSV (it has a NUL"),
}


@pytest.fixture
def odd(project: Project) -> Project:
    """A project whose images have odd names; the same picture is never there twice."""
    values = np.random.default_rng(3)
    for name in ODD:
        path = project.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.integers(0, 256, (10, 10), dtype=np.uint8)).save(path)
    return project.set(ingest__source="folder", ingest__path="images")


@pytest.mark.parametrize(("content", "suffix"), READ.values(), ids=READ)
def test_a_list_of_splits_is_read_as_whoever_wrote_it_meant_it(odd: Project, content: bytes, suffix: str) -> None:
    (odd.folder / f"splits.{suffix}").write_bytes(content)

    ran = odd.set(ingest__splits_file=f"splits.{suffix}").run("ingest")

    assert ran.code == 0, ran.said
    assert Counter(row["split"] for row in odd.table()) == SPLITS
    assert ("another Unicode form" in ran.said) == (NFC.encode() in content)


@pytest.mark.parametrize(("content", "reason"), UNREAD.values(), ids=UNREAD)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(odd: Project, content: bytes, reason: str) -> None:
    (odd.folder / "splits.csv").write_bytes(content)

    ran = odd.set(ingest__splits_file="splits.csv").run("ingest")

    assert ran.code == 1
    assert reason in ran.said
    assert "Traceback" not in ran.said


LABELS = {"a b.png": "cat", "c.png": "dog", f"{NFC}.png": "cat"}
LABELLED: dict[str, bytes] = {
    "capitals and spaces in the header": _csv([(" Path", "Label "), *LABELS.items()]),
    "spaces around labels": _csv([("path", "label"), *((name, f" {label} ") for name, label in LABELS.items())]),
    "a mark and semicolons": codecs.BOM_UTF8 + _csv([("path", "label"), *LABELS.items()], delimiter=";"),
    "UTF-16 and tabs": _csv([("path", "label"), *LABELS.items()], delimiter="\t").decode().encode("utf-16"),
}
NOT_LABELLED: dict[str, tuple[bytes, str]] = {
    "no label at all": (
        b"path,label\nc.png,\na b.png, \n",
        "or put the classes into a column label of labels.csv, which names none (params.yaml: ingest.splits_file).",
    ),
    "another folder in front": (
        b"path,label\ntrain/photos/c.png,cat\n",
        "not there: train/photos/c.png. Write each path as it is inside the folder of images, such as c.png.",
    ),
    "the path of another computer, without the suffix": (
        b"path,label\nC:\\photos\\C,cat\n",
        "Write each path as it is inside the folder of images, such as c.png.",
    ),
    "no image in a line": (b"path,label\nc.png,cat\n,dog\n", "line 3: no image is named in '', 'dog'. Name it, or rem"),
    "a comma in a label without quotes": (
        b"path,label\nc.png,Paris, France\n",
        "labels.csv, line 2: 3 cells, but the header has 2. Quote cells that hold what separates cells",
    ),
    "two columns of labels": (
        b"path,label,Label\nc.png,cat,dog\n",
        "labels.csv, line 1: two columns are called label. Rename or remove one of them.",
    ),
    "UTF-16 without a mark": (
        "path,label\n".encode("utf-16-le"),
        "params.yaml: ingest.splits_file). Save it in UTF-8.",
    ),
}


@pytest.fixture
def flat(project: Project) -> Project:
    """A project whose images lie in one folder; the same picture is never there twice."""
    values = np.random.default_rng(4)
    (project.folder / "images").mkdir()
    for name in LABELS:
        Image.fromarray(values.integers(0, 256, (10, 10), dtype=np.uint8)).save(project.folder / "images" / name)
    return project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="labels.csv")


@pytest.mark.parametrize("content", LABELLED.values(), ids=LABELLED)
def test_a_list_of_labels_is_read_as_whoever_wrote_it_meant_it(flat: Project, content: bytes) -> None:
    (flat.folder / "labels.csv").write_bytes(content)

    ran = flat.run("ingest")

    assert ran.code == 0, ran.said
    assert {row["path"]: row["label"] for row in flat.table()} == LABELS


@pytest.mark.parametrize(
    "form",
    ["./{name}", ".\\{name}", "images/{name}", "{above.name}\\images\\{name}", "{above}/images/{name}", "{quoted}"],
)
def test_a_label_is_that_of_its_image_however_the_path_is_written(flat: Project, form: str) -> None:
    rows = [(form.format(name=name, quoted=quote(name), above=flat.folder), label) for name, label in LABELS.items()]
    (flat.folder / "labels.csv").write_bytes(_csv([("path", "label"), *rows]))

    ran = flat.run("ingest")

    assert ran.code == 0, ran.said
    assert {row["path"]: row["label"] for row in flat.table()} == LABELS


@pytest.mark.parametrize(("content", "advice"), NOT_LABELLED.values(), ids=NOT_LABELLED)
def test_a_list_of_labels_that_cannot_be_used_is_answered_with_what_to_do(
    flat: Project, content: bytes, advice: str
) -> None:
    (flat.folder / "labels.csv").write_bytes(content)

    ran = flat.run("ingest")

    assert ran.code == 1
    assert advice in ran.said
    assert "set ingest.splits_file to a CSV" not in ran.said


def test_a_text_file_of_labels_is_answered_with_the_kind_of_file_that_may_have_them(flat: Project) -> None:
    (flat.folder / "labels.txt").write_text("c.png cat\n")

    ran = flat.set(ingest__splits_file="labels.txt").run("ingest")

    assert ran.code == 1
    assert "The header of a CSV (.csv or .tsv) may name the columns path, label, split and group." in ran.said


def test_labels_of_a_list_that_read_alike_are_named(project: Project, write_digits: Callable[..., Path]) -> None:
    root = write_digits(each=12, classes=(0, 1, 2, 3, 4, 5))
    names = ["Cat", "cat", " cat ", "1", "1.0", "v1.0"]
    rows = [(f"{path.parent.name}/{path.name}", names[int(path.parent.name)]) for path in root.glob("*/*.png")]
    (root / "labels.csv").write_bytes(_csv([("path", "label"), *rows]))
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/labels.csv")
    project.set(ingest__levels=["skip"], validate__min_images_per_class=1)

    ingested = project.run("ingest")
    ran = project.run("validate")

    found = next(each for each in project.result()["expectations"] if each["name"] == "distinct_names")
    assert ingested.code == ran.code == 0, ingested.said + ran.said
    assert sorted({row["label"] for row in project.table()}) == ["1", "1.0", "Cat", "cat", "v1.0"]
    assert [each["what"] for each in found["first_violations"]] == [
        '"1" is written like "1.0"',
        '"Cat" is written like "cat"',
    ]
    assert "give their folders or labels one name" in project.report()


def test_absolute_paths_are_those_of_the_source(odd: Project) -> None:
    rows = [(str(odd.folder / "images" / name), split) for name, split in ROWS]
    (odd.folder / "splits.csv").write_bytes(_csv(rows))

    ran = odd.set(ingest__splits_file="splits.csv").run("ingest")

    assert ran.code == 0, ran.said
    assert Counter(row["split"] for row in odd.table()) == SPLITS


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=1", "''", "a=b", "it's", ""]
)
def test_a_cell_is_no_formula_in_a_spreadsheet_and_comes_back_as_it_was(tmp_path: Path, cell: str) -> None:
    (tmp_path / "sheet.csv").write_text(sheet_text([("name", "number"), (cell, -1)]), newline="")

    written = next(
        csv.reader(io.StringIO((tmp_path / "sheet.csv").read_bytes().decode().partition("\n")[2], newline=""))
    )
    line = read_sheet(tmp_path / "sheet.csv", "a test", DataError).lines[1]

    assert not written[0].startswith(("=", "+", "-", "@", "\t", "\r", "＝"))
    assert written[1] == "-1"
    assert line.cells[0] == cell


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_decisions_are_matched_however_a_spreadsheet_saved_them(
    project: Project, write_digits: Callable[..., Path], delimiter: str
) -> None:
    root = write_digits()
    names = {"0/000.png": f"0/{NFD}.png", "0/001.png": "0/=1+1.png", "0/002.png": "0/l\nb.png"}
    for before, after in names.items():
        (root / before).rename(root / after)
    rows = [("path", "action", "label", "reason"), (f"0/{NFC}.png", "drop", "", ""), ("0/l\nb.png", "keep", "", "")]
    (project.folder / "d.csv").write_bytes(
        codecs.BOM_UTF8 + _csv([*rows, ("0\\=1+1.png", "relabel", "1", "")], delimiter=delimiter, lineterminator="\r\n")
    )
    project.set(ingest__source="folder", ingest__path="images", validate__decisions="d.csv")
    project.set(validate__min_images_per_class=1)

    assert project.run("ingest").code == 0
    ran = project.run("validate")

    assert ran.code == 0, ran.said
    assert "By your decisions: 1 dropped, 1 relabelled, 1 kept." in ran.said


def test_classes_that_read_alike_are_named_and_told_apart(project: Project, write_digits: Callable[..., Path]) -> None:
    root = write_digits(each=12, classes=(0, 1, 2, 3, 4, 5))
    names = {"0": NFC, "1": NFD, "2": "glass", "3": "gla\u200bss", "4": "gl\u0430ss", "5": "paper"}
    for before, after in names.items():
        (root / before).rename(root / after)
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)

    ingested = project.run("ingest")
    ran = project.run("validate")

    found = next(each for each in project.result()["expectations"] if each["name"] == "distinct_names")
    assert ran.code == 0, ran.said
    assert found["violations"] == 2
    assert [each["what"] for each in found["first_violations"]] == [
        f'"{NFD} (cafe U+0301)" is written like "{NFC} (caf U+00E9)"',
        '"glass" is written like "gla\u200bss (gla U+200B ss)", "gl\u0430ss (gl U+0430 ss)"',
    ]
    assert f"{NFD} (cafe U+0301) 12" in ingested.said
    assert "\u200b" not in ingested.said
    assert "5 labels differ from another one only in case" in ran.said


def test_three_thousand_classes_are_compared_at_once() -> None:
    with takes_at_most(4):
        alike = read_alike([f"Class {number}" for number in range(3000)] + ["class7"])
        shown = told_apart([f"x\u200b{'y' * number}" for number in range(3000)])

    assert alike == {name: ["Class 7", "class7"] for name in ("Class 7", "class7")}
    assert len(shown) == 3000


@pytest.mark.parametrize("empty", ["val"])
def test_an_empty_split_ends_training_before_it_begins(
    project: Project, write_digits: Callable[..., Path], empty: str
) -> None:
    write_digits()
    project.set(ingest__source="folder", ingest__path="images", validate__min_images_per_class=1)
    project.run("ingest")
    project.run("validate")
    manifest = project.folder / "data/out/validate/manifest.parquet"
    table = pq.read_table(manifest)
    splits = ["test" if split == empty else split for split in table["split"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("split"), "split", pa.array(splits)), manifest)

    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "Begin"]):
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *command], cwd=project.folder, check=True)

    ran = project.run_apart("train")

    assert ran.code == 1
    assert f"manifest.parquet has no images in {empty}" in ran.said
    assert "ZeroDivisionError" not in ran.said
