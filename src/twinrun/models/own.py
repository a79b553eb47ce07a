"""A network of one's own: a function in a file of the project, named in train.model as networks/mine.py:build.

The file decides the weights, so it is part of the fingerprint and of the bundle. It may import packages, and no other
file of the project, which neither would hold.
"""

import ast
import hashlib
import importlib.util
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from twinrun.base.errors import ModelError
from twinrun.base.regular_files import read_regular
from twinrun.core.networks import Size

_SETTING = "params.yaml: train.model"


def own_source(name: str) -> bytes:
    """The content of the file that `name` names. Raises ModelError where it cannot be read."""
    path = Path(name.partition(":")[0])
    try:
        return read_regular(path)
    except OSError as error:
        raise ModelError(
            f"The network {path} cannot be read: {error.strerror} ({_SETTING}). Put the file there, with a function "
            f"{name.partition(':')[2]}(channels, size_px, classes) that returns an nn.Module."
        ) from None


def build_from_source(name: str, source: bytes, channels: int, size_px: Size, classes: int) -> nn.Module:
    """Run `source` and call the function that `name` names with the channels, (height, width) and number of classes.

    Raises ModelError, with the line, for any error in it, and for an import of another file of the project.
    """
    path, _, function = name.partition(":")
    with explained(name), _torch_as_it_was():
        if (local := _local_import(ast.parse(source, path))) is not None:
            raise _imports_another(f"{path}, line {local}")
        digest, before = hashlib.sha256(source).hexdigest()[:16], set(sys.modules)
        module = ModuleType(f"twinrun_own_network_{digest}")
        sys.modules[module.__name__] = module  # where dataclasses look for the types of their fields
        # Not the name of the file: it may have changed since, and TorchScript compiles what it reads there.
        file, text = f"{path} {digest}", importlib.util.decode_source(source)
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
        exec(compile(source, file, "exec"), module.__dict__)
        build = getattr(module, function, None)
        if not callable(build):
            raise ModelError(f"{path} has no function {function} ({_SETTING}).")
        network = build(channels, size_px, classes)
        if local_modules := [each for each in set(sys.modules) - before if _is_local(each)]:
            for each in local_modules:
                del sys.modules[each]
            raise _imports_another(path)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{function} in {path} returned {type(network).__name__} and no torch.nn.Module ({_SETTING}).")
    for place, parameter in network.named_parameters():
        if parameter.requires_grad and (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise ModelError(
                f"{place} of {path} is {parameter.dtype} on {parameter.device}, and weights begin as torch.float32 on "
                f"the CPU ({_SETTING}). Leave their type and device to train.precision and train.accelerator."
            )
    return network


@contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Undo what code changes in PyTorch for the whole process: types, device and threads of what comes after it."""
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    with torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_default_device(device if device.type != "cpu" else None)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full: of the machine and not of the network. PyTorch has several."""
    named = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and named)


@contextmanager
def explained(name: str, given: str = "") -> Iterator[None]:
    """Turn any error of the code in the file that `name` names into a ModelError with the line; `given` ends it."""
    path = name.partition(":")[0]
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # code of others may raise anything
        if is_of_memory(error):
            raise
        raise ModelError(f"{path}{_line(error, path)}: {type(error).__name__}: {error} ({_SETTING}){given}") from error


def _imports_another(place: str) -> ModelError:
    return ModelError(
        f"{place}: imports another file of the project, which would be neither in the fingerprint nor in the bundle. "
        "Write the network in one file."
    )


def _local_import(tree: ast.Module) -> int | None:
    """The line of an import that is no package's and not the standard library's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            return node.lineno
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for root in {name.partition(".")[0] for name in names} - {"twinrun"}:
            spec = importlib.util.find_spec(root)
            places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
            if any(map(_is_in_project, places)):
                return node.lineno  # type: ignore[attr-defined, no-any-return]
    return None


def _is_local(module: str) -> bool:
    """Whether a module that was imported is a file of the project, but for Twinrun's own."""
    place = getattr(sys.modules[module], "__file__", None)
    return place is not None and module.partition(".")[0] != "twinrun" and _is_in_project(place)


def _is_in_project(place: str) -> bool:
    """Whether a file is in the working folder, and not in an environment that may be there too."""
    path = Path(place)
    libraries = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_relative_to(Path.cwd()) and not libraries and not path.is_relative_to(sysconfig.get_path("stdlib"))


def _line(error: BaseException, path: str) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(f"{path} ")
    ]
    return f", line {lines[-1]}" if lines else ""
