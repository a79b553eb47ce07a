"""Finding a run by the name that a person uses, and reading its card. Nothing is changed."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinrun.base.errors import RegistryError, TrackingError
from twinrun.base.printing import one_line
from twinrun.record.records import CardRecord, read_record
from twinrun.tracking.metric_names import with_current_names
from twinrun.tracking.presentation import short, titled
from twinrun.tracking.registry import Registry
from twinrun.tracking.store import Tracker, all_runs, explaining, open_client, require_reachable

CARD = "card.json"
_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One run as MLflow knows it, with its card; a run that was killed has none."""

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float]
    card: dict[str, Any] | None

    @property
    def is_unpublished(self) -> bool:
        """Whether MLflow has given the run no id yet; `run_id` is its journal's then, which is not printed."""
        return self.card is not None and self.card.get("journal_id") == self.run_id

    @property
    def title(self) -> str:
        """What to call the run: its name, and its short id where there is one and the name lacks it."""
        return self.name if self.is_unpublished else titled(self.name, self.run_id)


def find_run(tracker: Tracker, reference: str, model_name: str) -> RunFacts:
    """The run that `reference` names: a run's id or the beginning of one, a journal's, or a version of `model_name`,
    given as 3, v3, NAME/3, @champion or NAME@champion.

    Raises TrackingError, with what may be given, where there is none or more than one.
    """
    require_reachable(tracker)
    with explaining(tracker):
        client = open_client(tracker)
    run_id = _find_id(client, tracker, reference, model_name)
    if not _has_run(client, tracker, run_id):
        raise TrackingError(
            f"The run {short(run_id)}, which {reference!r} names, was removed from {tracker.shown}, and its card with "
            "it. List the versions: twinrun models. Show the run that trained the model of this folder: twinrun show"
        )
    with explaining(tracker):
        run = client.get_run(run_id)
        card = None
        if any(file.path == CARD for file in client.list_artifacts(run_id)):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(client.download_artifacts(run_id, CARD, folder))
                card = read_record(CardRecord, place, Path(folder), origin=f"{CARD} of run {run_id} in {tracker.shown}")
    return RunFacts(
        run_id=run_id,
        name=one_line(run.info.run_name or "without a name"),
        status=run.info.status,
        tags=dict(run.data.tags),
        metrics=with_current_names(run.data.metrics),
        card=card,
    )


def writable_run(tracker: Tracker, run_id: str | None) -> str | None:
    """The same id; None where a person deleted the run, so that nothing can be added to it."""
    client = open_client(tracker)
    if run_id is None or not _has_run(client, tracker, run_id):
        return None
    with explaining(tracker):
        return run_id if client.get_run(run_id).info.lifecycle_stage == "active" else None


def fetch_artifact(tracker: Tracker, run_id: str, path: str, folder: Path) -> Path | None:
    """Put a copy of a run's artifact into `folder`; None where the run has none of that name, or is not there.

    Raises TrackingError where MLflow fails, which says nothing about the run.
    """
    from mlflow.exceptions import MlflowException

    with explaining(tracker):
        client = open_client(tracker)
        try:
            if not any(entry.path == path for entry in client.list_artifacts(run_id, path.rpartition("/")[0] or None)):
                return None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return Path(client.download_artifacts(run_id, path, str(folder)))


def add_to_run(
    tracker: Tracker, run_id: str, file: Path, folder: str, metrics: Mapping[str, float] | None = None
) -> None:
    """Add a file as an artifact in `folder` to a run that has ended, and metrics by their names in MLflow."""
    with explaining(tracker):
        client = open_client(tracker)
        client.log_artifact(run_id, str(file), folder)
        for name, value in (metrics or {}).items():
            client.log_metric(run_id, name, value)


def run_metrics(tracker: Tracker, run_id: str) -> dict[str, float]:
    """The last value of each metric of a run, by its name in MLflow; empty where the run was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(open_client(tracker).get_run(run_id).data.metrics)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def metric_history(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    """Step and value of a metric of a run, by its name in MLflow, in the order of the steps."""
    with explaining(tracker):
        history = open_client(tracker).get_metric_history(run_id, name)
    return sorted((int(metric.step), float(metric.value)) for metric in history)


def _has_run(client: Any, tracker: Tracker, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    with explaining(tracker):
        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
    return True


def _of_version(tracker: Tracker, reference: str, model_name: str) -> str | None:
    if "@" in reference:
        name, _, alias = reference.removeprefix("models:/").rpartition("@")
        registry = Registry(tracker, name or model_name)
        versions = registry.versions()
        if not versions:
            raise registry.missing()
        chosen = next((version for version in versions if alias in version.aliases), None)
        if chosen is None:
            raise RegistryError(
                f"{name or model_name!r} has no version with the alias {alias!r}. List its versions: twinrun models"
            )
        return chosen.run_id
    name, _, number = reference.rpartition("/")
    if not re.fullmatch(r"v?\d{1,6}", number):
        return None
    return Registry(tracker, name.removeprefix("models:/") or model_name).version(int(number.removeprefix("v"))).run_id


def _all_experiments(client: Any) -> Iterator[Any]:
    token: str | None = ""
    while token is not None:
        page = client.search_experiments(max_results=_PAGE, page_token=token or None)
        yield from page
        token = page.token or None


def _find_id(client: Any, tracker: Tracker, reference: str, model_name: str) -> str:
    unknown: RegistryError | None = None
    try:
        run_id = _of_version(tracker, reference, model_name)
    except RegistryError as error:
        run_id, unknown = None, error
    if run_id is not None:
        return run_id
    matches = _beginning_with(client, tracker, reference)  # which may be digits alone
    if len(matches) == 1:
        return matches[0]
    if unknown is not None and not matches:
        raise unknown
    problem = (
        f"{len(matches)} runs begin with {reference!r}" if matches else f"No run or version is called {reference!r}"
    )
    raise TrackingError(
        f"{problem} in {tracker.shown}.\n"
        "Name a run by its id (or its first 4 or more characters, as in the MLflow UI), or a version by its number."
    )


def _beginning_with(client: Any, tracker: Tracker, reference: str) -> list[str]:
    """The ids of the runs whose id, or their journal's, begins with `reference`."""
    if not re.fullmatch(r"[0-9a-f]{4,32}", reference):
        return []
    with explaining(tracker):
        experiments = [experiment.experiment_id for experiment in _all_experiments(client)]
        runs = list(all_runs(client, experiments))
    return [
        run.info.run_id
        for run in runs
        if run.info.run_id.startswith(reference) or run.data.tags.get("twinrun.journal_id", "").startswith(reference)
    ]
