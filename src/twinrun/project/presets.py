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

from twinrun.base.errors import ParamsError
from twinrun.base.files import behind_links, replacing, write_text
from twinrun.core.params import PARAMS, Params, flat_settings, parse_params
from twinrun.core.yaml import plain, read_yaml

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
    values = {name: overlay[start:end] for name, (start, end) in _places(overlay).items()} | dict(map(_change, changes))
    text = f"{header}\n{with_values(default_settings(), values)}"
    parse_params(_load(text), f"preset {preset} with these changes" if changes else f"preset {preset}")
    return text


def default_settings() -> str:
    """Every setting with its default and its comment, as YAML."""
    return _DEFAULTS.read_text(encoding="utf-8").partition("\n\n")[2]


def defaults() -> dict[str, Any]:
    """Every setting with its default, by its full name."""
    return dict(flat_settings(_load(default_settings())))


def preset_params(preset: str, changes: Iterable[str] = ()) -> Params:
    """A preset with `changes` as checked settings; raises ParamsError for an unknown preset or setting."""
    return parse_params(_load(params_text(preset, changes)), f"preset {preset}")


def write_preset(folder: Path, preset: str, changes: Iterable[str] = ()) -> Path | None:
    """Write params.yaml into `folder`, and create the empty folder that a downloaded data set goes to.

    An existing params.yaml that is not an unchanged preset is copied to .twinrun/params; returns its new path, or None.
    Raises ParamsError as `params_text` does, before anything is written, and PublishError if the folder cannot be
    written.
    """
    text = params_text(preset, changes)
    kept = _keep_old(folder, text)
    write_text(text, behind_links(folder / PARAMS))
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
    with replacing(folder / kept) as temp:
        temp.write_bytes(old)
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
    """The text of params.yaml with other values, in YAML; comments stay, where they fit in the same column.

    Raises ParamsError for a setting that does not exist, and where only that setting cannot be changed as it is
    written, such as one of an anchor.
    """
    places = _places(text)
    unknown = {setting: value for setting, value in values.items() if setting not in places}
    for setting, value in unknown.items():
        if inner := next((place for place in places if place[: len(setting)] == setting), None):
            raise ParamsError(
                f"{'.'.join(setting)} is a section: set its settings one by one, such as {'.'.join(inner)}={value}"
            )
    if unknown:
        _refuse(_load(text), unknown)
    changed = _replaced(text, places, values)
    if not _is_set(text, changed, values):
        unfit = [(name, value) for name, value in values.items() if not _fits(text, places, name, value)]
        named = [f"  {'.'.join(name)}: {value}" for name, value in unfit or values.items()]
        raise ParamsError(
            "\n".join(
                [
                    "These values cannot be put into params.yaml without changing something else there:",
                    *named,
                    "Write each of these settings on a line of its own, with its value on that line and without braces "
                    "or anchors around it. Put a text that has : or , or # in quotes.",
                ]
            )
        )
    return changed


def _fits(text: str, places: Mapping[Setting, tuple[int, int]], setting: Setting, value: str) -> bool:
    return _is_set(text, _replaced(text, places, {setting: value}), {setting: value})


def _replaced(text: str, places: Mapping[Setting, tuple[int, int]], values: Mapping[Setting, str]) -> str:
    """The text with those of the values that have a place in it."""
    placed = sorted((places[name], value) for name, value in values.items() if name in places)
    for (start, end), value in reversed(placed):
        line_end = text.find("\n", end) if "\n" in text[end:] else len(text)
        rest = text[end:line_end]
        comment, written = rest.lstrip(), value
        if not comment:
            end = line_end
        elif comment.startswith("#") and rest != comment:
            written = f"{value} ".ljust(end - start + len(rest) - len(comment))
            end = line_end - len(comment)
        space = "" if text[start - 1].isspace() else " "
        text = f"{text[:start]}{space}{written}{text[end:]}"
    return text if text.endswith("\n") else f"{text}\n"


def _is_set(text: str, changed: str, values: Mapping[Setting, str]) -> bool:
    """Whether `changed` holds the settings of `text` with these values, and no other change."""
    wanted = plain(_load(text))
    for (*sections, last), value in values.items():
        section = wanted
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = plain(_load(value))
    try:
        return json.dumps(plain(_load(changed))) == json.dumps(wanted)
    except YAMLError:
        return False


def _refuse(settings: dict[str, Any], unknown: Mapping[Setting, str]) -> None:
    """Raise ParamsError for settings that do not exist, with the ones that were probably meant."""
    for (*sections, last), value in unknown.items():
        section = settings
        for outer in sections:
            if not isinstance(section.get(outer), dict):
                section[outer] = {}
            section = section[outer]
        section[last] = value
    parse_params(settings, "--set")


def _places(text: str) -> dict[Setting, tuple[int, int]]:
    """Where the value of each setting begins and ends in the text, in characters. Sections are left out."""
    from ruamel.yaml.nodes import MappingNode

    def walk(section: Any, above: Setting) -> Iterator[tuple[Setting, tuple[int, int]]]:
        for key, value in section.value:
            name = (*above, str(key.value))
            start, end = value.start_mark.index, value.end_mark.index
            if isinstance(value, MappingNode):
                yield from walk(value, name)
            elif start == end:  # nothing is written, and the mark is at what follows
                after = text.find(":", key.end_mark.index) + 1
                yield name, (after, after)
            else:
                yield name, (start, end)

    top = YAML(typ="rt", pure=True).compose(text)
    return dict(walk(top, ())) if isinstance(top, MappingNode) else {}


def _load(text: str) -> Any:
    return read_yaml(text)
