"""Where waste goes in a region: `rules/REGION.yaml`, read into strict types, with the line of every problem."""

from collections.abc import Iterator, Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from twinrun.base.errors import DataError
from twinrun.base.printing import one_line
from twinrun.base.regular_files import read_regular
from twinrun.core.yaml import read_yaml

FOLDER = Path("rules")  # of the project; the invented examples of the package serve where there is none
_MOST_BYTES = 1_000_000

_Line = Annotated[str, Field(min_length=1, max_length=500)]
_Texts = Annotated[dict[Annotated[str, Field(pattern=r"^[a-z]{2}$")], _Line], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Stream(_Strict):
    """One way that waste takes: its names by language, what kind it is, the colour of its container, and when."""

    name: _Texts
    kind: Literal["recycling", "burnable", "residual", "hazardous", "organic", "bulky"]
    colour: Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
    when: _Texts | None = None


class ClassRule(_Strict):
    """Which stream a class of the model belongs to, and how to prepare it."""

    stream: str
    prepare: _Texts


class Item(_Strict):
    """A thing that people search for, by its names."""

    name: _Texts
    stream: str
    hazardous: bool = False


class Region(_Strict):
    """A region's rules. `source` is where they were found, `checked` when."""

    name: _Texts
    source: _Line
    checked: date
    streams: dict[str, Stream]
    classes: dict[str, ClassRule]
    items: list[Item] = []

    def covers(self, classes: Sequence[str]) -> bool:
        """Whether every class of a model has a stream here."""
        return set(classes) <= set(self.classes)


def read_regions(classes: Sequence[str]) -> list[Region]:
    """The regions of the project, each of which must cover all `classes`; the package's examples where it has none.

    Raises DataError with the file and line of every problem.
    """
    own = sorted(FOLDER.glob("*.yaml"))
    if own:
        return [read_region(file, classes) for file in own]
    return [read_region(file) for file in sorted(Path(str(files("twinrun.serving") / "rules")).glob("*.yaml"))]


def read_region(file: Path, classes: Sequence[str] = ()) -> Region:
    """Read one file. Raises DataError with the line of every problem; each of `classes` must have a stream."""
    from ruamel.yaml.error import YAMLError

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(f"{file} has more than {_MOST_BYTES:,} bytes, which no rules have.")
        content = read_yaml(read_regular(file).decode(), "rt")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    try:
        region = Region.model_validate(_plain(content))
    except ValidationError as error:
        problems = [(fault["loc"], fault["msg"]) for fault in error.errors()]
    else:
        problems = list(_conflicts(region, classes))
        if not problems:
            return region
    lines = [f"  line {_line(content, where)}: {'.'.join(map(str, where))}: {message}" for where, message in problems]
    raise DataError("\n".join([f"{file} does not describe where waste goes:", *map(one_line, lines)]))


def _conflicts(region: Region, classes: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Problems between entries, each with its place."""
    rules: list[tuple[tuple[Any, ...], str, bool]] = [
        *((("classes", name, "stream"), rule.stream, False) for name, rule in region.classes.items()),
        *((("items", at, "stream"), item.stream, item.hazardous) for at, item in enumerate(region.items)),
    ]
    for where, name, hazardous in rules:
        stream = region.streams.get(name)
        if stream is None:
            yield where, f"there is no stream {name!r}; the streams are {', '.join(region.streams)}"
        elif hazardous and stream.kind in ("burnable", "residual"):
            yield where, f"a hazardous item may not go to {name!r}, which is {stream.kind} waste"
    for name in classes:
        if name not in region.classes:
            yield ("classes",), f"the model's class {name!r} has no stream"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _line(content: Any, where: Sequence[Any]) -> int:
    """The line, from 1, of the innermost entry on the way to `where` that the file has."""
    line = 1
    for key in where:
        if isinstance(content, dict) and key in content:
            line = content.lc.key(key)[0] + 1  # type: ignore[attr-defined]
        elif isinstance(content, list) and isinstance(key, int) and key < len(content):
            line = content.lc.item(key)[0] + 1  # type: ignore[attr-defined]
        else:
            break
        content = content[key]
    return line
