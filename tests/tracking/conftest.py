"""In these tests a project is one with a store of its own."""

from pathlib import Path

import pytest


@pytest.fixture
def project(tracked_project: Path) -> Path:
    return tracked_project
