"""Checks of labels: which ones look wrong, and whether they could be judged."""

from collections.abc import Iterator

from twinrun.validate.checks.check import Check, counting, severity_of
from twinrun.validate.expectations import Judgement, Rule
from twinrun.validate.findings import Proposal, Violation
from twinrun.validate.subject import Subject


def of_labels(subject: Subject) -> list[Check]:
    search = subject.evidence.labels
    if search is None:
        return []
    issues = {issue.row: issue for issue in search.issues}
    rank = {issue.row: place for place, issue in enumerate(search.issues)}

    def suspects(judgement: Judgement) -> Iterator[Violation]:
        for row in sorted((subject.kept[index] for index in judgement.rows), key=rank.__getitem__):
            issue = issues[row]
            text = f"looks like {issue.suggested}; the probability of {issue.given} is {issue.confidence:.2f}"
            named = f"{subject.facts['path'][row]}: {text}"
            yield Violation((row,), named, text, (Proposal(row, "relabel", issue.suggested),))

    doubted = Check(
        name="labels",
        meaning="No label looks wrong",
        table="images",
        rule=Rule("ExpectColumnValuesToBeNull", {"column": "likely_label"}, severity_of(subject.params.on_label_error)),
        settings=("validate.on_label_error",),
        advice=f"A model that was not trained on them agrees with {search.accuracy:.0%} of all labels; look at these, "
        "the least likely first, and decide: twinrun data fix",
        violations=suspects,
        says=counting("looks wrong", "label"),
    )
    return [_label_search(subject, search.unjudged)] if search.unjudged else [doubted, _label_search(subject)]


def _label_search(subject: Subject, unjudged: str | None = None) -> Check:
    """Whether labels could be judged. If the time ran out, that is as critical as a wrong label.

    Otherwise the speed of the machine would decide what is dropped, or stops the pipeline.
    """
    finished = subject.evidence.labels is None or subject.evidence.labels.finished
    return Check(
        name="label_search",
        meaning="The quick model can judge the labels",
        table="searches",
        rule=Rule(
            "ExpectColumnValuesToBeNull",
            {"column": "unjudged"},
            "warning" if finished else severity_of(subject.params.on_label_error),
        ),
        settings=() if finished else ("validate.label_errors", "validate.on_label_error"),
        advice="Look through some images of each class, or let the models of a training with cross-validation judge "
        "them: twinrun data fix --by-model"
        if finished
        else "Raise budget_s, or lower folds",
        violations=lambda _: iter(()),
        says=lambda *_: str(unjudged),
        judges=False,
    )
