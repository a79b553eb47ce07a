"""A training that is part of a sweep: its settings and outputs lie in a folder of its own."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from twinrun.base.errors import RecordError
from twinrun.base.files import write_json

VARIABLE = "TWINRUN_TRIAL"  # the trial's folder, for the process that trains it
SWEEPS = Path("data/sweeps")
DRIVER = "driver.json"  # in the folder of a sweep: what decides bits on the machine that runs it
SWEEP_TAG, TRIAL_TAG, PARENT_TAG = "twinrun.sweep", "twinrun.trial", "twinrun.sweep_journal"
_FILE = "trial.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial's process has to know.

    `name` is what a person calls it ("trial 7"), `parent` the id of the sweep's journal. After `pause_after` finished
    epochs it pauses with a checkpoint; None: it trains to its end.
    """

    sweep: str
    name: str
    parent: str
    pause_after: Annotated[int, Field(ge=1)] | None

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its run, by which MLflow shows it below the sweep's."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: self.name, PARENT_TAG: self.parent}

    def write(self, folder: Path) -> None:
        """Publish it as the trial of `folder`."""
        write_json(asdict(self), folder / _FILE)


def current_trial() -> tuple[Trial, Path] | None:
    """The trial that this process trains, and its folder; None where it trains for the project itself.

    Raises RecordError where the folder does not describe a trial.
    """
    if VARIABLE not in os.environ:
        return None
    folder = Path(os.environ[VARIABLE])
    try:
        return TypeAdapter(Trial).validate_json((folder / _FILE).read_bytes()), folder
    except (OSError, ValidationError) as error:
        raise RecordError(
            f"{VARIABLE} names {folder}, and {folder / _FILE} does not describe a trial ({error}). It is set by "
            f"`twinrun sweep` alone: unset {VARIABLE}"
        ) from None
