"""Presets: params.yaml from the defaults, the changes of a preset, and the changes that a person makes."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from twinrun.core.errors import ParamsError
from twinrun.core.files import write_text
from twinrun.core.params import PARAMS, Params, flat_settings, parse_params

_FOLDER = Path(__file__).parent
_DEFAULTS = _FOLDER / "defaults.yaml"
_DOWNLOADED = ("digits", "mnist", "fashion-mnist", "cifar10")
_OLD = Path(".twinrun/params")

Setting = tuple[str, ...]


def preset_names() -> list[str]:
    """The presets that come with Twinrun, in order of name."""
    return sorted(path.stem for path in (_FOLDER / "presets").glob("*.yaml"))


def about_presets() -> dict[str, str]:
    """The command of each preset, and what it is for and how good it was when measured; those for photos first."""
    about = {}
    for name in preset_names():
        first, *more = (line[1:].strip() for line in _header(_overlay(name)))
        subject, _, command = first.rpartition(": ")
        about[command] = " ".join((f"{subject}.", *more))
    return dict(sorted(about.items(), key=lambda item: not item[1].startswith("Your own photos")))


def params_text(preset: str = "digits", changes: Iterable[str] = ()) -> str:
    """The full text of params.yaml, comments included, of a preset with `changes` such as "train.epochs=20".

    Raises ParamsError for an unknown preset, a change that is not setting=value, and settings that do not describe a
    run. Does not check whether the files in them exist.
    """
    if preset not in preset_names():
        close = difflib.get_close_matches(preset, preset_names(), n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ParamsError(f"There is no preset {preset!r}.{meant} The presets are {', '.join(preset_names())}.")
    overlay = _overlay(preset)
    header = "".join(_header(overlay))
    values = {setting: text for setting, (text, _, _) in _values(overlay).items()} | dict(map(_change, changes))
    text = f"{header}\n{with_values(default_settings(), values)}"
    parse_params(_load(text), f"preset {preset} with these changes" if changes else f"preset {preset}")
    return text


def default_settings() -> str:
    """Every setting with its default and its comment, as YAML."""
    return _DEFAULTS.read_text(encoding="utf-8").partition("\n\n")[2]


def defaults() -> dict[str, Any]:
    """Every setting with its default, by its full name."""
    return dict(flat_settings(_load(default_settings())))


def preset_params(preset: str) -> Params:
    """A preset as checked settings; raises ParamsError for an unknown preset."""
    return parse_params(_load(params_text(preset)), f"preset {preset}")


def write_preset(folder: Path, preset: str, changes: Iterable[str] = ()) -> Path | None:
    """Write params.yaml into `folder`, and create the empty folder that a downloaded data set goes to.

    An existing params.yaml that is not an unchanged preset is copied to .twinrun/params; returns its new path, or None.
    Raises ParamsError as `params_text` does, before anything is written, and PublishError if the folder cannot be
    written.
    """
    text = params_text(preset, changes)
    kept = _keep_old(folder, text)
    write_text(text, folder / PARAMS)
    ingest = _load(text)["ingest"]
    if ingest["source"] in _DOWNLOADED and ingest["path"] == f"data/raw/{ingest['source']}":
        place = folder / ingest["path"]
        place.mkdir(parents=True, exist_ok=True)
        (place / ".gitkeep").touch()
    return kept


def quoted(value: str) -> str:
    """A text as a YAML value on one line."""
    if re.fullmatch(r"[\w./~-]*[a-zA-Z/][\w./~-]*", value, re.ASCII):
        return value
    return json.dumps(value, ensure_ascii=False)  # escaped, an emoji would be two halves of a character in YAML


def _overlay(preset: str) -> str:
    return (_FOLDER / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")


def _header(overlay: str) -> list[str]:
    return [line for line in overlay.splitlines(keepends=True) if line.startswith("#")]


def _keep_old(folder: Path, text: str) -> Path | None:
    try:
        old = (folder / PARAMS).read_bytes()
    except FileNotFoundError:
        return None
    if old == text.encode() or old in (params_text(name).encode() for name in preset_names()):
        return None
    kept = _OLD / f"{hashlib.sha256(old).hexdigest()[:8]}.yaml"
    (folder / kept).parent.mkdir(parents=True, exist_ok=True)
    (folder / kept).write_bytes(old)
    return kept


def _change(text: str) -> tuple[Setting, str]:
    """A setting and its value in YAML, from "train.epochs=20"."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name or not value or "\n" in value or re.search(r"^[^\"']*(^|\s)#", value):
        raise ParamsError(f"--set {text!r} is not setting=value on one line, such as train.epochs=20")
    try:
        _load(value)
    except YAMLError as error:
        raise ParamsError(f"--set {text!r}: the value is not YAML: {getattr(error, 'problem', error)}") from None
    return tuple(name.split(".")), value


def with_values(text: str, values: Mapping[Setting, str]) -> str:
    """The text of params.yaml with other values, in YAML; comments stay, where they fit in the same column."""
    places, lines = _values(text), text.splitlines()
    unknown: dict[str, Any] = {}
    for setting, value in values.items():
        if setting not in places:
            if known := next((place for place in places if place[: len(setting)] == setting), None):
                raise ParamsError(
                    f"{'.'.join(setting)} is a section: set its settings one by one, such as {'.'.join(known)}={value}"
                )
            unknown[".".join(setting)] = value
            continue
        old, row, column = places[setting]
        rest = lines[row][column + len(old) :]
        comment = rest.lstrip()
        room = len(old) + len(rest) - len(comment)
        lines[row] = (lines[row][:column] + (f"{value} ".ljust(room) + comment if comment else value)).rstrip()
    if unknown:
        _refuse(_load(text), unknown)
    return "\n".join(lines) + "\n"


def _refuse(settings: dict[str, Any], unknown: Mapping[str, str]) -> None:
    """Raise ParamsError for settings that do not exist, with the ones that were probably meant."""
    for name, value in unknown.items():
        *sections, last = name.split(".")
        section = settings
        for outer in sections:
            if not isinstance(section.get(outer), dict):
                section[outer] = {}
            section = section[outer]
        section[last] = value
    parse_params(settings, "--set")


def _values(text: str) -> dict[Setting, tuple[str, int, int]]:
    """The value of each setting as it is written, with its line and column, counted from 0. Sections are left out."""
    lines = text.splitlines()

    def walk(section: Any, above: Setting) -> Iterator[tuple[Setting, tuple[str, int, int]]]:
        for name, value in (section or {}).items():
            if isinstance(value, dict):
                yield from walk(value, (*above, name))
            else:
                row, column = section.lc.value(name)
                yield (*above, name), (re.split(r"\s+#", lines[row][column:])[0].rstrip(), row, column)

    return dict(walk(YAML(typ="rt", pure=True).load(text), ()))


def _load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)
