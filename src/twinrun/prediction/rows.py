"""Answers for files as rows, and as the table that is written of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twinrun.base.paths import is_missing
from twinrun.base.printing import escaped
from twinrun.core.arrays import Pixels
from twinrun.prediction.classifier import ImageClassifier

_LONGEST_HEADER = 10_000_000  # characters; with all of 100,000 labels it has 3 million
MISSING = "No such file"  # the error of a row


@dataclass(frozen=True)
class Row:
    """One image by its printable name: its likeliest labels with their probabilities, or why it cannot be read."""

    name: str
    labels: tuple[tuple[str, float], ...]
    error: str | None


def table_of(rows: Sequence[Row], top: int) -> pa.Table:
    """Columns path, label, probability, label_2, probability_2, ... up to `top`, error."""
    columns: dict[str, Any] = {"path": pa.array([row.name for row in rows], pa.string())}
    for place in range(top):
        label, probability = _columns(place)
        answers = [row.labels[place] if place < len(row.labels) else (None, None) for row in rows]
        columns[label] = pa.array([name for name, _ in answers], pa.string())
        columns[probability] = pa.array([share for _, share in answers], pa.float64())
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    return pa.table(columns)


def rows_of(table: pa.Table) -> list[Row]:
    """The rows that `table_of` made a table of."""
    places = [_columns(place) for place in range((table.num_columns - 2) // 2)]
    return [
        Row(
            row["path"],
            tuple((row[label], row[share]) for label, share in places if row[label] is not None),
            row["error"],
        )
        for row in table.to_pylist()
    ]


def is_table(path: Path) -> bool:
    """Whether a .csv or .parquet file has the columns of `table_of`, and no others. Raises OSError."""
    try:
        if path.suffix.lower() == ".parquet":
            names = pq.read_schema(path).names
        else:
            with path.open("rb") as file:
                names = file.readline(_LONGEST_HEADER).decode().rstrip("\n").split(",")
    except (UnicodeDecodeError, pa.ArrowException):
        return False
    return bool(names == table_of([], (len(names) - 2) // 2).column_names)


def _columns(place: int) -> tuple[str, str]:
    number = f"_{place + 1}" if place else ""
    return f"label{number}", f"probability{number}"


def classified(
    classifier: ImageClassifier, paths: Sequence[Path], top: int, see: Callable[[int, Pixels], None] | None = None
) -> Iterator[Row]:
    """A row for each path, in order, as they are ready, with its `top` likeliest labels.

    `see` gets the place in `paths` and the pixels of each image that can be read, from several threads at once.
    """
    classes = classifier.bundle.classes

    def read(one: tuple[int, Path]) -> Pixels:
        place, path = one
        pixels = classifier.read(path)
        if see is not None:
            see(place, pixels)
        return pixels

    for path, answer in zip(paths, classifier.answers(list(enumerate(paths)), read), strict=True):
        shares = answer.probabilities
        best = () if shares is None else (-shares).argsort(kind="stable")[:top]
        labels = tuple((classes[i], float(shares[i])) for i in best)  # type: ignore[index]
        error = MISSING if answer.error and is_missing(path) else answer.error
        yield Row(escaped(str(path)), labels, error)
