"""Projects to run the data stages in, and images for them."""

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_support import Project
from PIL import Image

from twinrun.project.presets import write_preset


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project with the params.yaml of the digits preset, but for the search for wrong labels, which trains."""
    write_preset(tmp_path, "digits")
    return Project(tmp_path).set(validate__label_errors={"folds": 0, "budget_s": 600})


@pytest.fixture(scope="session")
def digits() -> Any:
    """Scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    return load_digits()


@pytest.fixture
def write_digits(project: Project, digits: Any) -> Callable[..., Path]:
    """Write real handwritten digits as PNG files: images/<class>/<number>.png, `each` of every class."""

    def write(each: int = 20, classes: tuple[int, ...] = (0, 1, 2), root: str = "images") -> Path:
        folder = project.folder / root
        for label in classes:
            (folder / str(label)).mkdir(parents=True)
            for number, pixels in enumerate(digits.images[digits.target == label][:each]):
                image = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)).resize((16, 16))
                image.save(folder / str(label) / f"{number:03d}.png")
        return folder

    return write


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real image sets; the test is skipped where there is none."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with mnist, fashion-mnist, trashnet and hostile-images")
    return Path(folder)


@pytest.fixture(scope="session")
def hostile_images() -> list[Path]:
    """Image files that break loaders; the test is skipped where there are none."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with hostile-images")
    return sorted(path for path in (Path(folder) / "hostile-images").rglob("*") if path.is_file())


def on_terminal(*arguments: str) -> str:
    """What Python writes with `arguments`, on a terminal."""
    seen = bytearray()
    command = ["env", "TERM=xterm", sys.executable, *arguments]

    def read(terminal: int) -> bytes:
        seen.extend(data := os.read(terminal, 65_536))
        return data

    assert pty.spawn(command, read) == 0
    return seen.decode()
