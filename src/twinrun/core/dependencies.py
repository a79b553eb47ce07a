"""Which of our own modules a file imports, directly or not, read from the source. Runs none of it."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twinrun.base.errors import RepositoryError
from twinrun.core.yaml import conflict_line, read_yaml


def imported_modules(file: Path, source_root: Path = Path("src"), apart: Iterable[str] = ()) -> list[str]:
    """Paths of the modules under `source_root` that `file` imports, at its top or inside functions, in order of name.

    Paths start at the project, as src/twinrun/base/files.py does. An `__init__.py` that holds only a docstring is left
    out: it decides nothing. Modules below the folders `apart`, and what only they import, are left out too.
    """
    modules: set[Path] = set()
    waiting = [file]
    while waiting:
        for module in _imports(waiting.pop(), source_root) - modules:
            if not _is_below(module.relative_to(source_root.parent).as_posix(), apart):
                modules.add(module)
                waiting.append(module)
    return sorted(path.as_posix() for path in modules if path.name != "__init__.py" or not _only_docstring(path))


RECORDS = ("src/twinrun/record", "src/twinrun/tracking")
"""Rooms that only keep records of what a stage does: a change in them is no reason to run it again."""

_NO_WEIGHTS = {"train": ("src/twinrun/base",)}
"""Rooms that decide nothing that a costly stage makes: a better message is no reason to train again."""


def unlisted_imports(root: Path) -> dict[str, tuple[list[str], list[str]]]:
    """For each stage of dvc.yaml whose deps and imports differ: code to add to its deps, and code to remove.

    A dep names a module or a folder of them. A project that has no code of its own under src has nothing to compare.
    Raises RepositoryError where dvc.yaml or the code cannot be read.
    """
    faults = {}
    for stage, facts in _stages(root / "dvc.yaml").items():
        file = root / "pipeline" / f"{stage}.py"
        if not file.is_file() or not (root / "src").is_dir():
            continue
        modules = imported_modules(file, root / "src", apart=(*RECORDS, *_NO_WEIGHTS.get(stage, ())))
        wanted = {f"pipeline/{stage}.py", *(Path(module).relative_to(root).as_posix() for module in modules)}
        deps = (facts.get("deps") if isinstance(facts, dict) else None) or []
        named = [dep for dep in deps if isinstance(dep, str) and dep.startswith(("src/", "pipeline/"))]
        missing = {_room(module) for module in wanted if not _is_below(module, named)}
        superfluous = {dep for dep in named if not any(_is_below(module, [dep]) for module in wanted)}
        if missing or superfluous:
            faults[stage] = (sorted(missing), sorted(superfluous))
    return faults


def _stages(file: Path) -> dict[str, Any]:
    """The stages of a dvc.yaml. Raises RepositoryError where it is not one."""
    from ruamel.yaml.error import YAMLError

    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        content = read_yaml(text)
        stages, problem = content.get("stages") if isinstance(content, dict) else None, "it has no stages"
    except YAMLError:
        stages, problem = None, "it is not YAML" if conflict_line(text) is None else "git left a merge conflict in it"
    if not isinstance(stages, dict):
        raise RepositoryError(
            f"{file.name} cannot be used: {problem}.\nCorrect it, or restore it: git checkout {file.name}"
        )
    return stages


def _is_below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)


def _room(module: str) -> str:
    """The folder below src/twinrun that holds a module; the module itself where it lies in none."""
    parts = Path(module).parts
    return "/".join(parts[:3]) if len(parts) > 3 and parts[0] == "src" else module


_STAGE_FILES = ("__init__", "ingest", "validate", "train", "evaluate", "register")


def of_another_version(root: Path) -> str | None:
    """A sentence where a stage of the project at `root` imports at its top what the installed Twinrun lacks, else None.

    For a project without code of its own, whose stages fail then. Other files in pipeline/ are their owner's.
    """
    if (root / "src/twinrun").is_dir():
        return None
    for name in _STAGE_FILES:
        if (missing := _not_installed(root / "pipeline" / f"{name}.py")) is not None:
            return (
                f"pipeline/{name}.py was written by another version of Twinrun: it imports {missing}, which the "
                "installed version does not have."
            )
    return None


def _not_installed(file: Path) -> str | None:
    """The first name of Twinrun that a file imports at its top and that is not installed."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):  # which Python explains when it runs
        return None
    sources = Path(__file__).parents[2]
    for node in body:
        if not isinstance(node, ast.ImportFrom) or node.level or node.module is None:
            continue
        if not node.module.startswith("twinrun."):
            continue
        if not (modules := _module_files(node.module, sources)):
            return node.module
        text = modules[0].read_text(encoding="utf-8")
        for name in (alias.name for alias in node.names if alias.name != "*"):
            # What a module defines is somewhere in its text; else it is a module of its own.
            if not re.search(rf"\b{name}\b", text) and not _module_files(f"{node.module}.{name}", sources):
                return f"{node.module}.{name}"
    return None


def imported_names(file: Path) -> set[str]:
    """Dotted names of the modules that `file` imports itself, at its top or inside functions, ours or another's.

    Raises RepositoryError where it is not Python.
    """
    try:
        code = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise RepositoryError(f"{file} cannot be read: {line}.\nCorrect it, or restore it from git") from None
    names: set[str] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _imports(file: Path, source_root: Path) -> set[Path]:
    names = imported_names(file)
    return {path for name in names for path in _module_files(name, source_root)}


def _module_files(name: str, source_root: Path) -> list[Path]:
    place = source_root.joinpath(*name.split("."))
    return [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]


def _only_docstring(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
