"""Pages that work offline: a template, filled with values that are escaped, and the style that some of them share."""

from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("page.css")
_MARK = b'<meta name="generator" content="Twinrun">'  # in each template
_LOOKED_AT = 1000  # bytes


def fill_page(template: Path, **values: Any) -> str:
    """The page as HTML. What a template calls `page_style` is the shared style; an unknown name is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filled = environment.from_string(template.read_text(encoding="utf-8"))
    return filled.render(page_style=_STYLE.read_text(encoding="utf-8"), **values)


def is_page(path: Path) -> bool:
    """Whether a file is a page that `fill_page` made."""
    with path.open("rb") as file:
        return _MARK in file.read(_LOOKED_AT)
