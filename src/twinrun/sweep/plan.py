"""sweep.yaml as strict, frozen types: the space of settings, and how it is searched."""

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from ruamel.yaml.error import YAMLError

from twinrun.base.errors import ParamsError
from twinrun.base.regular_files import read_regular
from twinrun.core.params import HALF_CHARACTER, Params, Seed, TrainParams, flat_settings, parse_params
from twinrun.core.yaml import half_characters, plain, read_yaml
from twinrun.project.presets import with_values

Scalar = bool | int | float | str | None

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_DIGITS = 4  # of a value that is drawn from a range: more would be noise in params.yaml
_OF_A_TRIAL = "a trial is one training: it has the seed of params.yaml, `seeds: 1` and `folds: 0`"
_NOT_IN_A_SPACE = {
    **dict.fromkeys(("train.seed", "train.seeds", "train.folds"), _OF_A_TRIAL),
    **dict.fromkeys(("train.threads", "train.devices", "train.accelerator"), "it changes no weights"),
}


@dataclass(frozen=True, config=_STRICT)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    scale: Literal["linear", "log"]
    whole: bool

    def rounded(self, value: float) -> float:
        """A number in the range, with few digits: more where the ends of the range begin with the same ones."""
        alike = math.log10(max(abs(self.low), abs(self.high)) / (self.high - self.low))
        digits = max(_DIGITS, math.ceil(alike) + _DIGITS - 2)
        return min(max(float(f"{value:.{digits}g}"), self.low), self.high)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Plan:
    """What a sweep searches and how; with the seed, the data and the code it decides the result.

    `space` maps settings such as train.learning_rate to a Range or a list of choices. `width` trials make a generation.
    After each epoch number of `rungs`, the best `keep` of a generation's trials, as a share, goes on.
    """

    space: dict[str, Any]
    trials: Annotated[int, Field(ge=2, le=100_000)]
    width: Annotated[int, Field(ge=1, le=1000)]
    seed: Seed
    metric: Literal["val_accuracy", "val_loss"]
    rungs: list[Annotated[int, Field(ge=1)]]
    keep: Annotated[float, Field(gt=0, le=1)]
    seeds: Annotated[int, Field(ge=0, le=100)]

    @property
    def maximise(self) -> bool:
        """Whether a larger value of the metric is the better one."""
        return self.metric == "val_accuracy"

    def dimensions(self) -> dict[str, Range | list[Scalar]]:
        """The space, read into types."""
        return {name: _dimension(name, value) for name, value in self.space.items()}

    def decisive(self) -> dict[str, Any]:
        """What of it decides the trials, for `--resume`: all but the seeds that train the best again."""
        return {name: value for name, value in asdict(self).items() if name != "seeds"}


