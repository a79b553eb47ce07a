"""Images named on the command line."""

from pathlib import Path

import pytest

from twinrun.base.errors import SourceError
from twinrun.cli.chosen import choose_images


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: photos in a folder and one below it, and a file that is none."""
    for name in ("bins/b.jpg", "bins/a.jpg", "bins/deep/c.png", "bins/notes.txt", "bins/cafe\u0301.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\xff\xd8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_folders_and_patterns_are_taken_in_the_order_in_which_they_are_named(photos: Path) -> None:
    chosen = choose_images(["bins/b.jpg", "bins/deep", "bins/*.txt", "bins/**"])

    assert list(map(str, chosen.paths[:3])) == ["bins/b.jpg", "bins/deep/c.png", "bins/notes.txt"]
    assert {path.name for path in chosen.paths[3:]} == {path.name for path in photos.rglob("*.*")}
    assert chosen.notes == []


def test_what_a_folder_holds_beside_images_is_said(photos: Path) -> None:
    chosen = choose_images([str(photos / "bins")])

    assert [path.name for path in chosen.paths] == ["a.jpg", "b.jpg", "cafe\u0301.jpg", "c.png"]
    assert "not an image (.txt)" in " ".join(chosen.notes)


@pytest.mark.parametrize(
    "text",
    ["label,Path\nx,a.jpg\ny, caf\u00e9.jpg \n", "a.jpg\ncaf\u00e9.jpg\n", "nothing known\na.jpg\ncaf\u00e9.jpg\n"],
)
def test_a_csv_names_images_beside_it_in_any_spelling(photos: Path, text: str) -> None:
    (photos / "bins/list.csv").write_text(text, encoding="utf-8")

    chosen = choose_images(["bins/list.csv"])

    assert [path.name for path in chosen.paths] == ["a.jpg", "cafe\u0301.jpg"]


@pytest.mark.parametrize(
    ("argument", "text", "problem"),
    [
        ("*.webp", None, "No file matches"),
        ("gone.csv", None, "gone.csv cannot be read"),
        ("list.csv", "", "list.csv is empty"),
        ("list.csv", "path,label\na.jpg,x\n,y\n", "names no image in its row 2"),
        ("empty", None, "There are no images in empty"),
    ],
)
def test_what_names_no_image_is_refused_by_name(photos: Path, argument: str, text: str | None, problem: str) -> None:
    (photos / "empty").mkdir()
    if text is not None:
        (photos / argument).write_text(text)

    with pytest.raises(SourceError, match=problem):
        choose_images([argument])
