"""What is checked before a command of DVC runs: settings, and images that it could not read, share or keep.

DVC has no hook for this. By itself it writes wrong settings of `-S` to params.yaml and deletes the last model before a
stage refuses them, ends with "[Errno 2]" on a broken link, runs an experiment in a temporary folder without the images,
and deletes images that it has not stored when an experiment is applied. So each Python of the project's environment
calls `watch` at its start (site-packages/_twinrun.pth). In a process that is neither `dvc` nor `mlflow` nor a stage it
does nothing; without that file DVC works as ever, with its own messages. Imports what it needs when it is needed, since
every process of the environment reads this.
"""

import copy
import gc
import hashlib
import logging
import os
import re
import shlex
import sys
from contextlib import chdir, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

# Commands that read or write the folders that .dvc files name.
_TOUCHING = {(name,) for name in ("add", "checkout", "commit", "exp", "fetch", "gc", "pull", "push", "queue", "repro")}
_HASHING = {("repro",), ("status",), ("commit",), ("exp", "run"), ("exp", "save"), ("data", "status")}
_PROJECT = "pipeline/ingest.py"  # the file by which a project is known
# They say which settings fit.
_RULES = ("core/params.py", "base/hints.py", "core/networks.py", "core/rules.py", "core/yaml.py")
_WITH = "params.yaml with the values of -S"
_MOST_RUNS = 1000  # of a sweep that are checked
_UPGRADE = "Bring the project's files up to this version: twinrun upgrade"
_SHORTEST = 3  # letters of a long option that is cut short, its hyphens included


def watch() -> None:
    """Have `check` run before DVC reads its command line, if this process is a `dvc`.

    If it is an `mlflow` in a project, have it find the artifacts after the project was moved. If it is a stage that
    imports what this version lacks, have it end with a sentence.
    """
    programs = set(map(os.path.basename, sys.orig_argv[1:4]))
    if "dvc" in programs:
        sys.meta_path.insert(0, _Watch())
    elif "mlflow" in programs and Path(_PROJECT).is_file():
        from twinrun.tracking.relocate import main

        main()
    elif any(program.startswith("pipeline.") for program in programs):
        sys.excepthook = _explain_import


