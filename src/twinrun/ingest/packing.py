"""Decode a listing into the pack and its facts, in several processes. The result does not depend on their number.

Workers write pixels straight into the pack's file and return only facts. Few chunks are in progress at a time, so
memory is bounded by the images being decoded, not by the data set. Large images share a budget of pixels. If a worker
dies (a decoder crashed, or the kernel ended it to free memory), the images that it may have been decoding are tried
again one by one; one that kills a worker again gets a row with that error.
"""

import errno
import hashlib
import io
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from twinrun.base.errors import DataError, deaf_children
from twinrun.base.printing import without_library_output
from twinrun.base.progress import progress
from twinrun.base.regular_files import open_regular
from twinrun.core.arrays import Pixels, Size
from twinrun.dataset.pack import PackWriter
from twinrun.dataset.table import table_schema
from twinrun.decoding.decode import (
    AS_STORED,
    NO_MEMORY,
    BrokenImage,
    Channels,
    Fit,
    Header,
    Resample,
    decode_image,
    fit_images,
)
from twinrun.decoding.samples import SampleRules
from twinrun.ingest.facts import Facts, broken, measured, measured_stack, with_header
from twinrun.ingest.listing import Arrays, Listing, some_names

if TYPE_CHECKING:
    import pyarrow as pa

_FILES_PER_CHUNK = 8
_ARRAYS_PER_CHUNK = 1024
_UNDER_WAY_PER_WORKER = 3
_BUDGET_UNITS = 4
_PIXELS_PER_UNIT = 1 << 24
_FREE_PIXELS = 1 << 22
_MOST_POOLS = 100
_SPARE_BITS = 4  # an image whose values leave so many high bits unused is nearly black
_SPARE_BITS_OF_ALL = 2  # the same where every image leaves them unused, which is no coincidence
_PRELOADED = ["twinrun.ingest.packing", "twinrun.ingest.sources", "scipy.fftpack"]
_CHANGED = broken(
    Facts(file_bytes=0, bytes_sha256=None),
    "cannot be read: it was changed while it was read. Run again once no program writes to it",
)


@dataclass(frozen=True)
class Shape:
    """The form that every image is converted to; `size` is (height, width) in pixels."""

    size: Size
    channels: Channels
    fit: Fit
    resample: Resample
    max_pixels: int
    rules: SampleRules = AS_STORED

    @property
    def of_image(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.size, 1 if self.channels == "gray" else 3)

    def fit_images(self, images: Pixels) -> Pixels:
        """Resize uint8 (N, h, w, C) to (N, H, W, C), see `decode.fit_image`."""
        return fit_images(images, self.size, self.fit, self.resample)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows: paths of files, or their pixels (n, H, W, C)."""

    first_row: int
    files: list[Path] | None = None
    pixels: Pixels | None = None
    format: str = ""

    def __len__(self) -> int:
        return len(self.files) if self.files is not None else len(self.pixels)  # type: ignore[arg-type]


def fill_pack(listing: Listing, shape: Shape, pack: Path, workers: int) -> list[Facts]:
    """Decode all of `listing` into the rows of `pack` and return the facts of each, in order.

    Rows of images that cannot be decoded stay zero; their facts say why.
    """
    chunks = _chunks(listing)
    facts: list[Facts | None] = [None] * len(listing.items)
    with progress("Decoding images", len(listing.items)) as advance:

        def take(chunk: Chunk, measured: list[Facts]) -> None:
            facts[chunk.first_row : chunk.first_row + len(chunk)] = measured
            advance(len(chunk))

        suspects = _run(chunks, shape, pack, max(1, min(workers, len(listing.items))), take)
        while suspects:
            suspects = _run_alone(suspects, shape, pack, take)
    return [_explained(fact) for fact in facts]


def facts_table(listing: Listing, facts: list[Facts]) -> "pa.Table":
    """The table of a listing and its facts, see `table.table_schema`."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "id": [item.id for item in listing.items],
        "path": [item.path for item in listing.items],
        "label": [item.label for item in listing.items],
        "split": [item.split for item in listing.items],
        "group": [item.group for item in listing.items],
    }
    for name in table_schema().names[len(columns) :]:
        columns[name] = [getattr(fact, name) for fact in facts]
    problems = [item.problem for item in listing.items]
    columns["error"] = [problem or error for problem, error in zip(problems, columns["error"], strict=True)]
    return pa.table(columns, schema=table_schema())


