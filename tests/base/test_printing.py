"""Text from elsewhere cannot colour, reorder, hide or break what is printed."""

import io

import pytest

from twinrun.base.printing import escaped, one_line, print, printable, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\u202etxt.exe", "a\\u202etxt.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("a\tb\nc", "a\tb\nc"),
        ("caf\u00e9 \u732b", "caf\u00e9 \u732b"),
        ("\udcff", "\\xff"),
    ],
)
def test_what_is_invisible_or_moves_the_cursor_becomes_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_name_is_one_line_and_different_names_stay_different() -> None:
    names = ["a\nb", "a\\nb", "a\rb", "a b"]

    assert [one_line("a\nb"), escaped("a\nb")] == ["a\\nb", "a\\nb"]
    assert len({escaped(name) for name in names}) == len(names)


def test_a_password_in_an_address_and_letters_that_a_stream_lacks_are_not_printed() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    print("http://me:secret@host", "caf\u00e9", file=stream, flush=True)

    assert stream.buffer.getvalue() == b"http://***@host caf\\xe9\n"
    assert without_passwords("https://host/a:b@c") == "https://host/a:b@c"
