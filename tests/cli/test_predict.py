"""`twinrun predict`: whatever a person names is classified as evaluate does it, or has a row that says why not."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_support import heed_permissions
from PIL import Image

from twinrun import load
from twinrun.cli import main as cli
from twinrun.cli import predict
from twinrun.models.bundle import load_bundle
from twinrun.models.predict import probabilities
from twinrun.prediction import classifier, parts, rows
from twinrun.prediction.classifier import ImageClassifier
from twinrun.sweep import engines

BUNDLE = "data/out/train/bundle"


class InOrder:
    """In place of threads, so that images are read in the order of their list."""

    def map(self, function: Callable[..., Any], parts: Any) -> Any:
        return map(function, parts)


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def project(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a project with a candidate; the working folder."""
    folder = tmp_path / "project"
    shutil.copytree(registered, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def twinrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """The real entry point, in this process, since each new one would import PyTorch anew."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["twinrun", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _photos(folder: Path, *names: str) -> None:
    """Photos of noise, each another one."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 30), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name, "PNG")


def test_a_photo_has_the_bits_that_evaluate_gives_it_alone_and_among_others(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    bundle = load_bundle(project / BUNDLE)
    pixels = np.stack([np.asarray(Image.open(project / f"{number}.png")) for number in range(4)])[..., None]
    wanted = probabilities(bundle, pixels)

    alone = twinrun("predict", "2.png", "--out", "alone.csv", "--model", BUNDLE)
    together = twinrun("predict", *(f"{number}.png" for number in range(4)), "--out", "all.parquet", "--model", BUNDLE)

    (row,) = _rows(project / "alone.csv")
    order = np.argsort(-wanted[2], kind="stable")
    assert (alone.code, together.code) == (0, 0)
    assert [row["label"], row["label_2"], row["label_3"]] == [bundle.classes[i] for i in order[:3]]
    assert [float(row[f"probability{n}"]) for n in ("", "_2", "_3")] == wanted[2][order[:3]].tolist()
    assert list(row) == [
        *("path", "label", "probability", "label_2", "probability_2", "label_3", "probability_3", "error")
    ]
    table = pq.read_table(project / "all.parquet").to_pylist()
    assert [each["probability"] for each in table] == wanted.max(axis=1).tolist()
    assert [each["path"] for each in table] == ["0.png", "1.png", "2.png", "3.png"]
    assert re.search(rf"2\.png +{row['label']} +0\.\d{{4}}", alone.out)


def test_files_folders_patterns_and_lists_keep_their_order(project: Path, twinrun: Callable[..., Ended]) -> None:
    _photos(project, "b.png", "bins/z.png", "bins/a/2.png", "bins/a/10.PNG", "more/1.png", "more/2.png", "lists/x.png")
    (project / "bins/notes.txt").write_text("mine")
    (project / "bins/Thumbs.db").write_bytes(b"litter")
    (project / "bins/a/data.json").write_text("{}")
    (project / "lists/list.csv").write_text("\ufeffid;Image\n7;x.png\n8;../b.png\n", encoding="utf-8")

    ended = twinrun(
        *("predict", "b.png", "bins", "more/*.png", "lists/list.csv", "--out", "out.csv", "--model", BUNDLE, "--top", 1)
    )

    rows = _rows(project / "out.csv")
    assert ended.code == 0
    assert [row["path"] for row in rows] == [
        *("b.png", "bins/a/10.PNG", "bins/a/2.png", "bins/z.png"),
        *("more/1.png", "more/2.png", "lists/x.png", "lists/../b.png"),
    ]
    assert list(rows[0]) == ["path", "label", "probability", "error"]
    assert rows[0]["probability"] == rows[-1]["probability"]
    assert re.search(r"bins: Left out: 2 files that are not images .* and 1 file", ended.err)


def test_a_list_without_a_header_or_with_other_columns_is_read(project: Path, twinrun: Callable[..., Ended]) -> None:
    (project / "bare.csv").write_text("0.png\n1.png\n")
    (project / "other.csv").write_text("photo,who\n2.png,Ann\n")

    ended = twinrun("predict", "bare.csv", "other.csv", "--out", "out.csv", "--model", BUNDLE)

    assert ended.code == 0, ended.err
    assert [row["path"] for row in _rows(project / "out.csv")] == ["0.png", "1.png", "2.png"]


def test_an_unreadable_image_is_a_row_with_its_reason_and_the_others_are_classified(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    (project / "cut.png").write_bytes((project / "0.png").read_bytes()[:100])
    (project / "page.jpg").write_bytes(b"<html><body>404</body></html>")

    ended = twinrun("predict", "0.png", "cut.png", "gone.png", "page.jpg", ".git", "1.png", "--out", "o.csv")

    rows = _rows(project / "o.csv")
    reasons = [row["error"] for row in rows]
    assert ended.code == 1
    assert [bool(reason) for reason in reasons] == [False, True, True, True, True, False]
    assert "truncated" in reasons[1]
    assert "No such file" in reasons[2]
    assert reasons[3] == "is an HTML page named .jpg"
    assert rows[1]["label"] == rows[1]["probability"] == ""
    assert "truncated" in ended.out
    assert "Traceback" not in ended.err


def test_without_a_champion_the_candidate_answers_and_it_is_said(project: Path, twinrun: Callable[..., Ended]) -> None:
    before = twinrun("predict", "0.png")
    twinrun("promote", "1")
    after = twinrun("predict", "0.png")
    named = [twinrun("predict", "0.png", "--model", name) for name in ("1", "v1", "@champion", "twinrun-digits/1")]
    (project / "params.yaml").unlink()
    elsewhere = twinrun("predict", "0.png", "--model", "models:/twinrun-digits@champion")

    assert "twinrun-digits has no champion, so the candidate answers: version 1" in before.err
    assert "Model: version 1 of twinrun-digits (candidate, champion)" in after.err
    assert "no champion" not in after.err
    assert {each.out for each in (before, after, elsewhere, *named)} == {before.out}
    assert all(each.code == 0 for each in (before, after, elsewhere, *named))
    assert project


def test_without_a_registry_the_trained_model_answers_and_the_command_that_registers_it_is_named(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    before = twinrun("predict", "0.png")
    shutil.rmtree(project / "mlruns")

    answered = twinrun("predict", "0.png")
    for name in ("ingest/images.npy", "validate/manifest.parquet", "evaluate/metrics.json", "train/card.json"):
        (project / "data/out" / name).parent.mkdir(exist_ok=True)
        (project / "data/out" / name).write_text("{}")
    evaluated = twinrun("predict", "0.png")
    named = twinrun("predict", "0.png", "--model", "twinrun-digits@champion")
    shutil.rmtree(project / BUNDLE)
    (project / "dvc.lock").write_text("stages:\n  register:\n    cmd: python -m pipeline.register\n")
    gone = twinrun("predict", "0.png")
    (project / ".dvc").mkdir(exist_ok=True)
    (project / ".dvc/config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = /store\n")
    cloned = twinrun("predict", "0.png")
    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"(?m)^  path: \S+", "  path: data/raw/bins", params, count=1))
    (project / "data/raw").mkdir(parents=True, exist_ok=True)
    (project / "data/raw/bins.dvc").touch()
    (project / "dvc.lock").unlink()
    unrecorded = twinrun("predict", "0.png")
    (project / ".dvc/config").write_text("")
    unshared = twinrun("predict", "0.png")

    assert (answered.code, evaluated.code, named.code, gone.code) == (0, 0, 2, 2)
    assert answered.out == evaluated.out == before.out
    assert "There is no model 'twinrun-digits' in sqlite:" in answered.err
    assert f"Until then the model in {BUNDLE} is used." in answered.err
    assert "params.yaml: dvc repro -f -s register\n" in evaluated.err
    assert "params.yaml: dvc repro && dvc repro -f -s register\n" in gone.err
    assert "params.yaml: dvc pull --allow-missing && dvc repro && dvc repro -f -s register\n" in cloned.err
    assert "params.yaml: dvc pull data/raw/bins && dvc repro\n" in unrecorded.err
    assert "the images (data/raw/bins) are not here, and DVC has no default remote" in unshared.err


def test_a_file_that_is_not_there_is_missing_and_not_unreadable(project: Path, twinrun: Callable[..., Ended]) -> None:
    alone = twinrun("predict", "gone.png", "--model", BUNDLE)
    together = twinrun("predict", "gone.png", "0.png", "--model", BUNDLE)

    assert (alone.code, together.code) == (2, 1)
    assert "There is no file gone.png. Name images, or folders of images." in alone.err
    assert re.search(r"gone\.png +missing +No such file", together.out)
    assert "unreadable" not in alone.out + together.out
    assert project


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["predict", "nope.jpg"], 2, "There is no file nope.jpg. Name images, or folders of images."),
        (
            ["predict", *(f"{number}.jpg" for number in range(1, 6)), "--out", "out.csv"],
            2,
            "None of these 5 files exists: 1.jpg, 2.jpg, 3.jpg and 2 more. Name images, or folders of images.",
        ),
        (["predict", "list.csv"], 2, "There is no file nope.jpg. Name images, or folders of images. Paths in a CSV"),
        (["explain", "nope.jpg"], 1, "nope.jpg cannot be read: No such file or directory"),
        (["verify", "answer.json", "nope.jpg"], 1, "nope.jpg cannot be read: No such file or directory"),
    ],
)
def test_a_name_that_no_file_has_is_refused_before_what_takes_seconds_is_imported(
    tmp_path: Path, arguments: list[str], code: int, problem: str
) -> None:
    (tmp_path / "list.csv").write_text("path\nnope.jpg\n")
    program = (
        "import sys\n"
        "from twinrun.cli import main\n"
        "try:\n    main.main()\n"
        "finally:\n    print(sorted({'torch', 'mlflow', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, *arguments]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (code, "[]\n")
    assert problem in done.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("named", "code"), [(["listed", "0.png/below.png"], 2), (["list.csv", "listed/2.png", "0.png/below.png"], 1)]
)
def test_a_file_in_a_folder_that_cannot_be_entered_is_unreadable_and_not_missing(
    named: list[str], code: int, project: Path
) -> None:
    _photos(project, "listed/1.png", "listed/2.png")
    (project / "list.csv").write_text("path\nlisted/1.png\n0.png\n")
    (project / "listed").chmod(0o644)

    done = subprocess.run(
        [sys.executable, "-m", "twinrun", "predict", *named, "--model", BUNDLE],
        capture_output=True, text=True, timeout=120, check=False, preexec_fn=heed_permissions,
    )  # fmt: skip

    (project / "listed").chmod(0o755)
    assert done.returncode == code, done.stderr
    assert len(re.findall(r"listed/[12]\.png +unreadable +cannot be read: +Permission denied", done.stdout)) == 2
    assert re.search(r"below\.png +missing +No such file", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0.png", "--model", "7"], r"has no version 7; it has 1"),
        (
            ["0.png", "--model", "other"],
            r"There is no model 'other' .* The models there: 'twinrun-digits' .*params\.yaml: dvc repro",
        ),
        (["0.png", "--model", "data/out/gone"], r"There is no folder data/out/gone\. .*dvc checkout restores it"),
        (["0.png", "--model", "@best"], r"no version with the alias 'best'; its versions are 1\. Name one: --model 1"),
        (["0.png", "--model", "data"], r"data is not the folder of a model: .* such as data/out/train/bundle"),
        (["0.png", "--model", "data/out/train"], r"Name another folder, such as data/out/train/bundle"),
        (["empty"], r"There are no images in empty\."),
        (["*.tiff"], r"No file matches \*\.tiff"),
        (["gone.csv"], r"gone\.csv cannot be read: No such file"),
        (["latin.csv"], r"latin\.csv, line \d+: the byte 0x\w+ is not UTF-8 text"),
        (["blank.csv"], r"blank\.csv names no image in its row 2"),
        (["0.png", "--out", "out.xlsx"], r"out\.xlsx cannot be written: its name must end with \.csv or \.parquet"),
        (["0.png", "--out", "folder.csv"], r"folder\.csv is a folder"),
        (["good.csv", "--out", "./good.csv"], r"good\.csv is one of the images and would be overwritten"),
        (["g*.csv", "--out", "good.csv"], r"good\.csv is one of the images and would be overwritten"),
        (["0.png", "--sheet", "0.png"], r"0\.png cannot be written: its name must end with \.html"),
        (["good.csv", "--out", "link.csv"], r"link\.csv is one of the images and would be overwritten"),
        (["good.csv", "--out", "hard.csv"], r"hard\.csv is one of the images and would be overwritten"),
        (["0.png", "--out", "good.csv"], r"good\.csv exists, is not what this command writes, and would be lost"),
        (["0.png", "--out", "edited.csv"], r"edited\.csv exists, is not what"),
        (["0.png", "--out", "mine.parquet"], r"mine\.parquet exists, is not what"),
        (["0.png", "--sheet", "mine.html"], r"mine\.html exists, is not what this command writes"),
        (["0.png", "--show"], r"predictions\.html exists, is not what this command writes"),
        (["0.png", "--out", "broken.csv"], r"broken\.csv is a link to a file that does not exist"),
        (
            ["0.png", "--model", "7", "--out", "new/a/labels.csv", "--sheet", "new/b.html"],
            r"has no version 7; it has 1",
        ),
        (["0.png", "--out", "good.csv/in/it.csv"], r"good\.csv/in/it\.csv cannot be written: "),
        (["0.png", "--on", "ray"], r"--on ray needs a file for the answers: --out labels\.parquet"),
        (["0.png", "--parts", "2"], r"--parts 2 needs a file for the answers: --out labels\.parquet"),
        (["0.png", "--workers", "2"], r"--workers 2 needs a file for the answers: --out labels\.parquet"),
    ],
    ids=range(29),
)
def test_what_cannot_be_done_is_a_message_and_changes_nothing(
    arguments: list[str], message: str, project: Path, twinrun: Callable[..., Ended]
) -> None:
    for name in ("empty", "folder.csv"):
        (project / name).mkdir()
    (project / "latin.csv").write_bytes(b"path\nb\xe4r.png\n")
    (project / "blank.csv").write_text("path,who\n0.png,Ann\n ,Bob\n")
    (project / "good.csv").write_text("path\n0.png\n")
    (project / "link.csv").symlink_to("good.csv")
    (project / "hard.csv").hardlink_to(project / "good.csv")
    (project / "broken.csv").symlink_to("/nowhere/labels.csv")
    (project / "edited.csv").write_text("path,label,probability,error,comment\n0.png,0,0.9,,mine\n")
    (project / "mine.parquet").write_bytes(b"mine")
    for name in ("mine.html", "predictions.html"):
        (project / name).write_text("<title>mine</title>")
    before = {path: path.read_bytes() for path in project.glob("*") if path.is_file()}

    ended = twinrun("predict", *arguments)

    assert ended.code == 2
    assert re.search(f"(?s){message}", ended.err)
    assert "Traceback" not in ended.err
    assert {path: path.read_bytes() for path in project.glob("*") if path.is_file()} == before
    assert not (project / "new").exists()


