"""The data of a run, restored from the DVC cache, or the data of the source as it is now. Everything is hashed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twinrun.base.errors import TwinrunError
from twinrun.base.files import file_sha256
from twinrun.base.paths import expanded
from twinrun.record.card import collect_dvc_lock
from twinrun.record.objects import Found, Objects, file_md5
from twinrun.twins.difference import ImageChange, compare_images

if TYPE_CHECKING:
    import pyarrow as pa

PACK, TABLE, MANIFEST = (
    "data/out/ingest/images.npy",
    "data/out/ingest/table.parquet",
    "data/out/validate/manifest.parquet",
)
NEEDED = (PACK, TABLE, MANIFEST)
# Values of settings that cards of earlier versions lack.
_SINCE: dict[str, Any] = {"levels": "auto", "group_pattern": None, "leave_out": [], "resample": "bilinear"}
_MANY = 20

Choice = Literal["auto", "recorded", "workspace"]


@dataclass
class Material:
    """Where a twin's data come from.

    `kind`: "recorded" copies `files`, which are the run's own; "workspace" copies data/out as it is now; "source" runs
    ingest and validate again. `recorded` are those of the run's own files that were found. `problems` says why none of
    this is possible.
    """

    kind: Literal["recorded", "workspace", "source"] = "recorded"
    recorded: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    edited: list[ImageChange] = field(default_factory=list)

    def described(self) -> str:
        """For a person: where the data come from."""
        match self.kind:
            case "recorded":
                return f"the run's own, from {' and '.join(sorted(self.places))}; every file was hashed again"
            case "workspace":
                return "data/out of this folder as it is now"
            case "source":
                return "ingested and validated again from the source as it is now"


def recorded_files(root: Path, card: Mapping[str, Any], *, ask_remote: bool = True) -> dict[str, Found]:
    """The run's pack, table and manifest, by the hashes on its card."""
    objects, hashes = Objects(root), _recorded_hashes(card)
    return {
        name: objects.find(hashes[name], root / name, ask_remote=ask_remote) if name in hashes else Found(None)
        for name in NEEDED
    }


def choose(root: Path, card: Mapping[str, Any], choice: Choice) -> Material:
    """Decide where a twin's data come from.

    "recorded" takes the run's own data by their hashes. "auto" does the same, unless an image that the run used has
    changed since under the same name: a twin must reveal damage and silent edits, so it then uses the present data.
    "workspace" always uses the present data.
    """
    recorded = recorded_files(root, card)
    material = Material(
        recorded={name: file.path for name, file in recorded.items() if file.path is not None},
        places={file.place for file in recorded.values() if file.path is not None},
        notes=[fault for file in recorded.values() for fault in file.faults],
    )
    source = _source_here(root, card)
    if choice == "workspace":
        _take_what_is_here(root, material, source)
        return material
    if choice == "auto":
        material.edited, kind = _edited(root, card, material, source)
        if kind is not None:
            material.kind = kind
            material.files = {name: root / name for name in NEEDED} if kind == "workspace" else {}
            return material
    if len(material.recorded) == len(NEEDED):
        material.files = material.recorded
        return material
    missing = [name for name in NEEDED if name not in material.recorded]
    if source is not None:
        material.kind = "source"
        material.notes.append(f"{', '.join(missing)}: not in the DVC cache or remote, so created again from {source}.")
        return material
    hashes = _recorded_hashes(card)
    lost = ", ".join(f"{name} ({hashes.get(name, 'no hash was recorded')})" for name in missing)
    material.problems.append(
        f"The run's data are missing: {lost} is neither in the DVC cache nor in a remote, and the source "
        f"{_source_folder(root, card)}, from which it could be created, does not exist.\n"
        "Restore it from another clone (there: dvc push; here: dvc remote add -d NAME URL), or put the source back."
    )
    return material


def compare_data(before: Mapping[str, Path], after: Mapping[str, Path]) -> list[ImageChange]:
    """The changes of images between two sets of data; empty where one of them lacks its tables.

    Where the tables are equal, the packs are compared row by row.
    """
    if TABLE not in before or TABLE not in after:
        return []
    tables = _table(before[TABLE]), _table(after[TABLE])
    manifests = _manifest(before.get(MANIFEST)), _manifest(after.get(MANIFEST))
    changes = compare_images(*tables, *manifests)
    if not changes and PACK in before and PACK in after:
        changes = _different_rows(before[PACK], after[PACK], tables[1], manifests[1])
    return changes


def absolute_source(root: Path, ingest: Mapping[str, Any]) -> dict[str, Any]:
    """The ingest section with absolute paths, for a run in another folder."""
    here = _source_folder(root, {"params": {"ingest": ingest}})
    splits = ingest.get("splits_file")
    return {
        **ingest,
        "path": ingest.get("path") if here is None or not here.exists() else str(here),
        "splits_file": None if splits is None else str((root / expanded(splits)).resolve()),
    }


