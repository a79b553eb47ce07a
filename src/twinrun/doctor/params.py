"""Whether params.yaml describes a run."""

from pathlib import Path

from twinrun.doctor.findings import Result


def check(root: Path) -> Result:
    from twinrun.core.params import load_params

    params = load_params(root / "params.yaml")
    return f"{params.train.model} on {params.ingest.source}", []
