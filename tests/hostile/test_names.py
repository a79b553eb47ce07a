"""Names of files, classes and runs that other people chose: printed as text, whatever they hold."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tracking_support import evaluate, runs, train

from pipeline import register
from twinrun.base import printing
from twinrun.base.errors import DataError, run_main
from twinrun.tracking.store import find_tracker, open_client

_INVISIBLE = "\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f"
RAW = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")

HOSTILE = {
    "colour": ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
    "title of the terminal": ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
    "eight-bit control": ("\x9b31mred", r"\x9b31mred"),
    "carriage return": ("honest\rforged", r"honest\rforged"),
    "line feed": ("honest\nforged", r"honest\nforged"),
    "separator of lines": ("a\u2028b", r"a\u2028b"),
    "right to left": ("photo\u202egpj.exe", r"photo\u202egpj.exe"),
    "zero width": ("gla\u200bss", r"gla\u200bss"),
    "byte order mark": ("\ufeffglass", r"\ufeffglass"),
    "tags": ("glass\U000e0041", r"glass\U000e0041"),
    "filler": ("glass\u3164", r"glass\u3164"),
    "no UTF-8": ("caf\udce9", r"caf\xe9"),
    "lone surrogate": ("caf\ud800", r"caf\ud800"),
}
LETTERS = ["café", "стекло", "玻璃", "می\u200cخواهم", "👩\u200d🔬", "[b]", "=cmd"]


@pytest.mark.parametrize(("name", "shown"), HOSTILE.values(), ids=HOSTILE)
def test_a_message_shows_what_a_name_would_do_to_the_terminal(
    name: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise DataError(f"There is no class {name}.")

    with pytest.raises(SystemExit):
        run_main(fail)
    error = capsys.readouterr().err

    assert not RAW.search(error)
    assert error.replace("\n", r"\n").strip(r"\n") == f"There is no class {shown}."
    assert printing.printable(error) == error


@pytest.mark.parametrize("name", LETTERS)
def test_letters_of_every_script_are_printed_as_they_are(name: str) -> None:
    stream = io.StringIO()

    printing.print(name, file=stream)

    assert stream.getvalue() == f"{name}\n"


def test_a_terminal_that_lacks_a_letter_gets_an_escape_and_no_traceback() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    printing.print("café", file=stream, flush=True)

    assert stream.buffer.getvalue() == b"caf\\xe9\n"


def test_show_and_models_print_the_name_of_a_run_as_text(tracked_project: Path, twinrun: Callable[..., str]) -> None:
    names = ["[/b]", "[link=http://evil.example]photo[/link]", ":bomb:", "\x1b[2J\rforged\nline\u202e"]
    train(tracked_project)
    evaluate(tracked_project)
    register.main()
    (run,) = runs(tracked_project)

    for name in names:
        open_client(find_tracker()).update_run(run.id, name=name)
        shown = twinrun("show", run.id)

        assert f" {printing.one_line(name)} ({run.id[:8]}) (FINISHED)" in shown
        assert not RAW.search(shown)
        assert "Traceback" not in shown
    assert not RAW.search(twinrun("models"))
