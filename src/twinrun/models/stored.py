"""A bundle's files, read once and checked before anything is made of them. No PyTorch: the registry uses it too.

Whatever is used was hashed: the bytes are read into memory, compared with the manifest, and those same bytes are
parsed. JSON is strict (no key twice, no NaN, no other fields), files are regular files, and the weights hash in
model.json must be that of the tensors.
"""

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from twinrun.base.errors import BundleError
from twinrun.base.files import MANIFEST
from twinrun.base.printing import escaped, one_line
from twinrun.core.networks import is_own_file, unknown_network

WEIGHTS = "weights.safetensors"
MODEL = "model.json"
SOURCE = "network.py"  # in bundles of networks in a file of the project alone
FORMAT = 2
_READABLE_FORMATS = (1, FORMAT)
_MOST_JSON_BYTES = 64_000_000  # 100,000 classes with the longest names
_LONGEST_LABEL = 4096
_FAULTS_SHOWN = 10
_AGAIN = "Train again (dvc repro -f train) or restore it (dvc checkout --force train)."
# Of each type in safetensors its name in torch, which is part of the weights hash, and in numpy where it is a float.
_DTYPES: dict[str, tuple[str, str | None]] = {
    "BOOL": ("torch.bool", None),
    "U8": ("torch.uint8", None),
    "I8": ("torch.int8", None),
    "I16": ("torch.int16", None),
    "I32": ("torch.int32", None),
    "I64": ("torch.int64", None),
    "F16": ("torch.float16", "<f2"),
    "BF16": ("torch.bfloat16", None),
    "F32": ("torch.float32", "<f4"),
    "F64": ("torch.float64", "<f8"),
}
_BF16_EXPONENT = 0x7F80
TORCH_TYPES = frozenset(name for name, _ in _DTYPES.values())

_Side = Annotated[int, Field(ge=1, le=65_536)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StoredPreprocessing(_Strict):
    """The section `preprocessing` of model.json, format 2."""

    size_px: Annotated[list[_Side], Field(min_length=2, max_length=2)]
    channels: Literal["gray", "rgb"]
    fit: Literal["pad", "crop"]
    resample: Literal["bilinear", "bicubic"]
    max_pixels: Annotated[int, Field(ge=1, lt=2**31)]
    mean: list[_Share]
    std: list[_Deviation]
    # Bundles that were written before these were settings have none of them.
    depth: Literal["file", "data"] | Annotated[int, Field(ge=1, le=32)] = "file"
    ground: Literal["white", "gray", "black"] = "white"
    bands: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=3)] | None = None
    test_flip: bool = False
    test_shift_px: Annotated[int, Field(ge=0, le=1024)] = 0

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> "StoredPreprocessing":
        wanted = 1 if self.channels == "gray" else 3
        if {len(self.mean), len(self.std)} != {wanted}:
            raise ValueError(
                f"{self.channels} has {wanted} of mean and std each, found {len(self.mean)} and {len(self.std)}"
            )
        return self


class StoredModel(_Strict):
    """The file model.json, format 2."""

    format: Literal[2]
    architecture: Annotated[str, Field(max_length=200)]
    classes: Annotated[list[Annotated[str, Field(min_length=1, max_length=_LONGEST_LABEL)]], Field(min_length=2)]
    preprocessing: StoredPreprocessing
    weights_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if problem := unknown_network(name):
            raise ValueError(problem)
        return name

    @field_validator("classes")
    @classmethod
    def _are_names(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class is named twice")
        if odd := next((name for name in classes if not _is_one_line(name)), None):
            raise ValueError(f"{one_line(odd)!r} is not a name on one line")
        return classes


@dataclass(frozen=True)
class StoredBundle:
    """The files of a bundle whose hashes agree, and what model.json says, in format 2."""

    model: StoredModel
    files: Mapping[str, bytes]

    @property
    def key(self) -> str:
        """What the bundle is recognised by: sha256 of model.json, which holds the weights hash; hexadecimal."""
        return hashlib.sha256(self.files[MODEL]).hexdigest()

    def description(self) -> dict[str, Any]:
        """The content of model.json as plain values, format 2."""
        return self.model.model_dump(exclude={"source_sha256"} if self.model.source_sha256 is None else None)

    def write(self, folder: Path) -> Path:
        """Put the bytes that were checked into the new folder `folder`: those of the project may change meanwhile."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return folder


def read_stored(folder: Path, undone: str, advice: str = _AGAIN) -> StoredBundle:
    """Read and check the bundle in `folder`.

    Raises BundleError, which names each fault, says what was not done, and gives the advice.
    """
    files, faults = _read_files(folder)
    if faults:
        _require_bundle(folder, undone)
        shown = [*faults[:_FAULTS_SHOWN], *(["and more"] if len(faults) > _FAULTS_SHOWN else [])]
        raise BundleError(
            "\n".join([f"The model in {folder} is not the one that was written:", *(f"  {fault}" for fault in shown)])
            + f"\nIt was not {undone}. {advice}"
        )
    try:
        model = parse_model(files[MODEL])
        digest = tensors_hash(files[WEIGHTS])
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"The model in {folder} cannot be used by this version of Twinrun: {_reason(error)}. It was not {undone}."
        ) from None
    source = hashlib.sha256(files[SOURCE]).hexdigest() if SOURCE in files else None
    if source != model.source_sha256 or is_own_file(model.architecture) != (source is not None):
        raise BundleError(
            f"The model in {folder} has a {SOURCE} that is not the one that its {MODEL} describes, or lacks it, so it "
            f"was not {undone}."
        )
    if digest != model.weights_hash:
        raise BundleError(
            f"The model in {folder} has weights with the hash {digest[:12]}..., and its {MODEL} describes those with "
            f"{model.weights_hash[:12]}.... The files are of two models, so it was not {undone}."
        )
    return StoredBundle(model, files)


def _require_bundle(folder: Path, undone: str) -> None:
    """Raise BundleError for a folder of other things, which a person named by mistake."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and names.isdisjoint((MANIFEST, MODEL, WEIGHTS)):
        inner = folder / "bundle"
        other = inner if inner.is_dir() else "data/out/train/bundle"
        raise BundleError(
            f"{folder} is not the folder of a model: it has no {MANIFEST}, {MODEL} and {WEIGHTS}, so it was not "
            f"{undone}. Name another folder, such as {other}"
        )


def tensors_hash(weights: bytes) -> str:
    """The weights hash of a safetensors file, as `bundle.weights_hash` has it.

    Raises ValueError where the bytes are no such file, or hold a number that is not finite.
    """
    from safetensors import SafetensorError, deserialize

    try:
        tensors: dict[str, Any] = dict(deserialize(weights))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS}: {error}") from None
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor["dtype"] not in _DTYPES:
            raise ValueError(
                f"{WEIGHTS}: tensor {one_line(name)} has the type {tensor['dtype']}, which is not used here"
            )
        dtype, numbers = _DTYPES[tensor["dtype"]]
        if not _are_finite(tensor["data"], dtype, numbers):
            raise ValueError(f"{WEIGHTS}: tensor {one_line(name)} holds NaN or infinity")
        digest.update(f"{name}|{dtype}|{tuple(tensor['shape'])}|".encode())
        digest.update(tensor["data"])
    return digest.hexdigest()


