"""A long list that Ray and Spark classify in parts is the file that one process here writes, byte for byte."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sweep_support import SweepProject

IMAGES = 70


@pytest.fixture
def photos(swept: SweepProject, ray_cluster: None) -> SweepProject:  # noqa: ARG001
    """A project with a model and digits to classify."""
    Path("photos").mkdir()
    for number, image in enumerate(load_digits().images[:IMAGES]):
        Image.fromarray((image * 15).astype(np.uint8)).save(f"photos/{number:03}.png")
    Path("photos/007.png").write_bytes(b"not an image")
    return swept


def predict(project: SweepProject, out: str, *arguments: str) -> "subprocess.Popen[str]":
    model = ("--model", "data/out/train/bundle")
    return project.start("predict", "photos", "--out", out, *model, "--workers", "2", *arguments)


def test_one_part_seven_and_sixty_four_give_the_same_bytes_here_on_ray_and_on_spark(photos: SweepProject) -> None:
    answers: dict[str, bytes] = {}

    for engine in ("local", "ray", "spark"):
        for parts in ("1", "7", "64"):
            process = predict(photos, f"{engine}-{parts}.parquet", "--on", engine, "--parts", parts)
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 1, output  # one is not an image
            answers[f"{engine}-{parts}"] = Path(f"{engine}-{parts}.parquet").read_bytes()

    assert set(answers.values()) == {answers["local-1"]}


@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_after_a_kill_no_finished_part_is_classified_again(photos: SweepProject, engine: str) -> None:
    whole = predict(photos, "whole.parquet")
    whole.communicate(timeout=300)
    unfinished = Path(".labels.parquet.unfinished")
    killed = predict(photos, "labels.parquet", "--on", engine, "--parts", "64")
    deadline = time.monotonic() + 300
    while len(finished(unfinished)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    before = finished(unfinished)

    again = predict(photos, "labels.parquet", "--on", engine, "--parts", "64")
    written = dict(before)
    while again.poll() is None:
        written |= finished(unfinished)
        time.sleep(0.01)
    output, _ = again.communicate()

    assert again.returncode == 1, output
    assert 3 <= len(before) < 64
    assert {part: written[part] for part in before} == before
    assert Path("labels.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def finished(folder: Path) -> dict[str, int]:
    """The finished parts, each with the number of its file, which another file of that name would not have."""
    parts = {}
    for file in folder.glob("*/rows.parquet"):
        try:
            parts[file.parent.name] = file.stat().st_ino
        except FileNotFoundError:  # the folder is removed in the end
            continue
    return parts
