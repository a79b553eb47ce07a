"""Whether DVC can read, watch and share the images."""

from pathlib import Path

from twinrun.doctor.findings import Finding, Result
from twinrun.record.objects import has_remote


def check(root: Path) -> Result:
    from twinrun.core.params import load_params
    from twinrun.ingest.sharing import OF_FILES, nearby, not_shared, obstacles, outside_advice

    ingest = load_params(root / "params.yaml").ingest
    if not (root / ingest.path).exists():
        fetch = ", fetch them with dvc pull," if has_remote(root) else ""
        remedy = f"put the images there{fetch} or set ingest.path"
        problem = f"{ingest.path} (params.yaml: ingest.path) does not exist.{nearby(root, ingest.path)}".rstrip(".")
        return ingest.path, [Finding(problem, remedy)]
    findings = [Finding(obstacle.problem, obstacle.remedy) for obstacle in obstacles(root / ingest.path)]
    if ingest.source in OF_FILES:
        unshared = not_shared(root, ingest.path) or outside_advice(root, ingest.path)
        findings += [Finding(unshared.problem, unshared.remedy, harmless=True)] if unshared else []
    return ingest.path, findings
