"""Faults planted in real image sets, and what finds them: `python -m benchmarks.data`, or `make bench-data`.

Each part but `growth`, which takes times, plants one kind of fault and looks for it in several ways,
Twinrun's and its peers', on the same images in the same run. Image sets lie where TWINRUN_TEST_DATA points, or in
data/raw.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PARTS = ("growth", "leaks", "combinations", "labels", "shortcuts", "broken")


def main() -> None:
    """Run the parts that were asked for and print a table of each; with --json, write all rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="fewer images: minutes instead of an hour")
    parser.add_argument("--json", type=Path, help="where to write all rows")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    data = Path(os.environ.get("TWINRUN_TEST_DATA") or "data/raw")
    found = {}
    for part in arguments.parts or PARTS:
        started = time.perf_counter()
        found[part] = _run(part, data, arguments.quick)
        print(f"\n{part} ({time.perf_counter() - started:.0f} s)\n{as_table(found[part])}", flush=True)
        if arguments.json:  # after each part, since the next may take long
            arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _run(part: str, data: Path, quick: bool) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = importlib.import_module(f"benchmarks.data.{part}").run(data, quick=quick)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing. Point TWINRUN_TEST_DATA at a folder with the image sets.")
    return rows


def as_table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of Markdown; numbers with three digits after the point."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
