"""Stage `ingest` on trees of folders: which level is the label, what is an image, what belongs together."""

import os
import re
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock import takes_at_most
from data_support import Project
from PIL import Image

from twinrun.base.errors import DataError
from twinrun.core.yaml import read_yaml
from twinrun.validate.decisions import read_decisions
from twinrun.validate.fixed_splits import read_fixed_splits

Tree = Callable[..., Project]


@pytest.fixture
def tree(project: Project) -> Tree:
    """Write two pictures of their own into each folder of patterns such as "{train,test}/{cat,dog}" below images/."""
    values = np.random.default_rng(5)
    project.set(ingest__source="folder", ingest__path="images")

    def write(*patterns: str) -> Project:
        for pattern in patterns:
            for names in product(*(part.strip("{}").split(",") for part in pattern.split("/"))):
                folder = project.folder.joinpath("images", *names)
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(2):
                    pixels = values.integers(0, 256, (10, 10), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number}.png")
        return project

    return write


def _found(project: Project) -> Counter[Any]:
    """Images for each split and label."""
    return Counter((row["split"], row["label"]) for row in project.table() if row["error"] is None)


@pytest.mark.parametrize(
    ("patterns", "reading", "splits"),
    [
        (["{train,dev}/{cat,dog}"], "[split, label], as in dev/cat: train 4, val 4; 2 classes", {"train", "val"}),
        (["{training_set,test_set}/{cat,dog}"], "[split, label]", {"train", "test"}),
        (["seg_train/seg_train/{cat,dog}", "seg_test/seg_test/{cat,dog}"], "[split, skip, label]", {"train", "test"}),
        (["export/dataset/{train,test}/{cat,dog}"], "[skip, skip, split, label]", {"train", "test"}),
        (["{cat,dog}/{train,eval}"], "[label, split]", {"train", "test"}),
        (["{bus_station,train_station}/{cat,dog}"], "[label]", None),
        (["cat/{patient_1,patient_2}", "dog/patient_3"], "[label, group], as in cat/patient_1", {None}),
    ],
)
def test_what_each_folder_level_is_is_decided_by_evidence_and_said_in_one_line(
    tree: Tree, patterns: list[str], reading: str, splits: set[str | None] | None
) -> None:
    project = tree(*patterns)

    ran = project.run("ingest")

    if splits is None:
        assert ran.code == 1
        assert f"ingest.levels: {reading}" in ran.said
        return
    assert ran.code == 0, ran.said
    assert [line for line in ran.said.splitlines() if line.startswith(f"Folders read as {reading}")]
    assert {split for split, _ in _found(project)} == splits
    assert {label for _, label in _found(project)} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("patterns", "ways"),
    [
        (
            ["{fold_0,fold_1}/{train,test}/{cat,dog}"],
            ["ingest.levels: [skip, split, label], as in", "ingest.levels: [group, split, label], as in"],
        ),
        (
            ["{site_a,site_b}/{train,test}/{cat,dog}"],
            ["ingest.levels: [skip, split, label], as in", "ingest.levels: [label, split], as in"],
        ),
        (
            ["{batch_1,batch_2}/{cat,dog}"],
            ["ingest.levels: [group, label], as in", "ingest.levels: [skip, label], as in"],
        ),
        (
            ["{cat,dog,test}"],
            [
                "test is named as a split and lies beside folders that are not (cat, dog)",
                "ingest.levels: [label], as in cat: 3 classes (cat 2, dog 2, test 2)",
                'ingest.leave_out: ["test/*"], if it is not a class',
            ],
        ),
        (
            ["train/train/{cat,dog}", "val/{cat,dog}"],
            ["ingest.levels: [split, skip, label], as in", "ingest.levels: [split, label], as in"],
        ),
    ],
)
def test_folders_that_may_mean_two_things_stop_ingest_with_both_ways(
    tree: Tree, patterns: list[str], ways: list[str]
) -> None:
    stopped = tree(*patterns).run("ingest")

    assert stopped.code == 1
    assert "can be read in" in stopped.said
    assert all(way in stopped.said for way in ways), stopped.said


