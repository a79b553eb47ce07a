"""The page that shows what a network does with one image: one offline HTML file. Computes no number."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.evaluation.anatomy import Anatomy
from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("anatomy.html")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training image that the network finds similar: its path, label, picture as a data URL, and the similarity."""

    name: str
    label: str
    picture: str
    similarity: float


def anatomy_html(
    anatomy: Anatomy,
    *,
    name: str,
    model: str,
    covered: dict[str, Any] | None = None,
    agreement: float | None = None,
    neighbours: Sequence[Neighbour] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page for the image called `name` and the model described by `model`.

    `covered` is the result of `occlusion`, and `agreement` its rank correlation with the class map; `notes` say what is
    not on the page, and why.
    """
    data = anatomy.data | {
        "probabilities": anatomy.probabilities.tolist(),
        "covered": covered,
        "agreement": agreement,
        "neighbours": [vars(neighbour) for neighbour in neighbours],
    }
    return fill_page(
        _TEMPLATE, name=name, model=model, notes=notes, data=json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    )
