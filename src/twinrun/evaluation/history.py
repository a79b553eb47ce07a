"""Reading the numbers of each epoch that training leaves behind."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import DataError

_COLUMNS = ("epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate")


@dataclass(frozen=True)
class History:
    """A training's numbers, one of each for every epoch; losses in nats, accuracy in [0, 1]."""

    epoch: list[float]
    train_loss: list[float]
    val_loss: list[float]
    val_accuracy: list[float]
    learning_rate: list[float]


def read_history(path: Path) -> History:
    """Read history.csv. Raises DataError where it is missing, has no epochs, or lacks a column or a number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: [float(row[name]) for row in rows] for name in _COLUMNS}
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            raise ValueError("a number is not finite")
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Train first: dvc repro train.") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is not a training history with the columns {', '.join(_COLUMNS)}: {error}. "
            "Train again: dvc repro -f train."
        ) from None
    if not rows:
        raise DataError(f"{path} holds no epoch. Train again: dvc repro -f train.")
    return History(**columns)
