"""What metrics are called in MLflow."""

import pytest

from twinrun.tracking.metric_names import evaluation_metrics, metric_name, with_current_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loss", "val/loss"),
        ("test_macro_f1", "test/macro_f1"),
        ("learning_rate", "train/learning_rate"),
        ("images_per_second", "system/images_per_second"),
        ("accuracy", "accuracy"),
        ("train_", "train_"),
        ("test/accuracy", "test/accuracy"),
        ("data_no_leaks", "data/no_leaks"),
    ],
)
def test_a_column_of_a_journal_gets_its_group(name: str, expected: str) -> None:
    assert metric_name(name) == expected
    assert with_current_names({name: 1}) == {expected: 1}


def test_the_scores_of_both_sets_and_of_the_models_beside_get_names_of_their_own() -> None:
    scores = {
        "accuracy": 0.9,
        "score_sets": [
            {"from": "test", "accuracy": 0.8, "log_loss": 0.5, "images": 12},
            {"from": "cross-validation", "accuracy": 0.9},
        ],
        "seeds": {"mean": 0.7, "sd": 0.1},
        "plain_accuracy": 0.75,
    }

    names = evaluation_metrics(scores)

    assert names == {
        "accuracy": 0.9,
        "test/accuracy": 0.8,
        "test/log_loss": 0.5,
        "cross_validation/accuracy": 0.9,
        "test/accuracy_mean_of_seeds": 0.7,
        "test/accuracy_sd_of_seeds": 0.1,
        "test/accuracy_without_views": 0.75,
    }


def test_scores_of_an_earlier_version_are_those_of_the_test_split() -> None:
    assert evaluation_metrics({"accuracy": 0.9, "macro_f1": 0.8}) == {
        "accuracy": 0.9,
        "test/accuracy": 0.9,
        "test/macro_f1": 0.8,
    }
