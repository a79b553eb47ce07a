"""The loader of versions that were registered before it moved to tracking/pyfunc.py: they name this module."""

from twinrun.tracking.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