def _chunks(listing: Listing) -> Iterator[Chunk]:
    content = listing.content
    if isinstance(content, Arrays):
        for start in range(0, len(content.pixels), _ARRAYS_PER_CHUNK):
            yield Chunk(start, pixels=content.pixels[start : start + _ARRAYS_PER_CHUNK], format=content.format)
    else:
        for start in range(0, len(content.paths), _FILES_PER_CHUNK):
            yield Chunk(start, files=content.paths[start : start + _FILES_PER_CHUNK])


def _run(
    chunks: Iterator[Chunk], shape: Shape, pack: Path, workers: int, take: Callable[[Chunk, list[Facts]], None]
) -> list[Chunk]:
    """Work through all `chunks`; returns those that were lost with a dead worker."""
    lost: list[Chunk] = []
    exhausted = False
    pools = 0
    while not exhausted:
        if (pools := pools + 1) > _MOST_POOLS:
            raise DataError(
                f"{_MOST_POOLS} processes that decode images have died. The machine may be out of memory: close other "
                "programs, or lower ingest.workers or ingest.max_pixels in params.yaml."
            )
        under_way: dict[Future[list[Facts]], Chunk] = {}
        with _pool(shape, pack, workers) as pool:
            try:
                while True:
                    while not exhausted and len(under_way) < workers * _UNDER_WAY_PER_WORKER:
                        if (chunk := next(chunks, None)) is None:
                            exhausted = True
                            break
                        try:
                            under_way[_submitted(pool, chunk)] = chunk
                        except BrokenProcessPool:
                            lost.append(chunk)
                            raise
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        take(under_way[future], future.result())
                        del under_way[future]
            except BrokenProcessPool:
                lost += [chunk for future, chunk in under_way.items() if not _taken(future, chunk, take)]
    return lost


def _taken(future: Future[list[Facts]], chunk: Chunk, take: Callable[[Chunk, list[Facts]], None]) -> bool:
    """Take a result that was ready before the pool broke."""
    if future.done() and future.exception() is None:
        take(chunk, future.result())
        return True
    return False


def _run_alone(
    suspects: list[Chunk], shape: Shape, pack: Path, take: Callable[[Chunk, list[Facts]], None]
) -> list[Chunk]:
    """Decode the images of `suspects` one by one; returns those that follow the first that kills its worker."""
    singles = [single for chunk in suspects for single in _singles(chunk)]
    with _pool(shape, pack, 1) as pool:
        for position, single in enumerate(singles):
            try:
                take(single, _submitted(pool, single).result())
            except BrokenProcessPool:
                reason = "cannot be decoded: the decoder crashed or ran out of memory, and ended its process"
                take(single, [broken(_file_facts(single), reason)])
                return singles[position + 1 :]
    return []


def _singles(chunk: Chunk) -> Iterator[Chunk]:
    for offset in range(len(chunk)):
        if chunk.files is not None:
            yield Chunk(chunk.first_row + offset, files=[chunk.files[offset]])
        elif chunk.pixels is not None:
            yield Chunk(chunk.first_row + offset, pixels=chunk.pixels[offset : offset + 1], format=chunk.format)


@contextmanager
def _pool(shape: Shape, pack: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    # A fork of this process would copy locks but not the threads that hold them; a new process would import all again.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with _starting():
        with deaf_children(), without_library_output():  # it would print tracebacks of its own
            forkserver.ensure_running()
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(shape, pack, _Budget(context))
        )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, chunk: Chunk) -> Future[list[Facts]]:
    """A chunk that is being decoded; the first ones start the processes of the pool."""
    with _starting():
        return pool.submit(_work, chunk)


