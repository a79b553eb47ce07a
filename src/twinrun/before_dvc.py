"""What is checked before a command of DVC runs: images that it could not read, share or keep.

DVC has no hook for this, and by itself it ends with "[Errno 2]" on a broken link, runs an experiment in a temporary
folder without the images, and deletes images that it has not stored when an experiment is applied. So each Python of
the project's environment calls `watch` at its start (`make setup` writes site-packages/_twinrun.pth). In a process that
is no `dvc` it does nothing; without that file DVC works as ever, with its own messages. Imports what it needs when it
is needed, since every process of the environment reads this.
"""

import gc
import os
import re
import sys
from pathlib import Path
from typing import Any

# Commands that read or write the folders that .dvc files name.
_TOUCHING = {(name,) for name in ("add", "checkout", "commit", "exp", "fetch", "gc", "pull", "push", "queue", "repro")}
_HASHING = {("repro",), ("status",), ("commit",), ("exp", "run"), ("exp", "save"), ("data", "status")}


def watch() -> None:
    """Have `check` run before DVC reads its command line, if this process is a `dvc`."""
    if "dvc" in map(os.path.basename, sys.orig_argv[1:4]):
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """An importer that imports nothing: it only notices that DVC's command line is about to be imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name != "dvc.cli":
            return
        sys.meta_path.remove(self)
        # DVC makes a million small objects for 100,000 images; Python's search for garbage among them took a fifth of
        # the time of `dvc status`.
        gc.set_threshold(50_000)
        from twinrun.errors import run_main

        run_main(lambda: check(sys.argv[1:], Path.cwd()))


def check(arguments: list[str], folder: Path) -> None:
    """Raise a TwinrunError where `dvc ARGUMENTS`, called in `folder`, could not read, share or keep the images.

    Does nothing outside a project of Twinrun, and leaves to DVC what it cannot judge.
    """
    folder, arguments = _moved(folder, arguments)
    words = _words(arguments)
    root = next((each for each in (folder, *folder.parents) if (each / "pipeline/ingest.py").is_file()), None)
    if root is None or not (root / "dvc.yaml").is_file() or {"-h", "--help"} & set(arguments):
        return
    forced = _has(arguments, "f", "--force")
    if words[:1] in _TOUCHING:
        _require_seen(root)
    if words[:2] == ("exp", "apply") and len(words) > 2:
        _require_stored(root, words[2])
    elif (words[:1] in (("checkout",), ("pull",)) and forced) or (words[:1] == ("remove",) and "--outs" in arguments):
        _require_kept_here(root, " ".join(["dvc", words[0], "--outs" if words[0] == "remove" else "--force"]))
    elif words[:1] == ("gc",):
        _require_kept(root, arguments)
    elif words[:1] == ("add",):
        for name in words[1:]:
            _require_readable(folder / name)
    elif words[:1] in _HASHING or words[:2] in _HASHING:
        _require_source(root, words, arguments)


def _moved(folder: Path, arguments: list[str]) -> tuple[Path, list[str]]:
    """The folder that `dvc --cd FOLDER` goes to, and the arguments without that."""
    for number, each in enumerate(arguments):
        if each == "--cd" and number + 1 < len(arguments):
            return (folder / arguments[number + 1]).resolve(), arguments[:number] + arguments[number + 2 :]
        if each.startswith("--cd="):
            return (folder / each.removeprefix("--cd=")).resolve(), arguments[:number] + arguments[number + 1 :]
        if not each.startswith("-"):
            break
    return folder, arguments


def _has(arguments: list[str], letter: str, long: str) -> bool:
    """Whether an option is given, alone or among other letters."""
    return any(each == long or re.fullmatch(rf"-[a-zA-Z]*{letter}[a-zA-Z]*", each) for each in arguments)


def _words(arguments: list[str]) -> tuple[str, ...]:
    """The arguments that are no options, `experiments` shortened; values of options may be among the later ones."""
    words = [each for each in arguments if not each.startswith("-")]
    return ("exp" if words[:1] == ["experiments"] else words[0], *words[1:]) if words else ()


def _require_source(root: Path, words: tuple[str, ...], arguments: list[str]) -> None:
    """Check the folder that ingest.path names before DVC hashes it."""
    from twinrun.data.sharing import OF_FILES, not_shared
    from twinrun.errors import SourceError

    ingest = _ingest(root, arguments)
    if ingest is None:
        return
    path = ingest["path"]
    apart = words[:2] == ("exp", "run") and bool({"--temp", "--queue"} & set(arguments))
    if apart and ingest["source"] in OF_FILES:
        copied = {os.path.normpath(each) for each in _values(arguments, "-C", "--copy-paths")}
        if os.path.normpath(path) not in copied and (reason := not_shared(root, path)):
            raise SourceError(reason.sentence())
        if not Path(path).is_absolute() and not (root / path).resolve().is_relative_to(root.resolve()):
            full = os.path.normpath(root / path)
            raise SourceError(
                f"{path} (params.yaml: ingest.path) leads elsewhere from the temporary folder of an experiment: "
                f"write it in full, ingest.path: {full}"
            )
    if not (root / path).exists() and not apart and words[0] != "status" and words[:1] != ("data",):
        _require_there(root, path, arguments)
    _require_readable(root / path)


def _ingest(root: Path, arguments: list[str]) -> dict[str, Any] | None:
    """The ingest section with what `-S` changes in it; None where it cannot be judged. Raises ParamsError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from twinrun.errors import ParamsError

    try:
        ingest = YAML(typ="safe").load(root / "params.yaml")["ingest"]
        source, path = ingest["source"], ingest.get("path")
    except (OSError, YAMLError, KeyError, TypeError, AttributeError):
        return None
    for each in _values(arguments, "-S", "--set-param"):
        name, _, value = each.partition("=")
        if name.endswith("ingest.source"):
            source = value
        if name.endswith("ingest.path"):
            path = value
    if path is None or path == "null":
        raise ParamsError(
            f"params.yaml: ingest.path is null, and must name the folder that DVC watches; without one of your own: "
            f"data/raw/{source}"
        )
    if not isinstance(path, str) or not isinstance(source, str) or "," in path + source:  # wrong, or a sweep
        return None
    if path.startswith("~"):
        raise ParamsError(
            f"params.yaml: ingest.path is {path}, and DVC does not know ~. Write {Path(path).expanduser()}"
        )
    return {"source": source, "path": path}