def load_plan(path: Path, params: Params) -> Plan:
    """Read and check a sweep.yaml for the settings of params.yaml; raises ParamsError that lists every problem."""
    try:
        content = read_yaml(read_regular(path).decode())
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing. Write one, such as:\n\n{EXAMPLE}") from None
    except OSError as error:
        raise ParamsError(
            f"{path} cannot be read: {error.strerror}. Name a YAML file: twinrun sweep sweep.yaml"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read as YAML: {error}") from None
    try:
        settings, halves = plain(content), list(half_characters(content))
    except ValueError as error:
        raise ParamsError(_described(path, [f"{error}; write it out in full"])) from None
    if halves:
        raise ParamsError(_described(path, [f"{name}: {HALF_CHARACTER}" for name in halves]))
    try:
        plan = TypeAdapter(Plan).validate_json(json.dumps(settings))
    except ValidationError as error:
        raise ParamsError(_described(path, map(_problem, error.errors()))) from None
    if problems := list(_problems(plan, params)):
        raise ParamsError(_described(path, problems))
    return plan


EXAMPLE = """space:
  train.learning_rate: {from: 1e-4, to: 1e-1, scale: log}
  train.optimizer: [sgd, adamw]
trials: 20            # trainings to start
width: 5              # trials of a generation; it decides the result, the number of workers only the time
seed: 0               # decides which trials are proposed
metric: val_accuracy  # val_accuracy or val_loss, of the epoch whose weights are kept
rungs: [3, 9]         # epochs after which the trials of a generation are judged; []: every trial is trained to its end
keep: 0.4             # share of them that goes on
seeds: 3              # new seeds that the best trial and params.yaml are trained with at the end; 0: none
"""


def here(plan: Plan, params: Params) -> dict[str, Scalar] | None:
    """The settings of params.yaml as a point of the space; None where it lies outside."""
    settings = dict(flat_settings(asdict(params)))
    point: dict[str, Scalar] = {}
    for name, dimension in plan.dimensions().items():
        value = settings[name]
        if not isinstance(dimension, Range):
            choices = {_meaning(name, choice): choice for choice in dimension}
            if _meaning(name, value) not in choices:
                return None
            point[name] = choices[_meaning(name, value)]
        elif isinstance(value, int | float) and dimension.low <= value <= dimension.high:
            point[name] = value
        else:
            return None
    return point


def trial_params(text: str, values: Mapping[str, Scalar]) -> str:
    """The text of params.yaml with the values of a trial, which is one training."""
    return set_values(text, {"train.seeds": 1, "train.folds": 0, **values})


def require_settable(text: str, plan: Plan) -> None:
    """Raise ParamsError where params.yaml is written so that the values of a trial cannot be put into it."""
    firsts = {name: value.low if isinstance(value, Range) else value[0] for name, value in plan.dimensions().items()}
    trial_params(text, {**firsts, "train.seed": 0})


def set_values(text: str, values: Mapping[str, Scalar]) -> str:
    """The text of a params.yaml with other values; its comments stay."""
    places = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return with_values(text, {tuple(name.split(".")): value for name, value in places.items()})


def _problems(plan: Plan, params: Params) -> Iterator[str]:
    settings = asdict(params)
    if not plan.space:
        yield "space: must name at least one setting"
    if plan.rungs != sorted(set(plan.rungs)):
        yield f"rungs: must rise, got {plan.rungs}"
    if plan.rungs and params.train.freeze == "backbone":
        yield "rungs: the head of train.freeze: backbone is trained in one go; set rungs: []"
    elif plan.rungs and plan.rungs[-1] >= params.train.epochs:
        yield f"rungs: must be less than train.epochs, {params.train.epochs}, got {plan.rungs[-1]}"
    if plan.rungs and "train.epochs" in plan.space:
        yield "space: train.epochs cannot vary with rungs, which are numbers of epochs; set rungs: []"
    if plan.seeds and params.train.freeze == "backbone":
        yield "seeds: the head of train.freeze: backbone is the same for every seed; set seeds: 0"
    for name, value in plan.space.items():
        if problem := _unfit(name, value, settings):
            yield f"space: {problem}"


def _unfit(name: str, value: Any, settings: dict[str, Any]) -> str | None:
    known = [setting for setting, _ in flat_settings(settings)]
    if name not in known or not name.startswith("train."):
        near = difflib.get_close_matches(name, [each for each in known if each.startswith("train.")], n=1)
        return f"{name} is not a setting of training" + (f"; did you mean {near[0]}?" if near else "")
    if name in _NOT_IN_A_SPACE:
        return f"{name} cannot vary: {_NOT_IN_A_SPACE[name]}"
    try:
        dimension = _dimension(name, value)
    except ValueError as error:
        return f"{name}: {error}"
    ends = [dimension.low, dimension.high] if isinstance(dimension, Range) else dimension
    for end in ends:
        exact = int(end) if isinstance(dimension, Range) and dimension.whole and end is not None else end
        if problem := _refused(name, exact, settings):
            return problem
    return None


def _refused(name: str, value: Scalar, settings: dict[str, Any]) -> str | None:
    """Why params.yaml would not take that value; what depends on other settings too is left to the trials."""
    changed = json.loads(json.dumps(settings))
    *sections, last = name.split(".")
    section = changed
    for part in sections:
        section = section[part]
    section[last] = value
    try:
        parse_params(changed, inputs=True)
    except ParamsError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        return next((line for line in lines if line.startswith(f"{name}:")), None)
    return None


def _dimension(name: str, value: Any) -> Range | list[Scalar]:
    if isinstance(value, list):
        meanings = {_meaning(name, each) for each in value}
        if len(meanings) < 2 or len(meanings) != len(value) or any(isinstance(each, dict | list) for each in value):
            raise ValueError(f"a list of choices needs two or more different values, got {json.dumps(value)}")
        if any(isinstance(each, int) and not _is_finite(each) for each in value):
            raise ValueError("a choice is an integer of more than 308 digits, which Optuna cannot take")
        return value
    form = "{from: NUMBER, to: NUMBER, scale: linear or log}, or a list of choices"
    if not isinstance(value, dict) or set(value) != {"from", "to", "scale"} or value["scale"] not in ("linear", "log"):
        raise ValueError(f"must be {form}, got {json.dumps(value)}")
    kinds = _kinds(name)
    if not kinds & {int, float}:
        raise ValueError("takes no number; list its choices")
    ends = [value["from"], value["to"]]
    if any(isinstance(end, bool) or not isinstance(end, int | float) or not _is_finite(end) for end in ends):
        raise ValueError(f"from and to must be finite numbers, got {json.dumps(ends)}")
    if ends[0] >= ends[1]:
        raise ValueError(f"from must be less than to, got {ends[0]:g} and {ends[1]:g}")
    if value["scale"] == "log" and ends[0] <= 0:
        raise ValueError(f"with scale: log, from must be above 0, got {ends[0]:g}")
    whole = float not in kinds
    if whole and any(end != int(end) for end in ends):
        raise ValueError(f"takes integers, got {json.dumps(ends)}")
    return Range(float(ends[0]), float(ends[1]), value["scale"], whole)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that is no float
        return False


def _meaning(name: str, choice: Any) -> str:
    """The same text for the ways to write a value of a setting, such as 0, 0.0 and "0e0" where it takes numbers."""
    is_number = isinstance(choice, str | int | float) and not isinstance(choice, bool) and _kinds(name) & {int, float}
    try:
        return json.dumps(float(choice) if is_number else choice)
    except (ValueError, OverflowError):  # a text that is no number
        return json.dumps(choice)


def _kinds(name: str) -> set[Any]:
    """The plain types that a setting takes, such as {float, NoneType}."""
    kind: Any = TrainParams
    for part in name.split(".")[1:]:
        kind = get_type_hints(kind)[part]
    return set(_plain(kind))


def _plain(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _plain(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for branch in get_args(kind):
            yield from _plain(branch)
    else:
        yield kind


def _problem(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(name, [field.name for field in fields(Plan)], n=1)
        return f"{name}: not a setting" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{name}: missing"
    return f"{name}: {error['msg'].replace('Input should be', 'must be')}, got {error['input']!r}"


def _described(path: Path, problems: Any) -> str:
    return "\n".join([f"{path} does not describe a sweep:", *(f"  {problem}" for problem in problems)])
