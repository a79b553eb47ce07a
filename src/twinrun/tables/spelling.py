"""Names in several spellings: finds the one that a person wrote, and those that look the same.

One name can be encoded in several ways: é may be one character or two, a full-width letter looks like a plain one, and
format characters are invisible. Names are compared under NFKD, without such characters, spaces and case, and
with letters of other scripts as the Latin ones that they look like (a selection of Unicode's confusables, UTS #39).
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

from twinrun.base.printing import escaped, one_line
from twinrun.tables.sheet import guarded, unguarded

_INVISIBLE = frozenset({"Cc", "Cf"})  # categories: control and format characters
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|U([0-9a-f]{8})|x([0-9a-f]{2}))")
_WHOLE_NUMBER = re.compile(r"^(-?\d+)\.0$")  # as pandas writes one beside empty cells
_LOOKS_LIKE = str.maketrans(
    "аеорсухіјѕһԛԝԁӏАВЕКМНОРСТУХІЈЅԚԜΑΒΕΖΗΙΚΜΝΟΡΤΥΧονρոսցօհ",
    "aeopcyxijshqwdlABEKMHOPCTYXIJSQWABEZHIKMNOPTYXovpnugoh",
)


class Names:
    """A set of names, in which a name is found however a person may have written it."""

    def __init__(self, names: Iterable[str], root: Path | None = None) -> None:
        """`root` is the folder that the names are relative to, where they are paths."""
        self._names = frozenset(names)
        self._fronts = [] if root is None else _fronts(root)
        self._composed: dict[str, list[str]] | None = None
        self.other_forms: dict[str, str] = {}

    def find(self, written: str) -> str | None:
        """The name that `written` means, or None where there is none or more than one.

        It may have spaces around, escapes of here or of a URL, an apostrophe against formulas, ./, the folder or its
        last parts in front, backslashes for slashes, or another Unicode form; `other_forms` keeps the names that were
        found in another form, by what was written.
        """
        if written in self._names:
            return written
        spellings = list(dict.fromkeys(self._spellings(written)))
        if (written_so := next((spelling for spelling in spellings if spelling in self._names), None)) is not None:
            return written_so
        if all(spelling.isascii() for spelling in spellings):
            return None
        same = {name for spelling in spellings for name in self._by_form().get(_composed(spelling), ())}
        if len(same) != 1:
            return None
        self.other_forms[written] = same.pop()
        return self.other_forms[written]

    def note(self, where: str) -> list[str]:
        """A sentence on the names that were found in another Unicode form, if there are any."""
        if not self.other_forms:
            return []
        written, name = min(self.other_forms.items())
        count = len(self.other_forms)
        names = "1 name is" if count == 1 else f"{count:,} names are"
        return [
            f"In {where} {names} written in another Unicode form than here, such as {one_line(name)}: "
            f"{code_points(written)} there, {code_points(name)} here. They mean the same images."
        ]

    def _spellings(self, written: str) -> Iterable[str]:
        for text in (written, written.strip(), unguarded(written.strip()), guarded(written.strip())):
            for path in dict.fromkeys((text, text.replace("\\", "/"), unquote(text))):
                plain = path.removeprefix("./")
                for front in ("", *self._fronts):
                    if plain.startswith(front):
                        relative = plain.removeprefix(front)
                        yield from (relative, escaped(relative))

    def _by_form(self) -> dict[str, list[str]]:
        if self._composed is None:
            self._composed = defaultdict(list)
            for name in self._names:
                self._composed[_composed(name)].append(name)
        return self._composed


def read_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that look like other names, each with all names that look the same, itself included, sorted.

    So do 1 and 1.0.
    """
    forms: dict[str, list[str]] = defaultdict(list)
    for name in names:
        look = "".join(_drawn(name).casefold().split())
        forms[_WHOLE_NUMBER.sub(r"\1", look)].append(name)
    return {name: same for same in map(sorted, forms.values()) if len(same) > 1 for name in same}


def told_apart(names: Sequence[str]) -> dict[str, str]:
    """How to print each of `names`: those that look like another one with their code points, the others as they are."""
    looks: dict[str, int] = defaultdict(int)
    drawn = {name: " ".join(_drawn(name).split()) for name in names}
    for look in drawn.values():
        looks[look] += 1
    return {
        name: f"{name} ({code_points(name)})" if looks[drawn[name]] > 1 and not name.isascii() else name
        for name in names
    }


def code_points(name: str) -> str:
    """A name in ASCII: "caf U+00E9" for café."""
    parts = re.split(r"([^!-~])", name)
    return " ".join(part if re.fullmatch("[!-~]+", part) else f"U+{ord(part):04X}" for part in parts if part)


def _fronts(root: Path) -> list[str]:
    """What may stand before a path inside `root`: the whole path of `root`, or its last folders; the longest first."""
    fronts = {f"{root}/"}
    for path in (root.absolute(), root.resolve()):
        fronts |= {f"{path}/", *("/".join((*path.parts[at:], "")) for at in range(1, len(path.parts)))}
    return sorted(fronts, key=lambda front: (-len(front), front))


def _drawn(name: str) -> str:
    """A name as it looks on screen, with letters that look Latin as Latin ones."""
    text = _ESCAPE.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), name)
    text = unicodedata.normalize("NFKD", text).translate(_LOOKS_LIKE)
    return "".join(
        character
        for character in text
        if character not in _BLANKS and unicodedata.category(character) not in _INVISIBLE
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
