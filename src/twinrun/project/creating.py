"""Creating a project: `twinrun init`. It is built in a temporary folder, which is moved into place once complete."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.base.errors import OF_THE_TARGET, PublishError, RepositoryError, SourceError, TwinrunError, os_problem
from twinrun.base.files import explained, write_text
from twinrun.base.paths import expanded, not_a_folder
from twinrun.ingest.folders import list_folder, list_trashnet
from twinrun.ingest.walking import IMAGE_SUFFIXES
from twinrun.project.environment import CODE, refresh
from twinrun.project.presets import preset_params, quoted, write_preset
from twinrun.record.card import run_git

GITIGNORE = ".gitignore"

_HERE = Path(__file__).parent
_EMPTY = ("data/raw", "mlruns")  # and the folders that stages depend on
_OF_TWINRUN = "# Development of Twinrun itself"  # what follows in .gitignore and .dvcignore is not copied
_PACKAGES = "src/twinrun/"
_UNFINISHED = ".creating-"  # not .unfinished-, which .gitignore lists: DVC does not work in ignored folders
_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
_DVC_GITIGNORE = "/config.local\n/tmp\n/cache\n"
_DVC_HEADER = f"""\
The five stages. Each runs again when its data, its settings, its file in pipeline/, or what is installed has changed:
{CODE} holds a hash of each folder of Twinrun's code, and requirements.lock the version of every package."""


@dataclass(frozen=True)
class Created:
    """A new project: its folder, whether git has its first commit (None inside another one), notes on its data."""

    folder: Path
    committed: bool | None
    notes: list[str]


def create_project(folder: Path, preset: str, data: Path | None = None, changes: tuple[str, ...] = ()) -> Created:
    """Make a project at `folder`, which does not exist or is empty, with a copy of the images in `data`.

    Sets up git and DVC where they are missing. After an error, nothing is left behind, and a folder that existed is
    empty again. Raises PublishError for a folder that is not empty or cannot be written, SourceError for data that
    cannot be copied or that ingest would refuse, ParamsError for an unknown preset or setting, RepositoryError where
    git or DVC fails.
    """
    folder = expanded(folder).absolute()
    _require_empty(folder)
    notes: list[str] = []
    if data is not None:
        data = expanded(data).resolve()
        _require_copyable(data, folder, preset)
        notes = _notes_on(data, preset, changes)
        changes = (*changes, f"ingest.path={quoted(f'data/raw/{data.name}')}")
    outer = _git_above(folder)
    exists = folder.is_dir()  # then it is built inside: it may be a mount point, or its parent read-only
    unfinished = (folder if exists else folder.parent) / f"{_UNFINISHED}{folder.name}-{uuid.uuid4().hex[:8]}"
    new_above = [above for above in unfinished.parents if not above.exists()]
    try:
        with explained(folder / GITIGNORE if exists else folder):
            unfinished.mkdir(parents=True)
        with explained(folder):
            _write_files(unfinished, preset, changes)
            if outer is None:
                _run_git(unfinished, "init", "--quiet")
            _run_dvc(unfinished, "init", "--no-scm")  # without --no-scm, DVC stages files in git
            write_text(_DVC_CONFIG, unfinished / ".dvc/config")
            write_text(_DVC_GITIGNORE, unfinished / ".dvc/.gitignore")
            if data is not None:
                _copy(data, unfinished / "data/raw" / data.name)
                _require_stored(unfinished, data)
                _run_dvc(unfinished, "add", f"data/raw/{data.name}")
            committed = _commit(unfinished) if outer is None else None
            if exists:
                _move_up(unfinished)
            else:
                unfinished.rename(folder)
    except BaseException as error:
        if isinstance(error, TwinrunError):  # the temporary folder is gone when its message is read
            error.args = (str(error).replace(str(unfinished), str(folder)),)
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            for above in new_above:
                above.rmdir()
        raise
    return Created(folder, committed, notes)


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        if folder.is_dir() and (left := next(folder.glob(f"{_UNFINISHED}*"), None)):
            raise PublishError(
                f"{folder} is not empty: an attempt that was interrupted left {left.name}; nothing was written. Empty "
                "the folder, unless another process creates a project there now, and run again."
            )
        if (folder / CODE).is_file() and (folder / "dvc.yaml").is_file():
            raise PublishError(
                f"{folder} is a project already; nothing was written. Name another folder, or use it: "
                f"cd {shlex.quote(str(folder))} && dvc repro"
            )
        problem = "is not empty" if folder.is_dir() else "is not a folder"
        raise PublishError(f"{folder} {problem}; nothing was written. Name a folder that does not exist yet.")


