"""Whether the stages can import what they need, and dvc.yaml names the code that each of them imports."""

from pathlib import Path

from twinrun.doctor.findings import Finding, Result


def check(root: Path) -> Result:
    from twinrun.core.dependencies import of_another_version, unlisted_imports

    findings = []
    if (problem := of_another_version(root)) is not None:
        findings.append(Finding(problem.removesuffix("."), "twinrun upgrade"))
    for stage, (missing, superfluous) in unlisted_imports(root).items():
        wrong = [f"add {', '.join(missing)}"] if missing else []
        wrong += [f"remove {', '.join(superfluous)}"] if superfluous else []
        findings.append(
            Finding(
                f"the deps of {stage} are not what pipeline/{stage}.py imports: {'; '.join(wrong)}", "edit dvc.yaml"
            )
        )
    return "deps and imports", findings
