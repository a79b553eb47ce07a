"""Strict types for what somebody else may have written: journals, cards, results, states, in files or a tracker.

A journal or a card arrives by `git pull`, `dvc pull` or from a shared server. It is parsed here before it is used:
identifiers match a pattern, paths are relative and inside their folder, numbers and texts have the right type. Unknown
fields of a card are left out, and `set_aside` has their names. `RecordError` names the place in an invalid record.
"""

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from twinrun.base.errors import RecordError
from twinrun.base.files import canonical_json
from twinrun.base.printing import one_line
from twinrun.record.home import Process

Record = dict[str, Any]

LARGEST_BYTES = 256_000_000
_SHOWN = 3
_CACHED = re.compile(r"/([0-9a-f]{2})/([0-9a-f]{30})$")
# Aliases of YAML may hold a text of gigabytes, of which this writes the beginning.
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel, _BRIEFLY.maxstring = 3, 60


def _relative(path: str) -> str:
    pure = PurePosixPath(path)
    if (
        path in ("", ".")
        or pure.is_absolute()
        or ".." in pure.parts
        or pure.as_posix() != path
        or not path.isprintable()
    ):
        raise ValueError("must be a relative path that stays inside its folder")
    return path


def _relative_or_empty(path: str) -> str:
    return path and _relative(path)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _finite(rows: list[Record]) -> list[Record]:
    try:
        canonical_json(rows)
    except ValueError:
        raise ValueError("must hold only what JSON can: no NaN, no infinity, no half of a character") from None
    return rows


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$")]
JournalId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
RunId = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
Inside = Annotated[str, AfterValidator(_relative)]
Place = Annotated[str, AfterValidator(_no_nul)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
# pydantic's own text refuses bytes that are not UTF-8, which a patch and the name of a file may hold.
Bytes = InstanceOf[str]
Scalar = str | float | int | bool | None
Plain = dict[str, JsonValue]
_ABSENT: Any = None  # a field that may be missing and may not be null; what was missing is missing in the record too


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Open(_Strict):
    """Fields beside the named ones are kept; each is plain JSON."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Plain


class _Sections(_Strict):
    """The same, where each further field is a section of settings."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]


class ProcessRecord(_Strict):
    """A process, as `twinrun.record.home` identifies it."""

    host: str
    boot_id: str
    namespace: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: Number
    machine: str = ""


class _Run(_Strict):
    event: Literal["run"]
    journal_id: JournalId
    name: str
    experiment: ModelName
    time_ms: Count
    process: ProcessRecord
    machine: str = ""
    stage: Literal["train", "validate", "evaluate", "dvc.lock"] = "train"
    part_of: JournalId = _ABSENT
    data: str = ""


class _Params(_Strict):
    event: Literal["params"]
    values: dict[str, str]


class _Tags(_Strict):
    event: Literal["tags"]
    values: dict[str, str]


class _Metrics(_Strict):
    event: Literal["metrics"]
    step: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    time_ms: Count
    values: dict[str, Number | Literal["nan", "inf", "-inf"]]


class _Dataset(_Strict):
    event: Literal["dataset"]
    name: Annotated[str, Field(min_length=1, max_length=500)]
    digest: Annotated[str, Field(min_length=1, max_length=36)]
    source: str
    context: str
    profile: dict[str, Count]


class _Artifact(_Strict):
    event: Literal["artifact"]
    path: Inside
    to: Annotated[str, AfterValidator(_relative_or_empty)]
    source: Inside
    sha256: Sha256


class _Table(_Strict):
    event: Literal["table"]
    path: Inside
    rows: Annotated[list[Plain], Field(min_length=1), AfterValidator(_finite)]


class _End(_Strict):
    event: Literal["end"]
    status: Literal["FINISHED", "KILLED", "FAILED"]
    time_ms: Count


Event = Annotated[
    _Run | _Params | _Tags | _Metrics | _Dataset | _Artifact | _Table | _End,
    Field(discriminator="event"),
]


class _Outs(_Strict):
    deps: dict[str, str | None] = {}
    outs: dict[Inside, Md5 | None] = {}


class _IngestSettings(_Open):
    source: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    path: Place | None = None
    splits_file: Place | None = None


class _Settings(_Sections):
    ingest: _IngestSettings


class _DecidingParams(_Open):
    preparation: Plain = {}


class _DecidingEnvironment(_Open):
    packages: dict[str, str] = {}


class _Parts(_Sections):
    code: dict[str, str | None] = {}
    params: _DecidingParams = _ABSENT
    data: Plain = {}
    environment: _DecidingEnvironment = _ABSENT
    numerics: Plain = {}


class _Versions(_Strict):
    locked: str | None
    installed: str | None


class _Environment(_Open):
    python: str | None = None
    implementation: str | None = None
    platform: str | None = None
    machine: str | None = None
    lock_sha256: Sha256 | None = None
    differing: dict[str, _Versions] = {}


class _Hardware(_Open):
    cpu: str | None = None
    cpu_flags: list[str] = []
    cores_usable: int | None = None
    memory_bytes: Count = 0
    gpus: list[dict[str, Scalar]] = []


class CardRecord(_Strict):
    """data/out/train/card.json, of any version; `set_aside` names the fields that this version does not know."""

    weights_hash: Sha256
    fingerprint: Sha256
    fingerprint_parts: _Parts = _ABSENT
    params: _Settings = _ABSENT
    commit: Commit = _ABSENT
    dirty: bool = False
    diff: Bytes = ""
    untracked_taken: list[Bytes] = []
    untracked_left_out: list[Bytes] = []
    dvc_lock: dict[str, _Outs] = {}
    environment: _Environment = _ABSENT
    hardware: _Hardware = _ABSENT
    threads: int | None = None
    shards: int | None = None
    processes: int | None = None
    machines: int | None = None
    precision: str | None = None
    started: str | None = None
    wall_time_s: Number | None = None
    energy_j: Number | None = None
    gpu_energy_j: Number | None = None
    journal_id: JournalId = _ABSENT
    kept_epoch: int | None = None
    probe: Plain | None = None
    set_aside: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _name_unknown(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = {name: value for name, value in content.items() if name in cls.model_fields and name != "set_aside"}
        unknown = sorted(str(name) for name in content.keys() - known.keys())
        return {**known, "set_aside": unknown} if unknown else known


class _ClassScores(_Open):
    label: str
    images: Count


class _ScoreSet(_Open):
    source: Annotated[str, Field(alias="from")]


class MetricsRecord(_Open):
    """data/out/evaluate/metrics.json."""

    accuracy: Share
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    log_loss: Number | None = None
    calibration_error: Share | None = None
    test_accuracy: Share | None = None
    images: Count = 0
    intervals: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)] | None] = {}
    per_class: list[_ClassScores] = []
    score_sets: list[_ScoreSet] = []


