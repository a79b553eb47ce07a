"""The files of a training as bytes, for a machine whose project is a clone of its own.

Carried are the training's folder, its journal, and those of its checkpoints that the project keeps elsewhere. Code and
data are not: the clone has them, and the worker compares them with the driver's before it trains.
"""

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinrun.base.errors import SweepError
from twinrun.base.files import read_json
from twinrun.record.home import STATE
from twinrun.record.records import is_journal_id
from twinrun.record.trial import DRIVER

_OWNERS, _PREFIX = "resume/*/owner-*", "owner-"  # files whose names say whose journal a training goes on with


def pack(project: Path, folder: Path) -> bytes:
    """What the training in `folder`, a path inside the project, reads and has written; a tar file."""
    content, sweep = io.BytesIO(), folder.parents[1]
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in (sweep / DRIVER, sweep / "params.yaml", folder, *_elsewhere(project, folder)):
            archive.add(project / path, path)
    return content.getvalue()


def unpack_task(content: bytes, project: Path, folder: Path) -> None:
    """Prepare `folder` for its worker; of an earlier attempt here only the checkpoints stay."""
    for path in (project / folder).glob("*"):
        if path.name != "resume":
            _remove(path)
    with _unpacked(content, project, folder) as unpacked:
        if any((unpacked / folder).glob(_OWNERS)):  # else that attempt may have begun a journal, to be gone on with
            for owner in (project / folder).glob(_OWNERS):
                owner.unlink()
        _merge(unpacked, project)


def unpack_result(content: bytes, project: Path, folder: Path) -> None:
    """Take over what the worker of `folder` left; checkpoints that it no longer has are removed.

    Raises SweepError, and takes over nothing, where there is anything but files of that training.
    """
    with _unpacked(content, project, folder) as unpacked:
        left = {path.relative_to(unpacked) for path in (unpacked / folder).glob("resume/*/*")}
        _merge(unpacked, project)
        for checkpoint in (project / folder).glob("resume/*/*"):
            if checkpoint.relative_to(project) not in left:
                _remove(checkpoint)


def _elsewhere(project: Path, folder: Path) -> Iterator[Path]:
    """Journals of a trial, by its checkpoints or its card, and the checkpoints of a seed or fold."""
    owners = {file.name.removeprefix(_PREFIX) for file in (project / folder).glob(_OWNERS)}
    owners.add(str(read_json(project / folder / "card.json").get("journal_id")))
    journals = [Path(STATE, "journals", owner) for owner in sorted(filter(is_journal_id, owners))]
    kept = [journal / name for journal in journals for name in ("journal.jsonl", "artifacts")]
    yield from (path for path in kept if (project / path).exists())
    yield from (path.relative_to(project) for path in (project / STATE).glob(f"resume/*/{folder.name}"))


@contextmanager
def _unpacked(content: bytes, project: Path, folder: Path) -> Iterator[Path]:
    sweep, state = folder.parents[1], project / STATE
    places = (sweep / DRIVER, sweep / "params.yaml", folder, Path(STATE, "journals"), Path(STATE, "resume"))

    def expected(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo:
        member = tarfile.data_filter(member, target)
        is_known = member.isreg() or member.isdir() or member.islnk()  # artifacts of a journal are hard links
        for name in map(Path, [member.name, member.linkname] if member.islnk() else [member.name]):
            is_known &= ".." not in name.parts and any(map(name.is_relative_to, places))
        if not is_known:
            raise SweepError(
                f"{folder}: a machine sent {member.name!r}, which is no file of this training. Nothing of it was taken "
                "over. Look at what runs there, and run again with --resume."
            )
        return member

    state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state) as unpacked:
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                archive.extractall(unpacked, filter=expected)
        except tarfile.TarError as error:
            raise SweepError(
                f"{folder}: what a machine sent cannot be used: {error}. Run again with --resume."
            ) from None
        yield Path(unpacked)


def _merge(source: Path, target: Path) -> None:
    """Move files to the same paths of the other folder, where they replace others one by one.

    Those that say that a training is finished come last, so that it is not if this is interrupted.
    """
    last = ("card.json", "journal.jsonl", "result.json")
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda file: (file.name in last, file)):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).replace(target / file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
