"""What the tests of hostile input share."""

import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from twinrun.cli import main as cli


@pytest.fixture
def twinrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The real entry point, in this process; returns all that was printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["twinrun", *arguments])
        capsys.readouterr()
        with suppress(SystemExit):
            cli.main()
        return "".join(capsys.readouterr())

    return run
