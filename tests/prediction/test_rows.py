"""Answers as a table, and back."""

from twinrun.prediction.rows import Row, rows_of, table_of

ROWS = [
    Row("a.jpg", (("glass", 0.75), ("metal", 0.25)), None),
    Row("b.jpg", (), "is no image"),
    Row("c.jpg", (("metal", 1.0),), None),
]


def test_a_table_has_columns_for_each_place_and_gives_the_rows_back() -> None:
    table = table_of(ROWS, 2)

    assert table.column_names == ["path", "label", "probability", "label_2", "probability_2", "error"]
    assert table["label_2"].to_pylist() == ["metal", None, None]
    assert rows_of(table) == ROWS


def test_fewer_places_leave_the_less_likely_labels_out() -> None:
    assert rows_of(table_of(ROWS, 1)) == [Row(row.name, row.labels[:1], row.error) for row in ROWS]


def test_no_rows_are_a_table_with_the_same_types() -> None:
    assert table_of([], 2).schema == table_of(ROWS, 2).schema
    assert rows_of(table_of([], 2)) == []
