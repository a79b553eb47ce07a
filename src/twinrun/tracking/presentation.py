"""How a run and a registered version look in MLflow: name, description, tables, and the columns of the run list.

The texts are Markdown. Names of classes, files and folders come from other people's data and are escaped.
"""

import csv
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.files import write_json
from twinrun.base.printing import one_line, percent, printable, without_passwords
from twinrun.tables.sheet import unguarded
from twinrun.tracking.metric_names import HEADLINE

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"
ID_LENGTH = 8
# What MLflow's run list shows to whoever opens it by `run_list_address`: MLflow keeps such a view in a tag.
RUN_LIST = "twinrun"
RUN_LIST_TAG = f"mlflow.sharedViewState.{RUN_LIST}"
DESCRIBED_TAG = "twinrun.description"  # hash of the description that Twinrun wrote, of a run or a version
_TABLES_TAG = "mlflow.loggedArtifacts"
_WIDTHS_PX = {
    "tags.`mlflow.runName`": None,
    "attributes.start_time": None,
    f"metrics.`{HEADLINE}`": 110,
    "params.`train.model`": 120,
    "params.`train.seed`": 70,
    "params.`train.learning_rate`": 90,
    "params.`train.probe.l2`": 90,
    "duration": 80,
    "attributes.`Dataset`": 130,
    "metrics.`val/accuracy`": 110,
    "attributes.`Models`": 180,
}
_MOST_CLASSES = 12  # of a confusion matrix that fits a page; of more, the commonest mistakes are listed
_MOST_MISTAKES = 10
_OF_SERVERS = frozenset({"http", "https", "postgresql", "mysql", "mssql"})


def short(run_id: str) -> str:
    """The first characters of a run's id, as in its name and in all output."""
    return run_id[:ID_LENGTH]


def run_name(name: str, run_id: str, accuracy: float | None = None) -> str:
    """The name of a run in MLflow: "32d74ae4 lenet5 on digits", and once evaluated "99.2% 32d74ae4 lenet5 ...".

    What differs between runs comes first, since MLflow's run list cuts names after some 25 characters.
    """
    first = "" if accuracy is None else f"{percent(accuracy)} "
    return f"{first}{short(run_id)} {name}"


def is_given_name(current: str | None, name: str, run_id: str) -> bool:
    """Whether a run has a name that this or an earlier version gave it, not one given by a person."""
    own, identity = re.escape(name), re.escape(short(run_id))
    pattern = rf"(\d+\.\d{{1,2}}% )?({identity} {own}|{own}(, {identity})?)"
    return re.fullmatch(pattern, current or "") is not None


def titled(name: str, run_id: str) -> str:
    """A run as shown to a person: its name, and its id where the name lacks it."""
    shown = one_line(name)
    return shown if short(run_id) in shown else f"{shown} ({short(run_id)})"


def run_list_view() -> str:
    """The value of RUN_LIST_TAG: accuracy, model, duration and data in the first columns."""
    return json.dumps(
        {
            "selectedColumns": [name for name in _WIDTHS_PX if "`" in name and "runName" not in name],
            "columnOrder": list(_WIDTHS_PX),
            "columnWidths": {name: width for name, width in _WIDTHS_PX.items() if width is not None},
        }
    )


def run_list_address(server: str, experiment: str) -> str:
    """The page of an experiment's runs on `server`, without the password that the server's address may hold."""
    query = f"viewStateShareKey={RUN_LIST}&workflowType=machine_learning"
    return f"{without_password(server).rstrip('/')}/#/experiments/{experiment}/runs?{query}"


def without_password(address: str) -> str:
    """An address without its user and password, to print it."""
    return without_passwords(address.replace(f"{user}@", "", 1) if (user := user_of(address)) else address)


def user_of(address: str) -> str:
    """User and password in an address, also where the password holds what would end it: / ? #. Empty without them."""
    scheme, _, rest = address.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return host.rpartition("@")[0]
    # What follows a host is a port, which is a number.
    is_user = ":" in host and not host.startswith("[") and not host.rpartition(":")[2].isdecimal()
    # An address of a server has no `@` in its path, or it is written as %40.
    has_login = scheme.partition("+")[0] in _OF_SERVERS and host != "" and "@" in re.split("[?#]", rest, maxsplit=1)[0]
    return rest.rpartition("@")[0] if is_user or has_login else ""


def describe_run(metrics: Mapping[str, Any], confusion: Path, data: str, page: str) -> str:
    """A run in Markdown: accuracy with its interval, the confusion matrix, the data, and where the report is.

    `metrics` are those of data/out/evaluate/metrics.json, `confusion` the confusion.csv beside it, `page` is the run's
    page relative to the server.
    """
    parts = [f"**{_accuracy(metrics)}**", f"Data: {escaped(data)}."]
    with suppress(OSError, ValueError, KeyError):
        with confusion.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            pairs = Counter((unguarded(row["actual"]), unguarded(row["predicted"])) for row in rows)
        parts.append(_confusion(pairs))
    report = "evaluation/report/index.html"
    parts.append(f"[Report with pictures]({page}/artifacts/{report}) (artifact `{report}`)")
    return "\n\n".join(filter(None, parts))