def _explain_import(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    from twinrun.core.dependencies import of_another_version

    problem = of_another_version(Path.cwd()) if isinstance(error, ImportError) else None
    if problem is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stderr.write(f"\n{problem} {_UPGRADE}\n")


class _Watch:
    """An importer that imports nothing: it only notices that DVC's command line is about to be imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name != "dvc.cli":
            return
        sys.meta_path.remove(self)
        # DVC makes a million small objects for 100,000 images; Python's search for garbage among them took a fifth of
        # the time of `dvc status`.
        gc.set_threshold(50_000)
        for name in ("dvc_data.hashfile.checkout", "dvc_data.index.checkout"):
            logging.getLogger(name).addFilter(_is_of_use)
        from twinrun.base.errors import run_main

        run_main(lambda: check(sys.argv[1:], Path.cwd()))
        command = _command(_moved(Path.cwd(), sys.argv[1:])[1])[:1]
        if command in (("status",), ("repro",)) and not any(word.startswith("--pu") for word in sys.argv):
            _hash_once()


def _hash_once() -> None:
    """Let this process hash a path once: the images are both an output of their .dvc file and a dependency of ingest.

    Until a stage runs: before that, `dvc status` and `dvc repro` write nothing, so that nothing that was hashed changes
    by what they do, and they end soon enough to need no search for garbage. Measured on 100,000 images: 27% less
    processor time of `dvc status`.
    """
    from dvc.output import Output
    from dvc.stage import Stage

    hash_of, run = getattr(Output, "_get_hash_meta", None), getattr(Stage, "run", None)
    if hash_of is None or run is None:  # another version of DVC: it keeps its default
        return
    known: dict[tuple[object, ...], Any] = {}
    gc.disable()

    def remembered(output: Any) -> Any:
        if output.fs.protocol != "local":
            return hash_of(output)
        key = (output.fs_path, output.hash_name, id(output.dvcignore))
        if key not in known:
            known[key] = hash_of(output)
        return known[key]

    def run_and_hash_anew(*arguments: Any, **options: Any) -> Any:
        Output._get_hash_meta, Stage.run = hash_of, run
        gc.enable()
        return run(*arguments, **options)

    Output._get_hash_meta, Stage.run = remembered, run_and_hash_anew


def _is_of_use(record: logging.LogRecord) -> bool:
    """Whether a person needs to read it: an experiment warns once for each output that its stages are about to make."""
    return not str(record.msg).startswith("No file hash info found") or sys.argv[1:2] not in (["exp"], ["experiments"])


def check(arguments: list[str], folder: Path) -> None:
    """Raise a TwinrunError where `dvc ARGUMENTS`, called in `folder`, could not read, share or keep the images.

    Does nothing outside a project of Twinrun, and leaves to DVC what it cannot judge.
    """
    folder, arguments = _moved(folder, arguments)
    command = _command(arguments)
    root = next((place for place in (folder, *folder.parents) if (place / _PROJECT).is_file()), None)
    if root is None or not (root / "dvc.yaml").is_file() or {"-h", "--help"} & set(arguments):
        return
    forced = _has(arguments, "f", "--force")
    if command[:1] in _TOUCHING:
        _require_seen(root)
    if command[:2] == ("exp", "apply") and len(command) > 2:
        _require_stored(root, command[2])
    elif (command[:1] in (("checkout",), ("pull",)) and forced) or (
        command[:1] == ("remove",) and "--outs" in arguments
    ):
        _require_kept_here(root, " ".join(["dvc", command[0], "--outs" if command[0] == "remove" else "--force"]))
    elif command[:1] == ("gc",):
        _require_kept(root, arguments)
    elif command[:1] == ("add",):
        for name in command[1:]:
            _require_readable(folder / name)
    elif command[:1] in _HASHING or command[:2] in _HASHING:
        _require_source(root, command, arguments)


def _moved(folder: Path, arguments: list[str]) -> tuple[Path, list[str]]:
    """The folder that `dvc --cd FOLDER` goes to, and the arguments without that."""
    for number, argument in enumerate(arguments):
        if argument == "--cd" and number + 1 < len(arguments):
            return (folder / arguments[number + 1]).resolve(), arguments[:number] + arguments[number + 2 :]
        if argument.startswith("--cd="):
            return (folder / argument.removeprefix("--cd=")).resolve(), arguments[:number] + arguments[number + 1 :]
        if not argument.startswith("-"):
            break
    return folder, arguments


def _has(arguments: list[str], letter: str, long: str) -> bool:
    """Whether an option is given, alone or among other letters."""
    return any(argument == long or re.fullmatch(rf"-[a-zA-Z]*{letter}[a-zA-Z]*", argument) for argument in arguments)


def _command(arguments: list[str]) -> tuple[str, ...]:
    """The arguments that are not options, `experiments` shortened; values of options may be among the later ones."""
    command = [argument for argument in arguments if not argument.startswith("-")]
    return ("exp" if command[:1] == ["experiments"] else command[0], *command[1:]) if command else ()


def _require_source(root: Path, command: tuple[str, ...], arguments: list[str]) -> None:
    """Check params.yaml and the folder that ingest.path names before DVC hashes, deletes or writes anything.

    Where the project has no code of its own, the record of the installed code is updated first.
    """
    is_run = command[0] == "repro" or command[:2] == ("exp", "run")
    if is_run:
        _require_stages(root)
    if (root / "code.yaml").is_file():
        from twinrun.project.environment import refresh, stands_alone

        if stands_alone(root):
            refresh(root)
    runs = _settings(root, arguments, required=True)
    sources = list(dict.fromkeys(named for run in runs if (named := _source_of(run))))
    apart = command[:2] == ("exp", "run") and bool({"--temp", "--queue"} & set(arguments))
    if is_run:
        _require_params(root, runs, arguments, apart=apart)
    for source, path in sources:
        if apart:
            _require_shared(root, source, path, arguments)
        elif not (root / path).exists() and command[0] != "status" and command[:1] != ("data",):
            _require_there(root, path, arguments)
        _require_readable(root / path)


def _require_stages(root: Path) -> None:
    """Check that the stages can import what they need before DVC deletes what they made."""
    from twinrun.base.errors import RepositoryError
    from twinrun.core.dependencies import of_another_version

    if (problem := of_another_version(root)) is not None:
        raise RepositoryError(f"{problem} {_UPGRADE}\nNothing was run, written or deleted.")


def _require_shared(root: Path, source: str, path: str, arguments: list[str]) -> None:
    """Check that an experiment in a temporary folder has the images."""
    from twinrun.base.errors import SourceError
    from twinrun.ingest.sharing import OF_FILES, in_full, not_shared

    if source not in OF_FILES:
        return
    copied = {os.path.normpath(place) for place in _values(arguments, "-C", "--copy-paths")}
    if os.path.normpath(path) not in copied and (reason := not_shared(root, path)):
        raise SourceError(reason.sentence())
    if (full := in_full(root, path)) is not None:
        raise SourceError(
            f"{path} (params.yaml: ingest.path) leads elsewhere from the temporary folder of an experiment: write it "
            f"in full, ingest.path: {full}"
        )


def _settings(root: Path, arguments: list[str], *, required: bool = False) -> list[dict[str, Any]]:
    """What params.yaml says with the values of `-S`, once for each run of a sweep; [] where DVC is to judge that.

    Where they are `required`, a value that cannot be read, such as the date 2025-31-12, is a ParamsError: DVC would
    name neither the file nor the line.
    """
    from ruamel.yaml.constructor import ConstructorError
    from ruamel.yaml.error import YAMLError

    from twinrun.base.errors import ParamsError
    from twinrun.core.yaml import read_yaml

    try:
        settings = read_yaml((root / "params.yaml").read_text(encoding="utf-8"))
    except ConstructorError as error:
        if required:
            raise ParamsError(f"params.yaml is not YAML: {error}\nNothing was run, written or deleted.") from None
        return []
    except (OSError, YAMLError, UnicodeDecodeError):
        return []
    if not isinstance(settings, dict):
        return []
    changes = [change.removeprefix("params.yaml:") for change in _values(arguments, "-S", "--set-param")]
    changes = [change for change in changes if ":" not in change.partition("=")[0]]  # the others are of other files
    return [_changed(settings, run) for run in _runs_of(changes)] if changes else [settings]


def _runs_of(changes: list[str]) -> list[list[Any]]:
    """The values of `-S` as DVC reads them, once for each run of a sweep; [] where only DVC can judge them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(changes)
        if any("[" in change.key_or_group or "${" in str(change.input_line) for change in parsed):
            return []
        runs = BasicSweeper.split_arguments(parsed, None)[0]
        return [parser.parse_overrides(list(run)) for run in runs[:_MOST_RUNS]]
    except (HydraException, ValueError):
        return []


def _changed(settings: dict[str, Any], changes: list[Any]) -> dict[str, Any]:
    """A copy of `settings` with changes in it, each an override of Hydra; names that do not exist are added."""
    changed = copy.deepcopy(settings)
    for change in changes:
        *sections, name = change.key_or_group.split(".")
        section = changed
        for outer in sections:
            if not isinstance(section.get(outer), dict):
                section[outer] = {}
            section = section[outer]
        if change.is_delete():
            section.pop(name, None)
        else:
            _merge(section, name, change.value())
    return changed


def _merge(section: dict[str, Any], name: str, value: Any) -> None:
    """Set `name` to `value`, where both are sections setting by setting, as DVC does."""
    if isinstance(value, dict) and isinstance(section.get(name), dict):
        for key, inner in value.items():
            _merge(section[name], key, inner)
    else:
        section[name] = value


def _require_params(root: Path, runs: list[dict[str, Any]], arguments: list[str], *, apart: bool) -> None:
    """Check all settings before DVC writes them to params.yaml and deletes what an earlier run has made.

    What passed last is remembered, since to read the types of all settings takes a quarter of a second.
    """
    rules = [Path(__file__).parent.joinpath(name).read_bytes() for name in _RULES]
    theirs = [root / "src/twinrun" / name for name in _RULES]
    if any(file.is_file() and file.read_bytes() != rule for file, rule in zip(theirs, rules, strict=True)):
        return  # a project of another version of Twinrun, which has other settings
    inputs = not apart and not _may_be_missing(arguments)
    files = [inputs and _is_there(root, text) for run in runs for text in _texts(run)]
    content = repr([runs, files]).encode("utf-8", "backslashreplace")
    digest = hashlib.sha256(b"".join([*rules, content])).hexdigest()
    memory = root / ".twinrun/params-checked"
    with suppress(OSError):
        if memory.read_text() == digest:
            return
    _parse_all(root, runs, inputs, "params.yaml" if len(_values(arguments, "-S", "--set-param")) == 0 else _WITH)
    with suppress(OSError):
        memory.parent.mkdir(exist_ok=True)
        memory.write_text(digest)


def _parse_all(root: Path, runs: list[dict[str, Any]], inputs: bool, origin: str) -> None:
    from twinrun.base.errors import ParamsError
    from twinrun.core.params import parse_params

    with chdir(root):
        for run in runs:
            try:
                parse_params(copy.deepcopy(run), origin, inputs=inputs)
            except ParamsError as error:
                raise ParamsError(f"{error}\nNothing was run, written or deleted.") from None


def _texts(value: Any) -> list[str]:
    """All texts in nested sections and lists: among them are the files that settings name."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for entry in inner for text in _texts(entry)]
    return [value] if isinstance(value, str) else []


def _is_there(root: Path, name: str) -> bool:
    from twinrun.base.paths import expanded

    try:
        return (root / expanded(name)).exists()
    except (OSError, ValueError):  # no name that a file may have
        return False


def _source_of(settings: dict[str, Any]) -> tuple[str, str] | None:
    """ingest.source and ingest.path; None where the check of all settings says what is wrong with them.

    Raises ParamsError for a path that is a text or null and that DVC cannot use.
    """
    from twinrun.base.errors import ParamsError
    from twinrun.base.paths import expanded

    try:
        source, path = settings["ingest"]["source"], settings["ingest"].get("path")
    except (KeyError, TypeError, AttributeError):
        return None
    if path is None:
        raise ParamsError(
            f"params.yaml: ingest.path is null, and must name the folder that DVC watches; without one of your own: "
            f"data/raw/{source}"
        )
    if not isinstance(path, str) or not isinstance(source, str):
        return None
    if (full := expanded(path)) != Path(path):
        raise ParamsError(f"params.yaml: ingest.path is {path}, and DVC does not know ~. Write {full}")
    return source, path


def _values(arguments: list[str], short: str, long: str) -> list[str]:
    """What an option is given: apart, after =, at the end of a bundle of short ones; long ones may be cut short."""
    bundle = re.compile(f"-[a-zA-Z]*{short[1]}(.*)", re.DOTALL)
    values = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if len(name) > _SHORTEST and name.startswith("--"):
            if long.startswith(name):
                values += [value] if equals else arguments[number + 1 : number + 2]
        elif match := bundle.fullmatch(argument):
            values += [match[1]] if match[1] else arguments[number + 1 : number + 2]
    return values


def _may_be_missing(arguments: list[str]) -> bool:
    return bool({"--allow-missing", "--pull", "-P"} & set(arguments))


def _require_there(root: Path, path: str, arguments: list[str]) -> None:
    from twinrun.base.errors import SourceError
    from twinrun.ingest.sharing import nearby, tracked

    if _may_be_missing(arguments) or _is_out(root, path):
        return
    if tracked(root, path) in ("added", "not committed"):
        raise SourceError(
            f"The images of {path} are not here. Fetch them: dvc pull {shlex.quote(f'{path}.dvc')}{_first(root)}\n"
            "Or go on without them, as long as no stage needs them: dvc repro --allow-missing"
        )
    raise SourceError(
        f"The source folder {path} does not exist (params.yaml: ingest.path).{nearby(root, path)} Put the images "
        "there, one folder for each class, or name another folder."
    )


def _first(root: Path) -> str:
    """What comes before a pull, where DVC knows no remote to pull from."""
    from twinrun.record.objects import has_remote

    if not (root / ".dvc").is_dir() or has_remote(root):
        return ""
    return (
        "\nBut no default remote is set here: ask whoever has the images for its address, and run first: "
        "dvc remote add --default NAME ADDRESS"
    )


def _is_out(root: Path, path: str) -> bool:
    """Whether a stage of dvc.yaml makes the folder."""
    return any(line.strip().rstrip(":") == f"- {path}" for line in (root / "dvc.yaml").read_text().splitlines())


def _require_readable(folder: Path) -> None:
    """Name what DVC ends with an error on; what it overlooks is only said."""
    from twinrun.base.errors import SourceError
    from twinrun.base.printing import print
    from twinrun.ingest.sharing import obstacles

    faults = obstacles(folder)
    if any(fault.fatal for fault in faults):
        raise SourceError("\n".join(map(str, faults)))
    for fault in faults:
        print(fault, file=sys.stderr, flush=True)


def _require_seen(root: Path) -> None:
    """Require that no pattern in a .gitignore hides the folder of the images from DVC.

    For DVC a pattern such as /data/raw/* covers data/raw itself: it then finds no .dvc file below it, and deletes the
    images of one that it knew before.
    """
    from twinrun.base.errors import SourceError

    source = next(map(_source_of, _settings(root, [])), None)
    if source is None:
        return
    path = Path(os.path.normpath(root / source[1]))
    if not path.with_name(f"{path.name}.dvc").is_file() or not path.is_relative_to(root):
        return
    hiding = _hiding(root, [place for place in path.parents if place.is_relative_to(root) and place != root])
    if hiding is not None:
        place, pattern = hiding
        raise SourceError(
            f"The pattern {pattern} in a .gitignore hides {place} from DVC, which would then not see "
            f"{path.relative_to(root)}.dvc, and could delete the images. Delete that line: DVC adds what is needed to "
            f"{path.parent.relative_to(root)}/.gitignore itself."
        )


def _hiding(root: Path, places: list[Path]) -> tuple[str, str] | None:
    """The first of `places`, folders, that DVC takes for ignored by git, and the pattern that does it."""
    from dulwich.ignore import IgnoreFilterManager
    from dulwich.repo import Repo

    try:
        repository = Repo.discover(os.fspath(root))
        patterns = IgnoreFilterManager.from_repo(repository)
        top = Path(repository.path)
        for place in places:
            # With a slash at its end, as DVC asks.
            name = f"{place.relative_to(top).as_posix()}/"
            if patterns.is_ignored(name):
                matches = list(patterns.find_matching(f"{name}x"))  # a name below it
                return name.rstrip("/"), os.fsdecode(matches[-1].pattern) if matches else "of its own"
    except Exception:  # no repository, or a pattern that dulwich cannot read: DVC says so itself
        return None
    return None


def _require_kept_here(root: Path, command: str) -> None:
    """Require that DVC's cache has all images of the workspace, before a command that replaces or deletes them."""
    from twinrun.base.errors import SourceError

    if changed := _unstored(root):
        raise SourceError(
            f"`{command}` would delete images that are stored nowhere else: {changed} changed since it was added. "
            f"Store them first: dvc add {shlex.quote(changed)}"
        )


def _require_stored(root: Path, experiment: str) -> None:
    """`dvc exp apply` replaces images whether or not DVC or git has them: require that they are stored."""
    from twinrun.base.errors import SourceError

    changed = _unstored(root) or _differing(root, experiment)
    if changed:
        raise SourceError(
            f"`dvc exp apply` would replace images that are stored nowhere else: {changed} changed since it was added. "
            f"Store them first: dvc add {shlex.quote(changed)}"
        )


def _unstored(root: Path) -> str | None:
    """The first folder or file of a .dvc file whose content is not in DVC's cache as it is now."""
    import json
    import subprocess

    from twinrun.base.errors import SourceError

    files = [file.decode() for file in _git(root, "ls-files", "-z", "-co", "*.dvc").split(b"\0") if file]
    files = [file for file in files if (root / file.removesuffix(".dvc")).exists()]
    if not files:
        return None
    command = [sys.executable, "-m", "dvc", "status", "--json", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    try:
        changed = json.loads(done.stdout)
    except ValueError:
        raise SourceError(f"Whether DVC has stored all images could not be determined:\n{done.stderr}") from None
    return next((str(file).removesuffix(".dvc") for file in changed), None)


def _differing(root: Path, experiment: str) -> str | None:
    """The source folder, if the experiment's commit holds a file in it whose content is another one here.

    DVC puts a folder that was not added into the commits of its experiments.
    """
    source = next(map(_source_of, _settings(root, [])), None)
    if source is None:
        return None
    path = source[1]
    ref = _git(root, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{experiment}").split()
    commit = ref[0].decode() if ref else experiment
    tree = _git(root, "ls-tree", "-r", "-z", commit, "--", path).split(b"\0")
    recorded = {name: facts.split()[2] for facts, _, name in (entry.partition(b"\t") for entry in tree if entry)}
    here = [name for name in recorded if (root / os.fsdecode(name)).is_file()]
    if not here:
        return None
    hashes = _git(root, "hash-object", "--stdin-paths", "--no-filters", stdin=b"\n".join(here)).split()
    same = [recorded[name] for name in here] == hashes
    return None if same else path


def _require_kept(root: Path, arguments: list[str]) -> None:
    """`dvc gc -w` keeps what the workspace names: require that no branch or stash has images that it does not name."""
    from twinrun.base.errors import SourceError

    bundles = "".join(argument for argument in arguments if argument.startswith("-") and not argument.startswith("--"))
    if {"--all-branches", "--all-commits", "--dry"} & set(arguments) or {"a", "A"} & set(bundles):
        return
    refs = _git(root, "for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes", "refs/stash").split()
    for ref in map(os.fsdecode, refs):
        for entry in _git(root, "ls-tree", "-r", "-z", ref).split(b"\0"):
            facts, _, name = entry.partition(b"\t")
            if not name.endswith(b".dvc") or _is_same(root, os.fsdecode(name), facts.split()[2].decode()):
                continue
            images = os.fsdecode(name).removesuffix(".dvc")
            raise SourceError(
                f"`dvc gc` would delete images of {images} from DVC's cache: {ref.split('/', 2)[-1]} has another "
                f"{images}.dvc than the workspace. Keep what all branches have: dvc gc --all-commits"
            )


def _is_same(root: Path, file: str, blob: str) -> bool:
    """Whether a file of the workspace has the content of a blob of git."""
    return (root / file).is_file() and _git(root, "hash-object", "--", file).decode().strip() == blob


def _git(root: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    """The output of git; b"" where it fails. Raises RepositoryError where git does not trust the repository."""
    import subprocess

    from twinrun.base.git import git_environment

    command, env = ["git", *arguments], git_environment(root)
    try:
        done = subprocess.run(command, cwd=root, input=stdin, capture_output=True, check=False, env=env)
    except OSError:
        return b""
    if done.returncode:
        from twinrun.record.card import require_trust

        require_trust(root, done.stderr.decode(errors="replace"))
        return b""
    return done.stdout
