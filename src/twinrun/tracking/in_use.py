"""Which registered model answers, by what a person calls it, and its bundle as a folder."""

import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.base.errors import RegistryError
from twinrun.core.yaml import read_yaml
from twinrun.record.records import relative_path, require_plain
from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.registry import CANDIDATE, CHAMPION, Registry, Version, missing_model
from twinrun.tracking.store import Tracker, as_default, explaining


@dataclass(frozen=True)
class ModelInUse:
    """A version, its bundle, and a sentence on why it was taken where none was named; empty otherwise."""

    version: Version
    bundle: Path
    note: str


@contextmanager
def model_in_use(tracker: Tracker, reference: str | None, default_name: Callable[[], str]) -> Iterator[ModelInUse]:
    """Fetch the version that `reference` names; the folder of its bundle is removed afterwards.

    It may be a number, v3, NAME, NAME/3, NAME@alias or @alias, also with models:/ before it. NAME alone, or nothing, is
    the champion, or else the candidate. Raises RegistryError or TrackingError with what there is.
    """
    name, number, alias = parse_reference(reference)
    name = name or default_name()
    if set("/:") & set(name):  # which no name of MLflow has
        raise RegistryError(
            f"There is no folder {name}. If it is the bundle of a training: dvc checkout restores it, and dvc repro "
            "makes it. A registered model is called NAME@champion or NAME/3."
        )
    if (others := _models_beside(tracker, name)) is not None:
        raise missing_model(tracker, name, others)
    registry = Registry(tracker, name)
    version, note = _chosen(registry, number, alias)
    with tempfile.TemporaryDirectory(prefix="twinrun-model-") as folder:
        yield ModelInUse(version, fetch_bundle(tracker, version, Path(folder)), note)


def _models_beside(tracker: Tracker, name: str) -> list[str] | None:
    """The models of a local store that has none called `name`; None where it has, or where MLflow is to be asked.

    The database is read directly, in milliseconds: importing MLflow takes seconds.
    """
    if tracker.database is None:
        return None
    if not tracker.database.is_file():
        return []
    try:
        with closing(sqlite3.connect(sqlite_to_read(tracker.database), uri=True, timeout=10)) as store:
            names = [row[0] for row in store.execute("SELECT DISTINCT name FROM model_versions ORDER BY name")]
    except sqlite3.Error:
        return None
    return None if name in names else names


def parse_reference(reference: str | None) -> tuple[str, int | None, str | None]:
    """Name, number of the version and alias that a reference has."""
    text = (reference or "").removeprefix("models:/").strip()
    if "@" in text:
        name, _, alias = text.rpartition("@")
        return name, None, alias
    name, _, last = text.rpartition("/")
    if numbered := re.fullmatch(r"v?(\d{1,9})", last):
        return name, int(numbered[1]), None
    return text, None, None


def _chosen(registry: Registry, number: int | None, alias: str | None) -> tuple[Version, str]:
    if number is not None:
        return registry.version(number), ""
    versions = registry.versions()
    if not versions:
        raise registry.missing()
    for wanted in [alias] if alias else [CHAMPION, CANDIDATE]:
        if version := next((version for version in versions if wanted in version.aliases), None):
            note = "" if alias or wanted == CHAMPION else _no_champion(version)
            return version, note
    there = ", ".join(str(version.version) for version in reversed(versions))
    wanted = f"no version with the alias {alias!r}" if alias else "neither a champion nor a candidate"
    raise RegistryError(
        f"{registry.name!r} has {wanted}; its versions are {there}. Name one: --model {versions[0].version}"
    )


def _no_champion(candidate: Version) -> str:
    return (
        f"{candidate.name} has no champion, so the candidate answers: version {candidate.version}. "
        f"Make it the champion: twinrun promote {candidate.version}"
    )


def fetch_bundle(tracker: Tracker, version: Version, folder: Path) -> Path:
    """Put a copy of a version's bundle into `folder`; returns the bundle's own folder there."""
    model = fetch_model(tracker, version.name, version.version, folder)
    origin = f"MLmodel of version {version.version} of {version.name}"
    bundle = model / relative_path(_place_of_bundle(model / "MLmodel"), origin)
    require_plain(bundle, folder)
    return bundle


def _place_of_bundle(description: Path) -> Any:
    """Where in a model of MLflow the bundle lies, as its description says; None where that is not one."""
    from ruamel.yaml.error import YAMLError

    try:
        return read_yaml(description.read_text(encoding="utf-8"))["flavors"]["python_function"]["data"]
    except (OSError, ValueError, YAMLError, LookupError, TypeError):
        return None


def fetch_model(tracker: Tracker, name: str, version: int, folder: Path) -> Path:
    """Put a copy of all files of a version into `folder`; returns their own folder there."""
    from mlflow.artifacts import download_artifacts

    with explaining(tracker), as_default(tracker):
        return Path(download_artifacts(f"models:/{name}/{version}", dst_path=str(folder)))