def _are_finite(data: bytes, dtype: str, numbers: str | None) -> bool:
    if dtype == "torch.bfloat16":  # of which numpy has none: all bits of the exponent are set
        return not ((np.frombuffer(data, "<u2") & _BF16_EXPONENT) == _BF16_EXPONENT).any()
    return numbers is None or bool(np.isfinite(np.frombuffer(data, numbers)).all())


def _read_files(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The three files of a bundle, and what is wrong with them."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return {}, [f"{folder} cannot be read: {error.strerror}"]
    wanted = {WEIGHTS, MODEL, MANIFEST}
    faults = [f"{folder / name} is missing" for name in sorted(wanted - set(names))]
    wanted |= {SOURCE} & set(names)
    faults += [f"{one_line(str(folder / name))} is not part of a model" for name in names if name not in wanted]
    files: dict[str, bytes] = {}
    for name in sorted(wanted & set(names)):
        content = _read_file(folder / name, None if name == WEIGHTS else _MOST_JSON_BYTES)
        if isinstance(content, str):
            faults.append(f"{folder / name} {content}")
        else:
            files[name] = content
    return files, faults or _differing(folder, files)


def _read_file(path: Path, most_bytes: int | None) -> bytes | str:
    """The bytes of a regular file, or why they are not read."""
    try:
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            return "is a link, and a model is regular files (DVC makes links with cache.type symlink: set copy)"
        if not stat.S_ISREG(facts.st_mode):
            return "is not a regular file"
        if most_bytes is not None and facts.st_size > most_bytes:
            return f"has {facts.st_size:,} bytes, and at most {most_bytes:,} are read"
        return path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _differing(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """How files differ from the manifest."""
    place = folder / MANIFEST
    try:
        hashes = _strict_json(files[MANIFEST])["sha256"]
        if not isinstance(hashes, dict) or set(hashes) != set(files) - {MANIFEST}:
            raise ValueError(f"sha256 is not that of {' and '.join(sorted(set(files) - {MANIFEST}))}")
    except (ValueError, KeyError, RecursionError) as error:
        return [f"{place} cannot be read: {_reason(error)}"]
    faults = []
    for name in sorted(hashes):
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != hashes[name]:
            listed = one_line(str(hashes[name]))[:12]
            faults.append(f"{folder / name} has sha256 {digest[:12]}... and its manifest says {listed}...")
    return faults


def parse_model(content: bytes) -> StoredModel:
    """What model.json says. Raises ValueError where it describes no model."""
    description = _strict_json(content)
    number = description.get("format")
    if type(number) is not int or number not in _READABLE_FORMATS:
        raise ValueError(
            f"format {one_line(str(number))[:20]}, and this version reads formats up to {FORMAT}"
            if "format" in description
            else f"{MODEL} has no format"
        )
    settings = description.get("preprocessing")
    if number == 1 and isinstance(settings, dict):  # squares alone, resized bilinearly
        settings = {**settings, "size_px": [settings.get("size_px")] * 2, "resample": "bilinear"}
        description = {**description, "format": FORMAT, "preprocessing": settings}
    try:
        return StoredModel.model_validate(description)
    except ValidationError as error:
        raise ValueError(f"{MODEL}: {'; '.join(_problem(fault) for fault in error.errors()[:_FAULTS_SHOWN])}") from None


def _strict_json(content: bytes) -> dict[str, Any]:
    """The object in `content`; ValueError for a key that comes twice, NaN, infinity, another type at the top."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a key comes twice")
        return values

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError("a number is too large")
        return value

    value = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse, parse_float=number)
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__} and no object")
    return value


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    return one_line(f"{place}: {message}" if place else message)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    return one_line(f"{error} is missing" if isinstance(error, KeyError) else str(error)).rstrip(".")


def _is_one_line(name: str) -> bool:
    plain = name.replace("\\", "/")  # an escape has one
    return escaped(plain) == plain
