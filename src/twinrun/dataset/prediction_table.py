"""The table of what a model said about images, as `train` and `evaluate` write it for others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError
from twinrun.dataset.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa


def prediction_table(
    ids: Sequence[str],
    targets: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    classes: tuple[str, ...],
    fold: npt.NDArray[np.int64] | None = None,
    pixels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
) -> "pa.Table":
    """A row for each image: id, label, predicted, probabilities (a list, in the order of the schema's `classes`).

    `targets` (N,) index `classes`, `probabilities` have shape (N, C). Columns too, where they are
    given: `fold` (N,), `pixels`, the sha256 of each image's pixels, and `units`, which name what an image shows with
    others, as in a manifest.
    """
    import pyarrow as pa

    names = np.array(classes, dtype=object)
    columns = {
        "id": pa.array(ids, pa.string()),
        "label": pa.array(names[targets], pa.string()),
        "predicted": pa.array(names[probabilities.argmax(axis=1)], pa.string()),
        "probabilities": pa.array(list(probabilities), pa.list_(pa.float64())),
    }
    if fold is not None:
        columns["fold"] = pa.array(fold, pa.int64())
    for name, texts in (("pixels_sha256", pixels), ("unit", units)):
        if texts is not None:
            columns[name] = pa.array(texts, pa.string())
    metadata = {"classes": json.dumps(classes, ensure_ascii=False)}
    return pa.table(columns).replace_schema_metadata(metadata)


def beside_table(manifest: Manifest, beside: Mapping[str, npt.NDArray[np.float64]]) -> "pa.Table":
    """What others than the model of the bundle say about the test images: the columns of `prediction_table`, and `by`.

    `beside` has the probabilities (N, C) of the images of the test split by each of them.
    """
    import pyarrow as pa

    test, classes = manifest.split("test"), manifest.classes
    none = prediction_table([], np.empty(0, np.int64), np.empty((0, len(classes))), classes)
    tables = [prediction_table(test.ids, test.targets, probabilities, classes) for probabilities in beside.values()]
    by = pa.array([name for name in beside for _ in test.ids], pa.string())
    return pa.concat_tables([none, *tables]).append_column("by", by)


def read_predictions(path: Path) -> "pa.Table":
    """The columns id, label, predicted and probabilities of a predictions.parquet, no value missing.

    Raises DataError where it is not such a table.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    text = pa.string()
    kinds = {"id": text, "label": text, "predicted": text, "probabilities": pa.list_(pa.float64())}
    try:
        table = pq.read_table(path, columns=list(kinds)).cast(pa.schema(kinds))
        whole = not any(column.null_count for column in table.columns)
        if table.num_rows and (not whole or pc.min(pc.list_value_length(table["probabilities"])).as_py() == 0):
            raise ValueError("a value is missing")
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{path} is not a table of predictions ({error}). Create it again: dvc repro -f evaluate"
        ) from None
    return table
