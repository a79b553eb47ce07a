"""What is known of a trial from its files, and the table of all trials. Pure, but for reading the files of a trial."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import SweepError
from twinrun.base.files import read_json
from twinrun.sweep.plan import Scalar
from twinrun.sweep.worker import read_ending
from twinrun.tables.sheet import sheet_text

_DONE = ("card.json", "journal.jsonl")  # of a training that went to its end; the journal is written last


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave on the validation images."""

    epoch: int
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Standing:
    """How far a trial has come: the epochs it was judged by, whether it is over, why it failed if it did."""

    epochs: tuple[Epoch, ...] = ()
    finished: bool = False
    failed: str | None = None
    weights_hash: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "Standing":
        """From the files of a trial's folder."""
        ending = read_ending(folder)
        finished = all((folder / name).is_file() for name in _DONE)
        return cls(
            _history(folder / "history.csv"),
            finished,
            ending.reason if ending is not None and ending.state == "failed" and not finished else None,
            read_json(folder / "card.json").get("weights_hash") if finished else None,
        )

    def reached(self, until: int | None) -> bool:
        """Whether it has the epochs of a rung, all of them for None, or can have no more."""
        return self.finished or self.failed is not None or self._has(until)

    def score(self, until: int | None, metric: str, keep: str) -> float | None:
        """The metric of the epoch whose weights it would keep after `until` epochs; None where it failed before."""
        if not self.finished and not self._has(until):
            return None
        epochs = [each for each in self.epochs if until is None or each.epoch <= until]
        best = min(epochs, key=lambda each: (-each.val_accuracy, each.val_loss, each.epoch))
        kept = best if keep == "best" else epochs[-1]
        return kept.val_accuracy if metric == "val_accuracy" else kept.val_loss

    def _has(self, until: int | None) -> bool:
        return until is not None and len(self.epochs) >= until


@dataclass(frozen=True)
class Row:
    """A trial in the table. `rung` counts the judgements that it went through; `metric` is that of the last one."""

    number: int
    generation: int
    state: str
    rung: int
    epochs: int
    metric: float | None
    first: float | None
    values: Mapping[str, Scalar]
    weights_hash: str | None = None
    reason: str | None = None


def best_row(rows: Sequence[Row], *, maximise: bool) -> Row | None:
    """The trial with the best metric of those that were trained to their end; of equals the first."""
    done = [row for row in rows if row.state == "finished" and row.metric is not None]
    return min(done, key=lambda row: (_rank(row.metric, maximise=maximise), row.number), default=None)


def promoted(scores: Mapping[int, float | None], keep: float, *, maximise: bool) -> set[int]:
    """The numbers of the trials that go on: the best `keep` of all as a share, at least one, by (metric, number).

    Failed ones, whose score is None, never do.
    """
    ranked = sorted(
        (number for number, score in scores.items() if score is not None),
        key=lambda number: (_rank(scores[number], maximise=maximise), number),
    )
    return set(ranked[: max(1, int(len(scores) * keep + 1e-9))])


def table_csv(rows: Sequence[Row], metric: str) -> str:
    """The table as CSV for people, without times; numbers are written so that reading them gives the same numbers."""
    names = list(rows[0].values) if rows else []
    lines: list[list[object]] = [
        ["trial", "generation", "state", "rung", "epochs", metric, *names, "weights_hash", "reason"]
    ]
    for row in rows:
        values = [value if type(value) in (str, int, float) else json.dumps(value) for value in row.values.values()]
        reason = (row.reason or "").replace("\n", " ")
        facts = [row.number, row.generation, row.state, row.rung, row.epochs, row.metric]
        lines.append([*facts, *values, row.weights_hash, reason])
    return sheet_text(lines)


def _rank(score: float | None, *, maximise: bool) -> float:
    assert score is not None
    return -score if maximise else score


def _history(file: Path) -> tuple[Epoch, ...]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return tuple(Epoch(int(row["epoch"]), float(row["val_loss"]), float(row["val_accuracy"])) for row in rows)
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{file} is not the history of a training ({error}). Remove {file.parent}, and --resume."
        ) from None
