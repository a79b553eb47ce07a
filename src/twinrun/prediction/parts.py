"""A long list of images that is classified in parts, which are kept in a folder beside the result until it is whole.

So a run that was ended goes on where it stopped. Processes on other machines can classify the parts: each is
`python -m twinrun.prediction.parts FOLDER` in the working folder, and its result is a file.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twinrun.base.errors import BundleError, DataError, LockHeldError
from twinrun.base.files import write_json, write_table
from twinrun.base.printing import print, without_library_output
from twinrun.core.keyed import keyed_bits
from twinrun.models.bundle import Bundle, load_bundle
from twinrun.models.predict import probabilities
from twinrun.prediction.classifier import ImageClassifier
from twinrun.prediction.rows import Row, classified, rows_of, table_of

PART_IMAGES = 500  # so many are classified again after a kill, at most
LOG = "log.txt"
_LOCK = "lock"
_JOB, _BUNDLE, _ROWS, _STARTS, _PROCESS = "job.json", "bundle", "rows.parquet", "starts.json", "process-"
_ATTEMPTS = 2
_SHARES = 4  # processes for each slot, one after another, so that a slow one holds up little


class Launcher(Protocol):
    """Runs the processes of several folders at a time."""

    slots: int

    def submit(self, folder: Path) -> None:
        """Start the process of `folder`."""

    def ended(self) -> list[tuple[Path, str]]:
        """Wait until a process has ended; its folder and what is known of its end."""


class Parts:
    """The parts of the list `paths`, in order, for the result `out`; `count` of them, or one for every 500 images.

    Parts of another model or another list, or of files that have changed since, are not used and are removed.
    """

    def __init__(self, out: Path, bundle: Bundle, paths: Sequence[Path], top: int, count: int | None = None) -> None:
        size = PART_IMAGES if count is None else max(1, -(-len(paths) // count))
        self._folder, self._bundle, self._paths, self._top = _folder(out), bundle, paths, top
        self.starts = range(0, len(paths), size)
        key, job = _key(bundle, paths, top, size), self._folder / _JOB
        if not job.is_file() or _read_job(job).get("key") != key:
            _empty(self._folder)
            names = [str(path) for path in paths]
            write_json({"key": key, "paths": names, "top": top, "size": size, "test": _test(bundle)}, job)

    @property
    def jobs(self) -> Path:
        """A folder for an engine's own files."""
        return self._folder / "jobs"

    def paths(self, start: int) -> Sequence[Path]:
        """The paths of the part that begins at `start`."""
        return self._paths[start : start + self.starts.step]

    def read(self, start: int) -> list[Row] | None:
        """The rows of the part that begins at `start`, if it is finished."""
        try:
            return rows_of(pq.read_table(self._part(start) / _ROWS))
        except (OSError, pa.ArrowInvalid, KeyError):
            return None

    def write(self, start: int, rows: Sequence[Row]) -> None:
        """Keep the rows of the part that begins at `start`."""
        _write(rows, self._top, self._part(start))

    def run(self, launcher: Launcher, bundle: Path, *, trust: bool) -> Iterator[int]:
        """Let a launcher classify what is not finished, with the bundle in that folder; yields numbers of images done.

        A process gets several parts, since it takes seconds to start. Raises DataError with the reason where parts of a
        process that ended are not finished at the second attempt either.
        """
        shutil.copytree(bundle, self._folder / _BUNDLE, dirs_exist_ok=True)
        write_json({**_read_job(self._folder / _JOB), "trust": trust}, self._folder / _JOB)
        missing = [start for start in self.starts if self.read(start) is None]
        yield sum(len(self.paths(start)) for start in set(self.starts) - set(missing))
        each = max(1, -(-len(missing) // (launcher.slots * _SHARES)))
        waiting = [(missing[first : first + each], 1) for first in range(0, len(missing), each)]
        running: dict[Path, tuple[list[int], int]] = {}
        while waiting or running:
            while waiting and len(running) < launcher.slots:
                starts, attempt = waiting.pop(0)
                folder = self._folder / f"{_PROCESS}{starts[0]:09d}"
                folder.mkdir(exist_ok=True)
                write_json({"starts": starts}, folder / _STARTS)
                running[folder] = starts, attempt
                launcher.submit(folder)
            for folder, how in launcher.ended():
                starts, attempt = running.pop(folder)
                left = [start for start in starts if self.read(start) is None]
                yield sum(len(self.paths(start)) for start in set(starts) - set(left))
                if left and attempt == _ATTEMPTS:
                    raise DataError(
                        f"Some images were not classified after {_ATTEMPTS} attempts: {_reason(folder) or how}. "
                        f"Log: {folder / LOG}. The same command goes on with them."
                    )
                if left:
                    waiting.append((left, attempt + 1))

    def _part(self, start: int) -> Path:
        return _part_folder(self._folder, start)


def work(folder: Path) -> int:
    """Classify the parts that the folder of this process names; returns the exit code.

    Nothing is classified where a test picture gets other probabilities than where the list was made.
    """
    job, starts = _read_job(folder.parent / _JOB), _read_job(folder / _STARTS)["starts"]
    try:
        bundle = load_bundle(folder.parent / _BUNDLE, trust=job["trust"])
    except BundleError as error:
        print(error, file=sys.stderr)
        return 1
    if _test(bundle) != job["test"]:
        print(
            "this machine gives a test picture other probabilities than the one where the command was given",
            file=sys.stderr,
        )
        return 1
    classifier = ImageClassifier(bundle)
    with without_library_output():
        for start in starts:
            paths = [Path(name) for name in job["paths"][start : start + job["size"]]]
            _write(list(classified(classifier, paths, job["top"])), job["top"], _part_folder(folder.parent, start))
    return 0


@contextmanager
def locked_parts(out: Path) -> Iterator[None]:
    """Keep the parts of `out` for this process; raises LockHeldError where another one has them."""
    from filelock import FileLock, Timeout

    folder = _folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / _LOCK).acquire(timeout=0)
    except Timeout:
        raise LockHeldError(f"Another process writes {out}. Wait for it to end, or name another file.") from None
    with held:
        yield


def _empty(folder: Path) -> None:
    """Remove all in a folder of parts but its lock, which this process has."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink()


def remove_parts(out: Path) -> None:
    """Remove the parts of `out`, since the whole is written."""
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def _part_folder(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}"


def _write(rows: Sequence[Row], top: int, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_table(table_of(rows, top), folder / _ROWS)


def _read_job(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        job = json.loads(path.read_bytes())
        if isinstance(job, dict):
            return job
    return {}


def _reason(folder: Path) -> str:
    """The last line that the process of a part wrote."""
    with suppress(OSError):
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def _test(bundle: Bundle) -> str:
    """A hash of the probabilities of a picture of noise, which differ where the processor or a library does."""
    shape = (1, *bundle.preprocessing.size_px, len(bundle.preprocessing.mean))
    places = np.arange(int(np.prod(shape)), dtype=np.uint64)
    noise = (keyed_bits(places, 0) >> np.uint64(56)).astype(np.uint8).reshape(shape)
    return hashlib.sha256(probabilities(bundle, noise).tobytes()).hexdigest()


def _key(bundle: Bundle, paths: Sequence[Path], top: int, size: int) -> str:
    """A hash of all that decides the rows: the model, the number of labels, and name, size and time of each file."""
    model = [bundle.weights_hash, bundle.architecture, bundle.classes, asdict(bundle.preprocessing), top, size]
    digest = hashlib.sha256(json.dumps(model, default=str).encode())
    for path in paths:
        digest.update(f"{path!s}\n".encode(errors="surrogateescape"))
        with suppress(OSError):
            facts = path.stat()
            digest.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    raise SystemExit(work(Path(sys.argv[1])))
