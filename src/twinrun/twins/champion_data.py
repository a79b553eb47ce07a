"""The facts of the data that the champion was trained on, for later data to be compared with."""

from pathlib import Path

from twinrun.base.errors import DataError
from twinrun.dataset.manifest import read_manifest_table
from twinrun.dataset.table import read_table
from twinrun.tracking.runs import find_run
from twinrun.tracking.store import Tracker
from twinrun.twins.material import MANIFEST, TABLE, recorded_files
from twinrun.validate.reference import reference_table

Columns = dict[str, list[object]]


def champion_facts(root: Path, tracker: Tracker, model_name: str, version: str = "champion") -> Columns:
    """The facts of the images that the champion, or a version, was trained, validated and tested on, as columns.

    They are found by the hashes on its run's card, in the workspace, DVC's cache or its remote. Raises DataError where
    they are nowhere, and TrackingError where there is no champion.
    """
    card = find_run(tracker, f"{model_name}@champion" if version == "champion" else version, model_name).card
    files = recorded_files(root, card) if card is not None else {}
    table, manifest = (files[name].path if name in files else None for name in (TABLE, MANIFEST))
    if table is None or manifest is None:
        raise DataError(
            f"The facts of the champion's data ({TABLE}, {MANIFEST}) are neither in the workspace nor in DVC's cache "
            "or remote. Where it was trained: dvc push"
        )
    return facts_used(table, manifest)


def facts_used(table: Path, manifest: Path) -> Columns:
    """The facts of the images that a manifest lets be used, as columns. Raises DataError where a file is missing."""
    rows = read_manifest_table(manifest)
    used = reference_table(read_table(table, len(rows)), rows)
    return {name: used[name].to_pylist() for name in used.column_names}
