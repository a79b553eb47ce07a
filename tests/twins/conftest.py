"""In these tests a project is one with a store of its own."""

import pytest
from tracking_support import project_with_store

project = pytest.fixture(project_with_store)
