"""Stage `validate` on frames of clips: it warns where splits tear a clip apart, with the pattern that groups it."""

from collections import Counter

import numpy as np
import pytest
from data_support import Project
from PIL import Image

from twinrun.validate.searches.clips import find_clips


@pytest.fixture
def clips(project: Project) -> Project:
    """Four clips of eight frames in each of two classes: a window that moves over a picture of the clip's own."""
    values = np.random.default_rng(2)
    for label in ("cat", "dog"):
        (project.folder / "images" / label).mkdir(parents=True)
        for clip in range(4):
            scene = Image.fromarray(values.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            scene = scene.resize((160, 160), Image.Resampling.BICUBIC)
            for frame in range(8):
                picture = scene.crop((2 * frame, frame, 2 * frame + 128, frame + 128)).resize((64, 64))
                picture.save(project.folder / f"images/{label}/clip{clip:02d}_frame{frame:03d}.png")
    project.set(ingest__source="folder", ingest__path="images", ingest__channels="rgb", ingest__size_px=32)
    project.set(validate__min_images_per_class=1, validate__on_shortcut="warn", validate__on_near_leak="warn")
    project.set(validate__on_classes="warn", validate__modes=["RGB"])
    return project


def test_frames_of_clips_bring_a_warning_with_the_pattern_that_keeps_each_clip_in_one_split(
    clips: Project,
) -> None:
    project = clips
    project.run("ingest")
    torn = project.run("validate")
    warned = [e for e in project.result()["expectations"] if e["name"] == "clips_are_groups"]

    grouped = project.set(ingest__group_pattern=r"(.*clip\d+)_frame\d+").run("ingest")
    whole = project.run("validate")

    assert torn.code == grouped.code == whole.code == 0, torn.said + grouped.said + whole.said
    assert warned[0]["severity"] == "warning"
    assert r"ingest.group_pattern: '(.*clip\d+)_frame\d+'" in warned[0]["first_violations"][0]["what"]
    assert warned[0]["found"] == "64 images look like frames of 8 clips, such as cat/clip00_frame#.png (8)"
    assert "look like frames of 8 clips" in torn.said
    assert "clips_are_groups" not in {e["name"] for e in project.result()["expectations"]}
    paths = [row["path"] for row in project.table()]
    splits: dict[str, set[str]] = {}
    for row in project.manifest():
        splits.setdefault(paths[row["row"]].partition("_")[0], set()).add(row["split"])
    assert len(splits) == 8
    assert all(len(names) == 1 for names in splits.values())


def test_few_groups_of_several_classes_reach_each_split_and_fewer_groups_than_splits_are_named_as_the_cause(
    clips: Project,
) -> None:
    project = clips
    project.set(ingest__group_pattern=r"(clip\d)").run("ingest")
    one = project.run("validate")

    project.set(ingest__group_pattern=r"(clip\d+)").run("ingest")
    four = project.run("validate")

    cause = "all images of a class are in 1 group; a group stays in one split, so 3 groups are needed"
    assert f"2 classes have fewer than 1 image in a split (cat, dog): {cause}" in one.said
    assert four.code == 0, four.said
    assert Counter(row["split"] for row in project.manifest()) == {"train": 32, "val": 16, "test": 16}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("{label}/{clip}/{frame:04d}.jpg", r"(.*\d+)/\d+"),
        ("{label}/v{clip}-{frame}.jpg", r"(.*v\d+)-\d+"),
        ("{label}/{word}_{frame:03d}.jpg", r"(.*)_\d+"),
        ("{label}/{word}{frame}.jpg", r"(.*\D)\d+"),
        ("{label}/video{clip}_{frame}_cam2.jpg", r"(.*video\d+)_\d+"),
        ("{label}/shot {clip} ({frame}).jpg", r"(.*shot \d+) \(\d+"),
    ],
)
def test_the_pattern_follows_the_names(name: str, pattern: str | None) -> None:
    values = np.random.default_rng(4)
    paths, hashes, labels = [], [], []
    for label in ("cat", "dog"):
        for clip, word in enumerate(("walk", "run", "jump")):
            first = int(values.integers(0, 2**63))
            for frame in range(6):
                paths.append(name.format(label=label, clip=clip, word=word, frame=frame, running=clip * 6 + frame))
                hashes.append(f"{first ^ (0b111 << (3 * frame)):016x}")
                labels.append(label)

    found = find_clips(paths, hashes, labels, range(len(paths)))

    assert (found.pattern if found else None) == pattern


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("{label}/IMG_{running:04d}.jpg", 20),
        ("{running:06d}_{label}.jpg", 20),
        ("{label}/IMG_20240305_1{clip}15{frame:02d}.jpg", 20),
        ("{label}/PXL_20240305_1{clip}15{frame:02d}{running:03d}.jpg", 20),
        ("{label}/0000{clip}IMG_0000{clip}_BURST2024030512{clip}500{frame:02d}.jpg", 20),
        ("{label}/clip{clip}.f{frame}.jpg", 20),
        ("{label}/IMG_{running:04d}.jpg", 3),
        ("{label}/IMG_{running:04d}.jpg", 2),
    ],
)
def test_clips_are_found_where_names_do_not_tell_them_apart(name: str, frames: int) -> None:
    values = np.random.default_rng(4)
    paths, hashes, labels = [], [], []
    for label in ("cat", "dog"):
        for clip in range(20):
            first = int(values.integers(0, 2**63))
            for frame in range(frames):
                paths.append(name.format(label=label, clip=clip, frame=frame, running=clip * frames + frame))
                hashes.append(f"{first ^ (0b111 << (3 * frame)):016x}")
                labels.append(label)

    found = find_clips(paths, hashes, labels, range(len(paths)))

    assert found is not None
    assert found.frames == len(paths)


def test_names_that_run_in_numbers_are_no_clips_where_neighbours_differ() -> None:
    values = np.random.default_rng(6)
    paths = [f"cat/{batch}_{number}.jpg" for batch in "abcd" for number in range(10)]
    hashes = [f"{int(values.integers(0, 2**63)):016x}" for _ in paths]

    assert find_clips(paths, hashes, ["cat"] * len(paths), range(len(paths))) is None
