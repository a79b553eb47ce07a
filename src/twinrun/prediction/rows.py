"""Rows of answers for files, and the parts of a long list of them that are kept until all are there.

A run that was ended goes on where it stopped: the parts that are finished lie beside the file that is to be written.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twinrun.core.files import write_table, write_text
from twinrun.models.bundle import Bundle

PART_IMAGES = 500  # so many are classified again after a kill, at most


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


def _columns(place: int) -> tuple[str, str]:
    number = f"_{place + 1}" if place else ""
    return f"label{number}", f"probability{number}"


class Parts:
    """The finished parts of a list of images that is classified into the file `out`, kept in a folder beside it.

    Parts of another model or another list, or of files that have changed since, are not used and are removed.
    """

    def __init__(self, out: Path, bundle: Bundle, paths: Iterable[Path], top: int) -> None:
        self._folder, self._top = _folder(out), top
        key, job = _key(bundle, paths, top), self._folder / "job.txt"
        if not job.is_file() or job.read_text(encoding="utf-8") != key:
            remove_parts(out)
            self._folder.mkdir(parents=True)
            write_text(key, job)

    def read(self, number: int) -> list[Row] | None:
        """The rows of part `number`, if it is finished."""
        try:
            return rows_of(pq.read_table(self._path(number)))
        except (OSError, pa.ArrowInvalid, KeyError):
            return None

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Keep the rows of part `number`."""
        write_table(table_of(rows, self._top), self._path(number))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.parquet"


def remove_parts(out: Path) -> None:
    """Remove the parts of `out`, since the whole is written."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def _key(bundle: Bundle, paths: Iterable[Path], top: int) -> str:
    """A hash of all that decides the rows: the model, the number of labels, and name, size and time of each file."""
    model = [bundle.weights_hash, bundle.architecture, bundle.classes, asdict(bundle.preprocessing), top]
    digest = hashlib.sha256(json.dumps(model, default=str).encode())
    for path in paths:
        try:
            facts = path.stat()
            digest.update(f"{path!s}|{facts.st_size}|{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{path!s}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