def test_files_of_an_earlier_run_are_replaced_where_a_link_leads(
    project: Path, tmp_path: Path, twinrun: Callable[..., Ended]
) -> None:
    outputs = {option: f"labels.{suffix}" for option, suffix in (("--out", "csv"), ("--sheet", "html"))}
    given = [*outputs.items(), ("--model", BUNDLE)]
    first = twinrun("predict", "0.png", *(text for pair in given for text in pair))
    table = twinrun("predict", "0.png", "--out", "labels.parquet", "--model", BUNDLE)
    for name in (*outputs.values(), "labels.parquet"):
        (project / name).rename(tmp_path / name)
        (project / name).symlink_to(tmp_path / name)

    again = twinrun("predict", "0.png", "1.png", *(text for pair in given for text in pair))
    table_again = twinrun("predict", "0.png", "1.png", "--out", "labels.parquet", "--model", BUNDLE)

    assert [ended.code for ended in (first, table, again, table_again)] == [0, 0, 0, 0], again.err + table_again.err
    assert all((project / name).is_symlink() for name in (*outputs.values(), "labels.parquet"))
    assert len(_rows(tmp_path / "labels.csv")) == pq.read_table(tmp_path / "labels.parquet").num_rows == 2
    assert "1.png" in (tmp_path / "labels.html").read_text(encoding="utf-8")


