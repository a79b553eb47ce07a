"""The commands `twinrun init | preset`; each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from twinrun.core.printing import print

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting and its value, such as train.epochs=20; may be repeated."),
]


def preset(
    name: Annotated[str, typer.Argument(help="digits, mnist, fashion-mnist, trashnet, photos or folder.")],
    changes: Changes = None,
) -> None:
    """Write params.yaml of a known data set, or for your own photos: every setting, with its unit and reason.

    A params.yaml with settings of your own is kept, and its new place printed.

    Examples: twinrun preset photos --set ingest.path=data/raw/bins, twinrun preset mnist --set train.epochs=5
    """
    from twinrun.project.presets import write_preset

    kept = write_preset(Path.cwd(), name, changes or ())
    if kept is not None:
        print(f"The params.yaml that was here is now {kept}.")
    print(f"params.yaml holds the preset {name}. Run it: dvc repro")
