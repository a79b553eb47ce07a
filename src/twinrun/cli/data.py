"""The commands `twinrun data check | fix | split | drift | feedback`; each imports what it needs when it is called."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import DataError, ParamsError, PublishError, SourceError, failing_with
from twinrun.base.paths import expanded
from twinrun.base.printing import print

if TYPE_CHECKING:
    import pyarrow as pa

    from twinrun.decoding.samples import SampleRules
    from twinrun.ingest.folders import Levels
    from twinrun.validate.decisions import Decision
    from twinrun.validate.fixed_splits import FixedSplit

app = typer.Typer(no_args_is_help=True, help="Check images before training, and fix what is wrong with them.")

FINDINGS = Path("data/out/validate/findings.parquet")
DECISIONS = Path("data/decisions/decisions.csv")
FEEDBACK_DECISIONS = Path("data/decisions/feedback.csv")
SPLITS_FILE = Path("data/decisions/splits.csv")
TABLE = Path("data/out/ingest/table.parquet")
PACK = Path("data/out/ingest/images.npy")
RELABELS = Path("relabels.html")
MANIFEST = Path("data/out/validate/manifest.parquet")
OUT_OF_FOLD = Path("data/out/train/out_of_fold.parquet")
_NOT_CHECKED = 2  # exit code
_MOST_LINES = 10
_FEWEST_LINES = 5


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(help="Any folder of images; its sub-folders are labels, or splits and labels.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("twinrun-check"),
    size_px: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=16,
            max=1024,
            help="Side to which images are resized for the checks, pixels; by default 64, or theirs if that is less.",
        ),
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Search for wrong labels, which takes longest.")
    ] = True,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", help="Table of facts to measure drift from, such as data/out/ingest/table.parquet."
        ),
    ] = None,
    levels: Annotated[
        str,
        typer.Option("--levels", help="What each level of folders is, from the top: split, label, group or skip."),
    ] = "auto",
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="Pattern of paths to leave out, such as '*/masks/*'; may be repeated."),
    ] = None,
    splits_file: Annotated[
        Path | None,
        typer.Option(
            "--splits-file",
            help="CSV with the label of each image, such as train.csv of Kaggle: columns path and label, and split or "
            "group if there are any.",
        ),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read links that lead out of the folder as well.")
    ] = False,
    depth: Annotated[
        str,
        typer.Option(
            "--depth", help="Range of samples of more than 8 bits: file, data (each image's own), or a number of bits."
        ),
    ] = "file",
    ground: Annotated[
        str, typer.Option("--ground", help="Colour of transparent parts: white, gray or black.")
    ] = "white",
    bands: Annotated[
        str | None,
        typer.Option("--bands", help="Bands for red, green and blue in files with more than three bands: 4,3,2."),
    ] = None,
) -> None:
    """Run all data checks on a folder, without a pipeline. Exit code: 0 clean, 1 findings, 2 not checked.

    Looks for unreadable images, duplicates, near duplicates, conflicting and wrong labels, shortcuts, poor images and
    drift, and writes a page with pictures. Nothing in the folder is changed.

    Labels are the names of folders. If the folders do not name the classes, a CSV can: --splits-file.

    Examples: twinrun data check ~/Pictures/bins, twinrun data check photos --levels split,label --out report, twinrun
    data check pets --splits-file pets/train.csv
    """
    from twinrun.cli.folder_check import REPORT, check_folder
    from twinrun.validate.messages import summary
    from twinrun.validate.reference import read_reference

    with failing_with(_NOT_CHECKED):
        earlier = read_reference(expanded(reference), "--reference", reference.name) if reference else None
        verdict, notes = check_folder(
            expanded(folder),
            out,
            size_px=size_px,
            labels=labels,
            reference=earlier,
            levels=_levels(levels),
            leave_out=leave_out or (),
            splits_file=expanded(splits_file) if splits_file else None,
            follow_links=follow_links,
            rules=_rules(depth, ground, bands),
        )
    print("\n".join(notes))
    print(summary(verdict, (out / REPORT).as_posix(), None, most_lines=max(_FEWEST_LINES, _MOST_LINES - len(notes))))
    raise SystemExit(1 if verdict.stopping or verdict.warnings else 0)


@app.command("fix")
@app.command("mend", hidden=True)  # its name before 0.2
def fix(
    out: Annotated[Path, typer.Option("--out", help="The CSV; decisions in it are kept.")] = DECISIONS,
    findings: Annotated[
        Path, typer.Option("--findings", help="Findings of validate or of `twinrun data check`.")
    ] = FINDINGS,
    by_model: Annotated[
        bool,
        typer.Option(
            "--by-model", help="Instead, list labels that contradict the out-of-fold predictions of the last training."
        ),
    ] = False,
) -> None:
    """Write a CSV of drops, and labels to look at, from what the last `dvc repro validate` or `data check` found.

    Edit it (the action is drop, relabel or keep; without one a line has no effect) and set validate.decisions in
    params.yaml to apply it. Run again, this command keeps the lines and appends new proposals.

    A label that a model doubts is often right, so its line has no action, only a suggested label. relabels.html shows
    the pictures: write relabel where you see that the label is wrong, and keep where it is right.

    With --by-model, an image's label is doubted by the model of the last training's cross-validation that had not seen
    the image. On photos, these models know more than the quick model of validate.

    Examples: twinrun data fix, twinrun data fix --by-model, twinrun data fix --findings twinrun-check/findings.parquet
    """
    from twinrun.core.params import require_project
    from twinrun.validate.decisions import proposed

    if findings == FINDINGS or by_model:
        require_project()
    if findings != FINDINGS and by_model:
        raise DataError("--findings and --by-model are two sources of proposals. Give one of them.")
    before, new = _add_decisions(_relabels_by_model() if by_model else proposed(_read_findings(findings)), out)
    doubted = [decision for decision in (*before, *new) if decision.action is None]
    decided = len(before) + len(new) - len(doubted)
    if not new and not doubted:
        print("Nothing to propose" + (f" beyond {_count(decided, 'decision')} in {out}." if before else "."))
        return
    drops = sum(decision.action is not None for decision in new)
    proposals = f"{_count(drops, 'drop')} proposed, {_count(len(doubted), 'label')} to look at"
    print(f"{out}: {proposals}, {_count(decided - drops, 'decision')} kept.")
    if doubted:
        report = findings.with_name("index.html")
        first = f": {report} shows the first" if report.is_file() else ""
        print(_where_to_look(doubted) if findings == FINDINGS else f"Look at the images{first}.")
        print("Many of these labels are right, so a line has no effect until you write its action: relabel where the")
        print("label is wrong, keep where it is right.")
    if drops:
        print("Look at the images to drop first: those lines take effect, unless you set their action to keep.")
    _say_how_to_apply(out)


def _where_to_look(doubted: "list[Decision]") -> str:
    """Write a page with the picture of each image whose label is doubted, and name it."""
    from twinrun.base.files import write_text
    from twinrun.dataset.pack import open_pack
    from twinrun.dataset.table import read_table
    from twinrun.evaluation.sheet import Tile, picture_of, sheet_html
    from twinrun.tables.spelling import Names

    if not (PACK.is_file() and TABLE.is_file()):
        return "Look at the images. A page of them needs what ingest wrote: dvc repro ingest, and run this again."
    pack = open_pack(PACK)
    rows = {path: row for row, path in enumerate(read_table(TABLE, len(pack))["path"].to_pylist())}
    names, tiles = Names(rows), []
    for decision in doubted:
        row = rows.get(names.find(decision.path) or "")
        reason = decision.reason.partition(": ")[2] if row is not None else "no longer an image of the data"
        picture = None if row is None else picture_of(pack[row])
        tiles.append(Tile(name=decision.path, picture=picture, error=reason))
    notes = [
        "Many of these labels are right: a model doubts them, and models make mistakes. Relabel only those that "
        "you can see are wrong.",
    ]
    write_text(sheet_html(tiles, title=f"{_count(len(tiles), 'label')} to look at", notes=notes), RELABELS)
    return f"Look at the pictures: {RELABELS}"


def _say_how_to_apply(out: Path) -> None:
    from twinrun.core.params import PARAMS, load_params

    if not PARAMS.is_file():
        print(f"To apply it, copy {out} into data/decisions of a project and set validate.decisions there to the copy.")
        return
    decisions = None
    with suppress(ParamsError):
        decisions = load_params().validate.decisions
    if decisions is not None and Path(decisions).resolve() == out.resolve():
        print("params.yaml names the file already. Apply it: dvc repro")
    else:
        print(f"Then set validate.decisions: {out} in params.yaml, and run: dvc repro")
    _warn_unless_watched(out)


def _add_decisions(decisions: "list[Decision]", out: Path) -> "tuple[list[Decision], list[Decision]]":
    """Append `decisions` on images that have none in `out`; returns the earlier decisions and the new ones."""
    from twinrun.base.files import behind_links, write_text
    from twinrun.tables.sheet import decoded, mark_of
    from twinrun.validate.decisions import decisions_csv, not_decided, read_decisions

    there = out.exists()
    before = read_decisions(out) if there else []
    new = not_decided(decisions, before)
    try:
        if new:
            text = decisions_csv(new, decoded(out, "--out", DataError) if there else "")
            write_text((mark_of(out) if there else "") + text, behind_links(out))
    except OSError as error:
        raise PublishError(f"{out} cannot be written: {error.strerror}. Name another one: --out.") from None
    return before, new


@app.command()
def split(
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"The CSV; by default validate.splits of params.yaml, or else {SPLITS_FILE}."),
    ] = None,
) -> None:
    """Write the split of every image to a CSV for git; from then on no image in it moves to another split.

    Writes the splits of the last `dvc repro validate`. Set validate.splits in params.yaml to the file. Lines, columns
    and separators in it stay as they are, except in lines of images whose pixels changed. Images are recognised by path
    and pixels, so renamed and relabelled ones stay too. New images fill up validate.fractions; after the next `dvc
    repro validate`, run this command again to add them.

    Examples: twinrun data split, twinrun data split --out data/decisions/splits.csv
    """
    from collections import Counter

    from twinrun.base.files import behind_links, write_text
    from twinrun.core.params import load_params
    from twinrun.tables.sheet import mark_of
    from twinrun.validate.fixed_splits import fixed_splits_csv, read_with_sheet, with_images

    setting = load_params().validate.splits
    out = out or Path(setting or SPLITS_FILE)
    before, sheet = read_with_sheet(out) if out.exists() else ([], None)
    images = _drawn_splits(before, out)
    lines = with_images(before, images)
    text = fixed_splits_csv(lines, sheet)
    is_new = sheet is None or text != sheet.text
    if is_new:
        write_text((mark_of(out) if sheet is not None else "") + text, behind_links(out))
    counts = Counter(image.split for image in images)
    sizes = ", ".join(f"{name} {counts[name]:,}" for name in ("train", "val", "test"))
    added = len(lines) - len(before)
    print(
        f"{out}: {_count(len(images), 'image')} ({sizes}), of which {added:,} {'was' if added == 1 else 'were'} added."
    )
    if setting is not None and Path(setting) == out:
        print("Commit it to git." if is_new else "It was up to date.")
    else:
        print(f"Commit it to git, set validate.splits: {out} in params.yaml, and run: dvc repro")
    _warn_unless_watched(out)


def _drawn_splits(before: "list[FixedSplit]", out: Path) -> "list[FixedSplit]":
    """The split of every usable image as validate drew it; raises DataError where it contradicts the file."""
    from twinrun.dataset.manifest import read_manifest_table
    from twinrun.dataset.table import read_table
    from twinrun.validate.fixed_splits import FixedSplit, fixed_splits

    manifest = read_manifest_table(MANIFEST)
    table = read_table(TABLE, len(manifest))
    if table["id"] != manifest["id"]:
        raise DataError(f"{MANIFEST} and {TABLE} are of different images. Create them again: dvc repro validate")
    facts = {name: table[name].to_pylist() for name in ("path", "split", "pixels_sha256")}
    known = fixed_splits(facts, before)
    images, moved = [], []
    for row, (name, dropped) in enumerate(
        zip(*(manifest[column].to_pylist() for column in ("split", "dropped")), strict=True)
    ):
        if dropped is None:
            images.append(FixedSplit(facts["path"][row], name, facts["pixels_sha256"][row]))
            if known[row] not in (None, name):
                moved.append(f"{facts['path'][row]!r} is in {known[row]} there and in {name} now")
    if moved:
        raise DataError(
            f"{_count(len(moved), 'image is', 'images are')} in another split than in {out}, for example {moved[0]}. "
            f"The last validate did not use that file: set validate.splits: {out} in params.yaml, and run: dvc repro "
            "validate"
        )
    return images


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def _warn_unless_watched(out: Path) -> None:
    if not out.resolve().is_relative_to(DECISIONS.parent.resolve()):
        print(f"DVC watches only {DECISIONS.parent}: move it there, or add {out} to the deps of validate in dvc.yaml.")


def _rules(depth: str, ground: str, bands: str | None) -> "SampleRules":
    """The rules that --depth, --ground and --bands set; raises SourceError if a value is not valid."""
    from twinrun.decoding.samples import SampleRules

    if depth not in ("file", "data") and not (depth.isdecimal() and 1 <= int(depth) <= 32):
        raise SourceError(f"--depth {depth!r}: write file, data, or a number of bits from 1 to 32.")
    if ground not in ("white", "gray", "black"):
        raise SourceError(f"--ground {ground!r}: write white, gray or black.")
    numbers = bands.split(",") if bands is not None else []
    if bands is not None and (len(numbers) not in (1, 3) or not all(n.isdecimal() and int(n) for n in numbers)):
        raise SourceError(f"--bands {bands!r}: name one band or three, counted from 1, such as 4,3,2.")
    return SampleRules(
        depth=int(depth) if depth.isdecimal() else depth,  # type: ignore[arg-type]
        ground=ground,  # type: ignore[arg-type]
        bands=tuple(map(int, numbers)) or None,
    )


def _levels(text: str) -> "Levels":
    """The levels that --levels lists; raises SourceError if one is not a level."""
    from typing import get_args

    from twinrun.core.params import Level

    names = text.strip(" []").replace(",", " ").split()
    if names == ["auto"]:
        return "auto"
    levels: list[Level] = [level for word in names for level in get_args(Level) if word == level]
    if not levels or len(levels) < len(names):
        raise SourceError(f"--levels {text!r}: write {', '.join(get_args(Level))} in some order, such as split,label.")
    return levels


@app.command()
def drift(
    model: Annotated[
        str | None, typer.Option("--model", help="Name of the model; by default register.model_name of params.yaml.")
    ] = None,
) -> None:
    """Compare the present training data with those of the champion. Exit code: 0 alike, 1 they differ, 2 not compared.

    Compares the distributions of facts, the labels and the images, and stops nothing. To check drift in the pipeline,
    set validate.reference to a table of facts. For images that were served: twinrun drift.

    Example: twinrun data drift
    """
    from twinrun.core.params import load_params
    from twinrun.tracking.store import find_tracker
    from twinrun.twins.champion_data import champion_facts, facts_used
    from twinrun.twins.material import MANIFEST, TABLE
    from twinrun.validate.searches.drift import drift_lines, find_drift

    with failing_with(_NOT_CHECKED):
        params = load_params()
        before = champion_facts(Path.cwd(), find_tracker(), model or params.register.model_name)
        lines = drift_lines(find_drift(before, facts_used(Path(TABLE), Path(MANIFEST)), seed=params.validate.seed))
    print("\n".join(lines) or "The data have the same distributions, labels and images as those of the champion.")
    raise SystemExit(1 if lines else 0)


@app.command()
def feedback(
    accept: Annotated[
        bool, typer.Option("--accept", help="Copy the photos that the decisions keep or relabel into the data.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Folder for accepted photos; by default that of the source (ingest.path)."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The CSV; decisions in it are kept.")] = FEEDBACK_DECISIONS,
) -> None:
    """Check the photos that users sent (twinrun serve --feedback), and add those that you accept to the data.

    Proposes to drop photos that are unreadable, copies of images in the data (above all of test images), or probably
    labelled wrong. Writes a page with the pictures, and a CSV with a line for each photo: keep, drop or relabel. Edit
    it, and run again with --accept. Exit code: 0 no photo was held back, 1 some were, 2 not checked.

    Examples: twinrun data feedback, twinrun data feedback --accept
    """
    from twinrun.core.params import require_project

    with failing_with(_NOT_CHECKED):
        require_project()
        held = _accept_feedback(out, into) if accept else _check_feedback(out)
    raise SystemExit(1 if held else 0)


def _check_feedback(out: Path) -> int:
    """Judge the photos in data/feedback, and return how many are held back."""
    from collections import Counter

    from twinrun.base.files import write_text
    from twinrun.cli.feedback_check import check_feedback
    from twinrun.core.params import load_params
    from twinrun.evaluation.sheet import Tile, picture_of, sheet_html
    from twinrun.serving.feedback import FEEDBACK, read_feedback
    from twinrun.validate.decisions import read_decisions

    items = read_feedback(FEEDBACK)
    if not items:
        print(f"There is no feedback in {FEEDBACK}. To collect some from users: twinrun serve --feedback")
        return 0
    if out.exists():
        read_decisions(out)  # raises for an invalid file before the photos are judged, which takes longer
    photos, pixels = check_feedback(FEEDBACK, items, load_params())
    held = Counter(photo.kind for photo in photos if photo.kind is not None)
    _add_decisions([photo.proposal for photo in photos], out)
    tiles = [
        Tile(
            name=f"{photo.file[:12]}: {' or '.join(photo.labels)}, and not {photo.predicted}",
            picture=None if photo.kind == "unreadable" else picture_of(picture),
            error=None if photo.problem is None else f"{photo.kind}: {photo.problem}",
        )
        for photo, picture in sorted(zip(photos, pixels, strict=True), key=lambda pair: pair[0].problem is None)
    ]
    title = f"{_count(len(photos), 'photo')}, {held.total():,} held back"
    sheet = FEEDBACK / "sheet.html"
    write_text(sheet_html(tiles, title=title, notes=["Labels are those that users gave."]), sheet)
    print(f"{title}{': ' if held else '.'}{', '.join(f'{count:,} {kind}' for kind, count in sorted(held.items()))}")
    for photo in [photo for photo in photos if photo.problem is not None][:_MOST_LINES]:
        print(f"  {photo.file[:12]} {photo.kind}: {photo.problem}")
    print(f"Pictures: {sheet}   Decisions: {out}")
    print("Look at them, edit the column action (keep, drop or relabel), and run: twinrun data feedback --accept")
    return held.total()


def _accept_feedback(out: Path, into: Path | None) -> int:
    from twinrun.cli.feedback_check import accept
    from twinrun.core.params import load_params
    from twinrun.serving.feedback import FEEDBACK, read_feedback
    from twinrun.validate.decisions import read_decisions

    if not out.exists():
        raise DataError(f"{out} is missing. Write it, and look at it: twinrun data feedback")
    decisions, items = read_decisions(out), read_feedback(FEEDBACK)
    accepted = accept(FEEDBACK, items, decisions, load_params(), into)
    print(f"{_count(accepted.new, 'photo')} added to {accepted.folder}, {accepted.before:,} were there.")
    waiting = {item.file for item in items} - {decision.path for decision in decisions if decision.action}
    if waiting:
        print(f"{_count(len(waiting), 'photo')} without a decision stay out: twinrun data feedback")
    if accepted.new and not accepted.is_read:
        print(f"Commit {out} to git. The pipeline does not read {accepted.folder}: to train on these photos, put them")
        print("into a folder of your own with the images of the source, and set ingest.source and ingest.path to it.")
    elif accepted.new:
        watched = Path(f"{accepted.folder}.dvc")
        added = f", run dvc add {shlex.quote(str(accepted.folder))}," if watched.exists() else ""
        print(f"Commit {out} to git{added} and run: dvc repro")
    return 0


def _relabels_by_model() -> "list[Decision]":
    """Proposals for labels that the models of cross-validation doubt; raises DataError if they made no predictions."""
    from twinrun.dataset.manifest import read_manifest
    from twinrun.dataset.table import read_table
    from twinrun.evaluation.headline import read_out_of_fold
    from twinrun.validate.decisions import Decision
    from twinrun.validate.searches.label_errors import LEAST_AGREEMENT, doubted

    facts = read_table(TABLE)
    manifest = read_manifest(MANIFEST, len(facts))
    scored = read_out_of_fold(OUT_OF_FOLD, manifest)
    if scored is None:
        raise DataError(
            "The last training has no out-of-fold predictions. In params.yaml, set train.probe.folds: 5 for a linear "
            "head on pretrained features, or train.folds: 5 for any other network, and run: dvc repro"
        )
    by_model = scored.predictions
    agreement = float((by_model.predicted == by_model.targets).mean())
    if agreement < LEAST_AGREEMENT:
        raise DataError(
            f"The models of cross-validation agree with only {agreement:.0%} of the labels, too few to doubt any. Look "
            "at the mistakes in data/out/evaluate/report/index.html, or train a better model."
        )
    paths = facts["path"].take(manifest.rows_of(by_model.ids)).to_pylist()
    names = by_model.classes
    decisions = []
    for at, suggested in doubted(by_model.targets, by_model.probabilities):
        given = int(by_model.targets[at])
        reason = (
            f"by model: looks like {names[suggested]}; the probability of {names[given]} is "
            f"{by_model.probabilities[at, given]:.2f}"
        )
        decisions.append(Decision(paths[at], None, names[suggested], reason, ""))
    return decisions


def _read_findings(path: Path) -> "pa.Table":
    from twinrun.base.files import read_parquet
    from twinrun.validate.results import findings_schema

    again = "dvc repro -f validate" if path == FINDINGS else "twinrun data check"
    try:
        nulls = ("path", "action", "label")
        return read_parquet(path, findings_schema(), "a table of findings", f"Create it again: {again}", nulls=nulls)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Create it: {again.replace(' -f', '')}") from None
