"""Requests to /invocations as MLflow's server takes them, and its answers."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError
from twinrun.prediction.inputs import Given, images_in

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def read_request(body: bytes, most_images: int) -> list[Given]:
    """The images of a request in one of MLflow's four forms. Raises DataError with what is wrong."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The body is not JSON: {error}") from None
    forms = [name for name in _FORMS if isinstance(content, dict) and name in content]
    if len(forms) != 1:
        raise DataError(f"The body is a JSON object with one of {', '.join(_FORMS)}; found {len(forms)} of them.")
    try:
        images = images_in(_columns(forms[0], content[forms[0]]), paths=False, most_images=most_images)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        raise DataError(f"{forms[0]} cannot be read as images: {error}") from None
    if not images:
        raise DataError("There are no images in this request.")
    return images


def _columns(form: str, value: Any) -> Any:
    """A table as a dictionary of columns with an image in each row, anything else as it is."""
    if form == "dataframe_split":
        if not isinstance(value, dict) or not isinstance(value.get("data"), list):
            raise DataError("dataframe_split is an object with columns and data, a list of rows.")
        rows = value["data"]
        names = value.get("columns") or list(range(len(rows[0]) if rows else 0))
        return {name: _column([row[place] for row in rows]) for place, name in enumerate(names)}
    is_table = isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    if form == "dataframe_records" and not is_table:
        raise DataError("dataframe_records is a list of objects, one for each image.")
    return {name: _column([row.get(name) for row in value]) for name in value[0]} if is_table else value


def _column(values: list[Any]) -> npt.NDArray[Any]:
    """An array of objects: a list would be one image where all its values are lists of numbers."""
    return np.fromiter(values, dtype=object, count=len(values))