def describe_version(
    metrics: Mapping[str, Any], model: Mapping[str, Any], *, data: str, run_id: str | None, refusal: str | None = None
) -> str:
    """A registered version in Markdown: its accuracy, why it was refused, its network, run and data.

    `model` is the bundle's model.json.
    """
    classes = model["classes"]
    network = f"Network: {escaped(model['architecture'])}. " if "architecture" in model else ""
    made = f"Run {short(run_id)}. " if run_id else ""
    return "\n\n".join(
        [
            f"**{_accuracy(metrics)}**",
            *([escaped(refusal)] if refusal else []),
            f"{network}Classes: {len(classes)} ({escaped(', '.join(classes[:_MOST_CLASSES]))}"
            f"{', ...' if len(classes) > _MOST_CLASSES else ''}). Data: {escaped(data)}.",
            f"{made}Weights {str(model['weights_hash'])[:12]}.",
        ]
    )


def describe_model(name: str) -> str:
    """A registered model in Markdown."""
    return (
        f"Versions of the image classifier {escaped(name)}, each with its accuracy, data and run. The alias "
        "`candidate` is the newest version that passed its gates, `champion` the version in use. `twinrun models` "
        "compares them."
    )


def describe(client: "MlflowClient", run: Any, text: str) -> None:
    """Describe a run, unless a person has described it."""
    from mlflow.entities import RunTag

    if may_describe(run.data.tags.get(NOTE), text, run.data.tags.get(DESCRIBED_TAG)):
        client.log_batch(run.info.run_id, tags=[RunTag(NOTE, text), RunTag(DESCRIBED_TAG, text_hash(text))])


def may_describe(current: str | None, text: str, written: str | None) -> bool:
    """Whether `text` should replace the `current` description: no person wrote that, and `text` differs.

    `written` is the hash of the description that was written here last.
    """
    return current != text and (not current or text_hash(current) == written)


def text_hash(text: str) -> str:
    """Sha256 of a description, by which it is recognised as ours."""
    return hashlib.sha256(text.encode()).hexdigest()


def log_table(client: "MlflowClient", run_id: str, rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Add rows, all with the same columns, as a table that MLflow draws; `path` is the artifact's, ending in .json."""
    folder, _, name = path.rpartition("/")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary, name)
        write_json({"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}, place)
        client.log_artifact(run_id, str(place), folder or None)
    tables: Any = []
    with suppress(ValueError, RecursionError):  # somebody else's tag
        tables = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
    entry = {"path": path, "type": "table"}
    tables = tables if isinstance(tables, list) else []
    if entry not in tables:
        client.set_tag(run_id, _TABLES_TAG, json.dumps([*tables, entry]))


def escaped(text: str) -> str:
    """Text as Markdown and HTML show it literally, on one line."""
    plain = printable(" ".join(str(text).split()))
    return re.sub(r"[\\`*_{}\[\]()<>#|!~&$\"']", lambda match: f"&#{ord(match[0])};", plain)


def _accuracy(metrics: Mapping[str, Any]) -> str:
    between = _interval(metrics, "accuracy")
    out_of_fold = metrics.get("accuracy_from") == "cross-validation"
    kind = "images, out of fold" if out_of_fold else "test images"
    images = f" of {metrics['images']:,} {kind}" if "images" in metrics else ""
    test = metrics.get("test_accuracy") if out_of_fold else None
    beside = "" if test is None else f" Test split: {percent(test)}{_interval(metrics, 'test_accuracy')}."
    return f"Accuracy {percent(metrics['accuracy'])}{between}{images}.{beside}"


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    ends = metrics.get("intervals", {}).get(name)
    return f" (95% interval {percent(ends[0])} to {percent(ends[1])})" if ends else ""


def _confusion(pairs: Counter[tuple[str, str]]) -> str:
    """The confusion matrix of a few classes; for many, the most frequent mistakes."""
    classes = sorted({name for pair in pairs for name in pair})
    if len(classes) <= _MOST_CLASSES:
        header = ["label / predicted", *map(escaped, classes)]
        rows = [
            [f"**{escaped(actual)}**", *(str(pairs[actual, predicted] or "") for predicted in classes)]
            for actual in classes
        ]
        return _table(header, rows)
    wrong = [(pair, count) for pair, count in pairs.most_common() if pair[0] != pair[1]][:_MOST_MISTAKES]
    return _table(
        ["label", "predicted", "images"],
        [[escaped(actual), escaped(predicted), str(count)] for (actual, predicted), count in wrong],
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
