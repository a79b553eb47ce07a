"""`twinrun data check` on trees of folders, and `twinrun data fix` on odd names, called as a person calls them."""

import contextlib
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_support import Project, Ran, heed_permissions, run_twinrun
from PIL import Image
from typer.testing import CliRunner

from twinrun.cli.data import app
from twinrun.project.presets import write_preset


def _photos(folder: Path, count: int, seed: int) -> None:
    """Pictures of one's own, none like another."""
    values = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = Image.fromarray(values.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def _bound_by_permissions(folder: Path, *arguments: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "twinrun", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, preexec_fn=heed_permissions,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout + done.stderr)


def test_a_check_shows_both_readings_with_counts_and_takes_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for seed, name in enumerate(("day/bus", "day/car", "night/bus", "night/car")):
        _photos(tmp_path / "photos" / name, 8, seed)

    both = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels")
    one = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels", "--levels", "skip,label")
    wrong = run_twinrun(tmp_path, "data", "check", "photos", "--levels", "class")

    first = both.said.splitlines()[0]
    assert "can be read in 2 ways; the first is used here" in first
    assert "[label], as in day: 2 classes (day 16, night 16) (--levels label)" in first
    assert "[skip, label], as in day/bus: 2 classes (bus 16, car 16) (--levels skip,label)" in first
    assert "ingest.levels: [label]" in first
    assert one.said.startswith("Folders read as [skip, label], as in day/bus: 2 classes (bus 16, car 16).\n")
    assert wrong.code == 2
    assert "--levels 'class': write split, label, group, skip in some order, such as split,label." in wrong.said


def test_a_check_names_what_it_leaves_out_and_goes_on_where_a_folder_cannot_be_read(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed, name in enumerate(("train/cat", "train/dog", "test", "train/cat/masks", "train/dog/masks", "closed")):
        _photos(photos / name, 6, seed)
    (photos / "train/cat/notes.txt").write_text("taken on Monday")
    (photos / "train/cat/THUMBS.DB").write_bytes(b"litter")
    (photos / "train/loop").symlink_to("..")
    (photos / "closed").chmod(0)

    ran = _bound_by_permissions(tmp_path, "data", "check", "photos", "--no-labels", "--leave-out", "*/masks/*")
    (photos / "closed").chmod(0o755)

    assert ran.code == 0, ran.said
    assert ran.said.splitlines()[:-1] == [
        "Folders read as [split, label], as in train/cat: train 12; 2 classes (cat 6, dog 6).",
        "Without labels, since they have no class folders: test (6 images).",
        "Left out: 1 file that is not an image (.txt) and 1 file or folder of other programs (THUMBS.DB).",
        'Left out by the pattern "*/masks/*": 12 files.',
        "Not followed, since it leads back to a folder above: train/loop.",
        "Folders that cannot be read and were left out: closed (Permission denied).",
    ]
    assert "2 classes; train 12" in ran.said.splitlines()[-1]


def test_an_image_without_a_label_is_not_called_unreadable_and_images_in_no_split_are_counted(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed, name in enumerate(("train/cat", "train/dog")):
        _photos(photos / name, 6, seed)
    _photos(photos / "train", 1, 7)
    (photos / "train/dog/bad.png").write_bytes(b"bad")

    ran = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels")

    assert ran.code == 1, ran.said
    assert "  1 image is unreadable, and 1 image lies in no class folder\n" in ran.said
    page = (tmp_path / "twinrun-check/index.html").read_text("utf-8")
    assert "move those without a label into a class folder" in page
    assert "<div><dt>unusable</dt><dd>2</dd></div>" in page


def test_the_folder_of_one_class_is_a_finding(tmp_path: Path) -> None:
    _photos(tmp_path / "photos/cat", 6, 0)

    ran = run_twinrun(tmp_path, "data", "check", "photos/cat", "--no-labels")

    assert ran.code == 1, ran.said
    assert "  Warning: There are fewer than two classes, so labels were not checked; a training would stop" in ran.said
    assert "check the folder above it" in (tmp_path / "twinrun-check/index.html").read_text("utf-8")


def test_odd_names_stay_on_one_line_and_what_mend_proposes_for_them_is_found_by_validate(tmp_path: Path) -> None:
    write_preset(tmp_path, "folder")
    project = Project(tmp_path).set(ingest__path="photos", ingest__size_px=32, validate__min_images_per_class=1)
    project.set(validate__label_errors={"folds": 0, "budget_s": 60}, validate__on_shortcut="warn")
    project.set(validate__on_classes="warn")
    names = ['a\nb, "c".png', "\x1b[31mred.png", "=cmd|calc!A1.png", "\udcff\udcfe.png", "\u2028.png", " lead.png "]
    for seed, label in enumerate(("=1+1", " 'cat")):
        _photos(tmp_path / "photos" / label, 8, seed)
        for name in names:
            (tmp_path / "photos" / label / name).write_text("no picture")
            (tmp_path / "photos" / label / f"{name}.jpg").write_text("no picture")
    project.run("ingest")

    stopped = project.run("validate")
    proposed = run_twinrun(tmp_path, "data", "fix")
    text = (tmp_path / "data/decisions/decisions.csv").read_text(encoding="utf-8")
    passed = project.set(validate__decisions="data/decisions/decisions.csv").run("validate")
    again = run_twinrun(tmp_path, "data", "fix", "--findings", "data/out/validate/findings.parquet")

    assert stopped.code == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028]", stopped.said)
    assert proposed.code == 0, proposed.said
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == len(text.splitlines()) - 1 > 6
    assert not [row for row in rows if row["path"].startswith(("=", "+", "-", "@"))]
    assert passed.code == 0, passed.said
    assert f"By your decisions: {len(rows)} dropped." in passed.said
    assert "Nothing to propose" in again.said


def test_a_check_takes_depth_ground_and_links_as_options_and_names_them_where_they_would_help(tmp_path: Path) -> None:
    _photos(tmp_path / "photos/a", 6, 1)
    _photos(tmp_path / "photos/b", 6, 2)
    icon = np.zeros((64, 64, 4), np.uint8)
    icon[..., :3], icon[20:40, 20:40, 3] = 255, 255
    Image.fromarray(icon).save(tmp_path / "photos/a/icon.png")
    scene = np.random.default_rng(3).integers(0, 4096, (64, 64), dtype=np.uint16)
    Image.fromarray(scene).save(tmp_path / "photos/b/deep.png")
    (tmp_path / "other.png").write_bytes((tmp_path / "photos/a/0.png").read_bytes())
    (tmp_path / "photos/b/out.png").symlink_to("../../other.png")

    plain = _check(tmp_path)
    asked = _check(tmp_path, "--depth", "12", "--ground", "black", "--follow-links")
    wrong = [_check(tmp_path, *option) for option in (("--depth", "deep"), ("--ground", "red"), ("--bands", "1,2"))]

    assert "Not followed, since they lead out of the folder: b/out.png (to " in plain
    assert "--depth 12" in plain
    assert "1 image has transparent parts, which become white (--ground). White all over: a/icon.png. Try --" in plain
    assert "(a 7, b 7)" in plain
    assert "(a 7, b 8)" in asked
    assert "Not followed" not in asked
    assert "--depth 12" not in asked
    assert "--depth 'deep': write file, data, or a number of bits from 1 to 32." in wrong[0]
    assert "--ground 'red': write white, gray or black." in wrong[1]
    assert "--bands '1,2': name one band or three, counted from 1, such as 4,3,2." in wrong[2]


def _check(folder: Path, *options: str) -> str:
    """Run `twinrun data check photos` inside this process; returns what it prints, or the error."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, ["check", "photos", "--no-labels", *options])
    return result.output + str(result.exception or "")


def test_a_folder_or_a_pipe_in_place_of_a_file_is_one_sentence_that_says_what_to_name(tmp_path: Path) -> None:
    write_preset(tmp_path, "digits")
    (tmp_path / "some").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.yaml")
    cases = [
        (("explain", "some"), "some is a folder. Name one image in it; to classify them all: twinrun predict some"),
        (("explain", "no.jpg"), "no.jpg cannot be read: No such file or directory. Name an image."),
        (("sweep", "some"), "some cannot be read: it is a folder. Name a YAML file: twinrun sweep sweep.yaml"),
        (("sweep", "pipe.yaml"), "pipe.yaml cannot be read: it is not a regular file. Name a YAML file: twinrun sweep"),
        (("verify", "photo.jpg", "some"), "some cannot be read: it is a folder. Name the photo that was sent."),
        (
            ("verify", "some", "photo.jpg"),
            "some cannot be read: it is a folder. Name the JSON that POST",
        ),
        (("drift", "some"), "some cannot be read: it is a folder. The server writes it: twinrun serve --watch some"),
        (("drift", "pipe.yaml"), "pipe.yaml cannot be read: it is not a regular file. The server writes it"),
        (
            ("serve", "--token-file", "some"),
            "some (--token-file) cannot be read: Is a directory. Name a file",
        ),
        (("predict", "list.csv"), "list.csv cannot be read: it is not a regular file"),
    ]
    os.mkfifo(tmp_path / "list.csv")

    for command, message in cases:
        ran = run_twinrun(tmp_path, *command)

        assert message in ran.said
        assert ran.code in (1, 2)
        assert "Errno" not in ran.said


def test_a_check_that_is_stopped_leaves_no_folder_and_the_next_removes_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("a", "b")):
        _photos(tmp_path / "photos" / name, 2, seed)
    (tmp_path / "temp").mkdir()
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def killed(*_: object) -> None:
        (left,) = (tmp_path / "temp").iterdir()
        left.rename(left.with_name(re.sub(r"-\d+-", "-999999999-", left.name)))
        raise KeyboardInterrupt

    for end in (killed, stop):
        with monkeypatch.context() as patch:
            patch.setattr("twinrun.cli.folder_check.fill_pack", end)
            stopped = [run_twinrun(tmp_path, "data", "check", "photos", *out) for out in ((), ("--out", "kept"))]
        assert [ran.code for ran in stopped] == [130, 130]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "photos", "temp"]
    assert list((tmp_path / "temp").iterdir()) == []


def test_a_flat_folder_is_checked_with_the_labels_of_a_csv(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    _photos(photos, 12, 5)
    (photos / "12.png").write_bytes((photos / "0.png").read_bytes())
    rows = "".join(f"{number},{'cat' if number % 2 else 'dog'},train\n" for number in range(12))
    (photos / "train.csv").write_text(f"id,label,split\n{rows}12,cat,train\n")

    without = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels")
    ran = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels", "--splits-file", "photos/train.csv")

    assert "Labels are the names of folders, or those in a CSV (--splits-file)" in without.said
    assert ran.said.startswith("Labels are those of photos/train.csv: 2 classes.\n")
    assert ran.code == 1
    assert "2 identical images have conflicting labels" in ran.said
    assert "0.png (dog, train) = 12.png (cat, train)" in ran.said
    assert ".csv" not in ran.said.partition("\n")[2]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 2, "labels.csv does not exist (--splits-file)."),
        ("path,label\nnone.png,cat\n", 2, "labels.csv names 1 image that is not there: none.png. Remove the line"),
        ("path,label\n0.png,cat\n", 2, "names one class, 'cat', and a classifier needs at least two (--splits-file)."),
        ("path,label\n0.png,\n", 1, "labels.csv names no labels. Put them into a column label of it.\n"),
        ("path,label\n0.png,cat\n1.png,dog\n", 1, "  10 images have no label in the splits file\n"),
    ],
)
def test_a_csv_without_labels_for_a_check_is_answered_with_the_option_and_not_with_a_setting(
    tmp_path: Path, text: str | None, code: int, said: str
) -> None:
    _photos(tmp_path / "photos", 12, 5)
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)

    ran = run_twinrun(tmp_path, "data", "check", "photos", "--no-labels", "--splits-file", "labels.csv")

    assert ran.code == code, ran.said
    assert said in ran.said
    assert "params.yaml" not in ran.said
    assert "ingest." not in ran.said
    assert "Without a split" not in ran.said


def test_a_check_of_folders_of_classes_says_how_to_take_the_labels_of_a_csv_instead(tmp_path: Path) -> None:
    _photos(tmp_path / "photos/a", 6, 1)
    _photos(tmp_path / "photos/b", 6, 2)
    rows = "".join(f"{'ab'[at % 2]}/{at // 2}.png,{'cat' if at < 6 else 'dog'}\n" for at in range(12))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    command = ("data", "check", "photos", "--no-labels", "--splits-file", "labels.csv")

    by_folder = run_twinrun(tmp_path, *command)
    by_list = run_twinrun(tmp_path, *command, "--levels", "skip")

    assert "not those in labels.csv. To take all labels from that file: --levels skip.\n" in by_folder.said
    assert by_list.said.startswith("Labels are those of labels.csv: 2 classes.\n")
