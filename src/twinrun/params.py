"""params.yaml as strict, frozen types without defaults; the only reader of it.

Every problem is reported at once, with the path of the setting and, for a misspelt name, the one that was meant.
"""

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from twinrun.errors import ParamsError

PARAMS = Path("params.yaml")

Source = Literal["digits", "mnist", "fashion-mnist", "cifar10", "trashnet", "folder"]
Level = Literal["split", "label", "group", "skip"]
Policy = Literal["stop", "drop", "warn"]
Severity = Literal["critical", "warning"]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
AutoCount = Literal["auto"] | Count
PixelCap = Annotated[int, Field(ge=1, le=178_956_970)]  # more than that Pillow refuses by itself

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _one_form_of_size(value: Any) -> Any:
    """The size as it is kept: an integer for a square, else (height, width)."""
    sides = value if isinstance(value, list) else [value]
    if not 1 <= len(sides) <= 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ValueError(f"must be an integer, which is a square, or [height, width], got {json.dumps(value)}")
    if any(not 8 <= side <= 1024 for side in sides):
        raise ValueError(f"each side must be 8 to 1024 pixels, got {json.dumps(value)}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


SizePx = Annotated[int | tuple[int, int], BeforeValidator(_one_form_of_size)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class IngestParams:
    """Where images come from and what they are made into."""

    source: Source
    path: str
    levels: Literal["auto"] | Annotated[list[Level], Field(min_length=1)]
    group_pattern: str | None
    leave_out: list[str]
    splits_file: str | None
    size_px: SizePx
    channels: Literal["gray", "rgb"]
    fit: Literal["pad", "crop"]
    resample: Literal["bilinear", "bicubic"]
    max_pixels: PixelCap
    workers: AutoCount

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that every image is resized to, pixels."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SplitFractions:
    """Shares of the images for each split where the source has none; they add up to 1."""

    train: Annotated[float, Field(gt=0, lt=1)]
    val: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]


def _add_up(fractions: SplitFractions) -> SplitFractions:
    total = fractions.train + fractions.val + fractions.test
    if abs(total - 1) > 1e-6:
        raise ValueError(f"train, val and test must add up to 1, got {total:g}")
    return fractions


def _no_single_fold(folds: int) -> int:
    if folds == 1:
        raise ValueError("must be 0, which is off, or at least 2, got 1")
    return folds


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LabelErrorParams:
    """How wrong labels are searched for; with no folds, not at all."""

    folds: Annotated[int, Field(ge=0, le=100), AfterValidator(_no_single_fold)]
    budget_s: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UserExpectation:
    """An expectation of Great Expectations on the table of facts, by name."""

    name: Annotated[str, Field(pattern=r"^Expect[A-Za-z]+$")]
    arguments: dict[str, Any]
    severity: Severity


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ValidateParams:
    """What the facts must satisfy before they become a manifest."""

    seed: Seed
    fractions: Annotated[SplitFractions, AfterValidator(_add_up)]
    splits: str | None
    min_images_per_class: Count
    max_imbalance: Annotated[float, Field(ge=1)]
    min_side_px: Count
    max_side_px: Count
    modes: Annotated[list[str], Field(min_length=1)]
    on_broken: Policy
    on_size: Policy
    on_mode: Policy
    on_classes: Literal["stop", "warn"]
    on_names: Literal["stop", "warn"]
    on_contradiction: Policy
    on_leak: Policy
    on_near_leak: Policy
    on_duplicate: Policy
    on_label_error: Policy
    label_errors: LabelErrorParams
    on_shortcut: Literal["stop", "warn"]
    max_shortcut: Share
    on_quality: Policy
    on_drift: Literal["stop", "warn"]
    reference: str | None
    decisions: str | None
    expectations: list[UserExpectation]


def _in_order(params: ValidateParams) -> ValidateParams:
    if params.min_side_px > params.max_side_px:
        raise ValueError(f"min_side_px must be at most max_side_px, got {params.min_side_px} and {params.max_side_px}")
    return params


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentParams:
    """Changes to training images, drawn anew for each image in each epoch."""

    shift_px: Annotated[int, Field(ge=0)]
    flip: bool
    rotate_deg: Annotated[float, Field(ge=0, le=180)]
    erase: Share


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ProbeParams:
    """How a linear head is trained on frozen features."""

    l2: Literal["auto"] | Annotated[float, Field(gt=0)]
    folds: Annotated[int, Field(ge=2, le=100)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainParams:
    """The network and how its weights are found."""

    seed: Seed
    model: str
    pretrained: str | None
    freeze: Literal["none", "backbone"]
    probe: ProbeParams
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["sgd", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_epochs: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)] | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    augment: AugmentParams
    keep: Literal["best", "last"]
    precision: Literal["fp32", "bf16", "auto"]
    shards: Annotated[int, Field(ge=1, le=64)]
    threads: AutoCount
    devices: Count
    accelerator: Literal["auto", "cpu", "gpu"]


def _frozen_weights(params: TrainParams) -> TrainParams:
    if params.freeze == "backbone" and params.pretrained is None:
        raise ValueError("freeze: backbone needs pretrained weights; set pretrained: imagenet, package:NAME or a file")
    return params


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateParams:
    """How a model is scored on the test split."""

    bootstrap_samples: Annotated[int, Field(ge=100)]
    bootstrap_seed: Seed
    calibration_bins: Annotated[int, Field(ge=2, le=1000)]
    cross_validate_below: Annotated[int, Field(ge=0)]
    mistakes_shown: Annotated[int, Field(ge=1, le=240)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RegisterParams:
    """Where a model is registered and what makes it a candidate."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
    min_accuracy: Share


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Params:
    """All of params.yaml, one section for each stage."""

    ingest: IngestParams
    validate: Annotated[ValidateParams, AfterValidator(_in_order)]
    train: Annotated[TrainParams, AfterValidator(_frozen_weights)]
    evaluate: EvaluateParams
    register: RegisterParams


def load_params(path: Path = PARAMS) -> Params:
    """Read and check a params.yaml; raises ParamsError that lists every problem."""
    return parse_params(_read_yaml(path), path.as_posix())


def setting_lines(path: Path = PARAMS) -> dict[str, tuple[int, str]]:
    """Where each setting, such as `validate.on_leak`, stands in params.yaml: its line, counted from 1, and the text."""
    from ruamel.yaml import YAML

    try:
        text = path.read_text(encoding="utf-8")
        sections = YAML(typ="rt", pure=True).load(text)
        lines = text.splitlines()
        found = {}
        for section, settings in sections.items():
            for key in settings:
                number = int(settings.lc.key(key)[0])
                found[f"{section}.{key}"] = (number + 1, lines[number].partition(" #")[0].strip())
        return found
    except (OSError, TypeError, AttributeError, KeyError, UnicodeDecodeError):
        return {}


def parse_params(settings: Any, origin: str = "params.yaml") -> Params:
    """Check settings that were read already; raises ParamsError, which names `origin` and lists every problem."""
    try:
        # As JSON, since strict types take a section from JSON alone; a YAML date becomes the text that it looks like.
        return TypeAdapter(Params).validate_json(json.dumps(settings, default=str))
    except ValidationError as error:
        lines = [f"  {line}" for line in dict.fromkeys(_problem(e) for e in error.errors())]
        raise ParamsError("\n".join([f"{origin} does not describe a run:", *lines])) from None


def _read_yaml(path: Path) -> Any:
    # YAML 1.2, as DVC reads it: to PyYAML 1e-3 is a text.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing. Copy one: cp presets/digits.yaml params.yaml (or run from the project's folder)."
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None


def _problem(error: Any) -> str:
    # A union adds the name of the branch that it tried; only names of settings and list indices are the reader's.
    where = [part for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    where = [part for part in where if part not in _BRANCHES]
    name = ".".join(str(part) for part in where)
    match error["type"]:
        case "unexpected_keyword_argument":
            near = difflib.get_close_matches(str(where[-1]), _names_at(where[:-1]), n=1)
            return f"{name}: not a setting" + (
                f"; did you mean {'.'.join([*map(str, where[:-1]), near[0]])}?" if near else ""
            )
        case "missing":
            return f"{name}: missing"
        case "literal_error":
            near = difflib.get_close_matches(str(error["input"]), _quoted(error["ctx"]["expected"]), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"{name}: must be one of {error['ctx']['expected']}, got {error['input']!r}{hint}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{name or 'the file'}: must be a section with settings, got {error['input']!r}"
        case "value_error":
            return f"{name}: {error['ctx']['error']}"
    wanted = error["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
    return f"{name}: must be {wanted.replace('less than or equal to', 'at most')}, got {error['input']!r}"


_BRANCHES = frozenset({"int", "float", "str", "none"})


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _names_at(section: list[Any]) -> list[str]:
    """Names of the settings inside a section, given its path."""
    kind: Any = Params
    for part in section:
        kind = get_type_hints(kind).get(str(part))
        if kind is None:
            return []
    return [field.name for field in fields(kind)]