@pytest.mark.parametrize(
    ("patterns", "notes", "splits"),
    [
        (
            ["train/{cat,dog}", "test/unknown"],
            ["the only folder of a split is a class of no other split: test/unknown (2 images)"],
            {"train"},
        ),
        (["{train,test}/{cat,dog}", "val/val"], ["class of no other split: val/val (2 images)"], {"train", "test"}),
        (
            ["{train,validate,holdout}/{cat,dog}"],
            ["Folders taken for splits: validate is val; holdout is test."],
            {"train", "val", "test"},
        ),
        (
            ["{train,test,Test_old}/{cat,dog}"],
            ["Folders taken for splits: Test_old and test are test."],
            {"train", "test"},
        ),
    ],
)
def test_what_became_of_a_split_that_is_named_or_filled_otherwise_is_said(
    tree: Tree, patterns: list[str], notes: list[str], splits: set[str]
) -> None:
    project = tree(*patterns)

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert all(note in ran.said for note in notes), ran.said
    assert _found(project).keys() == {(split, label) for split in splits for label in ("cat", "dog")}


@pytest.mark.parametrize(
    ("names", "note", "pattern"),
    [
        (["cat/7_mask.png", "cat/7.png"], "1 of 6 images are named as masks of others beside them", "*_mask.png"),
        (["dog/img_07.png", "dog/mask_07.png"], "such as dog/mask_07.png", "*/mask_*"),
        (["cat/cat_mask/7.png"], "1 of 5 images lie in folders named cat_mask", "*/cat_mask/*"),
        (
            ["cat_masks/7.png", "dog_masks/7.png"],
            "2 of 6 images lie in folders named cat_masks, dog_masks",
            "*/dog_masks/*",
        ),
        (["mask_on/7.png", "mask_off/7.png"], None, None),
    ],
)
def test_masks_are_found_by_the_names_that_they_share_with_photos(
    tree: Tree, names: list[str], note: str | None, pattern: str | None
) -> None:
    project = tree("{cat,dog}")
    for name in names:
        path = project.folder / "images" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((project.folder / "images/cat/0.png").read_bytes())

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert note is None or note in ran.said, ran.said
    assert f'"{pattern}"' in ran.said if pattern else "as masks" not in ran.said


def test_two_possible_readings_stop_ingest_until_the_setting_names_one(tree: Tree) -> None:
    project = tree("{day,night}/{bus,car,truck}")

    stopped = project.run("ingest")
    outer = project.set(ingest__levels=["label"]).run("ingest")
    by_light = _found(project)
    inner = project.set(ingest__levels=["skip", "label"]).run("ingest")
    by_vehicle = _found(project)

    assert stopped.code == 1
    assert "can be read in 2 ways" in stopped.said
    assert "ingest.levels: [label], as in day: 2 classes (day 6, night 6)" in stopped.said
    assert "ingest.levels: [skip, label], as in day/bus: 3 classes (bus 4, car 4, truck 4)" in stopped.said
    assert outer.code == inner.code == 0, outer.said + inner.said
    assert by_light == {(None, "day"): 6, (None, "night"): 6}
    assert by_vehicle == {(None, "bus"): 4, (None, "car"): 4, (None, "truck"): 4}


def test_levels_that_do_not_fit_the_folders_are_refused_with_what_was_found(tree: Tree) -> None:
    project = tree("{one,two}/{cat,dog}")

    as_splits = project.set(ingest__levels=["split", "label"]).run("ingest")
    no_label = project.set(ingest__levels=["skip", "group"]).run("ingest")
    twice = project.set(ingest__levels=["label", "label"]).run("ingest")

    assert as_splits.code == no_label.code == twice.code == 1
    assert "images has no folders named as splits where ingest.levels has them: one, two." in as_splits.said
    assert "ingest.leave_out" in as_splits.said
    assert "images has no level of folders that is the label" in no_label.said
    assert "ingest.levels" in no_label.said
    assert "label twice" in twice.said
    assert "Traceback" not in as_splits.said + no_label.said + twice.said


def test_masks_empty_classes_and_deeper_folders_are_named_and_may_be_left_out(tree: Tree) -> None:
    project = tree("{cat,dog}/{images,masks}", "cat/images/old")
    (project.folder / "images/bird").mkdir()

    with_masks = project.run("ingest")
    without = project.set(ingest__leave_out=["*/masks/*", "*.gif"]).run("ingest")

    assert with_masks.code == without.code == 0, with_masks.said + without.said
    assert "4 of 10 images lie in folders named masks" in with_masks.said
    assert 'ingest.leave_out: ["*/masks/*"]' in with_masks.said
    assert "Folders without images where classes are expected: bird." in with_masks.said
    assert 'Left out by the pattern "*/masks/*": 4 files.' in without.said
    assert 'Left out by the pattern "*.gif": nothing.' in without.said
    assert _found(project) == {(None, "cat"): 4, (None, "dog"): 2}


