"""Reading YAML 1.2, as DVC does: to PyYAML 1e-3 is a text. The library is imported when it is needed."""

import json
from collections.abc import Iterator
from typing import Any, Literal


def read_yaml(text: str, kind: Literal["safe", "rt"] = "safe") -> Any:
    """The content of a text in YAML; with `rt` its sections and lists know their lines.

    Raises YAMLError for all that is wrong with it. A value that cannot be read, such as the date 2025-31-12, is a
    ConstructorError: for these the library raises ValueError and others, without the place.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor, SafeConstructor

    base: Any = SafeConstructor if kind == "safe" else RoundTripConstructor

    class Constructor(base):  # type: ignore[misc]
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
                if isinstance(value, int):
                    str(value)  # a ValueError for a huge 0x..., as Python raises for one in decimal
                return value
            except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
                raise ConstructorError(None, None, _unreadable(node, error), node.start_mark) from None

    yaml = YAML(typ=kind, pure=True)
    yaml.Constructor = Constructor
    try:
        return yaml.load(text)
    except RecursionError:
        raise ConstructorError(None, None, "it is nested too deeply", None) from None


def conflict_line(text: str) -> int | None:
    """The first line, counted from 1, of a merge conflict that git left in a file; None where there is none."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.startswith("<<<<<<< ")), None)


def plain(value: Any) -> Any:
    """What was read from YAML as JSON can hold it: keys, dates and all else that JSON lacks become text.

    Half of a character, which no file can hold, becomes its code, such as \\ud800. Raises ValueError for a section or
    list that contains itself.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise ValueError("a section or list contains itself") from None


def half_characters(value: Any, name: str = "") -> Iterator[str]:
    """Where in `value` a text has half of a character, which "\\ud800" writes, by full name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{name}.{_key(key)}" if name else _key(key)
            if isinstance(key, str) and _whole(key) != key:
                yield place
            yield from half_characters(inner, place)
    elif isinstance(value, list):
        for inner in value:
            yield from half_characters(inner, name)
    elif isinstance(value, str) and _whole(value) != value:
        yield name


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else _whole(str(value))


def _key(key: Any) -> str:
    return json.dumps(key) if key is None or isinstance(key, bool | int | float) else _whole(str(key))


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _unreadable(node: Any, error: Exception) -> str:
    value = node.value if isinstance(node.value, str) else "a section or list"
    if node.tag == "tag:yaml.org,2002:timestamp" and isinstance(node.value, str):
        return f"{value} is not a date that exists ({error}). Correct it, or put it in quotes if it is a text"
    return f"{value} cannot be read as {str(node.tag).removeprefix('tag:yaml.org,2002:')}: {error}"
