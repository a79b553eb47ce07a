"""The one place that prints, and what makes text from elsewhere safe for it.

Names of files, classes and runs are chosen by other people. Printed raw, they could colour a terminal, move its cursor,
reverse what stands behind them or hide a character. Every message passes through `print` or `draw` of this module. They
show such characters as escapes. Ruff refuses Python's own `print` elsewhere.
"""

import builtins
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_WIDTH_OF_A_PIPE = 240  # a table in a pipe is for grep: nothing is cut to 80 columns
_CONTROLS = frozenset({"Cc", "Cs", "Zl", "Zp"})  # categories: controls, lone surrogates, separators of lines
_FORMAT = "Cf"
_LOGIN = re.compile(r"(?<=://)[^\s/@:]*:[^\s/]+@")
_IN_A_QUERY = re.compile(r"(?<=[?&])((?:ssl)?passw(?:or)?d=)[^&#\s'\"]+")
_JOINERS = frozenset("\u200c\u200d")  # Persian, Indic scripts and emoji are written with them
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")  # drawn as nothing, and of no such category
_REORDERING = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def print(*values: object, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print like Python's own, with the text made `printable`; what the stream cannot encode becomes an escape too."""
    stream = sys.stdout if file is None else file
    text = printable(without_passwords(" ".join(map(str, values))))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    builtins.print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)


def open_closed_streams() -> None:
    """Open stdout and stderr on /dev/null where they are closed (`2>&-`), for this process and those it starts.

    Otherwise the next file that is opened has the number of the stream, and gets what libraries in C write there.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)  # for programs that this one starts
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def draw(renderable: Any) -> None:
    """Print a table or another thing of rich's on stdout. Its strings are text, never markup."""
    console().print(renderable)


def console(*, stderr: bool = False) -> "Console":
    """A console of rich's that takes every string as text: no markup, no emoji codes, no control characters."""
    from rich.console import Console

    class _Console(Console):
        def render_str(self, text: str, **settings: Any) -> Any:
            return super().render_str(
                printable(without_passwords(text)), **{**settings, "markup": False, "emoji": False}
            )

    stream = sys.stderr if stderr else sys.stdout
    return _Console(width=None if stream.isatty() else _WIDTH_OF_A_PIPE, stderr=stderr, highlight=False)


@contextmanager
def without_library_output() -> Iterator[None]:
    """Hide what C libraries write to stderr by themselves, such as libtiff's view of a damaged file, unescaped.

    What Python writes to stderr is still shown.
    """
    stream, shown = sys.stderr, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        if _is_stream_2(stream):
            stream.flush()
            sys.stderr = os.fdopen(
                shown, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False
            )
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stream
        os.dup2(shown, 2)
        os.close(shown)


def _is_stream_2(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a stream that is no file, as in a notebook
        return False


def add_row(table: "Table", *cells: object) -> None:
    """Add a row to a table of rich's; a string stays one line and is text, and other renderables stay as they are."""
    table.add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in cells))  # type: ignore[arg-type]


def without_passwords(text: str) -> str:
    """Text in which no address shows a password: not in scheme://user:password@host, and not as ?password=."""
    if "passw" in text:
        text = _IN_A_QUERY.sub(r"\1***", text)
    return _LOGIN.sub("***@", text) if "@" in text else text


def one_line(text: str) -> str:
    """Text as `printable` has it, on one line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def printable(text: str) -> str:
    """Text in which only line feeds and tabs control the terminal; what is invisible or reorders becomes an escape.

    Applied twice, it changes nothing more.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    text = _as_utf8(text)
    return "".join(
        character if character in "\n\t" else _shown(character, text, at) for at, character in enumerate(text)
    )


def escaped(name: str) -> str:
    """A name as one line of UTF-8: control characters, backslashes and bytes that are not UTF-8 become escapes.

    Different names stay different. Nothing that a file is called can then break a line, colour a terminal, or reverse
    what is printed behind it. Tables of images hold names in this form.
    """
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(
        _escape(character)
        if character == "\\" or character in _REORDERING or unicodedata.category(character) in _CONTROLS
        else character
        for character in _as_utf8(name)
    )


def _shown(character: str, text: str, at: int) -> str:
    category = unicodedata.category(character)
    if category in _CONTROLS or character in _BLANKS or (category == _FORMAT and not _joins(text, at)):
        return _escape(character)
    return character


def _joins(text: str, at: int) -> bool:
    """Whether the character is a joiner between two of a script that needs it."""
    around = (text[at - 1 : at], text[at + 1 : at + 2])
    return text[at] in _JOINERS and all(beside and not beside.isascii() for beside in around)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def _as_utf8(text: str) -> str:
    """The text as UTF-8 would have it, where Python read the names of files in the encoding of another locale."""
    try:
        return os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text


def percent(share: float, unit: str = "%") -> str:
    """A share as a percentage that is 0 or 100 only where the share is."""
    value = 100 * share
    if 0 < value < 100:
        value = min(max(value, 0.01), 99.99)
    digits = 2 if 0 < value < 0.1 or 99.9 < value < 100 else 1
    return f"{value:.{digits}f}{unit}"