def test_a_flat_test_folder_and_a_class_in_one_split_are_named(tree: Tree) -> None:
    project = tree("train/{cat,dog}", "test")
    (project.folder / "images/sample_submission.csv").write_text("id,label\n")
    flat = project.run("ingest")
    without_test = _found(project)

    tree("test/{cat,dog,fox}")
    for path in (project.folder / "images/test").glob("*.png"):
        path.unlink()
    alone = project.run("ingest")

    assert flat.code == alone.code == 0, flat.said + alone.said
    assert "Left out, since they have no class folders: test (2 images)." in flat.said
    assert "Left out: 1 file that is not an image (.csv)." in flat.said
    assert without_test == {("train", "cat"): 2, ("train", "dog"): 2}
    assert "Classes that are in only one split: fox (test)." in alone.said


def test_a_folder_beside_splits_stops_ingest_and_may_be_left_out(tree: Tree) -> None:
    project = tree("{train,test,spare}/{cat,dog}")

    stopped = project.run("ingest")
    passed = project.set(ingest__leave_out=["spare/*"]).run("ingest")

    assert stopped.code == 1
    assert "folders named as splits (test, train) beside others (spare)" in stopped.said
    assert 'ingest.leave_out: ["spare/*"]' in stopped.said
    assert passed.code == 0, passed.said
    assert {split for split, _ in _found(project)} == {"train", "test"}


@pytest.mark.parametrize("name", [b"spare [old]", b"spare*?", b"back\\slash", b"caf\xe9"])
def test_the_pattern_that_ingest_writes_for_a_folder_leaves_out_that_folder(tree: Tree, name: bytes) -> None:
    project = tree("{train,test,spare}/{cat,dog}")
    (project.folder / "images/spare").rename(project.folder / "images" / os.fsdecode(name))

    stopped = project.run("ingest")
    written = re.search(r"ingest\.leave_out: (\[.*\])\.", stopped.said)
    assert written is not None
    passed = project.set(ingest__leave_out=read_yaml(written[1])).run("ingest")

    assert passed.code == 0, passed.said
    assert {split for split, _ in _found(project)} == {"train", "test"}


