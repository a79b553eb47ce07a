"""The commands `twinrun init | preset | upgrade`; each imports what it needs when it is called."""

import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from twinrun.base.printing import print

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting with its value, such as train.epochs=20; may be repeated."),
]


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder: a new one, or an empty one.")],
    preset: Annotated[
        str | None, typer.Option("--preset", help="Settings to start from; by default photos with --data, else digits.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="A folder of images to copy into the project.")] = None,
    changes: Changes = None,
) -> None:
    """Create a project: stages, settings, folders for data, git and DVC. If that fails, nothing is left behind.

    Examples: twinrun init demo, twinrun init bins --data ~/Pictures/bins, twinrun init fashion --preset fashion-mnist
    """
    from twinrun.project.creating import create_project

    chosen = preset or ("photos" if data else "digits")
    created = create_project(folder, chosen, data, tuple(changes or ()))
    print("\n".join([f"{created.folder} is a project with the preset {chosen}.", *created.notes]))
    if not created.committed:
        reason = "lies in a git repository of yours" if created.committed is None else "has no commit yet"
        print(f"It {reason}. Commit it, so that its runs can be reproduced: git add . && git commit -m 'Start'")
    steps = [] if _is_active() else [f"source {shlex.quote(sys.prefix)}/bin/activate"]
    if created.folder != Path.cwd():
        steps.append(f"cd {shlex.quote(str(folder))}")
    print(" && ".join([*steps, "dvc repro"]))


def _is_active() -> bool:
    """Whether `dvc` is the one of the environment that runs this."""
    return shutil.which("dvc") == str(Path(sys.prefix, "bin/dvc"))


def preset(
    name: Annotated[
        str | None,
        typer.Argument(
            help="digits, mnist, fashion-mnist, cifar10, trashnet, photos, photos-tuned, photos-scratch or folder; "
            "without one, all are described.",
            show_default=False,
        ),
    ] = None,
    changes: Changes = None,
) -> None:
    """Write params.yaml for a known data set or for your own photos: every setting, with its unit and reason.

    A params.yaml that you have changed is kept in .twinrun/params.

    Examples: twinrun preset, twinrun preset photos --set ingest.path=data/raw/bins, twinrun preset mnist --set
    train.epochs=5
    """
    from twinrun.base.errors import ParamsError
    from twinrun.project.presets import about_presets, write_preset

    if name is None:
        if changes:
            raise ParamsError("--set changes a preset: name it, as in `twinrun preset photos --set train.epochs=5`")
        width = shutil.get_terminal_size().columns
        for command, about in about_presets().items():
            print(f"{command}\n{textwrap.fill(about, width, initial_indent='  ', subsequent_indent='  ')}\n")
        return
    if not Path("dvc.yaml").is_file():
        raise ParamsError(
            f"This folder is not a project: dvc.yaml is missing. Go to a project's folder, or create a project: "
            f"twinrun init demo --preset {shlex.quote(name)}"
        )
    kept = write_preset(Path.cwd(), name, changes or ())
    if kept is not None:
        print(f"The params.yaml that was here is now {kept}.")
    print(f"params.yaml holds the preset {name}. Run it: dvc repro")


def upgrade() -> None:
    """Bring the project's files up to the installed Twinrun: add missing settings, replace dvc.yaml and pipeline/*.py.

    For use after an update of Twinrun. Values in params.yaml stay. Where a file that it would change has uncommitted
    changes, it stops and writes nothing. If you had changed a stage, git diff shows what to put back.

    Example: twinrun upgrade && git diff
    """
    from twinrun.project.upgrading import upgrade_project

    done = upgrade_project(Path.cwd())
    if done.settings:
        print(f"Added to params.yaml, with defaults: {', '.join(done.settings)}")
    if done.files:
        print(f"Replaced: {', '.join(done.files)}")
    if done.settings or done.files:
        print("Look at the changes and commit them: git diff")
    elif not done.notes:
        print("The project's files are those of this version.")
    for note in done.notes:
        print(note)
