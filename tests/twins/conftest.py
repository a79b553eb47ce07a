"""In these tests a project is one with a store of its own, and processes begin with their libraries imported."""

import pytest
from preloaded import preloaded
from tracking_support import project_with_store

project = pytest.fixture(project_with_store)
_preloaded = pytest.fixture(autouse=True)(preloaded)
