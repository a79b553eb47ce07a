"""Searching texts for a regular expression that a person wrote: a few of them would take years for one text."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from twinrun.base.errors import TwinrunError

_SEARCH_S = 5  # processor time for one text, of which a usable pattern takes microseconds

Search = Callable[[str], "re.Match[str] | None"]


@contextmanager
def limited_search(pattern: str, where: str, error: type[TwinrunError]) -> Iterator[Search]:
    """A function that searches one text for `pattern`.

    It raises `error` where that takes longer than _SEARCH_S, with the text and `where` the pattern stands. Main thread
    only, since it needs a signal.
    """
    matcher, text = re.compile(pattern), ""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise error(
            f"{pattern!r} takes more than {_SEARCH_S} s for one value, {text} ({where}). Repetitions inside "
            "repetitions, such as (.*)*, can match in too many ways. Write them with one repetition each, such as "
            "([^/]*)."
        )

    def search(searched: str) -> "re.Match[str] | None":
        nonlocal text
        text = searched
        signal.setitimer(signal.ITIMER_VIRTUAL, _SEARCH_S)
        try:
            return matcher.search(text)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        yield search
    finally:
        signal.signal(signal.SIGVTALRM, before)
