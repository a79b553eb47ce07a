"""The commands `twinrun data check | mend`. Like the others they import what they need when they are called."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.errors import DataError, PublishError, SourceError, TwinrunError

if TYPE_CHECKING:
    import pyarrow as pa

    from twinrun.data.folders import Levels

app = typer.Typer(
    no_args_is_help=True, help="Look at images before anything is trained on them, and mend what is wrong."
)

FINDINGS = Path("data/out/validate/findings.parquet")
DECISIONS = Path("data/decisions/decisions.csv")
_NOT_CHECKED = 2  # exit code
_MOST_LINES = 10
_FEWEST_LINES = 5


@app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(help="Any folder of images; folders in it are taken for labels, or splits and labels.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the report.")] = Path("twinrun-check"),
    size_px: Annotated[
        int, typer.Option("--size", min=16, max=1024, help="Side of the copies that are compared, pixels.")
    ] = 64,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Search for wrong labels, which takes longest.")
    ] = True,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="Measure drift against a table of facts, such as an ingest's table.parquet."),
    ] = None,
    levels: Annotated[
        str,
        typer.Option("--levels", help="What each level of folders is, from the top: split, label, group or skip."),
    ] = "auto",
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="Pattern of paths to leave out, such as '*/masks/*'; may be repeated."),
    ] = None,
) -> None:
    """Run all data checks on a folder, without a pipeline. Exit code: 0 clean, 1 findings, 2 it could not be checked.

    Looks for broken files, copies and near copies, contradicting and wrong labels, shortcuts, poor images and drift,
    and writes a page with pictures. Nothing in the folder is changed.

    Examples: twinrun data check ~/Pictures/bins, twinrun data check photos --levels split,label --out report
    """
    from twinrun.data.folder_check import REPORT, check_folder
    from twinrun.data.reference import read_reference
    from twinrun.data.validation.words import summary

    try:
        earlier = read_reference(reference.expanduser(), "--reference", reference.name) if reference else None
        verdict, notes = check_folder(
            folder.expanduser(),
            out,
            size_px=size_px,
            labels=labels,
            reference=earlier,
            levels=_levels(levels),
            leave_out=leave_out or (),
        )
    except TwinrunError as error:
        error.exit_code = _NOT_CHECKED
        raise
    print("\n".join(notes))
    print(summary(verdict, (out / REPORT).as_posix(), None, most_lines=max(_FEWEST_LINES, _MOST_LINES - len(notes))))
    raise SystemExit(1 if verdict.failed or verdict.warnings else 0)


@app.command()
def mend(
    out: Annotated[Path, typer.Option("--out", help="The CSV; what it decides already stays as it is.")] = DECISIONS,
    findings: Annotated[
        Path, typer.Option("--findings", help="What was found, by validate or by `twinrun data check`.")
    ] = FINDINGS,
) -> None:
    """Write a CSV of drops and relabels for what the last `dvc repro validate` or `twinrun data check` found.

    A person edits it (the action is drop, relabel or keep), and validate.decisions in params.yaml applies it. Called
    again, it adds what is new behind the lines that are there.

    Examples: twinrun data mend, twinrun data mend --findings twinrun-check/findings.parquet
    """
    from twinrun.data.validation.decisions import decisions_csv, proposed, read_decisions, spellings
    from twinrun.publish import write_text

    before = read_decisions(out) if out.exists() else []
    known = {spelling for decision in before for spelling in spellings(decision.path)}
    new = [decision for decision in proposed(_read_findings(findings)) if decision.path not in known]
    if not new:
        print(f"Nothing to propose{f' beyond the {len(before)} decisions in {out}' if before else ''}.")
        return
    try:
        write_text(decisions_csv(new, out.read_bytes().decode() if out.exists() else ""), out)
    except OSError as error:
        raise PublishError(f"{out} cannot be written: {error.strerror}. Name another one: --out.") from None
    drops = sum(decision.action == "drop" for decision in new)
    print(f"{out}: {drops} drops and {len(new) - drops} relabels proposed, {len(before)} decisions kept.")
    print(f"Edit it, set validate.decisions: {out} in params.yaml, and run: dvc repro")
    if not out.resolve().is_relative_to(DECISIONS.parent.resolve()):
        print(f"DVC watches {DECISIONS.parent} alone: move it there, or add {out} to the deps of validate in dvc.yaml.")


def _levels(text: str) -> "Levels":
    """What --levels says; raises SourceError where it is something else."""
    from typing import get_args

    from twinrun.params import Level

    words = text.strip(" []").replace(",", " ").split()
    if words == ["auto"]:
        return "auto"
    levels: list[Level] = [level for word in words for level in get_args(Level) if word == level]
    if not levels or len(levels) < len(words):
        raise SourceError(f"--levels {text!r}: write {', '.join(get_args(Level))} in some order, such as split,label.")
    return levels


def _read_findings(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    again = "dvc repro -f validate" if path == FINDINGS else "twinrun data check"
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Make it: {again.replace(' -f', '')}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}). Make it again: {again}") from None
    if missing := {"check", "path", "words", "action", "label"} - set(table.column_names):
        raise DataError(f"{path} has no findings in it: it lacks {', '.join(sorted(missing))}. Make it: {again}")
    return table
