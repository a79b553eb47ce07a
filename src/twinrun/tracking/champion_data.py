"""The facts of the data that the champion was trained on, kept so that `validate` can say how later data differ."""

from pathlib import Path

from twinrun.data.manifest import read_manifest_table
from twinrun.data.reference import reference_file, reference_table
from twinrun.data.table import read_table
from twinrun.errors import DataError, TrackingError
from twinrun.publish import write_table
from twinrun.tracking.material import MANIFEST, TABLE, recorded_files
from twinrun.tracking.runs import find_run
from twinrun.tracking.store import Tracker

REFERENCES = Path("data/reference")


def keep_reference(root: Path, tracker: Tracker, version: int, model_name: str) -> str:
    """Write the facts of a version's data to data/reference/<model>.parquet; says in words what came of it.

    They are found by the hashes on the run's card, in the workspace, DVC's cache or its remote. Where they are nowhere,
    an earlier champion's are removed: a wrong reference is worse than none.
    """
    place = reference_file(root / REFERENCES, model_name)
    shown = place.relative_to(root).as_posix()
    try:
        card = find_run(tracker, str(version), model_name).card
        files = recorded_files(root, card) if card is not None else {}
        table, manifest = (files[name].path if name in files else None for name in (TABLE, MANIFEST))
        if table is not None and manifest is not None:
            write_table(reference_table(read_table(table), read_manifest_table(manifest)), place)
            return f"{shown}: the facts of its data, the reference of validate.reference: auto."
    except (DataError, TrackingError) as error:
        reason = str(error)
    else:
        reason = "they are neither in the workspace nor in DVC's cache or remote"
    place.unlink(missing_ok=True)
    return f"The facts of its data could not be kept for reference: {reason}."