class ModelRecord(_Open):
    """data/out/evaluate/model.json; older evaluations name the weights in metrics.json."""

    weights_hash: Sha256 | None = None


class RegisteredRecord(_Open):
    """data/out/register/registered.json."""

    name: ModelName
    version: Annotated[int, Field(ge=1)]
    weights_hash: Sha256


class PublishedRecord(_Strict):
    """mlruns/published/<store>/<journal_id>.json."""

    offset: Count = 0
    run_id: RunId | None = None
    killed_at: Count | None = None
    deleted: bool = False
    complete: bool = False
    refused: Count = 0
    latest: JournalId | None = None
    attached: dict[str, str] = {}  # of earlier versions


class _Dependency(BaseModel):
    path: Place
    md5: str | None = None


class _Output(BaseModel):
    path: Inside
    md5: Md5 | None = None


class _Member(BaseModel):
    relpath: Inside
    md5: Md5


_EVENT: TypeAdapter[Any] = TypeAdapter(Event)
_INSIDE: TypeAdapter[Any] = TypeAdapter(Inside)
_VERSIONS: TypeAdapter[Any] = TypeAdapter(list[Annotated[int, Field(ge=1)]])
_MEMBERS: TypeAdapter[Any] = TypeAdapter(list[_Member])
_DEPENDENCY, _OUTPUT = TypeAdapter(_Dependency), TypeAdapter(_Output)


def is_journal_id(name: str) -> bool:
    """Whether a folder may be that of a journal, by its name."""
    return re.fullmatch("[0-9a-f]{32}", name) is not None


def read_record(kind: type[BaseModel], file: Path, root: Path, origin: str | None = None) -> Record | None:
    """The content of the JSON `file` below `root`, without fields that are missing in it; None where there is no file.

    Raises RecordError, which names `origin` or the file, where it is not of that `kind`, or reached through a link.
    """
    if not file.is_symlink() and not file.exists():
        return None
    require_plain(file, root)
    return parse_record(kind, _content(file), origin or _shown(file, root))


def parse_record(kind: type[BaseModel], content: bytes | str, origin: str) -> Record:
    """The object in a JSON text, with only the fields that are in it. Raises RecordError, which names `origin`."""
    record: Record = _checked(TypeAdapter(kind), parse_json(content, origin), origin)
    return record


def parse_event(line: bytes, origin: str) -> Record:
    """One event of a journal. Raises RecordError, which names `origin`."""
    event: Record = _checked(_EVENT, parse_json(line, origin), origin)
    return event


