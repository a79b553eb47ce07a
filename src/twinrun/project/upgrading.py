"""Updating a project's own files to the installed version of Twinrun: `twinrun upgrade`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from twinrun.base.errors import ParamsError, RepositoryError
from twinrun.base.files import behind_links, explained, replacing
from twinrun.core.params import PARAMS, no_project, parse_params
from twinrun.core.yaml import read_yaml
from twinrun.project.creating import GITIGNORE, ignored, stage_files
from twinrun.project.presets import default_settings
from twinrun.record.card import committing, full_index, run_git

Setting = tuple[str, ...]


@dataclass(frozen=True)
class Upgrade:
    """The result: settings that were added to params.yaml, other files that were changed, and notes."""

    settings: tuple[str, ...]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def upgrade_project(root: Path) -> Upgrade:
    """Add missing settings to params.yaml, with defaults and comments, and replace dvc.yaml and pipeline/*.py.

    Patterns that .gitignore lacks are added to it; if it cannot be read, it is left alone, with a note. The rest of
    both files stays the same, byte for byte. If params.yaml is not valid even then, a note says why. Before anything is
    written, raises RepositoryError if a file that would change is not committed as it is, or is a link out of the
    project, and ParamsError if params.yaml cannot be read.
    """
    path = root / PARAMS
    try:
        old = path.read_bytes().decode()
        new, added = with_missing(old.replace("\r\n", "\n"), default_settings())
        new = new.replace("\n", "\r\n") if "\r\n" in old else new
    except FileNotFoundError:
        raise ParamsError(no_project(PARAMS)) from None
    except (OSError, UnicodeDecodeError, YAMLError, AttributeError, TypeError) as error:
        raise ParamsError(f"{PARAMS} cannot be read as settings: {error}") from None
    texts, notes = _files(root) if not (root / "src/twinrun").is_dir() else ({}, ())
    changed = {name: text for name, text in texts.items() if _lines(_text(root / name)) != _lines(text)}
    if added:
        changed[PARAMS.as_posix()] = new
    _require_committed(root, [_name_of_content(root, name) for name in changed if (root / name).exists()])
    for name, text in changed.items():
        with explained(root / name):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(behind_links(root / name)) as temp:
                temp.write_bytes(text.encode())
    files = tuple(name for name in changed if name != PARAMS.as_posix())
    return Upgrade(tuple(added), files, (*notes, *_problems(new)))


def _name_of_content(root: Path, name: str) -> str:
    """The path in the project of the file behind `name`, which may be a link; RepositoryError if it is outside."""
    target, home = (root / name).resolve(), root.resolve()
    if not target.is_relative_to(home):
        raise RepositoryError(
            f"{name} would be changed, and it leads to {target}, outside the project, where others may use it. Nothing "
            "was written. Replace the link by a copy of the file, commit it, and run this again."
        )
    return target.relative_to(home).as_posix()


def _problems(settings: str) -> Iterator[str]:
    """The problems of the settings after the upgrade, such as those that only an earlier version had."""
    try:
        parse_params(read_yaml(settings), PARAMS.as_posix())
    except ParamsError as error:
        yield str(error)


def _files(root: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The files of the stages, .gitignore with missing patterns appended, both by path; and notes."""
    own = _text(root / GITIGNORE)
    if own is None and os.path.lexists(root / GITIGNORE):
        return stage_files(), (
            f"{GITIGNORE} was left as it is, since it cannot be read as UTF-8. Save it as UTF-8 and run this again.",
        )
    return {**stage_files(), GITIGNORE: with_lines(own or "", ignored().splitlines())}, ()


def with_lines(text: str, lines: list[str]) -> str:
    """A text with those of `lines` that it lacks appended; the rest of it stays the same."""
    own, end = text.removeprefix("\ufeff").splitlines(), "\r\n" if "\r\n" in text else "\n"
    missing = [line for line in lines if line and line not in own]
    if missing and text and not text.endswith("\n"):
        text += end
    return text + "".join(f"{line}{end}" for line in missing)


def with_missing(text: str, defaults: str) -> tuple[str, list[str]]:
    """Settings as YAML, with those that only `defaults` has added, each below the one that precedes it there.

    Returns the text and the names of what was added, such as `train.seeds`, or `serve` for a whole section. Raises
    ParamsError for a setting that cannot be added.
    """
    added: list[str] = []
    while True:
        places, own = dict(_settings(defaults)), dict(_settings(text))
        names = list(places)
        missing = next((name for name in names if name not in own), None)
        if missing is None:
            return text, added
        lines, block = text.splitlines(), _block(defaults.splitlines(), places[missing])
        if siblings := [name for name in names[: names.index(missing)] if name[:-1] == missing[:-1]]:
            row = _end(lines, own[siblings[-1]])
        else:
            row = own[missing[:-1]] + 1 if len(missing) > 1 else min(own.values())
        if len(missing) == 1:
            block = ["", *block] if siblings else [*block, ""]
        name, longer = ".".join(missing), "\n".join([*lines[:row], *block, *lines[row:]]) + "\n"
        if not _is_added(missing, text, longer):
            raise ParamsError(
                f"{PARAMS} lacks {name}, which cannot be added to it as it is written. Add it yourself: "
                f"{block[-1].strip()}"
            )
        text = longer
        added.append(name)


def _is_added(setting: Setting, text: str, longer: str) -> bool:
    """Whether `longer` is `text` with that setting and nothing else."""
    try:
        old, new = (read_yaml(each) for each in (text, longer))
    except YAMLError:
        return False
    section = new
    for name in setting[:-1]:
        section = section[name]
    section.pop(setting[-1], None)
    return bool(new == old)


def _settings(text: str) -> Iterator[tuple[Setting, int]]:
    """Every setting and section, in the order in which they stand, with its line, counted from 0."""

    def walk(section: Any, above: Setting) -> Iterator[tuple[Setting, int]]:
        for name, value in section.items():
            yield (*above, name), section.lc.key(name)[0]
            if isinstance(value, dict):
                yield from walk(value, (*above, name))

    yield from walk(read_yaml(text, "rt"), ())


def _block(lines: list[str], row: int) -> list[str]:
    """The lines of a setting, with the comment lines directly above it that are indented like it."""
    first = row
    while first and lines[first - 1].lstrip().startswith("#") and _indent(lines[first - 1]) == _indent(lines[row]):
        first -= 1
    return lines[first : _end(lines, row)]


def _end(lines: list[str], row: int) -> int:
    """Index of the line after the setting that begins on line `row`."""
    own, end = _indent(lines[row]), row + 1
    for number, line in enumerate(lines[row + 1 :], row + 1):
        if line.strip() and _indent(line) <= own and not (line.lstrip().startswith("- ") and _indent(line) == own):
            break
        if line.strip():
            end = number + 1
    return end


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _text(path: Path) -> str | None:
    """The text of a file, with its own line ends; None if it is missing, unreadable or not UTF-8."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def _lines(text: str | None) -> list[str] | None:
    """The lines of a text, whatever line ends git gave it in this checkout."""
    return None if text is None else text.replace("\r\n", "\n").split("\n")


def _require_committed(root: Path, names: list[str]) -> None:
    if not names:
        return
    command = ("status", "--porcelain", "--ignored", "--untracked-files=all", "--", *names)
    status = run_git(root, *command)
    if status.returncode == 0:
        with full_index(root) as index:
            status = run_git(root, *command, index=index)
    if status.returncode:
        raise RepositoryError(
            f"git cannot tell what has changed: {status.stderr.strip()}. Nothing was written, since {', '.join(names)} "
            "would be changed. Commit the project first: git init && git add . && git commit"
        )
    if uncommitted := [line[3:] for line in status.stdout.splitlines()]:
        raise RepositoryError(
            f"{', '.join(uncommitted)} would be changed, and git does not have what is there now. Nothing was written. "
            f"Commit it first: {committing(root, uncommitted)}"
        )