def _values(arguments: list[str], short: str, long: str) -> list[str]:
    values = []
    for number, each in enumerate(arguments):
        if each in (short, long):
            values += arguments[number + 1 : number + 2]
        elif each.startswith(f"{long}="):
            values.append(each.removeprefix(f"{long}="))
        elif each.startswith(short) and not each.startswith("--"):
            values.append(each.removeprefix(short))
    return values


def _require_there(root: Path, path: str, arguments: list[str]) -> None:
    from twinrun.data.sharing import tracked
    from twinrun.errors import SourceError

    if {"--allow-missing", "--pull", "-P"} & set(arguments) or _is_out(root, path):
        return
    if tracked(root, path) in ("added", "not committed"):
        raise SourceError(
            f"The images of {path} are not here. Fetch them: dvc pull {path}.dvc\n"
            "Or go on without them, as long as no stage needs them: dvc repro --allow-missing"
        )
    raise SourceError(
        f"The source folder {path} does not exist (params.yaml: ingest.path). Put the images there, one folder for "
        "each class, or name another folder."
    )


def _is_out(root: Path, path: str) -> bool:
    """Whether a stage of dvc.yaml makes the folder."""
    return any(line.strip().rstrip(":") == f"- {path}" for line in (root / "dvc.yaml").read_text().splitlines())


