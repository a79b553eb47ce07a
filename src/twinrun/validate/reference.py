"""The facts of an earlier data set, against which drift is measured: where they lie and how they are read."""

from pathlib import Path
from typing import TYPE_CHECKING

from twinrun.base.errors import DataError
from twinrun.base.files import read_parquet
from twinrun.base.paths import expanded
from twinrun.dataset.table import table_schema
from twinrun.validate.evidence import Reference

if TYPE_CHECKING:
    import pyarrow as pa

_SETTING = "params.yaml: validate.reference"


def reference_table(table: "pa.Table", manifest: "pa.Table") -> "pa.Table":
    """The facts of the images that a manifest lets be used, with the labels and splits that it gives them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in ("label", "split"):
        table = table.set_column(table.schema.get_field_index(name), name, manifest[name])
    used: pa.Table = table.filter(pc.is_null(manifest["dropped"]))
    return used


def find_reference(setting: str | None) -> Reference | None:
    """The table that `validate.reference` names, if any.

    Raises DataError where it is missing or no table of facts.
    """
    if setting is None:
        return None
    path = expanded(setting)
    if setting == "auto" and not path.exists():  # the champion's data once, so that a promotion changed the verdict
        raise DataError(
            "params.yaml: validate.reference: auto is no longer supported. Set it to null; to compare with the data of "
            "the champion: twinrun data drift"
        )
    return read_reference(path, f"{_SETTING}: null is none", path.name)


def read_reference(path: Path, named_by: str, name: str) -> Reference:
    """The facts in `path`, a table such as ingest writes; `named_by` says where another one may be named.

    Raises DataError where the file is missing or no table of facts.
    """
    schema, always = table_schema(), {"path", "label", "pixels_sha256"}
    again = f"Name another table of facts ({named_by})."
    try:
        table = read_parquet(path, schema, "a table of facts", again, optional={*schema.names} - always)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {again}") from None
    known = [name for name in schema.names if name in always or table[name].null_count < len(table)]
    return Reference({name: table[name].to_pylist() for name in known}, name)
