"""What a metric is called in MLflow: `group/name`, since MLflow folds charts by what stands before the slash.

The groups are train, val, test, data and system. These names are stable. The journal and history.csv name metrics as
columns (`val_loss`), and so do runs of earlier versions in MLflow: both are translated here and nowhere else.
"""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")
GROUPS = ("train", "val", "test", "data", "system")
# The headlines of data/out/evaluate/metrics.json that MLflow and the registry get.
TEST_METRICS = {
    name: f"test/{name}" for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
}
_UNGROUPED = {"learning_rate": "train/learning_rate", "images_per_second": "system/images_per_second"}


def metric_name(name: str) -> str:
    """The name in MLflow of a metric that a journal, or an earlier version, calls `name`; a name in use stays."""
    if name in _UNGROUPED:
        return _UNGROUPED[name]
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in GROUPS and rest and "/" not in name else name


def with_current_names(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """Metrics of a run, or tags of a version, of any age under the names in use."""
    return {metric_name(name): value for name, value in metrics.items()}
