"""Tables, arrays and states of training, as a hostile commit or `dvc pull` may bring them.

Each ends in one sentence that names the file, before the stage has changed anything.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from training_support import TrainableProject, run_stage

from twinrun.base.errors import DataError
from twinrun.base.files import replacing_folder, write_json, write_text
from twinrun.dataset.pack import open_pack
from twinrun.evaluation.headline import read_out_of_fold
from twinrun.evaluation.history import read_history
from twinrun.evaluation.predictions import read_predictions
from twinrun.training.checkpoints import Checkpoints
from twinrun.validate.reference import read_reference

TABLE = Path("data/out/ingest/table.parquet")
NEAR = Path("data/out/ingest/near.parquet")
PACK = Path("data/out/ingest/images.npy")
MANIFEST = Path("data/out/validate/manifest.parquet")

Change = Callable[[pa.Table], pa.Table]


def column(name: str, value: Any, kind: pa.DataType | None = None) -> Change:
    """A change of the first value of a column, or of all of them where a type is given."""

    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        values = table[name].to_pylist()
        values = [value] * len(values) if kind is not None else [value, *values[1:]]
        return table.set_column(at, name, pa.array(values, kind or table[name].type))

    return change


def not_text(name: str) -> Change:
    """A change that puts bytes that are not UTF-8 into a column of text."""

    def change(table: pa.Table) -> pa.Table:
        offsets = pa.py_buffer(np.arange(len(table) + 1, dtype=np.int32).tobytes())
        text = pa.Array.from_buffers(pa.string(), len(table), [None, offsets, pa.py_buffer(b"\xff" * len(table))])
        return table.set_column(table.schema.get_field_index(name), name, text)

    return change


TABLES: list[tuple[str, Path, Change]] = [
    ("validate", TABLE, lambda table: table.drop_columns(["phash"])),
    ("validate", TABLE, column("width", "wide", pa.string())),
    ("validate", TABLE, column("path", [{"a": 1}], pa.list_(pa.struct({"a": pa.int64()})))),
    ("validate", TABLE, column("path", None)),
    ("validate", TABLE, not_text("label")),
    ("validate", TABLE, lambda table: table.slice(0, 10)),
    ("validate", TABLE, lambda table: pa.concat_tables([table, table])),
    ("validate", NEAR, lambda table: append(table, (0, 10**9, 0.1, "cropped"))),
    ("validate", NEAR, lambda table: append(table, (-5, 3, 0.1, "cropped"))),
    ("validate", NEAR, lambda table: append(table, (0, 1, float("nan"), "cropped"))),
    ("validate", NEAR, lambda table: append(table, (0, 1, 0.1, "\x1b[31m"))),
    ("train", MANIFEST, column("row", 10**9)),
    ("train", MANIFEST, column("row", -1)),
    ("train", MANIFEST, column("row", 1)),
    ("train", MANIFEST, column("target", 10**7)),
    ("train", MANIFEST, column("target", 2**62)),
    ("train", MANIFEST, column("split", "\x1b[31mtrian")),
    ("train", MANIFEST, column("label", "another", pa.string())),
    ("train", MANIFEST, column("id", None)),
    ("train", MANIFEST, column("row", "0", pa.string())),
    ("train", MANIFEST, column("row", "first", pa.string())),
    ("train", MANIFEST, column("split", b"\xff", pa.binary())),
]


def append(table: pa.Table, row: tuple[Any, ...]) -> pa.Table:
    added = pa.table(
        {name: pa.array([value], table[name].type) for name, value in zip(table.schema.names, row, strict=True)}
    )
    return pa.concat_tables([table, added])


def header(shape: str, kind: str = "'|u1'") -> bytes:
    """The start of an .npy file that claims a shape, with 64 bytes behind it."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run a stage that is to be refused; returns its sentence."""

    def run(stage: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_stage(stage)
        assert end.value.code == 1
        return capsys.readouterr().err

    return run


def test_a_table_that_no_stage_wrote_is_named_before_it_is_used(
    trainable: TrainableProject,  # noqa: ARG001
    refused: Callable[[str], str],
) -> None:
    for stage, place, change in TABLES:
        whole = place.read_bytes()
        table = pq.read_table(place)
        pq.write_table(change(table), place)

        said = refused(stage)

        assert str(place) in said, (stage, place, said)
        assert "dvc repro -f" in said
        assert "\x1b" not in said
        place.write_bytes(whole)
    assert MANIFEST.is_file()


@pytest.mark.parametrize(
    "content",
    [
        header("(10**9,)"),
        header("(-1, 8, 8, 1)"),
        header("(1000000000000, 8, 8, 1)"),
        header("(1, 8, 8, 99999999999999999999999999)"),
        header("(1, 8, 8, 1)", "'|O'"),
        header("(1, 8, 8, 2)"),
        header("(" * 60 + "1" + ")" * 60),
        header("(True, 8, 8, 1)"),
        header("__import__('os').system('true')"),
        b"PK\x03\x04" + bytes(100),
        pickle.dumps([1]),
        b"",
    ],
)
def test_a_pack_with_a_header_that_no_stage_wrote_is_refused(content: bytes, tmp_path: Path) -> None:
    pack = tmp_path / "images.npy"
    pack.write_bytes(content)

    with pytest.raises(DataError, match=r"images\.npy"):
        open_pack(pack)


@pytest.mark.parametrize(
    ("name", "state", "tensors"),
    [
        ("epoch-00002", "[]", None),
        ("epoch-00002", "[" * 100_000, None),
        ("epoch-00002", "not json", None),
        ("epoch-00002", "{}", b"\xff" * 40),
        ("epoch-last", "{}", None),
    ],
)
def test_a_checkpoint_that_no_training_wrote_is_passed_over_and_named(
    name: str, state: str, tensors: bytes | None, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path)
    forge(tmp_path / "epoch-00001", '{"a": 1}')
    forge(tmp_path / name, state, tensors)

    newest, warnings = checkpoints.newest()

    assert newest is not None
    assert newest.epoch == 1
    assert [str(tmp_path / name) in line for line in warnings] == [True]


@pytest.mark.parametrize(
    "state", ['{"history": "x"}', '{"history": [], "kept_epoch": 0, "elapsed_s": 0, "steps_done": 0}']
)
def test_a_checkpoint_of_another_training_ends_this_one_with_its_place(
    state: str,
    trainable: TrainableProject,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[str], str],
) -> None:
    folders = Checkpoints._folders

    def forged(self: Checkpoints) -> list[Path]:
        if not (self.folder / "epoch-00001").exists():
            forge(self.folder / "epoch-00001", state)
        return folders(self)

    monkeypatch.setattr(Checkpoints, "_folders", forged)

    said = refused("train")

    assert re.search(r"checkpoint in \S*\.twinrun/resume/[0-9a-f]+ is not one that this training wrote", said)
    assert "rm -r" in said


