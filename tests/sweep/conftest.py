"""Processes of these tests begin with their libraries imported."""

import pytest


@pytest.fixture(autouse=True)
def _preloaded(preloaded: None) -> None:
    """Every test has them."""
