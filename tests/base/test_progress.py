"""How long work makes itself heard."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracking_support import REPOSITORY

from twinrun.base import progress as module
from twinrun.base.progress import fraction, phase, progress
from twinrun.project.presets import params_text


def test_a_phase_tells_now_and_then_that_it_goes_on_and_a_short_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("Looking", every_s=30):
        pass
    short = capsys.readouterr()
    with phase("Looking for long", every_s=0.05):
        time.sleep(0.3)
    long = capsys.readouterr()

    assert short.out + short.err + long.out == ""
    assert long.err.splitlines()[0] == "Looking for long: 0 s"
    assert 1 < len(long.err.splitlines()) < 7


def test_a_share_is_shown_in_percent_and_a_count_as_a_count_and_nothing_for_no_things(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)

    with fraction("Searching") as to, progress("Reading", 1500) as advance, progress("Nothing", 0) as idle:
        to(0.85)
        advance(1200)
        idle(0)

    assert capsys.readouterr().err.splitlines() == ["Searching: 85%", "Reading: 1,200 of 1,500"]


def test_a_phase_that_fails_ends_with_its_error_and_says_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="stopped"), phase("Looking", every_s=0.05):
        raise RuntimeError("stopped")
    time.sleep(0.15)

    assert capsys.readouterr().err == ""


def test_a_phase_on_a_terminal_is_seen_at_once_and_leaves_no_line() -> None:
    ours, theirs = pty.openpty()
    code = "import time; from twinrun.base.progress import phase\nwith phase('Looking'): time.sleep(0.3)\nprint('done')"

    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, text=True, check=True)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()

    assert "Looking" in seen
    assert done.stdout == "done\n"
    assert "Looking" not in seen.rpartition("\x1b[2K")[2]


@pytest.mark.parametrize("module", ["pipeline.train", "twinrun"])
def test_a_library_that_takes_seconds_to_import_is_named_on_a_terminal_meanwhile_and_nowhere_else(
    module: str, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", module, *(["lr"] if module == "twinrun" else [])]  # in a folder that is no project
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY}", "TERM": "xterm"}
    (tmp_path / "params.yaml").write_text(params_text("digits"))

    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=False)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()

    assert seen.startswith("Loading PyTorch ...\r\x1b[2K")
    assert "Loading" not in seen.rpartition("\x1b[2K")[2]
    assert "Loading" not in piped.stderr
    assert piped.returncode == 1
    assert piped.stderr.splitlines()[-1] in seen


def test_what_is_imported_while_a_line_is_shown_does_not_write_over_it(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "mlflow.py").write_text("import inspect\nassert inspect.getsource(inspect.currentframe())\n")
    (tmp_path / "timm.py").touch()
    code = "\n".join(
        [
            "import sys, importlib.util",
            "from twinrun.base.progress import phase, show_imports",
            "show_imports()",
            "assert importlib.util.find_spec('mlflow').loader.get_filename('mlflow').endswith('mlflow.py')",
            "with phase('Publishing'): import mlflow",
            "del sys.modules['mlflow']; import mlflow, timm",
            "print(type(mlflow.__loader__).__name__, type(mlflow.__spec__.loader).__name__)",
        ]
    )

    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY / 'src'}", "TERM": "xterm"}
    command = [sys.executable, "-c", code]

    done = subprocess.run(command, env=environment, stderr=theirs, stdout=subprocess.PIPE, text=True, check=True)
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()

    assert done.stdout == "SourceFileLoader SourceFileLoader\n"
    assert [line.partition(" ...\r\x1b[2K")[0] for line in seen.split("Loading ")[1:]] == ["MLflow", "timm"]
    assert seen.index("Publishing") < seen.index("Loading")