def test_links_that_lead_out_of_the_source_are_named_and_read_only_where_a_setting_says_so(tree: Tree) -> None:
    project = tree("{cat,dog}", "cat/more")
    (project.folder / "secret.png").write_bytes((project.folder / "images/cat/0.png").read_bytes())
    (project.folder / "images/dog/out.png").symlink_to("../../secret.png")
    (project.folder / "images/dog/log.png").symlink_to("/proc/kmsg")
    (project.folder / "images/dog/up").symlink_to("..")
    (project.folder / "images/dog/in.png").symlink_to("../cat/0.png")
    cached = project.folder / "cache/files/md5/ab" / ("0" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_bytes((project.folder / "images/cat/1.png").read_bytes())
    (project.folder / "images/dog/of_dvc.png").symlink_to(cached)

    refused = project.run("ingest")
    (project.folder / "images/dog/log.png").unlink()
    one = project.run("ingest")
    followed = project.set(ingest__follow_links=True).run("ingest")

    assert refused.code == one.code == 1
    assert "images has 2 links that lead out of it: dog/log.png (to /proc/kmsg), dog/out.png (to " in refused.said
    assert "ingest.follow_links: true" in refused.said
    assert "Traceback" not in refused.said
    assert "images has a link that leads out of it: dog/out.png" in one.said
    assert followed.code == 0, followed.said
    assert _found(project) == {(None, "cat"): 4, (None, "dog"): 5}


@pytest.mark.timeout(60)
def test_a_file_that_never_ends_or_answers_is_a_row_without_pixels(tree: Tree) -> None:
    project = tree("{cat,dog}")
    (project.folder / "images/dog/log.png").symlink_to("/proc/kmsg")
    (project.folder / "images/dog/noise.png").symlink_to("/dev/urandom")
    (project.folder / "images/dog/log").symlink_to("/proc/kmsg")

    ran = project.set(ingest__follow_links=True).run("ingest")

    assert ran.code == 0, ran.said
    errors = {row["path"]: row["error"] for row in project.table() if row["error"]}
    assert errors == {"dog/log.png": "is empty", "dog/noise.png": "cannot be read: it is not a regular file"}


def test_a_list_of_splits_or_decisions_that_is_a_pipe_is_refused_at_once(tree: Tree) -> None:
    project = tree("{cat,dog}")
    os.mkfifo(project.folder / "list.csv")

    ran = project.set(ingest__splits_file="list.csv").run_apart("ingest")

    assert ran.code == 1
    assert "list.csv cannot be read: it is not a regular file (params.yaml: ingest.splits_file)" in ran.said
    for read in (read_fixed_splits, read_decisions):
        with pytest.raises(DataError, match=r"list\.csv cannot be read: it is not a regular file"):
            read(project.folder / "list.csv")


def test_a_folder_that_is_reached_twice_is_read_twice_and_only_loops_are_cut(tree: Tree) -> None:
    project = tree("train/{cat,dog}")
    (project.folder / "images/test").symlink_to("train")
    (project.folder / "images/train/cat/loop").symlink_to("..")
    (project.folder / "elsewhere").mkdir()
    Image.new("L", (9, 9)).save(project.folder / "elsewhere/0.png")
    (project.folder / "images/train/fox").symlink_to("../../elsewhere")

    ran = project.set(ingest__follow_links=True).run("ingest")

    assert ran.code == 0, ran.said
    assert _found(project) == {
        (split, label): number for split in ("train", "test") for label, number in (("cat", 2), ("dog", 2), ("fox", 1))
    }
    assert "Not followed, since it leads back to a folder above: test/cat/loop, train/cat/loop." in ran.said
    stopped = project.run("validate")
    assert stopped.code == 1
    assert "test/cat/0.png (cat, test) = train/cat/0.png (cat, train)" in stopped.said


def test_folders_that_link_to_one_another_are_refused_before_all_paths_are_walked(tree: Tree) -> None:
    names = [f"c{number}" for number in range(9)]
    project = tree("{" + ",".join(names) + "}")
    for folder in names:
        for other in set(names) - {folder}:
            (project.folder / "images" / folder / other).symlink_to(f"../{other}")

    ran = project.run("ingest")

    assert ran.code == 1
    assert "lead to one folder by more than 1,000 paths, among them" in ran.said
    assert "Remove those links, or leave them out (params.yaml: ingest.leave_out)." in ran.said


def test_litter_and_files_that_claim_to_be_no_images_are_counted_in_one_line(tree: Tree) -> None:
    project = tree("{cat,dog}", "cat/@eaDir/0.png", "#recycle", "System Volume Information", "dog/.ipynb_checkpoints")
    cat = project.folder / "images/cat"
    for name in ("Thumbs.db", "DESKTOP.INI", ".nomedia", "Icon\r", ".picasa.ini", "._0.png", ".gitignore"):
        (cat / name).write_bytes(b"litter")
    for name in ("notes.txt", "boxes.json", "README", "photos.CSV"):
        (cat / name).write_text("BM is how this note begins")
    (cat / "clip.avi").write_bytes(b"RIFF\x10\0\0\0AVI " + bytes(64))
    (cat / "renamed.txt").write_bytes((cat / "0.png").read_bytes())
    (cat / "note.jpg").write_text("a note")
    (cat / "unknown.bin").write_bytes(bytes(range(32)))
    (cat / "download").write_text("<html>Not found</html>")
    (cat / "2.png.crdownload").write_bytes((cat / "0.png").read_bytes()[:90])
    for name in ("labels.cache", "all.npz", "old.bak"):
        (cat / name).write_bytes(bytes(range(256)))

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    line = next(line for line in ran.said.splitlines() if line.startswith("Left out"))
    assert line.startswith("Left out: 11 files that are not images (")
    assert " and 11 files and folders of other programs (" in line
    assert "\r" not in line
    errors = {row["path"]: row["error"] for row in project.table()}
    assert {path for path, error in errors.items() if error is None} == {
        "cat/0.png", "cat/1.png", "cat/renamed.txt", "dog/0.png", "dog/1.png"
    }  # fmt: skip
    assert {path for path, error in errors.items() if error} == {"cat/note.jpg"}


def test_an_unreadable_folder_stops_ingest_unless_it_is_litter_or_left_out(tree: Tree) -> None:
    project = tree("{cat,dog,fox}", "lost+found")
    for name in ("fox", "lost+found"):
        (project.folder / "images" / name).chmod(0)

    stopped = project.run_apart("ingest")
    passed = project.set(ingest__leave_out=["fox/*"]).run_apart("ingest")

    for name in ("fox", "lost+found"):
        (project.folder / "images" / name).chmod(0o755)
    assert stopped.code == 1
    assert "cannot be read: fox (Permission denied)." in stopped.said
    assert "ingest.leave_out" in stopped.said
    assert passed.code == 0, passed.said
    assert _found(project) == {(None, "cat"): 2, (None, "dog"): 2}


def test_folders_of_any_depth_stop_ingest_with_a_sentence_and_may_be_left_out(tree: Tree) -> None:
    project = tree("{cat,dog}", "deep/" + "/".join(["a"] * 400))

    stopped = project.run_apart("ingest")
    passed = project.set(ingest__leave_out=["deep/*"]).run_apart("ingest")

    assert stopped.code == 1
    assert "deep/... (nested more than 100 levels deep)" in stopped.said
    assert "Traceback" not in stopped.said
    assert passed.code == 0, passed.said
    assert 'Left out by the pattern "deep/*": 2 files.' in passed.said
    assert _found(project) == {(None, "cat"): 2, (None, "dog"): 2}


def test_a_pattern_on_the_path_names_the_group_of_an_image(tree: Tree) -> None:
    project = tree("{cat,dog}/{clip1,clip2}").set(ingest__levels=["label"])

    captured = project.set(ingest__group_pattern=r"(clip\d)/").run("ingest")
    first_group = Counter(row["group"] for row in project.table())
    whole = project.set(ingest__group_pattern=r"cat/clip1").run("ingest")
    whole_match = Counter(row["group"] for row in project.table())
    invalid = project.set(ingest__group_pattern="(clip").run("ingest")
    absent = project.set(ingest__group_pattern=r"scene\d").run("ingest")

    assert captured.code == whole.code == 0, captured.said + whole.said
    assert first_group == {"clip1": 4, "clip2": 4}
    assert whole_match == {"cat/clip1": 2, None: 6}
    assert "1 groups of images; 6 images are in none." in whole.said
    assert invalid.code == absent.code == 1
    assert "must be a regular expression, got '(clip': missing ), unterminated subpattern" in invalid.said
    assert "matches no image's path, such as cat/clip1/0.png" in absent.said
    assert "ingest.group_pattern" in invalid.said
    assert "ingest.group_pattern" in absent.said


def test_a_pattern_that_would_be_searched_for_without_end_stops_with_the_path(tree: Tree) -> None:
    project = tree("{cat,dog}").set(ingest__group_pattern="(.*)" * 40 + "!")

    ran = project.run("ingest")

    assert ran.code == 1
    assert "takes more than 5 s for one value, cat/0.png (params.yaml: ingest.group_pattern)" in ran.said
    assert "Traceback" not in ran.said


def test_odd_names_are_one_line_of_text_everywhere_and_different_names_stay_different(tree: Tree) -> None:
    project = tree("{cat,dog}")
    (project.folder / "splits.csv").write_text("path,split\ncat/\x1b[31mred.png,test\ncat/line\\nbreak.png,val\n")
    project.set(ingest__splits_file="splits.csv")
    cat = project.folder / "images/cat"
    pictures = np.random.default_rng(8).integers(0, 256, (5, 9, 9), dtype=np.uint8)
    names = [
        b"line\nbreak.png",
        b"line\\nbreak.png",
        b"\x1b[31mred.png",
        b"\xff\xfe.png",
        "a\u2028b\u202e.png".encode(),
    ]
    for name, pixels in zip(names, pictures, strict=True):
        Image.fromarray(pixels).save(cat / "new.png")
        (cat / "new.png").rename(cat / os.fsdecode(name))

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert {row["path"] for row in project.table() if row["label"] == "cat"} == {
        "cat/0.png", "cat/1.png", r"cat/line\nbreak.png", r"cat/line\\nbreak.png", r"cat/\x1b[31mred.png",
        r"cat/\xff\xfe.png", r"cat/a\u2028b\u202e.png",
    }  # fmt: skip
    assert all(row["error"] is None for row in project.table())
    assert {row["path"]: row["split"] for row in project.table() if row["split"]} == {
        r"cat/\x1b[31mred.png": "test", r"cat/line\nbreak.png": "val",
    }  # fmt: skip


def test_twenty_thousand_files_are_listed_in_seconds(project: Project) -> None:
    from twinrun.ingest.folders import list_images

    for label in ("cat", "dog"):
        (project.folder / "images" / label).mkdir(parents=True)
        for number in range(10_000):
            (project.folder / f"images/{label}/{number}.jpg").touch()

    with takes_at_most(2):
        listing = list_images(project.folder / "images", Path("out"))

    assert len(listing.items) == 20_000


@pytest.mark.parametrize("word", ["label", "test"])
def test_thousands_of_classes_whose_names_have_a_word_for_something_else_are_listed_in_seconds(
    project: Project, word: str
) -> None:
    from twinrun.ingest.folders import list_images

    for number in range(2000):
        folder = project.folder / f"images/{word}_{number}"
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()

    with takes_at_most(2):
        listing = list_images(project.folder / "images", Path("out"))

    assert len({item.label for item in listing.items}) == 2000
