"""The packages that `twinrun data check` needs, and no others: no PyTorch, no MLflow, no DVC.

    pip install --no-deps twinrun && python -m twinrun.requirements | pip install -r /dev/stdin

Only the standard library, since nothing else is installed when this runs.
"""

import re
import sys
from importlib.metadata import requires


def check_requirements() -> list[str]:
    """Each package of the extra `check` with the versions that Twinrun as a whole needs of it, such as "numpy>=2"."""
    declared = requires("twinrun") or []
    needed = {_name(line) for line in declared if re.search(r"extra == .check.", line)}
    return sorted(line for line in declared if _name(line) in needed and "extra ==" not in line)


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return match[0].lower() if match else ""


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in check_requirements()))