def forge(folder: Path, state: str, tensors: bytes | None = None) -> None:
    """A checkpoint whose own hashes are right, as somebody who knows the format would write it."""
    with replacing_folder(folder) as temp:
        write_text(state, temp / "state.json")
        save_file({"module.x": np.zeros(1)}, temp / "state.safetensors")
        if tensors is not None:
            (temp / "state.safetensors").write_bytes(tensors)


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        (column("label", "unknown"), None),
        (column("probabilities", [2.0, -1.0]), None),
        (column("probabilities", [float("nan")] * 2), None),
        (column("probabilities", [0.5]), None),
        (column("probabilities", None), None),
        (column("id", 1, pa.int64()), b'["0", "0"]'),
        (lambda table: table, b"["),
        (lambda table: table, b"[" * 100_000),
        (lambda table: table, b'{"0": 1}'),
        (lambda table: table, b'["0", 1]'),
        (lambda table: table.drop_columns(["id"]), None),
    ],
)
def test_predictions_that_no_stage_wrote_are_refused(change: Change, metadata: bytes | None, tmp_path: Path) -> None:
    from twinrun.dataset.manifest import Manifest
    from twinrun.dataset.prediction_table import prediction_table

    place = tmp_path / "predictions.parquet"
    table = prediction_table(["a", "b"], np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), ("0", "1"))
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata({"classes": metadata or b'["0", "1"]'}), place)

    for read in (read_predictions, lambda path: read_out_of_fold(path, Manifest(("0", "1"), {}))):
        with pytest.raises(DataError, match=r"predictions\.parquet"):
            read(place)


@pytest.mark.parametrize(
    "line", ["1,nan,1,1,1", "1,1,1e400,1,1", "1,1", "a,b,c,d,e", '1,"' + "x" * 200_000 + '",1,1,1', "1,\0,1,1,1"]
)
def test_a_history_with_something_else_than_numbers_is_refused(line: str, tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    history.write_text(f"epoch,train_loss,val_loss,val_accuracy,learning_rate\n{line}\n")

    with pytest.raises(DataError, match=r"history\.csv"):
        read_history(history)


def test_a_reference_of_other_types_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "reference.parquet"
    pq.write_table(pa.table({"path": [1], "label": [{"a": 1}], "pixels_sha256": [b"\xff"]}), place)

    with pytest.raises(DataError, match=r"reference\.parquet"):
        read_reference(place, "null is none", "reference")


@pytest.mark.parametrize(
    "state", [{"pid": [], "started": {}}, {"pid": 1, "started": "now"}, {"write": [], "read": 1}, []]
)
def test_doctor_passes_over_states_of_locks_that_nobody_wrote(
    state: Any, tracked_project: Path, twinrun: Callable[..., str]
) -> None:
    from filelock import FileLock

    write_json(state, tracked_project / ".twinrun/train.holder.json")
    write_json(state, tracked_project / ".dvc/tmp/rwlock")

    with FileLock(tracked_project / ".twinrun/train.lock"):
        said = twinrun("doctor")

    assert "locks" in said
    assert "Traceback" not in said
