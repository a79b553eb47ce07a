"""The model that the server uses: the one that `--model` names, and a new champion once it is verified.

A local store is read directly, in milliseconds; importing MLflow takes seconds, and is done only for a tracking server.
"""

import logging
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from twinrun.base.errors import BundleError, MissingModelError, RegistryError, TwinrunError
from twinrun.base.paths import expanded
from twinrun.serving.engine import Engine, load_engine
from twinrun.tracking.addresses import sqlite_to_read
from twinrun.tracking.in_use import parse_reference
from twinrun.tracking.registry import CANDIDATE, CHAMPION, ONNX, ONNX_TAG, how_to_register, missing_model
from twinrun.tracking.store import Tracker

_EVERY_S = 1.0
_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0  # of a champion that could not be loaded, which may be a large download
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """A version, where its files are, and the sha256 of its ONNX file; empty where it has none."""

    version: int
    location: str
    sha256: str


@dataclass(frozen=True)
class _Refusal:
    """A version and its sha256 that could not be loaded, why, and when (time.monotonic) it is tried again."""

    version: tuple[int, str]
    problem: str
    wait_s: float
    again: float


class _Store(Protocol):
    def find(self, name: str, number: int | None, alias: str | None) -> _Found: ...
    def load(self, name: str, stored: _Found) -> Engine: ...


class ModelInService:
    """The engine in use. `problem` says why a newer champion has not taken over; None where there is none."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.problem: str | None = None

    def follow(self, store: _Store, name: str, alias: str | None, stop: threading.Event) -> None:
        """Check every second, until `stop`, whether to change to another version.

        One that cannot be loaded is tried again after a minute, then after twice as long, and at least once an hour.
        """
        seen = (self.engine.version, self.engine.sha256)
        refusal: _Refusal | None = None
        while not stop.wait(_EVERY_S):
            try:
                stored = store.find(name, None, alias)
            except MissingModelError as error:
                self.problem = None if self.engine.version is None else str(error)  # none yet is no problem
                continue
            except Exception as error:  # the old one stays in service whatever is wrong with the store
                self._stay(_reason(error))
                continue
            newest = (stored.version, stored.sha256)
            if newest == seen:
                self.problem = refusal = None
                continue
            if refusal is not None and refusal.version != newest:
                refusal = None
            if refusal is not None and time.monotonic() < refusal.again:
                self._stay(refusal.problem)
                continue
            try:
                self.engine = store.load(name, stored)
            except Exception as error:
                wait_s = _RETRY_S if refusal is None else min(2 * refusal.wait_s, _LONGEST_RETRY_S)
                refusal = _Refusal(newest, _reason(error), wait_s, time.monotonic() + wait_s)
                self._stay(refusal.problem)
                continue
            seen, self.problem, refusal = (self.engine.version, self.engine.sha256), None, None
            _log.warning("Version %s of %s is served from now on.", self.engine.version, name)

    def _stay(self, problem: str) -> None:
        if problem != self.problem:
            _log.warning("Version %s stays in service: %s", self.engine.version, problem)
        self.problem = problem


def open_model(
    tracker: Tracker, reference: str | None, default_name: Callable[[], str], stop: threading.Event
) -> ModelInService:
    """Load what `reference` names, as for `twinrun predict`; a name or an alias is followed by a thread until `stop`.

    Raises BundleError, RegistryError or TrackingError with what to do.
    """
    folder = expanded(reference) if reference else None
    if folder is not None and folder.is_dir():
        beside = (folder.parent / ONNX, folder.parent.parent / ONNX, folder.parent.parent / "register/onnx" / ONNX)
        onnx = next((file for file in beside if file.is_file()), beside[-1])
        return ModelInService(load_engine(folder, onnx, name=str(folder), version=None, sha256=None))
    name, number, alias = parse_reference(reference)
    name = name or default_name()
    store = _store(tracker)
    model = ModelInService(store.load(name, store.find(name, number, alias)))
    if number is None:
        threading.Thread(target=model.follow, args=(store, name, alias, stop), daemon=True).start()
    return model


def open_app(
    tracker: Tracker, default_name: Callable[[], str], comes_with: Callable[[], Engine], stop: threading.Event
) -> ModelInService:
    """The champion of the project in the current folder, followed; until there is one, the model of `comes_with`."""
    try:
        name = default_name()
    except TwinrunError:  # no project
        return ModelInService(comes_with())
    store = _store(tracker)
    try:
        model = ModelInService(store.load(name, store.find(name, None, CHAMPION)))
    except MissingModelError:
        model = ModelInService(comes_with())
    threading.Thread(target=model.follow, args=(store, name, CHAMPION, stop), daemon=True).start()
    return model


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _store(tracker: Tracker) -> _Store:
    return _LocalStore(tracker, tracker.database) if tracker.database else _Server(tracker)


def _load(name: str, stored: _Found, folder: Path) -> Engine:
    if not stored.sha256:
        raise BundleError(
            f"Version {stored.version} of {name} has no {ONNX}, which the server needs: it was registered by an "
            f"earlier Twinrun, or its network cannot be exported to ONNX. Register it again: {how_to_register(Path())}"
        )
    try:
        return load_engine(
            folder / "data/bundle", folder / ONNX, name=name, version=stored.version, sha256=stored.sha256
        )
    except TwinrunError as error:
        raise BundleError(f"Version {stored.version} of {name}: {error}") from None


class _LocalStore:
    """Reads MLflow's database and folders on this machine, without MLflow."""

    def __init__(self, tracker: Tracker, database: Path) -> None:
        self._tracker, self._database, self._relocated = tracker, database, False

    def find(self, name: str, number: int | None, alias: str | None) -> _Found:
        from twinrun.tracking.relocate import relocate

        if not self._database.is_file():
            raise missing_model(self._tracker, name)
        try:
            if not self._relocated and self._database.is_relative_to(self._tracker.home):
                relocate(self._database.parent)
            self._relocated = True
            with closing(sqlite3.connect(sqlite_to_read(self._database), uri=True, timeout=10)) as store:
                return self._find(store, name, number, alias)
        except sqlite3.Error as error:
            raise RegistryError(f"{self._database} cannot be read: {error}") from None

    def load(self, name: str, stored: _Found) -> Engine:
        return _load(name, stored, Path(unquote(stored.location.removeprefix("file://"))))

    def _find(self, store: sqlite3.Connection, name: str, number: int | None, alias: str | None) -> _Found:
        rows = store.execute(
            "SELECT v.version, v.storage_location, t.value FROM model_versions v LEFT JOIN model_version_tags t "
            "ON t.name = v.name AND t.version = v.version AND t.key = ? WHERE v.name = ?",
            (ONNX_TAG, name),
        )
        versions = {int(row[0]): _Found(int(row[0]), row[1] or "", row[2] or "") for row in rows}
        if not versions:
            names = [row[0] for row in store.execute("SELECT DISTINCT name FROM model_versions")]
            raise missing_model(self._tracker, name, names)
        aliases = dict(store.execute("SELECT alias, version FROM registered_model_aliases WHERE name = ?", (name,)))
        return versions[_chosen(name, list(versions), aliases, number, alias)]


