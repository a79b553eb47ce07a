"""Lightning is imported without what is installed beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

_OPTIONAL = ("transformers", "librosa", "onnxruntime", "pycocotools", "nltk", "torchaudio", "mpi4py", "wandb", "click")


def test_packages_that_lightning_could_use_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _OPTIONAL:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} cannot be imported without a compiler')")
        facts = tmp_path / f"{name}-99.0.dist-info" / "METADATA"
        facts.parent.mkdir()
        facts.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    ask = (
        "from twinrun.training.lightning import pl; import torchmetrics.utilities.imports as there; "
        "print(pl.Trainer.__name__, bool(there._TRANSFORMERS_AVAILABLE), bool(there._TORCHVISION_AVAILABLE))"
    )

    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.split()) == (0, ["Trainer", "True", "True"]), done.stderr