def test_more_labels_than_there_are_classes_are_all_of_them(project: Path, twinrun: Callable[..., Ended]) -> None:
    ended = twinrun("predict", "0.png", "--out", "out.csv", "--top", 1_000_000)

    assert ended.code == 0
    assert len(_rows(project / "out.csv")[0]) == 2 + 2 * len(load(BUNDLE).bundle.classes)


_HOSTILE = ["=1+2.png", "-x.png", "[red]a[ /].png", "<img src=x onerror=alert(1)>.png", "a\nb\x1b[31m.png", "@.png"]


def test_names_are_shown_and_never_obeyed(project: Path, twinrun: Callable[..., Ended]) -> None:
    names = [name for name in _HOSTILE if "/" not in name] + ["[red]a[].png"]
    _photos(project / "odd", *names)
    shutil.move(project / "odd/=1+2.png", project / "=1+2.png")

    ended = twinrun("predict", "=1+2.png", "odd", "--out", "o.csv", "--sheet", "s.html", "--model", BUNDLE)

    page = (project / "s.html").read_text(encoding="utf-8")
    rows = _rows(project / "o.csv")
    assert ended.code == 0, ended.err
    assert rows[0]["path"] == "'=1+2.png"
    assert r"odd/a\nb\x1b[31m.png" in [row["path"] for row in rows]
    assert "\x1b" not in ended.out + page
    assert "[red]a[].png" in ended.out
    assert "<img src=x" not in page
    assert html.escape("<img src=x onerror=alert(1)>.png") in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count('<img src="data:image/webp') == len(rows)