def shortened(changes: list[ImageChange], most: int = _MANY) -> list[str]:
    """A line for each of the first changes, and the number of the others."""
    lines = [str(change) for change in changes[:most]]
    return lines + ([f"and {len(changes) - most} more"] if len(changes) > most else [])


def _recorded_hashes(card: Mapping[str, Any]) -> dict[str, str]:
    lock = card.get("dvc_lock", {})
    outs = {**lock.get("ingest", {}).get("outs", {}), **lock.get("validate", {}).get("outs", {})}
    return {name: outs[name] for name in NEEDED if outs.get(name)}


def _source_folder(root: Path, card: Mapping[str, Any]) -> Path | None:
    """Where the source's files should be; None for one that comes inside a package."""
    ingest = card["params"]["ingest"]
    if ingest["source"] == "digits":
        return None
    path = ingest.get("path")
    return (root / expanded(path)).resolve() if path else root / "data" / "raw" / ingest["source"]


def _source_here(root: Path, card: Mapping[str, Any]) -> str | None:
    """The source in words, if it is here."""
    folder = _source_folder(root, card)
    if folder is None:
        return "scikit-learn's digits"
    return str(folder) if folder.is_dir() and any(folder.iterdir()) else None


def _take_what_is_here(root: Path, material: Material, source: str | None) -> None:
    if source is not None:
        material.kind = "source"
    elif all((root / name).is_file() for name in NEEDED):
        material.kind, material.files = "workspace", {name: root / name for name in NEEDED}
    else:
        material.problems.append("This folder has neither the source nor data/out. Create it: dvc repro validate")


def _edited(
    root: Path, card: Mapping[str, Any], material: Material, source: str | None
) -> tuple[list[ImageChange], Literal["workspace", "source"] | None]:
    """Images of the run that have changed since under the same name, and whether in data/out or in the source."""
    if TABLE not in material.recorded or MANIFEST not in material.recorded:
        return [], None
    hashes, here = _recorded_hashes(card), _recorded_hashes({"dvc_lock": collect_dvc_lock(root)})
    touched = [
        name
        for name in NEEDED
        if here.get(name) == hashes.get(name) and (root / name).is_file() and file_md5(root / name) != hashes[name]
    ]
    if touched and all((root / name).is_file() for name in NEEDED):
        changes = compare_data(material.recorded, {name: root / name for name in NEEDED})
        return changes or [ImageChange("", name, "changed in this folder") for name in touched], "workspace"
    changes = _edited_files(root, card, material) if source is not None else []
    return changes, "source" if changes else None


def _edited_files(root: Path, card: Mapping[str, Any], material: Material) -> list[ImageChange]:
    """Images that the run used and whose file in the source has changed since."""
    from twinrun.core.params import IngestParams
    from twinrun.ingest.folders import list_tree
    from twinrun.ingest.listing import Files
    from twinrun.ingest.sharing import OF_FILES

    ingest = card["params"]["ingest"]
    if ingest["source"] not in OF_FILES:
        return []
    try:
        listing = list_tree(IngestParams(**{**_SINCE, **absolute_source(root, ingest)}))
    except (TwinrunError, ValueError, TypeError):
        return []
    assert isinstance(listing.content, Files)
    used = {row["id"]: row["split"] for row in _manifest(material.recorded[MANIFEST]).to_pylist() if not row["dropped"]}
    facts = {row["id"]: row["bytes_sha256"] for row in _table(material.recorded[TABLE]).to_pylist()}
    return [
        ImageChange(item.id, item.path, "its file changed", used[item.id])
        for item, file in zip(listing.items, listing.content.paths, strict=True)
        if item.id in used and facts[item.id] is not None and file_sha256(file) != facts[item.id]
    ]


def _different_rows(before: Path, after: Path, table: "pa.Table", manifest: "pa.Table") -> list[ImageChange]:
    from twinrun.base.errors import DataError
    from twinrun.dataset.pack import open_pack

    try:
        old, new = open_pack(before), open_pack(after)
    except DataError as error:
        return [ImageChange("", PACK, str(error))]
    if old.shape != new.shape:
        return [ImageChange("", PACK, f"the pack had the shape {old.shape} and now has {new.shape}")]
    splits = {row["row"]: row["split"] for row in manifest.to_pylist() if not row["dropped"]}
    return [
        ImageChange(table["id"][row].as_py(), table["path"][row].as_py(), "its pixels changed", splits.get(row))
        for row in range(len(old))
        if (old[row] != new[row]).any()
    ]


def _table(path: Path) -> "pa.Table":
    from twinrun.dataset.table import read_table

    return read_table(path)


def _manifest(path: Path | None) -> Any:
    from twinrun.dataset.manifest import read_manifest_table

    return None if path is None else read_manifest_table(path)