class _Server:
    """Asks a tracking server with MLflow's client, and downloads what it names."""

    def __init__(self, tracker: Tracker) -> None:
        from twinrun.tracking.registry import Registry

        self._tracker, self._registry = tracker, Registry
        self._opened: dict[str, Registry] = {}

    def find(self, name: str, number: int | None, alias: str | None) -> _Found:
        registry = self._opened.setdefault(name, self._registry(self._tracker, name, only_looking=True))
        versions = {version.version: version for version in registry.versions()}
        if not versions:
            raise registry.missing()
        aliases = {named: version.version for version in versions.values() for named in version.aliases}
        chosen = _chosen(name, list(versions), aliases, number, alias)
        return _Found(chosen, "", registry.tag(chosen, ONNX_TAG))

    def load(self, name: str, stored: _Found) -> Engine:
        from twinrun.tracking.in_use import fetch_model

        with tempfile.TemporaryDirectory(prefix="twinrun-model-") as folder:
            return _load(name, stored, fetch_model(self._tracker, name, stored.version, Path(folder)))


def _chosen(name: str, versions: list[int], aliases: dict[str, int], number: int | None, alias: str | None) -> int:
    there = ", ".join(map(str, sorted(versions)))
    if number is not None:
        if number not in versions:
            raise RegistryError(f"{name!r} has no version {number}; it has {there}. List them: twinrun models")
        return number
    for wanted in [alias] if alias else [CHAMPION, CANDIDATE]:
        if wanted in aliases:
            return int(aliases[wanted])
    wanted = f"no version with the alias {alias!r}" if alias else "neither a champion nor a candidate"
    raise MissingModelError(f"{name!r} has {wanted}; its versions are {there}. Name one: --model {max(versions)}")
