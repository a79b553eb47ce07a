"""Fixtures that several folders of tests share stand in modules beside this one."""

import os

# An activated environment names the store of the project that it belongs to; a test has a store of its own.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "_TWINRUN_DEFAULT_URI"):
    os.environ.pop(name, None)

pytest_plugins = ["tracking_support", "training_support", "twin_support"]
