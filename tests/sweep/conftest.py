"""In these tests processes begin with their libraries imported."""

import pytest
from preloaded import preloaded

_preloaded = pytest.fixture(autouse=True)(preloaded)
