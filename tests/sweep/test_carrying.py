"""What a machine sends back of a training is taken over only where it is files of that training."""

import io
import tarfile
from pathlib import Path

import pytest

from twinrun.base.errors import SweepError
from twinrun.sweep.carrying import pack, unpack_result

FOLDER = Path("data/sweeps/one/trials/3")


def sent(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path, is_odd in ((FOLDER / "history.csv", False), (Path(name), True)):
            member = tarfile.TarInfo(str(path))
            member.size = 3 if not is_odd or kind == tarfile.REGTYPE else 0
            member.type, member.linkname = (kind, link) if is_odd else (tarfile.REGTYPE, "")
            archive.addfile(member, io.BytesIO(b"new"))
    return content.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        sent("src/twinrun/core/params.py"),
        sent("../outside"),
        sent(f"{FOLDER}/../4/card.json"),
        sent(".twinrun/trusted.json"),
        sent(f"{FOLDER}/model", kind=tarfile.SYMTYPE, link="/etc"),
        sent(f"{FOLDER}/model", kind=tarfile.SYMTYPE, link="history.csv"),
        sent(f"{FOLDER}/model", kind=tarfile.LNKTYPE, link="src/model"),
        b"no tar file",
    ],
)
def test_anything_else_is_an_error_that_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)

    with pytest.raises(SweepError, match=r"trials/3: .*--resume"):
        unpack_result(content, tmp_path, FOLDER)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_card_that_names_no_journal_sends_no_other_file(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / ".twinrun/journals").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (tmp_path / "private/journal.jsonl").write_text("secret")
    for file in (FOLDER.parents[1] / "driver.json", FOLDER.parents[1] / "params.yaml"):
        (tmp_path / file).write_text("{}")
    (tmp_path / FOLDER / "card.json").write_text('{"journal_id": "../../private"}')

    with tarfile.open(fileobj=io.BytesIO(pack(tmp_path, FOLDER))) as archive:
        names = archive.getnames()

    assert not [name for name in names if "private" in name]


def test_files_that_are_links_to_one_another_arrive(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for project in (here, there):
        (project / FOLDER).mkdir(parents=True)
    artifacts = here / ".twinrun/journals" / ("a" * 32) / "artifacts"
    artifacts.mkdir(parents=True)
    for file in (FOLDER.parents[1] / "driver.json", FOLDER.parents[1] / "params.yaml"):
        (here / file).write_text("{}")
    (here / FOLDER / "card.json").write_text(f'{{"journal_id": "{"a" * 32}"}}')
    (artifacts / "card.json").hardlink_to(here / FOLDER / "card.json")

    unpack_result(pack(here, FOLDER), there, FOLDER)

    assert (there / artifacts.relative_to(here) / "card.json").read_text() == (here / FOLDER / "card.json").read_text()
