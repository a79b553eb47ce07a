"""The journals of `validate` and `evaluate` hold what MLflow gets, and are the same for the same results."""

from pathlib import Path

from tracking_support import CD, evaluate, validate

from twinrun.record.journal import read_events, summarize


def test_results_that_are_the_same_have_the_same_journal_id_and_others_another(project: Path) -> None:
    journal = project / "data/out/evaluate/journal.jsonl"
    ids = []

    for settings in ({}, {}, {"accuracy": 0.5}, {"weights_hash": CD}):
        evaluate(project, **settings)
        summary = summarize(journal)
        assert summary is not None
        ids.append(summary.journal_id)

    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_validation_names_its_results_and_how_it_ended(project: Path) -> None:
    journal = project / "data/out/validate/journal.jsonl"

    endings = []
    for passed in (True, False):
        validate(project, "2 <b>leaks</b>", passed=passed)
        events = read_events(journal)
        endings.append(events[-1]["status"])

    artifacts = {event["path"]: event["source"] for event in events if event["event"] == "artifact"}
    tags = next(event["values"] for event in events if event["event"] == "tags")
    assert endings == ["FINISHED", "FAILED"]
    assert artifacts["validation/report"] == "data/out/validate/report"
    assert "<b>" not in tags["mlflow.note.content"]
    assert (events[0]["stage"], events[0]["name"]) == ("validate", "data of digits")
