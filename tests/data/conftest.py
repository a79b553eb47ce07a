"""Where the tests of data find real images."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def hostile_images() -> list[Path]:
    """Image files that break loaders; the test is skipped where there are none."""
    folder = os.environ.get("TWINRUN_TEST_DATA")
    if not folder:
        pytest.skip("TWINRUN_TEST_DATA names no folder with hostile-images")
    return sorted(path for path in (Path(folder) / "hostile-images").rglob("*") if path.is_file())
