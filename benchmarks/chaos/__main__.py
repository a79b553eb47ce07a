"""`python -m benchmarks.chaos`: inject faults, print the table. See --help; more than an hour on two quiet cores."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.chaos import disk, flips, kills, publish_path, sameness, tracker
from benchmarks.chaos.cases import Lab, Row, measure, warm_up
from benchmarks.chaos.stacks import make_plain, make_twinrun
from benchmarks.chaos.table import as_json, as_markdown, as_table


@dataclass(frozen=True)
class Fault:
    """One row: its name on the command line, how many cases it has, in short and for the control, and how to try it."""

    name: str
    n: int
    quick: int
    control: int
    run: Callable[[Lab, int], Row]
    usual: bool = True


_ALL = 1000
FAULTS = (
    Fault("kill", 50, 4, 12, kills.kill_group),
    Fault("publish", _ALL, 6, 6, publish_path.kill_at_every_point),
    Fault("term", 20, 2, 6, kills.terminate_group),
    Fault("dvc", 10, 2, 4, kills.kill_dvc),
    Fault("record", 5, 1, 3, kills.kill_unrecorded),
    Fault("epochs", 5, 1, 3, kills.stop_after_epochs),
    Fault("tracker", 6, 2, 6, tracker.trouble_tracker),
    Fault("tracker-time", 6, 1, 0, tracker.time_in_trouble, usual=False),
    Fault("disk", 10, 2, 4, disk.fill_disk),
    Fault("flips", 200, 20, 200, flips.flip_bits),
    Fault("sameness", _ALL, 3, _ALL, sameness.vary_surroundings),
    Fault("networks", _ALL, 2, 0, sameness.vary_networks),
    Fault("pretrained", _ALL, 3, 0, sameness.vary_pretrained),
)


def main() -> None:
    options = _options()
    # Cases at once share the cores: of more threads than those, OpenMP lets some spin while others have no core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    console = Console(width=None if sys.stdout.isatty() else 180)
    chosen = [fault for fault in FAULTS if fault.name in (options.rows or [each.name for each in FAULTS if each.usual])]
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {line}", file=sys.stderr, flush=True)

    rows: list[Row] = []
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.folder))
    folder.chmod(0o711)  # one case runs as another user
    try:
        say(f"Making the projects in {folder}")
        ours = make_twinrun(folder / "twinrun" / "project")
        stacks = [ours]
        if not options.no_control:
            stacks.append(make_plain(folder / "plain" / "project", ours.template / ours.database))
        labs = []
        for stack in stacks:
            warm_up(stack, folder)
            undisturbed = measure(stack, folder / "undisturbed", options.jobs)
            say(f"{stack.name}: {undisturbed.train_s:.1f} s undisturbed, weights {undisturbed.weights[:12]}")
            labs.append(
                Lab(stack=stack, undisturbed=undisturbed, folder=folder, seed=options.seed, jobs=options.jobs, say=say)
            )
        for fault in chosen:
            for lab in labs:
                n = options.n or (fault.quick if options.quick else fault.n)
                rows.append(fault.run(lab, n if lab.stack is ours else min(n, fault.control)))
                _save(rows, options, time.monotonic() - started)
    finally:
        if rows:
            print(as_markdown(rows)) if options.markdown else console.print(as_table(rows))
        if options.keep or any(row.held != len(row.outcomes) for row in rows if row.stack == "twinrun"):
            say(f"Everything is kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(any(row.held < len(row.outcomes) for row in rows if row.stack == "twinrun"))


def _save(rows: list[Row], options: argparse.Namespace, seconds: float) -> None:
    """After every row, so that what was found is not lost with what is still to come."""
    facts = {"seconds": round(seconds), "seed": options.seed, "machine": platform.machine(), "cores": os.cpu_count()}
    if options.json:
        options.json.write_text(json.dumps(as_json(rows, facts), indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    names = [fault.name for fault in FAULTS]
    parser.add_argument("--rows", nargs="+", choices=names, metavar="ROW", help=f"only these: {', '.join(names)}")
    parser.add_argument("--n", type=int, help="cases in each row, instead of each row's own number")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments and places of the faults")
    parser.add_argument("--quick", action="store_true", help="a few cases in each row")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at once; the cores there are")
    parser.add_argument("--json", type=Path, help="write every case to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--no-control", action="store_true", help="leave the plain stack out")
    parser.add_argument("--keep", action="store_true", help="keep the projects of all cases")
    parser.add_argument("--folder", type=Path, help="where the projects are made; the system's temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