def test_what_a_decoder_writes_to_the_terminal_by_itself_is_not_shown(
    project: Path, twinrun: Callable[..., Ended], tmp_path: Path
) -> None:
    file, raw = tmp_path / "fax.tif", tmp_path / "raw"
    Image.effect_noise((64, 64), 90).convert("1").save(file, compression="group4")
    damaged = bytearray(file.read_bytes())
    damaged[100:200] = b"\xff" * 100
    file.write_bytes(damaged)

    before, into = os.dup(2), os.open(raw, os.O_CREAT | os.O_WRONLY)
    os.dup2(into, 2)
    try:
        ended = twinrun("predict", file, "--model", project / BUNDLE)
    finally:
        os.dup2(before, 2)

    assert raw.read_text() == ""
    assert "Model: " in ended.err
    assert len(ended.out.splitlines()) > 0


def test_show_makes_a_page_with_the_unreadable_images_too_and_opens_nothing_here(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.launch", lambda _: pytest.fail("a page was opened"))
    monkeypatch.setenv("DISPLAY", ":0")

    ended = twinrun("predict", "0.png", "gone.png", "--show", "--model", BUNDLE)

    page = (project / "predictions.html").read_text(encoding="utf-8")
    assert ended.code == 1
    assert "Written: predictions.html" in ended.err
    assert page.count("<figure>") == 2
    assert "No such file" in page


@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_a_run_that_was_ended_goes_on_where_it_stopped(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # given a run of three parts that ended in the second
    names = [f"bins/{number}.png" for number in range(8)]
    _photos(project, *names)
    twinrun("predict", *names, "--out", f"whole-{name}", "--model", BUNDLE)
    monkeypatch.setattr(parts, "PART_IMAGES", 3)
    read, seen = ImageClassifier.read, []

    def read_or_end(self: ImageClassifier, image: Any) -> Any:
        seen.append(str(image))
        if len(seen) == 5:
            raise KeyboardInterrupt
        return read(self, image)

    monkeypatch.setattr(ImageClassifier, "read", read_or_end)
    monkeypatch.setattr(classifier, "single_threads", InOrder)
    ended = twinrun("predict", *names, "--out", name, "--model", BUNDLE)
    assert ended.code == 130
    assert "3 of 8 images are done. The same command goes on from there." in ended.err
    assert "Stopped by Ctrl-C" in ended.err
    assert not Path(name).exists()

    # when the command is given again
    seen[:] = [""] * 10
    again = twinrun("predict", *names, "--out", name, "--model", BUNDLE)

    # then the first part is not read again, and the file is that of a run that nobody ended
    assert again.code == 0
    assert seen[10:] == names[3:]
    assert Path(name).read_bytes() == Path(f"whole-{name}").read_bytes()
    assert not list(Path().glob(".*.unfinished"))


def test_two_runs_that_write_one_file_do_not_take_each_others_parts(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    _photos(project, "a.png", "b.png")
    inner: list[subprocess.CompletedProcess[str]] = []
    read = ImageClassifier.read

    def read_while_another_runs(self: ImageClassifier, image: Any) -> Any:
        if not inner:
            command = [sys.executable, "-m", "twinrun", "predict", "b.png", "--out", "new/all.csv", "--model", BUNDLE]
            inner.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
        return read(self, image)

    monkeypatch.setattr(ImageClassifier, "read", read_while_another_runs)
    monkeypatch.setattr(classifier, "single_threads", InOrder)
    ended = twinrun("predict", "a.png", "b.png", "--out", "new/all.csv", "--model", BUNDLE)

    assert inner[0].returncode == 2, inner[0].stderr
    assert "Another process writes new/all.csv. Wait for it to end, or name another file." in inner[0].stderr
    assert ended.code == 0, ended.err
    assert [row["path"] for row in _rows(Path("new/all.csv"))] == ["a.png", "b.png"]
    assert [path.name for path in Path("new").iterdir()] == ["all.csv"]


def test_what_was_classified_of_other_files_is_not_used(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    _photos(project, "a.png", "b.png")
    monkeypatch.setattr(parts, "PART_IMAGES", 1)
    write = predict._write
    monkeypatch.setattr(predict, "_write", lambda *_: sys.exit(130))  # ended before the last step
    twinrun("predict", "a.png", "b.png", "--out", "all.csv", "--model", BUNDLE)
    monkeypatch.setattr(predict, "_write", write)
    (project / "a.png").write_bytes((project / "0.png").read_bytes())

    twinrun("predict", "a.png", "b.png", "--out", "all.csv", "--model", BUNDLE)

    twinrun("predict", "a.png", "--out", "a.csv", "--model", BUNDLE)
    assert _rows(project / "all.csv")[0] == _rows(project / "a.csv")[0]


def test_a_program_gets_the_same_answers_for_an_image_in_every_form(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    twinrun("predict", "0.png", "1.png", "--out", "all.parquet", "--model", BUNDLE, "--top", 10)
    file = (project / "0.png").read_bytes()
    image = Image.open(project / "0.png")

    model = load("models:/twinrun-digits/1")
    forms = [model.predict(form) for form in ("0.png", Path("0.png"), file, image, np.asarray(image))]
    both = model.predict(["0.png", "gone.png", "1.png"])

    wanted = pq.read_table(project / "all.parquet").to_pylist()
    assert {(form.label, form.probability) for form in forms} == {(wanted[0]["label"], wanted[0]["probability"])}
    assert [one.label for one in both] == [wanted[0]["label"], None, wanted[1]["label"]]
    assert both[1].probabilities == {}
    assert "neither a file that exists" in both[1].error
    assert sorted(both[2].probabilities, key=both[2].probabilities.get)[-1] == wanted[1]["label"]


def test_many_images_are_summed_up_by_class(project: Path, twinrun: Callable[..., Ended]) -> None:
    _photos(project / "many", *(f"{number:03d}.png" for number in range(40)))
    (project / "many/bad.png").write_bytes(b"bad")

    ended = twinrun("predict", "many", "--out", "o.csv", "--model", BUNDLE)

    rows = _rows(project / "o.csv")
    commonest = max(set("0123456789"), key=lambda label: sum(row["label"] == label for row in rows))
    assert ended.code == 1
    assert len(rows) == 41
    assert re.search(rf"{commonest} +{sum(row['label'] == commonest for row in rows)} +0\.\d{{3}}", ended.out)
    assert "1 of 41 images cannot be read:\n  many/bad.png: " in ended.out
    assert "001.png" not in ended.out


def test_photos_of_a_published_set_get_the_labels_that_the_library_gives(
    project: Path, twinrun: Callable[..., Ended], tmp_path: Path
) -> None:
    from twinrun.decoding.decode import decode_image, fit_image

    if "TWINRUN_TEST_DATA" not in os.environ:
        pytest.skip("TWINRUN_TEST_DATA names no folder with trashnet")
    folder = next(path for path in Path(os.environ["TWINRUN_TEST_DATA"], "trashnet").rglob("glass") if path.is_dir())
    chosen = sorted(folder.glob("*.jpg"))[:20]
    for path in chosen:
        (tmp_path / "glass").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "glass" / path.name)
    bundle = load_bundle(project / BUNDLE)
    settings: Any = bundle.preprocessing
    pixels = np.stack(
        [
            fit_image(
                decode_image(path.read_bytes(), channels=settings.channels, max_pixels=settings.max_pixels).pixels,
                settings.size_px,
                settings.fit,
                settings.resample,
            )
            for path in chosen
        ]
    )

    twinrun("predict", tmp_path / "glass", "--out", "o.parquet", "--top", 1, "--model", BUNDLE)

    table = pq.read_table(project / "o.parquet").to_pylist()
    assert [each["probability"] for each in table] == probabilities(bundle, pixels).max(axis=1).tolist()


class OneByOne:
    """A launcher that runs a process at once, here: `kill` of them end before they have done anything."""

    def __init__(self, slots: int, kill: int = 0) -> None:
        self.slots, self.kill, self.done = slots, kill, []  # type: ignore[var-annotated]

    def submit(self, folder: Path) -> None:
        if self.kill:
            self.kill -= 1
        else:
            parts.work(folder)
        self.done.append((folder, "it was killed"))

    def ended(self) -> list[tuple[Path, str]]:
        done, self.done = self.done, []
        return done

    def close(self) -> None:
        pass


def test_workers_that_do_nothing_are_said_to_and_the_images_are_classified(
    project: Path, twinrun: Callable[..., Ended]
) -> None:
    _photos(project, "a.png")

    ended = twinrun("predict", "a.png", "--out", "a.csv", "--model", BUNDLE, "--workers", "2")

    assert ended.code == 0
    assert "--workers 2 has no effect here" in ended.err.replace("\n", " ")
    assert Path("a.csv").is_file()


@pytest.mark.parametrize(("count", "slots"), [(1, 3), (7, 1), (64, 2)])
def test_parts_on_other_machines_give_the_same_file_though_one_is_killed(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, count: int, slots: int
) -> None:
    names = [f"bins/{number}.png" for number in range(9)]
    _photos(project, *names)
    (project / "bins/4.png").write_bytes(b"<html>")
    twinrun("predict", *names, "--out", "here.csv", "--model", BUNDLE)
    monkeypatch.setattr(engines, "open_launcher", lambda *_, **__: OneByOne(slots, kill=1))
    monkeypatch.setattr(rows, "classified", None)  # nothing is left to this process

    there = twinrun("predict", *names, "--out", "there.csv", "--model", BUNDLE, "--on", "ray", "--parts", count)

    assert there.code == 1  # one is not an image
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
    assert not list(Path().glob(".*.unfinished"))


def test_a_machine_that_computes_something_else_does_no_work_and_its_reason_is_given(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    _photos(project, "a.png")
    monkeypatch.setattr(engines, "open_launcher", lambda *_, **__: OneByOne(1, kill=9))
    killed = twinrun("predict", "a.png", "--out", "a.csv", "--model", BUNDLE, "--on", "spark")
    (process,) = Path(".a.csv.unfinished").glob("process-*")
    job = Path(".a.csv.unfinished/job.json")
    job.write_text(json.dumps(json.loads(job.read_text()) | {"test": "of another processor"}))

    code = parts.work(process)

    assert killed.code == 2
    assert "Some images were not classified after 2 attempts: it was killed." in killed.err
    assert code == 1
    assert not list(Path(".a.csv.unfinished").glob("0*/rows.parquet"))


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("spark", "pyspark")])
def test_an_engine_that_is_not_installed_is_named_with_what_to_install(
    project: Path, twinrun: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, engine: str, package: str
) -> None:
    _photos(project, "a.png")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"twinrun.sweep.{engine}", raising=False)

    without = twinrun("predict", "a.png", "--model", BUNDLE, "--on", engine)
    ended = twinrun("predict", "a.png", "--out", "a.csv", "--model", BUNDLE, "--on", engine)

    assert "needs a file for the answers: --out" in without.err
    assert ended.code == 2
    assert f"needs the package {package}" in ended.err
    assert f"pip install 'twinrun[{engine}]'" in ended.err.replace("\n", " ")
