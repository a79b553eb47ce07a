"""Whether the code of a run can be restored: what is not committed, untracked or secret."""

import re
import shlex
from pathlib import Path

from twinrun.base.printing import one_line
from twinrun.doctor.findings import SHOWN, Finding, Result, counted
from twinrun.record.card import NAMED_AS_SECRET, collect_code, committing, path_to_top


def check(root: Path) -> Result:
    code = collect_code(root)
    findings = []
    up = path_to_top(root)  # all names are relative to that folder
    secret = [name for name in code.secrets if code.secrets[name] == NAMED_AS_SECRET]
    others = [name for name in code.left_out if name not in code.secrets]
    if secret:  # first, so that no `git add -A` comes before it
        lines, first = " ".join(shlex.quote(_pattern(name)) for name in secret), _first(root / up / ".gitignore")
        findings.append(
            Finding(
                f"{counted(secret, 'file')} untracked, not ignored, and named like secrets",
                f"printf '{first}%s\\n' {lines} >> {up}.gitignore",
            )
        )
    findings += [
        Finding(
            f"{one_line(name)} is not in a run's card: {reason}",
            "commit the change, if it holds no secret, or move the secret out of it"
            if name in code.tracked
            else "move the secret out of it, or end the line with a comment: pragma: allowlist secret",
        )
        for name, reason in code.secrets.items()
        if name not in secret
    ]
    if large := [name for name in others if name in code.tracked]:
        problem = f"{counted(large, 'file')} not committed, and the changes are too large for a card"
        findings.append(Finding(f"{problem}, so a twin would lack them", committing(root, large)))
    if code.diff:
        changed = sorted(
            {line.split(" b/", 1)[-1] for line in code.diff.splitlines() if line.startswith("diff --git ")}
        )
        findings.append(
            Finding(
                f"{counted(changed, 'file')} not committed; a run's card keeps them as a patch",
                committing(root, changed),
            )
        )
    for name in others:
        if name.endswith("/"):
            problem = f"{one_line(name)} is a repository of its own, whose files git does not track here"
            remedy = "list in .gitignore what no run needs"
            if not (root / f"{up}{name}.git").is_file():  # of a worktree or submodule, which moving it would break
                remedy = f"move {shlex.quote(f'{up}{name}.git')} elsewhere, or {remedy}"
            findings.append(Finding(f"{problem}, so a twin would lack them", remedy))
    if untracked := [name for name in others if name not in code.tracked and not name.endswith("/")]:
        findings.append(
            Finding(
                f"{counted(untracked, 'file')} untracked and not source code, or too large for a card, so a twin would "
                "lack them",
                f"git add {' '.join(shlex.quote(up + name) for name in untracked[:SHOWN])}, or list in .gitignore what "
                "no run needs",
            )
        )
    return f"commit {code.commit[:12]}", findings


def _pattern(name: str) -> str:
    """The line of a .gitignore in the top folder that means this file alone."""
    return "/" + re.sub(r"[\\*?\[]| $", r"\\\g<0>", name)


def _first(file: Path) -> str:
    """What printf must write before a new line of the file: the end of its last line, where that has none."""
    try:
        return "" if file.read_bytes()[-1:] in (b"", b"\n") else "\\n"
    except OSError:
        return ""
