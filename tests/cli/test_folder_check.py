"""A folder is checked at the size of its images, where that is small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinrun.cli import folder_check


@pytest.mark.parametrize(("sides", "packed_at"), [((8, 12), 16), ((32, 24), 32), ((500, 90), 64)])
def test_images_are_not_enlarged_for_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int], packed_at: int
) -> None:
    generator = np.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*sides, 3), np.uint8)).save(file)
    searched = []

    def near_duplicates(images: Any, *_: Any, **__: Any) -> list[Any]:
        searched.append(images.shape)
        return []

    monkeypatch.setattr(folder_check, "near_duplicates", near_duplicates)

    folder_check.check_folder(tmp_path / "photos", tmp_path / "out", labels=False)

    assert searched == [(6, packed_at, packed_at, 3)]
