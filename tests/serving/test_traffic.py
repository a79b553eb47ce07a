"""Whether served images are like the test split: windows of answers, `twinrun drift`, and /metrics."""

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_support import SIDE, digit_pixels, digit_png, digits_engine, full_after, serving
from sklearn.datasets import load_digits

from twinrun.base.errors import DataError
from twinrun.cli.main import app as commands
from twinrun.evaluation.conformal import Calibration, calibrate, with_traffic
from twinrun.evaluation.traffic import image_facts
from twinrun.serving.app import make_app
from twinrun.serving.engine import Engine
from twinrun.serving.follow import ModelInService
from twinrun.serving.json_lines import JsonLines
from twinrun.serving.traffic import DOUBT, TrafficWatch

VALIDATION, TEST, LATER = range(300, 600), range(600, 1200), range(1200, 1797)


@pytest.fixture(scope="module")
def watched() -> Engine:
    """The model of digits with the calibration that evaluate gives it."""
    plain = digits_engine()
    targets = load_digits().target
    logits = {
        rows: np.stack([plain.answer(_pixels(row)).logits for row in rows]).astype(np.float64)
        for rows in (VALIDATION, TEST)
    }
    weights_hash = plain.model.weights_hash
    calibration = calibrate(logits[VALIDATION], None, targets[list(VALIDATION)], 0.05, weights_hash)
    assert calibration is not None
    images, sizes = np.stack([_pixels(row) for row in TEST]), np.full((len(TEST), 2), SIDE)
    full: Calibration = with_traffic(calibration, images, sizes, logits[TEST], None)
    return digits_engine(calibration=full.model_dump_json())


def test_darker_photos_are_reported_and_photos_like_the_test_split_are_not(
    watched: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traffic.jsonl"
    traffic = TrafficWatch(size=100, file=JsonLines(file, "--watch"))
    with serving(make_app(ModelInService(watched), [], host="127.0.0.1", token=None, traffic=traffic)) as served:
        for row in LATER[:100]:
            served.ask("POST", "/classify", digit_png(row))
        alike = served.ask("GET", "/metrics")[1].decode()
        first = _drift(capsys, file)
        for row in LATER[100:200]:
            served.ask("POST", "/classify", _png(_pixels(row)[:, :, 0] // 2))
        darker = served.ask("GET", "/metrics")[1].decode()
        served.ask("POST", "/classify", b"no image")
        version = served.ask("GET", "/version")[1]

    code, said = _drift(capsys, file)
    assert "twinrun_traffic_windows_drifted_total 0" in alike
    assert "twinrun_traffic_windows_drifted_total 1" in darker
    assert 'twinrun_traffic_drift{fact="brightness"} 1' in darker
    assert first[0] == 0
    assert "like the test split" in first[1]
    assert code == 1
    assert "brightness (PSI" in said.splitlines()[1]
    assert "traffic" not in version["calibration"]
    assert len(file.read_text().splitlines()) == 2


def test_a_window_that_the_disk_does_not_take_costs_no_answer_and_is_reported_once(
    watched: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traffic.jsonl"
    traffic = TrafficWatch(size=10, file=JsonLines(file, "--watch"))
    with serving(make_app(ModelInService(watched), [], host="127.0.0.1", token=None, traffic=traffic)) as served:
        with full_after(file, 0):
            full = [served.ask("POST", "/classify", digit_png(row))[0] for row in LATER[:20]]
        said = capsys.readouterr().err
        after = [served.ask("POST", "/classify", digit_png(row))[0] for row in LATER[20:30]]

    assert full + after == [200] * 30
    assert said.count(f"Nothing can be added to {file} (--watch): ") == 1
    assert len(file.read_text().splitlines()) == 1


def test_at_most_one_window_in_a_hundred_is_reported_where_nothing_changed(watched: Engine) -> None:
    answers = [watched.classify(digit_png(row)) for row in (*TEST, *LATER)]
    generator = np.random.default_rng(0)
    rounds, alarms = 60, 0

    for _ in range(rounds):  # the test split and the traffic, drawn anew from the same photos
        dealt = generator.permutation(len(answers))
        engine = _with_reference(watched, [answers[at] for at in dealt[:600]])
        traffic = TrafficWatch(size=500)
        for at in dealt[600:1100]:
            traffic.add(engine, answers[at])
        alarms += traffic.alarms

    assert alarms <= 3  # with 1% of 60 expected, more than 3 come in one case of 300
    assert DOUBT == 0.01


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"time": 3}, "time Input should be a valid string"),
        ({"images": 10**9, "counts": {"width": [10**9, 0]}}, "it has more than 100,000,000 images"),
        ({"reference": {"width": {"edges": [9], "counts": [10**30, 1]}}}, "it has more than 100,000,000 images"),
        ({"counts": {"width": [3, 0]}}, "the counts do not add up to 2 answers. Remove the line"),
    ],
)
def test_a_file_that_holds_no_windows_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    file, reference = tmp_path / "traffic.jsonl", {"width": {"edges": [9.0], "counts": [1, 1]}}
    window = {"time": "", "model": {}, "images": 2, "reference": reference, "counts": {"width": [2, 0]}}
    file.write_text(json.dumps(window | changes) + "\n")

    with pytest.raises(DataError, match=f"line 1.*{problem}"):
        commands(["drift", str(file)], standalone_mode=False)
    with pytest.raises(DataError, match="twinrun serve --watch"):
        commands(["drift", str(tmp_path / "none.jsonl")], standalone_mode=False)


def _with_reference(engine: Engine, answers: list[Any]) -> Engine:
    """The engine with the spreads of `answers` as its reference."""
    from dataclasses import replace

    from twinrun.evaluation.conformal import KINDS
    from twinrun.evaluation.traffic import IMAGE_FACTS, KIND, PREDICTED, spread_of, spread_of_places

    facts = np.array([answer.observed for answer in answers])
    assert engine.calibration is not None
    traffic = {name: spread_of(facts[:, place]) for place, name in enumerate(IMAGE_FACTS)} | {
        PREDICTED: spread_of_places([int(answer.label) for answer in answers], 10),
        KIND: spread_of_places([KINDS.index(answer.kind) for answer in answers], len(KINDS)),
    }
    return replace(engine, calibration=engine.calibration.model_copy(update={"traffic": traffic}))


def _drift(capsys: pytest.CaptureFixture[str], file: Path) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        commands(["drift", str(file)], standalone_mode=False)
    return int(ended.value.code or 0), capsys.readouterr().out


def _pixels(row: int) -> np.ndarray[Any, Any]:
    return digit_pixels(row)[:, :, None]


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_few_of_many_test_images_are_in_memory_while_their_facts_are_measured() -> None:
    images = np.zeros((300, 240, 320, 3), np.uint8)
    images[7] = 255

    tracemalloc.start()
    try:
        facts = image_facts(images, np.full((150, 2), 320), np.arange(150) + 5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert facts[:, 0].nonzero()[0].tolist() == [2]
    assert peak < images.nbytes
