"""params.yaml as strict, frozen types without defaults; the only module that reads it.

All problems are reported at once, with the path of the setting and, for a name from another tool, the setting that was
probably meant. Nothing heavy is imported, so that a wrong setting ends the first stage before it does any work.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from twinrun.base.errors import ParamsError
from twinrun.base.hints import meant_by_name, meant_by_value, several_values, yes_or_no
from twinrun.base.paths import expanded, not_a_folder
from twinrun.core.networks import (
    IMAGENET,
    PACKAGE,
    PACKAGE_MODELS,
    is_own_file,
    shrunk,
    side_by_side,
    unfit_size,
    unfit_weights,
    unknown_network,
    weights_side_by_side,
)
from twinrun.core.rules import METRICS, unfit_expectation
from twinrun.core.yaml import conflict_line, half_characters, plain, read_yaml

PARAMS = Path("params.yaml")

Source = Literal["digits", "mnist", "fashion-mnist", "cifar10", "trashnet", "folder"]
Level = Literal["split", "label", "group", "skip"]
Policy = Literal["stop", "drop", "warn"]
Severity = Literal["critical", "warning"]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
AutoCount = Literal["auto"] | Annotated[int, Field(ge=1, le=4096)]
PixelCap = Annotated[int, Field(ge=1, le=178_956_970)]  # more than that Pillow refuses by itself

_MODES = (  # Pillow's
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "I;16", "I;16L", "I;16B", "I;16N", "F"),
)

_SHOWN = 100  # characters of a setting
_LONGEST_NAME = 256  # of a model in MLflow's registry

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _one_form_of_size(value: Any) -> Any:
    """The size as it is kept: an integer for a square, else (height, width)."""
    sides = [_as_number(side) or side for side in (value if isinstance(value, list) else [value])]
    if not 1 <= len(sides) <= 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise ValueError(f"must be an integer, which is a square, or [height, width], got {json.dumps(value)}")
    if any(not 8 <= side <= 1024 for side in sides):
        raise ValueError(f"each side must be 8 to 1024 pixels, got {json.dumps(value)}")
    return sides[0] if len(set(sides)) == 1 else tuple(sides)


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        return repr(f"{value[:_SHOWN]}...")
    text = repr(value)
    return text if isinstance(value, str) or len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _regular_expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"must be a regular expression, got {_shown(pattern)}: {reason}") from None
    return pattern


def _name_of_a_file(path: str) -> str:
    if not path.strip():
        raise ValueError(f"must be the path of a file or folder, got {path!r}")
    if "\0" in path:
        raise ValueError(f"must be a path, which has no NUL character, got {path!r}")
    return path


def _one_or_three(bands: list[int]) -> list[int]:
    if len(bands) not in (1, 3):
        raise ValueError(f"must name one band or three, such as [4, 3, 2], got {json.dumps(bands)}")
    return bands


def _each_level_once(levels: Any) -> Any:
    """Levels as they are, where they are `auto` or a list; raises ValueError with what was meant."""
    if levels == "auto":
        return levels
    names = levels if isinstance(levels, list) else [] if levels is None else [levels]
    known = get_args(Level)
    unknown = [name for name in names if name not in known]
    if not isinstance(levels, list) or not levels or unknown:
        hint = meant_by_value("ingest.levels", unknown[0]) if unknown else f"[{levels}]" if levels else None
        raise ValueError(
            f"must be auto, or a list of {', '.join(known)} from the top, such as [split, label], got {levels!r}"
            + (f"; did you mean {hint}?" if hint else "")
        )
    if twice := next((name for name in known if name != "skip" and levels.count(name) > 1), None):
        raise ValueError(f"names {twice} twice; only skip may be repeated")
    return levels


def _known_modes(modes: list[str]) -> list[str]:
    for mode in modes:
        if mode not in _MODES:
            near = next((known for known in _MODES if known.casefold() == mode.casefold()), None)
            raise ValueError(
                f"{mode!r} is not a colour mode; "
                + (f"did you mean {near}?" if near else f"there are {', '.join(_MODES)}")
            )
    return modes


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", name):
        raise ValueError(
            f"must begin with a letter or digit and hold only letters, digits, spaces, ., _ and -, got {_shown(name)}"
        )
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"must have at most {_LONGEST_NAME} characters, as MLflow's registry, got {len(name)}")
    return name


FilePath = Annotated[str, AfterValidator(_name_of_a_file)]
SizePx = Annotated[int | tuple[int, int], BeforeValidator(_one_form_of_size)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class IngestParams:
    """Where images come from and how they are prepared."""

    source: Source
    path: FilePath
    levels: Annotated[Literal["auto"] | list[Level], BeforeValidator(_each_level_once)]
    group_pattern: Annotated[str, AfterValidator(_regular_expression)] | None
    leave_out: list[str]
    splits_file: FilePath | None
    size_px: SizePx
    channels: Literal["gray", "rgb"]
    fit: Literal["pad", "crop"]
    resample: Literal["bilinear", "bicubic"]
    depth: Literal["file", "data"] | Annotated[int, Field(ge=1, le=32)]
    ground: Literal["white", "gray", "black"]
    bands: Annotated[list[Count], AfterValidator(_one_or_three)] | None
    max_pixels: PixelCap
    follow_links: bool
    workers: AutoCount

    @property
    def data_name(self) -> str:
        """What a person calls the data: the name of their own folder, or of the published set."""
        return (Path(self.path).name or self.source) if self.source == "folder" else self.source

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
    """How wrong labels are searched for; 0 folds: not at all."""

    folds: Annotated[int, Field(ge=0, le=100), AfterValidator(_no_single_fold)]
    budget_s: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UserExpectation:
    """An expectation of Great Expectations on the table of facts, by name."""

    name: str
    arguments: dict[str, Any]
    severity: Severity


def _allowed(expectation: UserExpectation) -> UserExpectation:
    if problem := unfit_expectation(expectation.name, expectation.arguments):
        raise ValueError(problem)
    return expectation


def _allowed_of_metrics(expectation: UserExpectation) -> UserExpectation:
    if problem := unfit_expectation(expectation.name, expectation.arguments, METRICS, "the table of metrics"):
        raise ValueError(problem)
    return expectation


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ValidateParams:
    """What the facts must satisfy before images go into the manifest."""

    seed: Seed
    fractions: Annotated[SplitFractions, AfterValidator(_add_up)]
    splits: FilePath | None
    min_images_per_class: Count
    max_imbalance: Annotated[float, Field(ge=1)]
    min_side_px: Count
    max_side_px: Count
    modes: Annotated[list[str], Field(min_length=1), AfterValidator(_known_modes)]
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
    reference: FilePath | None
    decisions: FilePath | None
    expectations: list[Annotated[UserExpectation, AfterValidator(_allowed)]]


def _in_order(params: ValidateParams) -> ValidateParams:
    if params.min_side_px > params.max_side_px:
        raise ValueError(f"min_side_px must be at most max_side_px, got {params.min_side_px} and {params.max_side_px}")
    return params


def _off_or_computable(parameter: float) -> float:
    # Far below, the quantiles of Beta(a, a) come out as 0.5: a blend in equal shares, where nearly none was asked for.
    if 0 < parameter < 1e-9:
        raise ValueError(f"must be 0, which is off, or at least 1e-9, got {parameter!r}")
    return parameter


BetaParameter = Annotated[float, Field(ge=0, le=100), AfterValidator(_off_or_computable)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class AugmentParams:
    """Changes to training images, drawn for each image in each epoch."""

    shift_px: Annotated[int, Field(ge=0)]
    shift_border: Literal["zeros", "mirror"]
    flip: bool
    flip_in_turn: bool
    rotate_deg: Annotated[float, Field(ge=0, le=180)]
    erase: Share
    crop_scale: Annotated[float, Field(gt=0, le=1)]
    crop_ratio: Annotated[float, Field(ge=1, le=10)]
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, Field(ge=0, le=0.5)]
    mixup: BetaParameter
    cutmix: BetaParameter

    @property
    def changes_images(self) -> bool:
        """Whether an image on its own, not mixed with others, may become another one."""
        colour = (self.brightness, self.contrast, self.saturation, self.hue)
        moved = (self.shift_px, self.flip, self.rotate_deg, self.crop_scale < 1, self.crop_ratio > 1)
        return any((*moved, self.erase, *colour))


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TestViewParams:
    """Views of an image over which a model's answer is the mean, beside the image itself."""

    flip: bool
    shift_px: Annotated[int, Field(ge=0, le=1024)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ProbeParams:
    """How a linear head is trained on frozen features."""

    l2: Literal["auto"] | Annotated[float, Field(gt=0)]
    folds: Annotated[int, Field(ge=0, le=100), AfterValidator(_no_single_fold)]


def _known_network(name: str) -> str:
    if problem := unknown_network(name):
        raise ValueError(problem)
    return name


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainParams:
    """The network and how its weights are found."""

    seed: Seed
    seeds: Annotated[int, Field(ge=1, le=100)]
    folds: Annotated[int, Field(ge=0, le=100), AfterValidator(_no_single_fold)]
    model: Annotated[str, AfterValidator(_known_network)]
    pretrained: FilePath | None
    freeze: Literal["none", "batch_norm", "backbone"]
    head_first_epochs: Annotated[int, Field(ge=0)]
    backbone_learning_rate: Annotated[float, Field(gt=0, le=1)]
    probe_views: Annotated[int, Field(ge=1, le=100)]
    probe: ProbeParams
    whiten: bool
    identity: bool
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    patience: Count | None
    balance: Literal["none", "weights", "sampling"]
    batch_size: Annotated[int, Field(ge=2)]
    optimizer: Literal["sgd", "adamw", "muon"]
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_epochs: Annotated[float, Field(ge=0, le=1_000_000)]
    schedule: Literal["cosine", "linear", "constant"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    gradient_clip: Annotated[float, Field(gt=0)] | None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None
    augment: AugmentParams
    start_size: Annotated[float, Field(gt=0, le=1)]
    test_views: TestViewParams
    keep: Literal["best", "last"]
    precision: Literal["fp32", "bf16", "auto"]
    shards: Annotated[int, Field(ge=1, le=64)]
    threads: AutoCount
    devices: Annotated[int, Field(ge=1, le=64)]
    accelerator: Literal["auto", "cpu", "gpu"]


def _fitting_together(params: TrainParams) -> TrainParams:
    if (params.whiten or params.identity) and params.pretrained is not None:
        raise ValueError("whiten and identity set first weights, which pretrained does already; set pretrained: null")
    if params.augment.flip_in_turn and not params.augment.flip:
        raise ValueError("augment.flip_in_turn says when images are mirrored, which needs augment.flip: true")
    if params.freeze != "none" and params.pretrained is None:
        raise ValueError(
            f"freeze: {params.freeze} needs pretrained weights; set pretrained: imagenet, package:NAME or a file"
        )
    if params.head_first_epochs >= params.epochs:
        raise ValueError(f"head_first_epochs must be less than epochs, {params.epochs}, got {params.head_first_epochs}")
    if params.freeze == "backbone" and params.probe.l2 == "auto" and params.probe.folds == 0:
        raise ValueError(
            "probe.l2: auto is chosen by cross-validation: set probe.folds to 2 or more, or l2 to a number"
        )
    if params.probe_views > 1 and params.freeze != "backbone":
        raise ValueError(f"probe_views: {params.probe_views} is for freeze: backbone, got freeze: {params.freeze}")
    if params.probe_views > 1 and not params.augment.changes_images:
        raise ValueError(
            f"probe_views: {params.probe_views} would be the same image {params.probe_views} times, since augment "
            "changes none; set flip: true or crop_scale: 0.7 there, or probe_views: 1"
        )
    if params.seeds > 1 and params.freeze == "backbone":
        raise ValueError(
            f"seeds: {params.seeds} is for networks that are trained; the head of freeze: backbone is the best one for "
            "its features, whatever the seed. Set seeds: 1"
        )
    if params.freeze == "backbone" and params.balance != "none":
        raise ValueError(
            f"balance: {params.balance} is for freeze: none or batch_norm; the head of freeze: backbone is a "
            "logistic regression on all images"
        )
    return params


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateParams:
    """How a model is scored on the test split."""

    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)]
    bootstrap_seed: Seed
    calibration_bins: Annotated[int, Field(ge=2, le=1000)]
    cross_validate_below: Annotated[int, Field(ge=0)]
    mistakes_shown: Annotated[int, Field(ge=1, le=240)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GateParams:
    """What a version must pass beside its accuracy; margins are shares of images, in [0, 1]."""

    margin: Annotated[float, Field(gt=0, lt=1)]
    class_margin: Annotated[float, Field(gt=0, lt=1)]
    require_improvement: bool
    max_calibration_error: Share | None
    max_model_mb: Annotated[float, Field(gt=0)] | None
    max_latency_ms: Annotated[float, Field(gt=0)] | None
    min_agreement: Share | None
    expectations: list[Annotated[UserExpectation, AfterValidator(_allowed_of_metrics)]]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RegisterParams:
    """Where a model is registered and what makes it a candidate."""

    model_name: Annotated[str, AfterValidator(_model_name)]
    min_accuracy: Share
    gates: GateParams


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ServeParams:
    """What the answers of a served model promise."""

    alpha: Annotated[float, Field(gt=0, le=0.5)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrackParams:
    """What a run's card includes; others can read the card."""

    untracked: Literal["none", "code"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Params:
    """All of params.yaml: a section for each stage, one for served answers, and one for what is recorded of a run."""

    ingest: IngestParams
    validate: Annotated[ValidateParams, AfterValidator(_in_order)]
    train: Annotated[TrainParams, AfterValidator(_fitting_together)]
    evaluate: EvaluateParams
    register: RegisterParams
    serve: ServeParams
    track: TrackParams


def load_params(path: Path = PARAMS, *, inputs: bool = False) -> Params:
    """Read and check a params.yaml; raises ParamsError that lists every problem.

    With `inputs`, the files and folders that it names must be there too.
    """
    return parse_params(_read_yaml(path), path.as_posix(), inputs=inputs)


def setting_lines(path: Path = PARAMS) -> dict[str, tuple[int, str]]:
    """Where each setting, such as `validate.on_leak`, stands in params.yaml: its line, counted from 1, and the text."""
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        sections = read_yaml(text, "rt")
        lines = text.splitlines()
        places = {}
        for section, settings in sections.items():
            for key in settings:
                number = int(settings.lc.key(key)[0])
                places[f"{section}.{key}"] = (number + 1, lines[number].partition(" #")[0].strip())
        return places
    except (OSError, YAMLError, TypeError, AttributeError, KeyError, UnicodeDecodeError):
        return {}


HALF_CHARACTER = 'has half of a character, such as "\\ud800"; write the character itself'
ALL_SETTINGS = "An update may have added settings. `twinrun upgrade` adds those that are missing, with their defaults."


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of nested sections with its full name, such as `train.augment.flip`, in order."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_params(settings: Any, origin: str = "params.yaml", *, inputs: bool = False) -> Params:
    """Check settings that were read already; raises ParamsError, which names `origin` and lists every problem."""
    try:
        settings, halves = plain(settings), list(half_characters(settings))
    except ValueError as error:
        raise ParamsError(f"{origin} does not describe a run: {error}. Write it out in full.") from None
    params, errors = _validated(settings)
    if errors and _with_numbers(settings, errors):
        params, errors = _validated(settings)
    wrong = {".".join(map(str, _place(error))) for error in errors}  # each has its message already
    conflicts = [line for line in _conflicts(settings) if line.partition(":")[0] not in wrong]
    problems = [*(f"{name}: {HALF_CHARACTER}" for name in halves), *_problems(errors), *conflicts]
    missing = _missing_inputs(settings) if inputs else {}
    # A source that is missing and nothing else: the source itself says how to get it.
    if problems or missing.keys() - {"ingest.path", "ingest.splits_file"} or params is None:
        problems += [f"{setting}: {problem}" for setting, problem in missing.items()]
        lines = [f"  {line}" for line in dict.fromkeys(problems)]
        if any(error["type"] == "missing" for error in errors):
            lines.append(ALL_SETTINGS)
        raise ParamsError("\n".join([f"{origin} does not describe a run:", *lines]))
    return params


def _validated(settings: Any) -> tuple[Params | None, list[Any]]:
    try:
        # As JSON, since strict types take a section from JSON alone.
        return TypeAdapter(Params).validate_json(json.dumps(settings)), []
    except ValidationError as error:
        return None, list(error.errors())


def _with_numbers(settings: Any, errors: list[Any]) -> bool:
    """Turn texts such as "1e-3" into numbers where `errors` say that one is wanted; returns whether there were any."""
    changed = False
    for error in errors:
        if error["type"] in ("int_type", "float_type") and (number := _as_number(error["input"])) is not None:
            *sections, name = _place(error)
            section = settings
            for part in sections:
                section = section[part]
            is_whole = isinstance(number, float) and number.is_integer() and error["type"] == "int_type"
            section[name], changed = int(number) if is_whole else number, True
    return changed


def _as_number(value: Any) -> int | float | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        number = float(value)
        return int(number) if re.fullmatch(r"[+-]?\d+", value.strip()) else number
    return None


def _conflicts(settings: Any) -> list[str]:
    """Problems of settings that are valid alone but do not fit together."""
    model, weights = _setting(settings, "train.model"), _setting(settings, "train.pretrained")
    known = isinstance(model, str) and unknown_network(model) is None
    problem = unfit_weights(weights, model) if known and isinstance(weights, str) else None
    return [*([f"train.pretrained: {problem}"] if problem else []), *_conflicts_with_size(settings)]


def _conflicts_with_size(settings: Any) -> list[str]:
    try:
        size = _one_form_of_size(_setting(settings, "ingest.size_px"))
    except ValueError:
        return []
    height, width = (size, size) if isinstance(size, int) else size
    model = _setting(settings, "train.model")
    problems = []
    if isinstance(model, str) and (problem := unfit_size(model, (height, width))):
        problems.append(f"train.model: {problem}")
    elif problem := _unfit_start(settings, model, (height, width)):
        problems.append(f"train.start_size: {problem}")
    for section in ("augment", "test_views"):
        shift_px = _setting(settings, f"train.{section}.shift_px")
        if isinstance(shift_px, int) and shift_px >= min(height, width):
            problems.append(
                f"train.{section}.shift_px: must be less than ingest.size_px, {min(height, width)}, got {shift_px}"
            )
    return [*problems, *_conflicts_with_channels(settings)]


def _unfit_start(settings: Any, model: Any, size: tuple[int, int]) -> str | None:
    """Why the network cannot take the smaller images that a training would begin with."""
    share = _setting(settings, "train.start_size")
    if not isinstance(model, str) or not isinstance(share, int | float) or not 0 < share < 1:
        return None
    first = shrunk(size, share)
    fixed = next((name for name in side_by_side(model) if re.fullmatch(r"mlp|vit_[a-z]_\d+", name)), None)
    if fixed is not None and first != size:
        return f"must be 1 for {fixed}, which takes images of one size, got {share}"
    problem = unfit_size(model, first, of="the first epoch would have")
    return f"{problem}. Raise start_size, got {share}" if problem else None


def _conflicts_with_channels(settings: Any) -> list[str]:
    if _setting(settings, "ingest.channels") != "gray":
        return []
    return [
        f"train.augment.{name}: must be 0 for gray images (ingest.channels: gray), got {value}"
        for name in ("saturation", "hue")
        if (value := _setting(settings, f"train.augment.{name}"))
    ]


def _missing_inputs(settings: Any) -> dict[str, str]:
    """What is wrong with the files, folders and packages that settings name, by setting."""
    problems = {}
    model = _setting(settings, "train.model")
    if isinstance(model, str) and is_own_file(model) and not Path(model.partition(":")[0]).is_file():
        problems["train.model"] = f"there is no file {model.partition(':')[0]}"
    source, folder = _setting(settings, "ingest.source"), _setting(settings, "ingest.path")
    is_own = source in ("folder", "trashnet")
    # Published sources are downloaded into their usual place.
    if isinstance(folder, str) and source != "digits" and (is_own or Path(folder) != Path("data/raw") / str(source)):
        path = expanded(folder)
        if not path.is_dir():
            problems["ingest.path"] = f"{folder} {not_a_folder(path)}"
    named = ["validate.splits", "validate.decisions", "validate.reference", "train.pretrained"]
    for setting in ["ingest.splits_file", *named] if is_own else named:
        value = _setting(settings, setting)
        if not isinstance(value, str) or value in ("auto", "imagenet"):
            continue
        if setting == "train.pretrained":
            of_each = weights_side_by_side(value, model if isinstance(model, str) else "")
            if missing := [problem for each in of_each if (problem := _missing_weights(each))]:
                problems[setting] = "; ".join(missing)
        elif not expanded(value).is_file():
            until = "; leave it null until `twinrun data split` has written one" if setting == "validate.splits" else ""
            problems[setting] = f"there is no file {value}{until}"
    return problems


def _missing_weights(value: str) -> str | None:
    """What is missing of the weights of one network, as far as a look at packages and files shows."""
    if value == IMAGENET:
        return None
    if value.startswith(PACKAGE):
        package = value.removeprefix(PACKAGE)
        is_missing = package in PACKAGE_MODELS and not _is_installed(package)
        return f"the package {package!r} is not installed" if is_missing else None
    return None if expanded(value).is_file() else f"there is no file {value}"


def _is_installed(package: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(package)
    except (PackageNotFoundError, ValueError):
        return False
    return True


def _setting(settings: Any, path: str) -> Any:
    """The value at a path such as `train.augment.flip`; None where there is none."""
    for part in path.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def require_project() -> None:
    """Raise ParamsError, with what to do, where the working folder has neither dvc.yaml nor params.yaml."""
    if not Path("dvc.yaml").is_file() and not PARAMS.is_file():
        raise ParamsError(no_project(PARAMS))


def no_project(missing: Path) -> str:
    return (
        f"This folder is not a project: {missing} is missing. Go to a project's folder, or create a project: "
        "twinrun init demo"
    )


def _read_yaml(path: Path) -> Any:
    from ruamel.yaml.error import YAMLError

    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return read_yaml(text)
    except FileNotFoundError:
        raise ParamsError(
            f"{path} is missing. Write one: twinrun preset digits"
            if path.with_name("dvc.yaml").is_file()
            else no_project(path)
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        if (line := conflict_line(text)) is not None:
            raise ParamsError(
                f"{path} has a merge conflict, which git left in line {line}.\n"
                f"Edit it, or take one side: git checkout --ours {path.name} (or --theirs)"
            ) from None
        where = str(error).replace('in "<unicode string>", line', f"{path}, line")
        raise ParamsError(f"{path} is not YAML: {where}") from None


def _place(error: Any) -> list[Any]:
    # A union adds the name of the branch that it tried; only names of settings and list indices are the reader's.
    where = [part for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    return [part for part in where if part not in _BRANCHES]


def _problems(errors: list[Any]) -> Iterator[str]:
    """A line for each wrong setting; one of two kinds, such as auto or a number, has an error for each kind."""
    for place, group in groupby(errors, _place):
        first, *others = group
        if first["type"] != "literal_error" or not others:
            yield from map(_problem, [first, *others])
            continue
        line = _problem(others[0]).replace(": must be ", f": must be {first['ctx']['expected']} or ", 1)
        hint = _hint(".".join(map(str, place)), first["input"], first)
        yield line if line.endswith(hint) else line + hint


def _problem(error: Any) -> str:
    if error["type"] == "unexpected_keyword_argument":
        where = [str(part) for part in error["loc"]]
        hint = meant_by_name(where, error["input"], _settings())
        return f"{'.'.join(where)}: not a setting" + (f"; {hint}" if hint else "")
    name = ".".join(map(str, _place(error)))
    value = error["input"]
    match error["type"]:
        case "missing":
            return f"{name}: missing"
        case "literal_error" if isinstance(value, str):
            return f"{name}: must be one of {error['ctx']['expected']}, got {value!r}{_hint(name, value, error)}"
        case "dataclass_type" | "dataclass_exact_type":
            return f"{name or 'the file'}: must be a section with settings, got {value!r}"
        case "too_short":
            return f"{name}: must have at least one item, got {value!r}"
        case "list_type":
            return f"{name}: must be a list, got {value!r}; did you mean {json.dumps([value])}?"
        case "value_error":
            return f"{name}: {error['ctx']['error']}"
    wanted = error["msg"].removeprefix("Input should be ").replace("greater than or equal to", "at least")
    wanted = wanted.replace("less than or equal to", "at most")
    return f"{name}: must be {wanted}, got {_shown(value)}{_hint(name, value, error)}"


def _hint(setting: str, value: Any, error: Any) -> str:
    """The value that was probably meant, after a semicolon; empty if there is no guess."""
    if isinstance(value, list) and error["type"] in ("int_type", "float_type", "string_type", "literal_error"):
        return f"; {several_values(setting, value)}"
    meant = meant_by_value(setting, value)
    if meant is None and error["type"].startswith("bool"):
        meant = yes_or_no(value)
    if meant is None and error["type"] == "literal_error":
        meant = next(iter(difflib.get_close_matches(str(value), _quoted(error["ctx"]["expected"]), n=1)), None)
    return f"; did you mean {meant}?" if meant else ""


_BRANCHES = frozenset({"int", "float", "str", "none"})


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _settings(kind: Any = None, section: str = "") -> list[str]:
    """Paths of all settings and sections, such as `train` and `train.augment.flip`."""
    kind, paths = kind or Params, []
    for name, inner in get_type_hints(kind).items():
        paths.append(section + name)
        if is_dataclass(inner):
            paths += _settings(inner, f"{section}{name}.")
    return paths