def _require_copyable(data: Path, folder: Path, preset: str) -> None:
    """Raise SourceError if the data cannot be copied, or if the preset has images of its own."""
    if preset_params(preset).ingest.source == "digits":
        raise SourceError(f"The preset {preset} brings its own images. For --data, use --preset photos or folder.")
    if not data.is_dir():
        raise SourceError(f"{data} (--data) {not_a_folder(data)}.")
    if problem := _unfit_name(data.name):
        raise SourceError(f"The name of {data} (--data) {problem}. Rename the folder.")
    if folder.resolve().is_relative_to(data):
        raise SourceError(f"{folder} lies in {data} (--data), which is copied into it. Make the project elsewhere.")
    empty = True
    for place, folders, files in os.walk(data):
        empty = empty and not files
        if linked := next((Path(place, name) for name in folders if Path(place, name).is_symlink()), None):
            raise SourceError(
                f"{linked} is a link to a folder, which --data does not follow. Put the images themselves there, or "
                "leave --data out and set ingest.path."
            )
    if empty:
        raise SourceError(f"{data} (--data) has no images in it. Name a folder of images.")


def _notes_on(data: Path, preset: str, changes: tuple[str, ...]) -> list[str]:
    """How ingest will read the folder; raises SourceError where it would refuse it, before anything is copied."""
    settings = preset_params(preset, changes).ingest
    if settings.source not in ("folder", "trashnet") or settings.splits_file is not None:  # the file is in the copy
        return []
    make = list_trashnet if settings.source == "trashnet" else list_folder
    try:  # the copy has files in place of links
        listing = make(data, None, settings.levels, settings.leave_out, follow_links=True)
    except SourceError as error:
        problem = str(error).replace("params.yaml: ingest.path", "--data").replace("into params.yaml", "with --set")
        table = shlex.quote(f"ingest.splits_file=data/raw/{data.name}/labels.csv")
        advice = (
            f" Settings are given with --set, such as --set 'ingest.levels=[split, label]', or --set {table} for a "
            "labels.csv in that folder."
            if settings.source == "folder"
            else f" To read a folder as your own photos: --data {shlex.quote(str(data))} --preset photos"
        )
        raise SourceError(f"{problem}\nNo project was created.{advice}") from None
    return [f"{len(listing.items):,} images. {listing.notes[0]}", *listing.notes[1:]]


def _unfit_name(name: str) -> str | None:
    """Why DVC, or the .gitignore that it writes, cannot handle the name of a folder; None if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8, which DVC needs"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "has a control character, such as a line break, so git would not ignore its photos"
    if name.endswith(" "):
        return "ends with a space, so git would not ignore its photos"
    return "ends with .dvc, which DVC takes for one of its own files" if name.endswith(".dvc") else None


def _git_above(folder: Path) -> Path | None:
    """The root of the git repository that `folder` would lie in; None if there is none."""
    parents = folder.resolve().parents  # those of its target, if it is a link
    parent = next(folder_above for folder_above in parents if folder_above.is_dir())
    top = run_git(parent, "rev-parse", "--show-toplevel")
    return None if top.returncode else Path(top.stdout.removesuffix("\n"))


def _write_files(project: Path, preset: str, changes: tuple[str, ...]) -> None:
    write_preset(project, preset, changes)
    for name, text in stage_files().items():
        write_text(text, project / name)
    for name in (GITIGNORE, ".dvcignore"):
        write_text(ignored(name), project / name)
    write_text((_HERE / "project_readme.md").read_text(encoding="utf-8"), project / "README.md")
    for name in (*_EMPTY, *_watched(_stages())):
        (project / name).mkdir(parents=True, exist_ok=True)
        (project / name / ".gitkeep").touch()
    refresh(project)


def _template(name: str) -> Path:
    """A file of a project: in the wheel beside this module, in Twinrun's own repository at its root."""
    packed = _HERE / "files" / name
    return packed if packed.exists() else _HERE.parents[2] / name


def stage_files() -> dict[str, str]:
    """dvc.yaml and the files of pipeline/, by path in a project, as this version of Twinrun writes them."""
    from ruamel.yaml import YAML

    yaml, text = YAML(typ="rt", pure=True), io.StringIO()
    yaml.width = 120
    yaml.dump(_stages(), text)
    files = sorted(_template("pipeline").glob("*.py"))
    return {"dvc.yaml": text.getvalue()} | {f"pipeline/{file.name}": file.read_text(encoding="utf-8") for file in files}


