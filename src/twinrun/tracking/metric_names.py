"""What a metric is called in MLflow: `group/name`, since MLflow folds charts by what stands before the slash.

The groups are train, val, test, cross_validation, data and system. `accuracy` stands for the model: it is that of the
test split, or out of fold where the test split is too small. These names are stable. The journal and history.csv name
metrics as columns (`val_loss`), and so do runs of earlier versions in MLflow: both are translated here alone.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")
GROUPS = ("train", "val", "test", "data", "system")
# The headlines of data/out/evaluate/metrics.json that MLflow and the registry get.
TEST_METRICS = {
    name: f"test/{name}" for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
}
CROSS_VALIDATION_METRICS = {name: f"cross_validation/{name}" for name in TEST_METRICS}
HEADLINE = "accuracy"
LATENCY = "system/latency_ms"
EVALUATION_METRICS = (HEADLINE, *TEST_METRICS.values(), *CROSS_VALIDATION_METRICS.values())
_BESIDE = {
    "seeds_mean": "test/accuracy_mean_of_seeds",
    "seeds_sd": "test/accuracy_sd_of_seeds",
    "nearest_neighbour_accuracy": "test/accuracy_of_nearest_neighbour",
    "plain_accuracy": "test/accuracy_without_views",
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


def evaluation_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics.json by their names in MLflow: the headline, the test split's, and those out of fold.

    A metrics.json of an earlier version has those of the test split alone.
    """
    names = {"test": TEST_METRICS, "cross-validation": CROSS_VALIDATION_METRICS}
    numbers = {HEADLINE: float(metrics["accuracy"])} if "accuracy" in metrics else {}
    for scores in metrics.get("score_sets", [{"from": "test", **metrics}]):
        of_set = names.get(scores["from"], {})
        numbers |= {of_set[name]: float(scores[name]) for name in of_set if name in scores}
    beside = {**metrics, **{f"seeds_{name}": value for name, value in metrics.get("seeds", {}).items()}}
    return numbers | {name: float(beside[key]) for key, name in _BESIDE.items() if key in beside}
