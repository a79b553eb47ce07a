"""The command `twinrun predict`. Like the others it imports what it needs when it is called."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import DataError, PublishError, failing_with
from twinrun.base.paths import expanded
from twinrun.base.printing import add_row, draw, one_line, print, without_library_output
from twinrun.base.progress import phase, progress

if TYPE_CHECKING:
    from twinrun.cli.chosen_model import Model
    from twinrun.core.arrays import Pixels
    from twinrun.models.bundle import Bundle
    from twinrun.prediction.parts import Parts
    from twinrun.prediction.rows import Row

_NOT_PREDICTED = 2  # exit code
_ROWS_PRINTED = 20
_REASONS_PRINTED = 5
_TILES_SHOWN = 500
SHEET = Path("predictions.html")


class Engine(StrEnum):
    """Where parts are classified."""

    local = "local"
    slurm = "slurm"
    ray = "ray"
    spark = "spark"


@dataclass(frozen=True)
class _Spread:
    """How a list is classified: where, how many parts at a time, and how many parts."""

    on: Engine
    workers: int | None
    parts: int | None

    def option(self) -> str | None:
        """The first option that a person gave, as it was given; None where there was none."""
        given = (
            ("--on", None if self.on is Engine.local else self.on.value),
            ("--workers", self.workers),
            ("--parts", self.parts),
        )
        return next((f"{name} {value}" for name, value in given if value is not None), None)


def predict(
    images: Annotated[
        list[str],
        typer.Argument(help='Images, folders of them, patterns ("*.jpg"), or CSV files with a column of paths.'),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="NAME@champion, NAME/3, a version's number, or the folder of a bundle, such as data/out/train/bundle. "
            "By default the champion of params.yaml's model, or else its candidate, or else the model that was trained "
            "here last.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a row for each image to this .csv or .parquet file.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of labels for each image, the likeliest first.")] = 3,
    show: Annotated[
        bool, typer.Option("--show", help=f"Write a page with the pictures, {SHEET}, and open it on a desktop.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write that page to this file and do not open it.")
    ] = None,
    on: Annotated[
        Engine,
        typer.Option(
            "--on",
            help="Where the parts of --out are classified: here, by jobs of Slurm, or by tasks of Ray or Spark.",
        ),
    ] = Engine.local,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            max=10_000,
            help="Parts that are classified at a time, for --on; by default one for each core.",
        ),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            "--parts", min=1, help="Number of parts the list of images is cut into; by default one for every 500."
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a model that contains the code of its network, and run that code.")
    ] = False,
) -> None:
    """Classify images with the champion, or another model.

    The order is kept. Folders are searched with all their sub-folders, sorted by path; files that are not images are
    left out. With --out, the same command continues after an interruption. Exit code: 0 all images were classified, 1
    some are unreadable (see their rows), 2 none was classified.

    Examples: twinrun predict photo.jpg, twinrun predict photos --out labels.csv --show,
    twinrun predict list.csv --model 3 --top 1, twinrun predict photos --out labels.parquet --on ray --workers 8
    """
    with failing_with(_NOT_PREDICTED):
        rows = _predict(images, model, out, top, sheet or (SHEET if show else None), trust, _Spread(on, workers, parts))
    if show and sheet is None and is_desktop():
        typer.launch(SHEET.resolve().as_uri())
    failed = sum(row.error is not None for row in rows)
    raise SystemExit(0 if not failed else 1 if failed < len(rows) else _NOT_PREDICTED)


def _predict(
    images: list[str],
    reference: str | None,
    out: Path | None,
    top: int,
    sheet: Path | None,
    trust: bool,
    spread: _Spread,
) -> list["Row"]:
    from twinrun.base.files import behind_links
    from twinrun.cli.chosen import choose_images

    chosen = choose_images(images)
    read = [*images, *map(str, chosen.lists)]
    for file in filter(None, (out, sheet)):
        suffixes, option = ((".csv", ".parquet"), "--out") if file is out else ((".html", ".htm"), "--sheet")
        require_writable(file, suffixes, read, option)
    if out is None and (given := spread.option()) is not None:
        raise DataError(f"{given} needs a file for the answers: --out labels.parquet")
    if spread.workers is not None and spread.on is Engine.local:
        print(
            f"--workers {spread.workers} has no effect here: one part is classified at a time, on all cores. It is for "
            "--on slurm, ray or spark.",
            file=sys.stderr,
        )
    for note in chosen.notes:
        print(note, file=sys.stderr)
    with ExitStack() as stack:
        with phase("Loading the model"):  # importing PyTorch takes seconds as well
            from twinrun.cli.chosen_model import loaded
            from twinrun.prediction.parts import Parts, locked_parts, remove_parts

            model = stack.enter_context(loaded(reference, trust))
        print(f"Model: {model.name}", file=sys.stderr)
        if model.note:
            print(model.note, file=sys.stderr)
        top = min(top, len(model.bundle.classes))
        target = None if out is None else behind_links(out)
        with nullcontext() if target is None else locked_parts(target):
            parts = None if target is None else Parts(target, model.bundle, chosen.paths, top, spread.parts)
            if parts is not None and spread.on is not Engine.local:
                _classify_elsewhere(parts, model, len(chosen.paths), trust, spread)
            rows, pictures = _answered(model.bundle, chosen.paths, top, _TILES_SHOWN if sheet else 0, parts)
            if out is not None and target is not None:
                _write(rows, out, top)
                remove_parts(target)
    if sheet is not None:
        _write_sheet(rows, pictures, model.name, sheet)
    _print(rows, model.bundle.classes)
    for file in filter(None, (out, sheet)):
        print(f"Written: {file}", file=sys.stderr)
    return rows


def _classify_elsewhere(parts: "Parts", model: "Model", images: int, trust: bool, spread: _Spread) -> None:
    from twinrun.core.cores import available_cores
    from twinrun.sweep.engines import open_launcher

    slots = min(spread.workers or available_cores(), max(1, len(parts.starts)))
    launcher = open_launcher(spread.on.value, slots, parts.jobs, module="twinrun.prediction.parts")
    try:
        with progress(f"Classifying on {spread.on}", images) as advance:
            for done in parts.run(launcher, model.folder, trust=trust):
                advance(done)
    finally:
        launcher.close()


def _answered(
    bundle: "Bundle", paths: list[Path], top: int, tiles: int, parts: "Parts | None"
) -> tuple[list["Row"], dict[int, str]]:
    """A row for each path, and pictures of the readable images among the first `tiles`, by their position.

    Rows that `parts` has stored are read from there, except for parts whose pictures are needed; new rows are stored.
    """
    from twinrun.evaluation.sheet import picture_of
    from twinrun.prediction.classifier import ImageClassifier
    from twinrun.prediction.rows import Row, classified

    classifier = ImageClassifier(bundle)
    pictures: dict[int, str] = {}
    rows: list[Row] = []

    def see(start: int, place: int, pixels: "Pixels") -> None:
        if start + place < tiles:
            pictures[start + place] = picture_of(pixels)

    try:
        with without_library_output(), progress("Classifying", len(paths)) as advance:
            if parts is None:
                for row in classified(classifier, paths, top, partial(see, 0)):
                    rows.append(row)
                    advance(1)
                return rows, pictures
            for start in parts.starts:
                kept = parts.read(start) if start >= tiles else None
                if kept is None:
                    kept = []
                    for row in classified(classifier, parts.paths(start), top, partial(see, start)):
                        kept.append(row)
                        advance(1)
                    parts.write(start, kept)
                else:
                    advance(len(kept))
                rows += kept
    except KeyboardInterrupt:
        if parts:
            print(
                f"{len(rows):,} of {len(paths):,} images are done. The same command goes on from there.",
                file=sys.stderr,
            )
        raise
    return rows, pictures


def require_writable(file: Path, suffixes: tuple[str, ...], images: Sequence[str], option: str = "--out") -> None:
    """Raise DataError or PublishError if `file` has another suffix, must not be replaced, or cannot be written.

    It must not be replaced if it is one of the images, or neither empty nor a page or table that Twinrun wrote.
    """
    from twinrun.base.files import behind_links, ensure_writable, require_replaceable
    from twinrun.tables.page import is_page

    if file.suffix.lower() not in suffixes:
        raise DataError(
            f"{file} cannot be written: its name must end with {' or '.join(suffixes)}, such as "
            f"{file.stem}{suffixes[0]}"
        )
    if any(_is_same(file, expanded(image)) for image in images):
        raise PublishError(f"{file} is one of the images and would be overwritten. Name another file.")
    if file.is_dir():
        raise PublishError(f"{file} is a folder. Name a file in it: {file / 'predictions'}{suffixes[0]}")
    require_replaceable(file, is_page if ".html" in suffixes else _is_table, option)
    folder = behind_links(file).parent
    try:
        # Not the folder itself, which is only created once there is something to write.
        ensure_writable(next(above for above in (folder, *folder.parents) if above.exists()), 0)
    except OSError as error:
        raise PublishError(f"{file} cannot be written: {error.strerror}. Name another file.") from None


def _is_table(file: Path) -> bool:
    from twinrun.prediction.rows import is_table

    return is_table(file)


def _is_same(file: Path, other: Path) -> bool:
    """Whether two paths name the same file, even by a link, another spelling, or another case where it is ignored."""
    try:
        return file.samefile(other)
    except OSError:
        return file.resolve() == other.resolve()


def _write(rows: Sequence["Row"], out: Path, top: int) -> None:
    from twinrun.base.files import behind_links, write_table, write_text
    from twinrun.prediction.rows import table_of
    from twinrun.tables.sheet import sheet_text

    table, file = table_of(rows, top), behind_links(out)
    if out.suffix.lower() == ".parquet":
        write_table(table, file)
        return
    write_text(sheet_text([table.column_names, *(list(row.values()) for row in table.to_pylist())]), file)


def _write_sheet(rows: Sequence["Row"], pictures: dict[int, str], model: str, sheet: Path) -> None:
    from twinrun.base.files import behind_links, write_text
    from twinrun.evaluation.sheet import Tile, sheet_html

    tiles = [
        Tile(name=row.name, picture=pictures.get(number), labels=row.labels, error=row.error)
        for number, row in enumerate(rows[:_TILES_SHOWN])
    ]
    notes = [f"Classified by {model}. Each picture is what the model sees."]
    if len(rows) > len(tiles):
        notes.append(f"The first {len(tiles):,} of {len(rows):,} images.")
    title = f"{len(rows):,} image{'' if len(rows) == 1 else 's'}"
    write_text(sheet_html(tiles, title=title, notes=notes), behind_links(sheet))


def _print(rows: Sequence["Row"], classes: Sequence[str]) -> None:
    """Print every image if there are few, else a summary by class. Names are plain text, not markup."""
    from rich.table import Table
    from rich.text import Text

    from twinrun.prediction.rows import MISSING

    table = Table(box=None, pad_edge=False, header_style="bold")
    if len(rows) <= _ROWS_PRINTED:
        for name in ("image", "label", "probability", "then"):
            table.add_column(name, overflow="fold")
        for row in rows:
            if row.error is not None:
                label = "missing" if row.error == MISSING else "unreadable"
                add_row(table, row.name, Text(label, style="red"), "", row.error)
                continue
            first, *others = row.labels
            then = ", ".join(f"{label} {share:.3f}" for label, share in others)
            add_row(table, row.name, Text(one_line(first[0]), style="bold"), f"{first[1]:.4f}", then)
    else:
        counts = Counter(row.labels[0][0] for row in rows if row.labels)
        for name in ("label", "images", "mean probability"):
            table.add_column(name, overflow="fold", justify="left" if name == "label" else "right")
        for label in sorted(classes, key=lambda label: -counts[label]):
            shares = [row.labels[0][1] for row in rows if row.labels and row.labels[0][0] == label]
            mean = f"{sum(shares) / len(shares):.3f}" if shares else ""
            add_row(table, label, f"{counts[label]:,}", mean)
    draw(table)
    failed = [row for row in rows if row.error is not None]
    if failed and len(rows) > _ROWS_PRINTED:
        print(f"{len(failed):,} of {len(rows):,} images cannot be read:")
        for row in failed[:_REASONS_PRINTED]:
            print(f"  {row.name}: {row.error}")
        if len(failed) > _REASONS_PRINTED:
            print(f"  and {len(failed) - _REASONS_PRINTED:,} more; --out writes them all")


def is_desktop() -> bool:
    """Whether there is a desktop on which a page can be opened."""
    if not sys.stdout.isatty() or "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