def _require_readable(folder: Path) -> None:
    """Name what DVC ends with an error on; what it overlooks is only said."""
    from twinrun.data.sharing import obstacles
    from twinrun.errors import SourceError
    from twinrun.printing import print

    found = obstacles(folder)
    if any(each.fatal for each in found):
        raise SourceError("\n".join(map(str, found)))
    for each in found:
        print(each, file=sys.stderr, flush=True)


def _require_seen(root: Path) -> None:
    """Require that no pattern in a .gitignore hides the folder of the images from DVC.

    For DVC a pattern such as /data/raw/* covers data/raw itself: it then finds no .dvc file below it, and deletes the
    images of one that it knew before.
    """
    from twinrun.errors import SourceError

    ingest = _ingest(root, [])
    if ingest is None:
        return
    path = Path(os.path.normpath(root / ingest["path"]))
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
                found = list(patterns.find_matching(f"{name}x"))  # a name below it
                return name.rstrip("/"), os.fsdecode(found[-1].pattern) if found else "of its own"
    except Exception:  # no repository, or a pattern that dulwich cannot read: DVC says so itself
        return None
    return None


def _require_kept_here(root: Path, command: str) -> None:
    """Require that DVC's cache has all images of the workspace, before a command that replaces or deletes them."""
    from twinrun.errors import SourceError

    if changed := _unstored(root):
        raise SourceError(
            f"`{command}` would delete images that are stored nowhere else: {changed} changed since it was added. "
            f"Store them first: dvc add {changed}"
        )


def _require_stored(root: Path, experiment: str) -> None:
    """`dvc exp apply` replaces images whether or not DVC or git has them: require that they are stored."""
    from twinrun.errors import SourceError

    changed = _unstored(root) or _differing(root, experiment)
    if changed:
        raise SourceError(
            f"`dvc exp apply` would replace images that are stored nowhere else: {changed} changed since it was added. "
            f"Store them first: dvc add {changed}"
        )


def _unstored(root: Path) -> str | None:
    """The first folder or file of a .dvc file whose content is not in DVC's cache as it is now."""
    import json
    import subprocess

    from twinrun.errors import SourceError

    files = [file.decode() for file in _git(root, "ls-files", "-z", "-co", "*.dvc").split(b"\0") if file]
    files = [file for file in files if (root / file.removesuffix(".dvc")).exists()]
    if not files:
        return None
    command = [sys.executable, "-m", "dvc", "status", "--json", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise SourceError(f"Whether DVC has stored all images could not be found out:\n{done.stderr}") from None
    return next((str(file).removesuffix(".dvc") for file in found), None)


def _differing(root: Path, experiment: str) -> str | None:
    """The source folder, if the experiment's commit holds a file in it whose content is another one here.

    DVC puts a folder that was not added into the commits of its experiments.
    """
    ingest = _ingest(root, [])
    if ingest is None:
        return None
    ref = _git(root, "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{experiment}").split()
    commit = ref[0].decode() if ref else experiment
    tree = _git(root, "ls-tree", "-r", "-z", commit, "--", ingest["path"]).split(b"\0")
    recorded = {name: facts.split()[2] for facts, _, name in (entry.partition(b"\t") for entry in tree if entry)}
    here = [name for name in recorded if (root / os.fsdecode(name)).is_file()]
    if not here:
        return None
    hashes = _git(root, "hash-object", "--stdin-paths", "--no-filters", stdin=b"\n".join(here)).split()
    same = [recorded[name] for name in here] == hashes
    return None if same else str(ingest["path"])


def _require_kept(root: Path, arguments: list[str]) -> None:
    """`dvc gc -w` keeps what the workspace names: require that no branch or stash has images that it does not name."""
    from twinrun.errors import SourceError

    bundles = "".join(each for each in arguments if each.startswith("-") and not each.startswith("--"))
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

    env = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *arguments], cwd=root, input=stdin, capture_output=True, check=False, env=env)
    except OSError:
        return b""
    if done.returncode:
        from twinrun.tracking.card import require_trust

        require_trust(root, done.stderr.decode(errors="replace"))
        return b""
    return done.stdout
