"""The scores of every epoch as CSV, a DVC plot. Holds no times, so that the same training writes the same bytes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from twinrun.training.module import EpochScores


def history_csv(history: Sequence[EpochScores]) -> str:
    """A header and a line for each epoch; numbers are written so that reading them gives the same numbers."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(EpochScores)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(scores) for scores in history)
    return text.getvalue()
