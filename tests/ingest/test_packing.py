"""The facts of an image and its pixels are of the same bytes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinrun.dataset.pack import PackWriter, creating_pack, open_pack
from twinrun.ingest import packing
from twinrun.ingest.packing import Chunk, Shape


class Rewriting:
    """In place of the budget, which is asked once the header was read: another program writes to the file then."""

    def __init__(self, file: Path, content: bytes) -> None:
        self.file, self.content = file, content

    def take(self, _: Any) -> int:
        with self.file.open("r+b") as file:
            file.write(self.content)
            file.truncate()
        return 0

    def give_back(self, _: int) -> None:
        pass


@pytest.mark.parametrize("content", ["another picture", "half of one"])
def test_a_file_that_changes_between_its_hash_and_its_pixels_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    for name, seed in (("a.bmp", 1), ("b.bmp", 2)):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / name)
    os.utime(tmp_path / "a.bmp", (1, 1))  # a clock of the file system may be coarse
    other = (tmp_path / "b.bmp").read_bytes()
    budget: Any = Rewriting(tmp_path / "a.bmp", other if content == "another picture" else other[:80])
    shape = Shape((9, 9), "rgb", "pad", "bilinear", 1000)

    with creating_pack(tmp_path / "pack.npy", (1, *shape.of_image)) as pack:
        monkeypatch.setattr(packing, "_worker", packing._Worker(shape, PackWriter(pack), budget))
        (facts,) = packing._work(Chunk(0, files=[tmp_path / "a.bmp"]))

    assert facts.error == "cannot be read: it was changed while it was read. Run again once no program writes to it"
    assert (facts.bytes_sha256, facts.pixels_sha256) == (None, None)
    assert not open_pack(tmp_path / "pack.npy").any()
