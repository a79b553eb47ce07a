"""A page with the pictures of images and what a model says of each: one offline HTML file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinrun.tables.page import fill_page

_TEMPLATE = Path(__file__).with_name("sheet.html")
_LARGEST_PX = 160
_QUALITY = 80  # of WebP, in percent


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An image with the likeliest labels and their probabilities, or with the reason why it cannot be read."""

    name: str
    picture: str | None
    labels: Sequence[tuple[str, float]] = ()
    error: str | None = None


def picture_of(pixels: npt.NDArray[np.uint8]) -> str:
    """A small picture of uint8 (H, W, C) as a data URL of a few kilobytes."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((_LARGEST_PX, _LARGEST_PX))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def sheet_html(tiles: Sequence[Tile], *, title: str, notes: Sequence[str]) -> str:
    """The page. Names come from files and may hold anything: the template escapes them."""
    return fill_page(_TEMPLATE, tiles=tiles, title=title, notes=notes)