@contextmanager
def _starting() -> Iterator[None]:
    """Turn what keeps processes from being started into a DataError that says what they need."""
    try:
        yield
    except BrokenProcessPool:
        raise
    except (OSError, EOFError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        folder = tempfile.gettempdir()
        if number in (errno.EMFILE, errno.ENFILE):
            raise
        if "AF_UNIX" in str(error):
            remedy = f"the path of the temporary folder {folder} is too long. Name a shorter one: export TMPDIR=/tmp"
        elif number in (errno.EAGAIN, errno.ENOMEM) or isinstance(error, EOFError) or "start new thread" in str(error):
            remedy = (
                "the system allows no more processes. Raise its limit (ulimit -u, or that of the container), or lower "
                "ingest.workers in params.yaml."
            )
        else:
            remedy = (
                f"{getattr(error, 'strerror', None) or error}. They need shared memory (/dev/shm) and a temporary "
                f"folder ({folder}); make both writable and check that neither is full."
            )
        raise DataError(f"The processes that decode images cannot be started: {remedy}") from None


def _explained(fact: Facts | None) -> Facts:
    if fact is None:
        raise AssertionError("a row without facts")
    return fact


class _Budget:
    """Bounds the pixels of large images that all workers together decode at a time."""

    def __init__(self, context: ForkServerContext) -> None:
        self._turn = context.Lock()
        self._units = context.Semaphore(_BUDGET_UNITS)

    def take(self, header: Header) -> int:
        """Wait for the units of the budget that an image of this size needs; returns their number, to give back."""
        pixels = header.width * header.height
        if pixels <= _FREE_PIXELS:
            return 0
        units = min(_BUDGET_UNITS, -(-pixels // _PIXELS_PER_UNIT))
        with self._turn:  # one at a time: two workers with half of the units each would wait for ever
            for _ in range(units):
                self._units.acquire()
        return units

    def give_back(self, units: int) -> None:
        for _ in range(units):
            self._units.release()


@dataclass
class _Worker:
    shape: Shape
    writer: PackWriter
    budget: _Budget


_worker: _Worker | None = None


def _start_worker(shape: Shape, pack: Path, budget: _Budget) -> None:
    global _worker
    # libtiff and others print their own messages; the rows of the table have the errors.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _worker = _Worker(shape, PackWriter(pack), budget)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Otherwise the workers of a killed ingest would wait for work for ever.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> list[Facts]:
    if _worker is None:
        raise AssertionError("the pool starts its workers")
    if chunk.files is not None:
        return [_work_file(_worker, chunk.first_row + i, path) for i, path in enumerate(chunk.files)]
    return _work_array(_worker, chunk)


def _work_file(worker: _Worker, row: int, path: Path) -> Facts:
    known = Facts(file_bytes=0, bytes_sha256=None)
    with ExitStack() as stack:
        try:
            known, file, version = _open(path)
            stack.enter_context(file)
        except OSError as error:
            return broken(known, f"cannot be read: {error.strerror or error}")

        def wait_for_room(header: Header) -> None:
            stack.callback(worker.budget.give_back, worker.budget.take(header))

        try:
            image = decode_image(
                file,
                channels=worker.shape.channels,
                max_pixels=worker.shape.max_pixels,
                rules=worker.shape.rules,
                on_header=wait_for_room,
                named=path.suffix,
            )
        except BrokenImage as error:
            return _CHANGED if _version(file) != version else broken(known, str(error), error.header)
        if _version(file) != version:  # the hash may be of other bytes than the pixels
            return _CHANGED
        known = replace(
            with_header(known, image.header),
            camera=image.camera,
            used_bits=image.used_bits,
            is_transparent=image.is_transparent,
        )
        try:
            facts, fitted = measured(known, image.pixels), worker.shape.fit_images(image.pixels[None])
        except MemoryError:
            return broken(known, NO_MEMORY)
        worker.writer.write(row, fitted)
        return facts


def _open(path: Path) -> tuple[Facts, BinaryIO, tuple[int, int]]:
    """Open an image file at its start, with its size and hash, and its version before these; raises OSError."""
    file = open_regular(path)
    try:
        version = _version(file)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        size = file.tell()
        file.seek(0)
    except OSError:
        file.close()
        raise
    return Facts(file_bytes=size, bytes_sha256=digest), file, version


def _version(file: BinaryIO) -> tuple[int, int]:
    """Size and time of change of an open file, which differ once it was written to; those of an empty one are 0."""
    if isinstance(file, io.BytesIO):
        return 0, 0
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _file_facts(chunk: Chunk) -> Facts:
    """The facts of the one image of `chunk` that need no decoding."""
    if chunk.pixels is not None:
        return _array_facts(chunk.pixels[0], chunk.format)
    try:
        known, file, _ = _open((chunk.files or [])[0])
    except OSError:
        return Facts(file_bytes=0, bytes_sha256=None)
    file.close()
    return known


def _work_array(worker: _Worker, chunk: Chunk) -> list[Facts]:
    if chunk.pixels is None:
        raise AssertionError("a chunk holds files or pixels")
    images = _to_channels(chunk.pixels, worker.shape.channels)
    worker.writer.write(chunk.first_row, worker.shape.fit_images(images))
    return measured_stack([_array_facts(stored, chunk.format) for stored in chunk.pixels], images)


def _array_facts(stored: Pixels, kind: str) -> Facts:
    height, width, channels = stored.shape
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    return Facts(stored.nbytes, digest, width=width, height=height, mode="L" if channels == 1 else "RGB", format=kind)


def _to_channels(images: Pixels, channels: Channels) -> Pixels:
    if images.shape[3] == 1:
        return images if channels == "gray" else np.repeat(images, 3, axis=3)
    if channels == "rgb":
        return images
    tall = images.reshape(-1, *images.shape[2:])  # one on top of another
    return np.asarray(Image.fromarray(tall).convert("L")).reshape(*images.shape[:3], 1)


def sample_notes(listing: Listing, facts: list[Facts], rules: SampleRules) -> list[str]:
    """Settings of ingest that may suit 16-bit and transparent images better, as sentences."""
    notes = _notes_on_depth(listing, facts) if rules.depth == "file" else []
    clear = [place for place, fact in enumerate(facts) if fact.is_transparent]
    if clear:
        notes.append(f"{_images(len(clear))} transparent parts, which become {rules.ground} (ingest.ground).")
        if plain := [listing.items[place].path for place in clear if facts[place].contrast == 0]:
            others = " or ".join(ground for ground in ("white", "gray", "black") if ground != rules.ground)
            notes[-1] += f" {rules.ground.capitalize()} all over: {some_names(plain)}. Try ingest.ground: {others}."
    return notes


def _notes_on_depth(listing: Listing, facts: list[Facts]) -> list[str]:
    """A note on images of more than 8 bits that use so little of their range that they are nearly black."""
    deep = {place: fact.used_bits for place, fact in enumerate(facts) if fact.used_bits is not None}
    spare = {place: bits - used for place, (used, bits) in deep.items()}
    fewest = _SPARE_BITS_OF_ALL if min(spare.values(), default=0) >= _SPARE_BITS_OF_ALL else _SPARE_BITS
    if not (dark := [place for place in deep if spare[place] >= fewest]):
        return []
    needed, bits = max(deep[place] for place in dark)
    return [
        f"{len(dark):,} of {len(deep):,} images with more than 8 bits need {needed} of {bits} bits at most, and are "
        f"nearly black as decoded: {some_names([listing.items[place].path for place in dark])}. "
        f"If {needed} bits are their range, set ingest.depth: {needed}."
    ]


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"


def summary(listing: Listing, facts: list[Facts]) -> str:
    """The notes and what was read, for the person at the terminal."""
    labels = {item.label for item in listing.items if item.label is not None}
    errors = [
        problem for item, fact in zip(listing.items, facts, strict=True) if (problem := item.problem or fact.error)
    ]
    lines = [*listing.notes, f"Read {len(facts):,} images of {len(labels)} classes"]
    lines[-1] += f"; {len(errors):,} of them cannot be used, which validate will report." if errors else "."
    return "\n".join(lines)
