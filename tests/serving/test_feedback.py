"""What users teach back: POST /feedback, `twinrun data feedback`, and the data that a person accepted."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import Project
from PIL import Image
from serving_support import digit_png, digits_engine, serving

from twinrun.base.errors import DataError
from twinrun.cli.main import app as commands
from twinrun.dataset.manifest import write_manifest
from twinrun.decoding.decode import decode_image
from twinrun.serving import feedback as receiving
from twinrun.serving.app import make_app
from twinrun.serving.feedback import FEEDBACK, Quarantine, read_feedback
from twinrun.serving.follow import ModelInService

CSV = Path("data/decisions/feedback.csv")


def test_a_photo_is_kept_with_consent_alone_and_without_its_metadata(tmp_path: Path) -> None:
    photo = _jpeg_with_metadata(orientation=6)
    with serving(_app(tmp_path)) as served:
        refused = [served.teach(photo, "3", consent="no"), served.teach(photo, "house"), served.teach(b"no image", "3")]
        before = list(tmp_path.iterdir())

        status, kept, _ = served.teach(photo, "3")
        again = served.teach(photo, "3")[0]
        version = served.ask("GET", "/version")[1]

    assert [status for status, _, _ in refused] == [400, 400, 415]
    assert "consent=yes" in refused[0][1]["error"]
    assert "'house' is none of the model's: 0, 1, 2" in refused[1][1]["error"]
    assert [file.name for file in before] == ["items.jsonl"]
    assert (status, again, version["feedback"]) == (201, 201, True)
    (item,) = read_feedback(tmp_path)
    stored = (tmp_path / item.file).read_bytes()
    assert item.file == f"{kept['sha256']}.jpg"
    assert (item.label, item.predicted, item.model.version) == ("3", kept["predicted"], 1)
    assert np.array_equal(_pixels(stored), _pixels(photo))
    assert not any(secret in stored for secret in (b"Camera of Ada", b"Ada's home", b"copyright", b"behind the end"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "progressive JPEG", "gray JPEG", "CMYK JPEG"])
def test_the_pixels_of_a_stripped_photo_are_those_that_were_classified(tmp_path: Path, kind: str) -> None:
    mode = {"gray JPEG": "L", "CMYK JPEG": "CMYK"}.get(kind, "RGB")
    image, file = Image.fromarray(_scene()).convert(mode), io.BytesIO()
    image.save(file, kind.split()[-1], exif=_exif(5), **({"progressive": True} if "progressive" in kind else {}))

    with serving(_app(tmp_path)) as served:
        status = served.teach(file.getvalue(), "3")[0]

    (item,) = read_feedback(tmp_path)
    stored = (tmp_path / item.file).read_bytes()
    assert status == 201
    assert item.file.endswith(".jpg" if "JPEG" in kind else ".png")
    assert b"Camera of Ada" not in stored
    assert np.array_equal(_pixels(stored, gray=True), _pixels(file.getvalue(), gray=True))


def test_feedback_is_off_unless_wanted_and_limited_in_rate_and_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ModelInService(digits_engine())
    with serving(make_app(engine, [], host="127.0.0.1", token=None)) as served:
        off = served.teach(digit_png(0), "3")
        version = served.ask("GET", "/version")[1]
    monkeypatch.setattr(receiving, "PER_MINUTE", 2)
    with serving(_app(tmp_path / "few")) as served:
        fast = [served.teach(digit_png(row), "3") for row in range(4)]
    monkeypatch.setattr(receiving, "PER_MINUTE", 30)
    monkeypatch.setattr(receiving, "MOST_ITEMS", 1)
    with serving(_app(tmp_path / "full")) as served:
        served.teach(digit_png(0), "3")
        full = served.teach(digit_png(1), "3")
        (tmp_path / "full" / "items.jsonl").unlink()
        emptied = served.teach(digit_png(1), "3")[0]

    assert off[0] == 404
    assert "--feedback" in off[1]["error"]
    assert version["feedback"] is False
    assert [status for status, _, _ in fast] == [201, 201, 429, 429]
    assert [full[0], emptied] == [429, 201]
    assert int(full[2]["Retry-After"]) > 60


def test_photos_that_come_after_a_person_emptied_the_folder_are_kept_also_the_same_ones(tmp_path: Path) -> None:
    with serving(_app(tmp_path)) as served:
        for left in ("", "items.jsonl", ""):
            statuses = [served.teach(digit_png(row), "3")[0] for row in (0, 1)]
            names = [item.file for item in read_feedback(tmp_path)]
            photos = {file.name for file in tmp_path.iterdir()} - {"items.jsonl"}

            assert (statuses, len(names)) == ([201, 201], 2)
            assert set(names) == photos
            for file in tmp_path.iterdir():
                if file.name != left:
                    file.unlink()


def test_a_line_that_a_crash_cut_off_costs_no_other_photo(tmp_path: Path) -> None:
    with serving(_app(tmp_path)) as served:
        served.teach(digit_png(0), "3")
    with (tmp_path / "items.jsonl").open("a") as lines:
        lines.write('{"time": "2026-')

    with serving(_app(tmp_path)) as served:
        statuses = [served.teach(digit_png(row), "4")[0] for row in (1, 2)]

    assert statuses == [201, 201]
    assert [item.label for item in read_feedback(tmp_path)] == ["3", "4", "4"]


def test_a_table_of_something_else_is_refused_before_the_photos_are_judged(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    with serving(_app(FEEDBACK)) as served:
        assert served.teach(digit_png(3), "3")[0] == 201
    Path("photo.png").write_bytes(digit_png(0))

    with pytest.raises(DataError, match=r"photo\.png, line 1: the byte 0x89 is not UTF-8 text"):
        _command(capsys, "data", "feedback", "--out", "photo.png")

    assert Path("photo.png").read_bytes() == digit_png(0)


def test_copies_of_test_images_and_wrong_labels_are_held_back_and_only_accepted_photos_become_data(
    project: Project,
    write_digits: Any,
    digits: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_digits(each=40, classes=tuple(range(10)))
    project.set(ingest__source="folder", ingest__path="images", ingest__size_px=16)
    monkeypatch.chdir(project.folder)
    assert project.run("ingest").code == 0
    _split()
    monkeypatch.setattr(receiving, "PER_MINUTE", 100)
    others = [row for label in range(10) for row in np.flatnonzero(digits.target == label)[40:44]]
    good, wrong = others[:35], others[35:]
    photos = [(digit_png(row), str(digits.target[row])) for row in good]
    photos += [(digit_png(row), str((digits.target[row] + 5) % 10)) for row in wrong]
    photos += [(_altered(Path("images", path)), Path(path).parent.name) for path in _of_test()[:5]]
    with serving(_app(FEEDBACK)) as served:
        taken = [served.teach(photo, label)[0] for photo, label in photos]
        refused = [served.teach(digit_png(row)[:90], "1")[0] for row in good[:3]]
    for item in read_feedback(FEEDBACK)[:2]:
        (FEEDBACK / item.file).write_bytes(digit_png(0)[:90])  # damaged on the disk

    code, said = _command(capsys, "data", "feedback")
    lines = CSV.read_text().splitlines()
    too_early = sorted(Path("images").rglob("feedback-*"))
    CSV.write_text("\n".join([lines[0], *(line for line in lines[1:] if ",keep," in line)][:11]) + "\n")
    accepted = _command(capsys, "data", "feedback", "--accept")
    again = _command(capsys, "data", "feedback", "--accept")
    elsewhere = _command(capsys, "data", "feedback", "--accept", "--into", "others")
    file = CSV.read_text().splitlines()[1].partition(",")[0]
    for lines_of_photo in ([f"{file},drop,,"], [f"{file},relabel,{label}," for label in ("1", "2")]):
        CSV.write_text("\n".join([lines[0], *lines_of_photo]) + "\n")
        with pytest.raises(DataError, match="an earlier --accept, puts this photo into images/"):
            _command(capsys, "data", "feedback", "--accept")
    with pytest.raises(DataError, match=r"line 3: another line, .* puts this photo into third/1/"):
        _command(capsys, "data", "feedback", "--accept", "--into", "third")

    held = [line for line in lines if ",drop," in line]
    assert taken == [201] * 45
    assert refused == [422] * 3
    assert code == 1
    assert all(f"{count} {kind}" in said for count, kind in ((5, "test copy"), (2, "unreadable")))
    assert sum("doubtful label" in line for line in held) >= 5
    assert {item.file for item in read_feedback(FEEDBACK)[35:]} <= {line.split(",")[0] for line in held}
    assert len(held) <= 15
    assert (FEEDBACK / "sheet.html").read_text().count("data:image/webp") == 43
    assert too_early == []
    assert "10 photos added to images, 0 were there." in accepted[1]
    assert "35 photos without a decision stay out" in accepted[1]
    assert "0 photos added to images, 10 were there." in again[1]
    assert len(list(Path("images").rglob("feedback-*"))) == 10
    assert "run: dvc repro" in accepted[1]
    assert "The pipeline does not read others" in elsewhere[1]
    assert project.run("ingest").code == 0
    table = pq.read_table("data/out/ingest/table.parquet")
    assert table.num_rows == 410
    flat = [path.replace("/", "_") for path in table["path"].to_pylist()]  # as where a CSV names the labels
    place = table.schema.get_field_index("path")
    pq.write_table(table.set_column(place, table.schema.field(place), [flat]), "data/out/ingest/table.parquet")
    with pytest.raises(DataError, match="The labels of the source are not its folders"):
        _command(capsys, "data", "feedback", "--accept")


def _app(folder: Path) -> Any:
    engine = ModelInService(digits_engine())
    return make_app(engine, [], host="127.0.0.1", token=None, feedback=Quarantine(folder))


def _command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        commands(list(arguments), standalone_mode=False)
    return int(ended.value.code or 0), capsys.readouterr().out


def _split() -> None:
    """Leave a manifest as validate does: every sixth image is for tests."""
    table = pq.read_table("data/out/ingest/table.parquet")
    splits = ["test" if row % 6 == 5 else "val" if row % 6 == 4 else "train" for row in range(len(table))]
    ids, labels = table["id"].to_pylist(), table["label"].to_pylist()
    Path("data/out/validate").mkdir()
    manifest = Path("data/out/validate/manifest.parquet")
    write_manifest(manifest, ids=ids, labels=labels, splits=splits, dropped=[None] * len(ids))


def _of_test() -> list[str]:
    table, manifest = (pq.read_table(f"data/out/{name}.parquet") for name in ("ingest/table", "validate/manifest"))
    splits = zip(table["path"].to_pylist(), manifest["split"].to_pylist(), strict=True)
    return [path for path, split in splits if split == "test"]


def _altered(path: Path) -> bytes:
    """The picture of a file in a JPEG: other bytes, other pixels."""
    file = io.BytesIO()
    Image.open(path).save(file, "JPEG", quality=90)
    return file.getvalue()


def _scene() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera of Ada"
    return exif


def _jpeg_with_metadata(orientation: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_scene()).save(
        file, "JPEG", exif=_exif(orientation), comment=b"Ada's home", icc_profile=b"copyright" * 20
    )
    return file.getvalue() + b"behind the end"


def _pixels(file: bytes, *, gray: bool = False) -> np.ndarray[Any, Any]:
    return decode_image(file, channels="gray" if gray else "rgb", max_pixels=10**6).pixels
