"""Fixtures that several folders of tests share stand in modules beside this one."""

import gc
import os
import signal
import sys

import pytest

# An activated environment names the store of the project that it belongs to; a test has a store of its own.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "_TWINRUN_DEFAULT_URI"):
    os.environ.pop(name, None)

# Where compiled modules are not stored, as in most containers, each of hundreds of processes would compile them anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that begins a program with & lets it ignore Ctrl-C, and so what it starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The libraries make millions of objects that stay; to look through all of them again and again takes 6% of the time.
gc.set_threshold(50_000, 20, 20)

# By processor time. Begun last, one of them would be all that runs at the end.
_LONG = (
    *("test_dvc_habits.py", "test_whole_pipeline.py", "test_docs.py", "test_twin.py", "test_train_probe.py"),
    *("test_train.py", "test_validate.py", "test_chaos.py", "test_data.py", "test_doctor.py", "test_publisher.py"),
)

pytest_plugins = [
    *("preloaded", "stage_support", "training_support", "tracking_support", "sweep_support", "twin_support"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))