def parse_json(content: bytes | str, origin: str) -> Any:
    """A JSON text as plain Python. Raises RecordError where it is not JSON, or nested too deeply."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecordError(f"{origin} is not JSON that Twinrun wrote: {reason}.\n{_REMEDY}") from None


def relative_path(value: Any, origin: str) -> str:
    """A path that stays inside its folder. Raises RecordError, which names `origin`, for any other path."""
    path: str = _checked(_INSIDE, value, origin)
    return path


def version_numbers(text: str, origin: str) -> list[int]:
    """The numbers of versions in a tag. Raises RecordError, which names `origin`, for anything else."""
    numbers: list[int] = _checked(_VERSIONS, parse_json(text, origin), origin)
    return numbers


def number_from(text: str | None) -> float | None:
    """The number in a tag; None where there is none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def sha256_from(text: str | None) -> str:
    """The hash in a tag; empty where there is none."""
    return text if text is not None and re.fullmatch("[0-9a-f]{64}", text) else ""


def process_from(content: Any) -> Process | None:
    """The process that a record describes, or None where it describes none."""
    try:
        return Process(**ProcessRecord.model_validate(content).model_dump())
    except ValidationError:
        return None


def read_lock(content: Any) -> tuple[dict[str, Record], list[str]]:
    """The hashes in a parsed dvc.lock by stage and side, and its invalid entries."""
    stages = content.get("stages") if isinstance(content, dict) else None
    hashes: dict[str, Record] = {}
    faults: list[str] = []
    for stage, facts in (stages if isinstance(stages, dict) else {}).items():
        if not isinstance(stage, str):
            faults.append(f"a stage called {_BRIEFLY.repr(stage)[:80]}")
            continue
        hashes[stage] = {"deps": {}, "outs": {}}
        for side, kind in (("deps", _DEPENDENCY), ("outs", _OUTPUT)):
            for entry in _list(facts.get(side) if isinstance(facts, dict) else None):
                try:
                    checked = kind.validate_python(entry)
                    hashes[stage][side][checked.path] = checked.md5
                except (ValidationError, RecursionError):
                    faults.append(f"{side} of {one_line(stage)}: {_BRIEFLY.repr(entry)[:80]}")
    return hashes, faults


def folder_members(content: bytes, origin: str) -> dict[str, str]:
    """Path below a folder -> MD5, by DVC's list of its files. Raises RecordError where it is not such a list."""
    members: Any = _checked(_MEMBERS, parse_json(content, origin), origin)
    return {member["relpath"]: member["md5"] for member in members}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def require_plain(place: Path, root: Path) -> None:
    """Raise RecordError where a file or folder, or what is in it, is a link or no regular file, or not below `root`.

    A link into DVC's cache passes if the content is the one that its name says: DVC makes them where cache.type is
    symlink.
    """
    if not place.absolute().is_relative_to(root.absolute()):
        raise RecordError(f"{place} is not inside {root}, so it was not read.")
    for part in (place, *place.parents):
        if part == root:
            break
        _require_no_link(part, root)
    if place.is_dir():
        for folder, folders, files in os.walk(place):
            for name in (*folders, *files):
                _require_no_link(Path(folder, name), root)


def _require_no_link(path: Path, root: Path) -> None:
    if path.is_symlink() and not _is_cached(path):
        raise RecordError(
            f"{_shown(path, root)} is a link to {os.fspath(path.readlink())}, so it was not read.\n{_REMEDY}"
        )
    if path.exists() and not path.is_dir() and not path.is_file():
        raise RecordError(f"{_shown(path, root)} is not a regular file, so it was not read.\n{_REMEDY}")


def _is_cached(link: Path) -> bool:
    """Whether a link leads to an object of DVC's cache: named by its MD5."""
    target = link.resolve()
    names = _CACHED.search(target.as_posix())
    if names is None or not target.is_file():
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == "".join(
            names.groups()
        )


def _content(file: Path) -> bytes:
    if file.stat().st_size > LARGEST_BYTES:
        raise RecordError(f"{file} has {file.stat().st_size / 1e6:.0f} MB; Twinrun writes no such file.\n{_REMEDY}")
    return file.read_bytes()


def _checked(kind: TypeAdapter[Any], content: Any, origin: str) -> Any:
    try:
        record: Any = kind.dump_python(kind.validate_python(content), exclude_unset=True, by_alias=True)
    except (ValidationError, RecursionError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else []
        lines = [f"  {_problem(problem)}" for problem in problems[:_SHOWN]] or ["  it is nested too deeply"]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more")
        listed = "\n".join(lines)
        raise RecordError(f"{origin} is not what Twinrun writes, so it was not used:\n{listed}\n{_REMEDY}") from None
    return record


def _problem(error: Mapping[str, Any]) -> str:
    where = ".".join(str(part)[:80] for part in error["loc"])
    wanted = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    value = repr(error["input"])
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{where or 'the whole'}: {wanted}, got {shown}"


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


_REMEDY = "Ask whoever wrote it, restore it (git checkout, dvc checkout --force), or remove it; or update Twinrun."
