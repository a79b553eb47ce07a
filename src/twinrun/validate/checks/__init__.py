"""The checks, one file for each topic.

A new check is one more `Check` in the file of its topic, on a column of `Subject.tables` (subject.py); a new topic is
a file and a name in `checks`.
"""

from itertools import chain

from twinrun.validate.checks.check import Check
from twinrun.validate.checks.classes import of_classes
from twinrun.validate.checks.copies import of_copies
from twinrun.validate.checks.drift import of_drift
from twinrun.validate.checks.files import of_files
from twinrun.validate.checks.labels import of_labels
from twinrun.validate.checks.quality import of_quality
from twinrun.validate.checks.shortcuts import of_shortcuts
from twinrun.validate.checks.user import of_the_user
from twinrun.validate.subject import Subject

__all__ = ["Check", "checks"]


def checks(subject: Subject) -> list[Check]:
    """All checks of `subject`, the most important first."""
    topics = (of_files, of_copies, of_classes, of_labels, of_shortcuts, of_quality, of_drift, of_the_user)
    return list(chain.from_iterable(of_topic(subject) for of_topic in topics))
