"""Whether dvc.yaml names the code that each stage imports."""

from pathlib import Path

from twinrun.doctor.findings import Finding, Result


def check(root: Path) -> Result:
    from twinrun.core.dependencies import unlisted_imports

    findings = []
    for stage, (missing, superfluous) in unlisted_imports(root).items():
        wrong = [f"add {', '.join(missing)}"] if missing else []
        wrong += [f"remove {', '.join(superfluous)}"] if superfluous else []
        findings.append(
            Finding(
                f"the deps of {stage} are not what pipeline/{stage}.py imports: {'; '.join(wrong)}", "edit dvc.yaml"
            )
        )
    return "deps and imports", findings
