"""Which mistakes and confusions are shown, and the tables that others read."""

import csv
import io
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twinrun.base.errors import DataError
from twinrun.base.files import write_table
from twinrun.evaluation.metrics import confusion_matrix
from twinrun.evaluation.predictions import (
    Predictions,
    confusion_csv,
    confusions,
    mistakes,
    predictions_table,
    read_predictions,
)

CLASSES = ("glass, clear", "metal", 'a "quoted" name')


def predictions() -> Predictions:
    return Predictions(
        ids=["a", "b", "c", "d"],
        targets=np.array([0, 0, 1, 2]),
        probabilities=np.array([[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.05, 0.05, 0.9], [0.4, 0.6, 0.0]]),
        classes=CLASSES,
    )


def test_mistakes_come_with_the_surest_first_and_no_right_answer_among_them() -> None:
    found = mistakes(predictions(), limit=2)

    assert [(one.position, one.probability) for one in found] == [(2, 0.9), (1, 0.7)]
    assert (found[0].actual, found[0].predicted) == ("metal", 'a "quoted" name')


def test_confusions_come_with_the_commonest_first_and_their_class_size() -> None:
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 2, 1]), 3)

    found = confusions(matrix, CLASSES, limit=5)

    assert [(one.actual, one.predicted, one.images, one.of) for one in found] == [
        ("glass, clear", "metal", 2, 3),
        ("metal", 'a "quoted" name', 1, 2),
    ]


def test_class_names_with_commas_and_quotes_survive_the_confusion_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(confusion_csv(predictions()))))

    assert [row["actual"] for row in rows] == [CLASSES[0], CLASSES[0], CLASSES[1], CLASSES[2]]
    assert [row["predicted"] for row in rows] == [CLASSES[0], CLASSES[1], CLASSES[2], CLASSES[1]]


def test_a_class_name_from_a_csv_does_not_end_the_script_of_dvcs_page() -> None:
    named = replace(predictions(), classes=("</script><b>", "<!--", "metal"))

    text = confusion_csv(named)

    assert text.splitlines()[1:3] == ["\\x3c/script><b>,\\x3c/script><b>", "\\x3c/script><b>,\\x3c!--"]


def test_predictions_of_many_classes_are_read_without_an_object_for_each_number(tmp_path: Path) -> None:
    classes = tuple(f"class {number}" for number in range(500))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(500), 1000)
    written = Predictions([f"{row}" for row in range(1000)], np.arange(1000) % 500, probabilities, classes)
    write_table(predictions_table(written), tmp_path / "predictions.parquet")

    tracemalloc.start()
    again = read_predictions(tmp_path / "predictions.parquet")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    np.testing.assert_array_equal(again.probabilities, probabilities)
    assert most < 2 * probabilities.nbytes


@pytest.mark.parametrize("row", [[0.5], [0.5, 0.5, 0.0], [0.5, None], []])
def test_a_table_with_other_than_a_probability_for_each_class_is_refused(
    tmp_path: Path, row: list[float | None]
) -> None:
    table = pa.table(
        {"id": ["a", "b"], "label": ["x", "y"], "probabilities": [row, [0.5] * (4 - len(row))]}
    ).replace_schema_metadata({"classes": '["x", "y"]'})
    write_table(table, tmp_path / "predictions.parquet")

    with pytest.raises(DataError, match="is not a table of predictions"):
        read_predictions(tmp_path / "predictions.parquet")