def ignored(name: str = GITIGNORE) -> str:
    """A project's .gitignore or .dvcignore."""
    return _template(name).read_text(encoding="utf-8").partition(_OF_TWINRUN)[0]


def _stages() -> Any:
    """The stages of this repository, with code.yaml in place of the folders of src that they depend on."""
    from ruamel.yaml import YAML

    content: Any = YAML(typ="rt", pure=True).load(_template("dvc.yaml").read_text(encoding="utf-8"))
    for stage in content["stages"].values():
        stage["cmd"] = stage["cmd"].removeprefix("PYTHONPATH=src ")
        packages = [dep.removeprefix(_PACKAGES) for dep in stage["deps"] if dep.startswith(_PACKAGES)]
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith(_PACKAGES)]
        stage["params"] = [*stage["params"], {CODE.as_posix(): packages}]
    content.yaml_set_start_comment(_DVC_HEADER)
    return content


def _watched(content: Any) -> list[str]:
    """The folders that a person fills and that stages depend on, such as data/decisions."""
    deps = {str(dep) for stage in content["stages"].values() for dep in stage["deps"]}
    return sorted(dep for dep in deps if not dep.startswith(("data/out/", "$")) and not Path(dep).suffix)


def _copy(data: Path, place: Path) -> None:
    try:
        shutil.copytree(data, place, ignore_dangling_symlinks=True)
    except shutil.Error as error:  # which lists the errors of all files, as texts
        source, _, reason = error.args[0][0]
        number = re.match(r"\[Errno (\d+)\]", reason)
        if number is None:
            raise SourceError(f"{source} cannot be copied: {reason}") from None
        raise _not_copied(int(number[1]), source) from None
    except OSError as error:
        raise _not_copied(error.errno or 0, str(data)) from None


def _require_stored(project: Path, data: Path) -> None:
    """Raise SourceError if DVC would silently leave out images, because of the project's or the folder's .dvcignore."""
    place = Path("data/raw", data.name)
    files = [str(file.relative_to(project)) for file in (project / place).rglob("*") if not file.is_dir()]
    seen = [
        name
        for name in files
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
        and not any(map(_is_of_programs, Path(name).parts))
        and "\n" not in name
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "dvc", "check-ignore", "--stdin"],
        cwd=project,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        input="\n".join(seen) + "\n",
    )
    if ran.returncode == 0 and (left_out := ran.stdout.splitlines()):
        first = data / Path(left_out[0]).relative_to(place)
        raise SourceError(
            f"DVC would not store {len(left_out):,} of the images in {data} (--data), such as {first}: a .dvcignore, "
            "in that folder or a project's own, leaves them out. Rename the folder or these files, or "
            "remove the pattern from the .dvcignore of that folder."
        )


def _is_of_programs(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _not_copied(number: int, source: str) -> OSError | SourceError:
    """The error for a file of --data: the disk's if `number` is an error of the disk written to, else the file's."""
    error = OSError(number, os.strerror(number))
    return error if number in OF_THE_TARGET else SourceError(os_problem(error, source, verb="copied"))


def _run_dvc(folder: Path, *arguments: str) -> None:
    ran = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    _expect_success("dvc", arguments, ran)


def _run_git(folder: Path, *arguments: str) -> None:
    _expect_success("git", arguments, run_git(folder, *arguments))


def _expect_success(program: str, arguments: tuple[str, ...], ran: "subprocess.CompletedProcess[str]") -> None:
    if not ran.returncode:
        return
    text = ran.stderr.strip() or ran.stdout.strip()
    for number in OF_THE_TARGET:
        if os.strerror(number) in text:
            raise OSError(number, os.strerror(number))
    raise RepositoryError(f"{program} {arguments[0]} failed: {text}")


def _commit(folder: Path) -> bool:
    """Make the first commit, and return whether git did: without an author's name it does not."""
    _run_git(folder, "add", "--all")
    return run_git(folder, "commit", "--quiet", "--message", "Start the project").returncode == 0


def _move_up(unfinished: Path) -> None:
    """Move the content of the folder into its parent; after an error, move it back."""
    folder, names = unfinished.parent, [path.name for path in unfinished.iterdir()]
    try:
        for name in names:
            if os.path.lexists(folder / name):
                raise PublishError(f"{folder / name} appeared meanwhile; no project was created. Empty {folder} first.")
            (unfinished / name).rename(folder / name)
        unfinished.rmdir()
    except BaseException:
        for name in names:
            if not os.path.lexists(unfinished / name):  # it was moved, so what is above is ours
                with suppress(OSError):
                    (folder / name).rename(unfinished / name)
        raise
