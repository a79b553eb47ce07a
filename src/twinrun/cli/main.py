"""The command line: `twinrun reproduce | diff | show | models | ...`. Each command calls the library and prints.

Whatever is slow to import is imported by the command that needs it, so that `twinrun --help` answers at once.
"""

import inspect
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinrun.base.errors import TrackingError, TwinrunError, duration, os_problem, run_main
from twinrun.base.printing import add_row, draw, one_line, print
from twinrun.cli import data as data_commands
from twinrun.cli import explain as explain_command
from twinrun.cli import lr as lr_command
from twinrun.cli import predict as predict_command
from twinrun.cli import project as project_commands
from twinrun.cli import serve as serve_command
from twinrun.cli import sweep as sweep_command
from twinrun.cli import weights as weights_commands

if TYPE_CHECKING:
    from twinrun.tracking.promotions import Judgement
    from twinrun.tracking.registry import Promotion, Registry, Version

_NAMES_SHOWN = 8
_EXAMPLES = 3  # of findings that one command fixes
_OF_EPOCHS = ("epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "warmup_epochs")
_OF_STEPS = (
    "patience",
    "head_first_epochs",
    "backbone_learning_rate",
    "schedule",
    "label_smoothing",
    "gradient_clip",
    "ema_decay",
    "start_size",
    "keep",
    "devices",
)
_UNUSED_BY_A_PROBE = tuple(f"train.{name}" for name in (*_OF_EPOCHS, *_OF_STEPS))

app = typer.Typer(
    name="twinrun",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Train image classifiers reproducibly: check data, and compare, promote and serve models.

[bold]dvc repro[/bold] trains, evaluates and registers a model; these commands are for what comes before and after.

To begin: [bold]twinrun app[/bold] sorts photos of waste; [bold]twinrun init demo[/bold] creates a project.

The help of each command has examples: [bold]twinrun predict --help[/bold].

MLflow's own commands need the address of the store: export MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import twinrun

        print(f"twinrun {twinrun.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself, whose help is in `app`."""


_START, _TRAIN, _MODELS, _SERVE = "Start", "Train", "Models and runs", "Serve"

app.command(rich_help_panel=_START)(project_commands.init)
app.command(rich_help_panel=_START)(project_commands.preset)
app.command(rich_help_panel=_START)(project_commands.upgrade)
app.add_typer(data_commands.app, name="data", rich_help_panel=_START)
app.add_typer(weights_commands.app, name="weights", rich_help_panel=_START)
app.command(rich_help_panel=_TRAIN)(lr_command.lr)
app.command(rich_help_panel=_TRAIN)(sweep_command.sweep)
app.command(rich_help_panel=_TRAIN)(sweep_command.seeds)
app.command(rich_help_panel=_TRAIN)(sweep_command.train)
app.command(rich_help_panel=_MODELS)(predict_command.predict)
app.command(rich_help_panel=_MODELS)(explain_command.explain)
app.command(rich_help_panel=_SERVE)(serve_command.app)
app.command(rich_help_panel=_SERVE)(serve_command.serve)
app.command(rich_help_panel=_SERVE)(serve_command.verify)
app.command(rich_help_panel=_SERVE)(serve_command.drift)


class DataChoice(StrEnum):
    """Where a twin's data come from."""

    auto = "auto"
    recorded = "recorded"
    workspace = "workspace"


Model = Annotated[
    str | None,
    typer.Option("--model", help="Name of the registered model; by default register.model_name of params.yaml."),
]


@app.command(rich_help_panel=_MODELS)
def models(model: Model = None) -> None:
    """List the versions of a model: accuracy, aliases, hashes.

    Example: twinrun models --model twinrun-trashnet
    """
    from rich.table import Table

    from twinrun.tracking.presentation import short

    registry = _registry(model)
    versions = registry.versions()
    if not versions:
        if model is not None:
            raise registry.missing()
        print(str(registry.missing()))
        return
    table = Table(title=registry.name, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("version", "aliases", "passed", "accuracy", "balanced", "log loss", "weights", "fingerprint", "run"):
        table.add_column(column, no_wrap=True)
    table.add_column("created", no_wrap=True)
    for version in versions:
        add_row(
            table,
            str(version.version),
            ", ".join(version.aliases),
            "yes" if version.passed else "no",
            *(_number(version.headline(name)) for name in ("accuracy", "balanced_accuracy", "log_loss")),
            version.weights_hash[:8],
            version.fingerprint[:8],
            short(version.run_id or ""),
            _local(version.created),
        )
    draw(table)


@app.command(rich_help_panel=_MODELS)
def promote(
    version: Annotated[int, typer.Argument(help="Number of the version, as `twinrun models` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Promote a version that its gates refuse; needs --reason.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it is recorded.")] = None,
    model: Model = None,
) -> None:
    """Make a version the champion, the one that is in use.

    A version that has not passed its gates is refused, and so is one that is worse than the champion on the same
    images (params.yaml: register.gates). The change is recorded (`twinrun history`), and `twinrun rollback` undoes it.

    Examples: twinrun promote 3, or twinrun promote 4 --force --reason "the shop opens tomorrow"
    """
    from twinrun.core.params import load_params
    from twinrun.evaluation.champion import judge_version, used_sentence
    from twinrun.twins.champion_data import champion_facts
    from twinrun.twins.difference import class_changes

    registry, params = _registry(model), load_params().register

    def judge(version: "Version", champion: "Version | None") -> "Judgement":
        return judge_version(Path.cwd(), registry.tracker, version, champion, params)

    promotion = registry.promote(version, force=force, reason=reason, judge=judge)
    if promotion.before == promotion.after:
        print(f"Version {promotion.after} of {promotion.name} is the champion already; nothing was changed.")
        return
    print(f"Version {promotion.after} of {promotion.name} is the champion ({_before(promotion)}).")
    for gate in promotion.gates:
        print(f"  {gate}")
    if promotion.test_set is not None:
        print(used_sentence(registry.uses(promotion.test_set)))
    if promotion.before is not None:
        with suppress(TwinrunError):  # the facts of one of them are neither here nor in DVC's remote
            versions = (str(promotion.before), str(promotion.after))
            facts = (champion_facts(Path.cwd(), registry.tracker, promotion.name, number) for number in versions)
            for line in class_changes(*facts):
                print(one_line(line))


@app.command(rich_help_panel=_MODELS)
def rollback(
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it is recorded.")] = None,
    model: Model = None,
) -> None:
    """Make the previous champion the champion again.

    Repeated, it goes further back. The change is recorded (`twinrun history`).

    Example: twinrun rollback --reason "it fails on photos taken at night"
    """
    registry = _registry(model)
    promotion = registry.rollback(reason)
    print(f"Version {promotion.after} of {promotion.name} is the champion again ({_before(promotion)}).")


def _before(promotion: "Promotion") -> str:
    return "there was none" if promotion.before is None else f"it was version {promotion.before}"


@app.command(rich_help_panel=_MODELS)
def history(
    model: Model = None,
    show_all: Annotated[bool, typer.Option("--all", help="List all gates, with their numbers.")] = False,
) -> None:
    """List who made which version the champion, when and why, with refused promotions; the newest last.

    The list with the answer of each gate is kept in mlruns/promotions.jsonl. Below it is the number of promotions that
    each test set has decided: the more there are, the more likely a version passed by luck. A champion that was set in
    MLflow's pages or from another machine is listed as "elsewhere".

    Examples: twinrun history, twinrun history --all
    """
    from rich.table import Table

    registry = _registry(model)
    entries = registry.history()
    if not entries:
        if model is not None and not registry.versions():
            raise registry.missing()
        print(f"No version of {registry.name!r} has been promoted here yet.")
        return
    table = Table(title=registry.name, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("time", "user", "change", "from", "to", "outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for entry in entries:
        gates, counted = _gates(entry.gates, show_all=show_all)
        first, *more = [*filter(None, [entry.reason, *gates, counted, None if entry.gates else entry.detail])] or [""]
        numbers = ("" if entry.before is None else str(entry.before), "" if entry.after is None else str(entry.after))
        add_row(table, _local(entry.time), entry.user, entry.action, *numbers, entry.outcome or "interrupted", first)
        for line in more:  # a line of a cell is a row, since a line end in a text is shown as such
            add_row(table, *[""] * 6, line)
    draw(table)
    for test_set in dict.fromkeys(entry.test_set for entry in entries if entry.test_set):
        print(f"Promotions decided by test set {test_set[:8]}: {registry.uses(test_set)}")


def _gates(gates: Sequence[str], *, show_all: bool) -> tuple[list[str], str | None]:
    """The answers of gates to print, and the number of the others."""
    from collections import Counter

    answers = [re.search(r" (passed|refused|not judged): ", gate) for gate in gates]
    harmless = [None if show_all or answer is None or answer[1] == "refused" else answer[1] for answer in answers]
    counts = Counter(filter(None, harmless))
    shown = [gate for gate, answer in zip(gates, harmless, strict=True) if answer is None]
    return shown, f"Gates: {', '.join(f'{count} {answer}' for answer, count in counts.items())}" if counts else None


@app.command(rich_help_panel=_MODELS)
def sync() -> None:
    """Bring MLflow up to date with the files.

    Publishes what was recorded while MLflow could not be reached, results that DVC restored or pulled, and results of
    evaluation; marks runs as KILLED whose process has died. Nothing is published twice.

    Example: MLFLOW_TRACKING_URI=http://mlflow.example:5000 twinrun sync
    """
    from twinrun.base.progress import phase
    from twinrun.core.params import require_project

    require_project()
    with phase("Publishing to MLflow"):  # importing it takes seconds as well
        from twinrun.tracking.sync import sync as bring_up_to_date

        report = bring_up_to_date(thorough=True)
    if report.failed:
        raise TrackingError("\n".join(report.lines()))
    print("\n".join(report.lines()) or f"MLflow at {report.tracker.shown} is up to date.")


@app.command(rich_help_panel=_MODELS)
def ui(
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Port of MLflow's pages on this machine.")
    ] = 5000,
    model: Model = None,
) -> None:
    """Print the address of the list of runs in MLflow, and serve it if no server does.

    The list shows accuracy, model, duration and data of each run. Ctrl-C ends the server.

    Example: twinrun ui --port 5001
    """
    from twinrun.core.params import require_project
    from twinrun.tracking.pages import is_server, require_free, run_list, serve
    from twinrun.tracking.store import find_tracker

    tracker = find_tracker()
    if is_server(tracker):
        _sync_quickly()
        print(f"MLflow: {run_list(tracker, model or _model_name(), port)}")
        return
    require_project()
    require_free(port)
    _sync_quickly()
    print(f"MLflow: {run_list(tracker, model or _model_name(), port)} (Ctrl-C ends it)", flush=True)
    serve(tracker, port)


@app.command(rich_help_panel=_MODELS)
def show(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run's id or its first characters, or the number of a version; by default the run that trained the "
            "model of this folder.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    diff: Annotated[bool, typer.Option("--diff", help="Print the uncommitted changes too, as a patch.")] = False,
    all_params: Annotated[
        bool,
        typer.Option("--all", help="Print all settings, not only those that differ from the defaults of this version."),
    ] = False,
) -> None:
    """Print the card of a run: commit, settings, data, environment, machine, results.

    Examples: twinrun show, twinrun show 3, twinrun show 5f2c, twinrun show 3 --diff
    """
    from twinrun.core.params import require_project
    from twinrun.tracking.store import find_tracker
    from twinrun.tracking.sync import training_here
    from twinrun.twins.twin import recorded_run

    if run is None:
        require_project()
        run = training_here(Path.cwd())
    _sync_quickly()
    facts = recorded_run(Path.cwd(), find_tracker(), run, model or _model_name())
    _show(facts, all_params)
    if diff and facts.card:
        print(facts.card.get("diff", ""), end="")


@app.command(rich_help_panel=_MODELS)
def reproduce(
    run: Annotated[str, typer.Argument(help="A run's id or its first characters, a version's number, or @champion.")],
    data: Annotated[
        DataChoice,
        typer.Option(
            "--data",
            help="recorded: the data that the run used. workspace: the data that are here now. auto: recorded, unless "
            "an image that the run used has changed since.",
        ),
    ] = DataChoice.auto,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder of the second training, in .twinrun/twins/.")
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the code without asking, whoever wrote it; for scripts.")
    ] = False,
    model: Model = None,
) -> None:
    """Train a run again from its commit and its data, and say whether the weights are the same.

    Everything that is missing is reported before anything is computed. The verdict is recorded on both runs. Exit code:
    0 identical, 3 equivalent (another processor or library, and metrics within the run's interval), 4 different, 1 the
    run cannot be rebuilt.

    It runs the run's code. Code that is not in the history of the current branch is shown first and needs your consent.

    Examples: twinrun reproduce 3, twinrun reproduce 5f2c --keep, twinrun reproduce @champion --data workspace
    """
    from twinrun.twins.twin import reproduce as make_twin

    def say(text: str) -> None:
        print(text, flush=True)

    def ask(text: str) -> bool:
        print(text, flush=True)
        return trust or typer.confirm("Run it?")

    may_ask = ask if trust or sys.stdin.isatty() else None
    report = make_twin(Path.cwd(), run, model or _model_name(), data=data.value, keep=keep, say=say, ask=may_ask)
    print("\n" + "\n".join(report.lines()))
    raise SystemExit(report.verdict.exit_code)


@app.command(rich_help_panel=_MODELS)
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs or versions, as for `twinrun show`.")],
    margin: Annotated[
        float, typer.Option("--margin", min=0.001, max=0.5, help="A loss of accuracy that does not matter, as a share.")
    ] = 0.02,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the page to this file too, not only to MLflow.")
    ] = None,
    model: Model = None,
) -> None:
    """Compare models on the same images: which is better, and whether the difference is significant.

    Prints about ten lines, and adds a page with pictures of the images whose answer changed to the newest run in
    MLflow. Runs that differ only in the seed count as one. The others are compared with the first.

    Examples: twinrun compare 2 3, twinrun compare @champion @candidate --out compare.html
    """
    from twinrun.base.errors import TwinError
    from twinrun.base.files import behind_links, write_text
    from twinrun.cli.comparing import PAGE, compare_runs, log_page
    from twinrun.evaluation.comparison_page import lines
    from twinrun.tracking.runs import writable_run
    from twinrun.tracking.store import find_tracker

    if len(runs) < 2:
        raise TwinError("Name two runs or more, for example: twinrun compare @champion @candidate")
    if out is not None:
        predict_command.require_writable(out, (".html", ".htm"), [])
    _sync_quickly()
    tracker, name = find_tracker(), model or _model_name()
    comparison, text, run = compare_runs(Path.cwd(), tracker, runs, name, margin=margin)
    print("\n".join(lines(comparison)))
    if out is not None:
        write_text(text, behind_links(out))
        print(f"The page: {out}")
    if tracker.is_read_only:
        elsewhere = "; --out FILE writes it elsewhere" if out is None else ""
        print(f"MLflow's store is read-only, so the page was not added to it{elsewhere}.")
    elif not run.is_unpublished and writable_run(tracker, run.run_id) is None:
        print(f"{run.title} was deleted in MLflow, so the page was not added to it.")
    elif not run.is_unpublished:
        log_page(tracker, run.run_id, text)
        print(f"In MLflow: comparison/{PAGE} of {run.title}")


@app.command("diff", rich_help_panel=_MODELS)
def diff_(
    before: Annotated[str, typer.Argument(help="A run or version, as for `twinrun show`.")],
    after: Annotated[str, typer.Argument(help="The run or version to compare it with.")],
    model: Model = None,
) -> None:
    """Show what differs between two runs: code, params, data, environment, hardware; then the results.

    Examples: twinrun diff 2 3, twinrun diff @champion 5f2c
    """
    from twinrun.tracking.store import find_tracker
    from twinrun.twins.rundiff import diff_runs
    from twinrun.twins.rundiff import draw as drawn

    _sync_quickly()
    for part in drawn(diff_runs(Path.cwd(), find_tracker(), before, after, model or _model_name())):
        draw(part)


@app.command(rich_help_panel=_START)
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also hash the DVC cache and data/out again, which takes longer.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="List each finding, also where one command fixes many of them.")
    ] = False,
) -> None:
    """Check the whole set-up; every finding says how to fix it. Exit code: 0 no findings, 1 findings.

    Looks at code, params, source, environment, dvc.yaml, tracker, store, journals, runs, registry, promotions, locks,
    twins, resume and data, and changes nothing.

    Example: twinrun doctor --deep
    """
    from twinrun.core.params import require_project
    from twinrun.doctor.doctor import examine

    require_project()
    findings = 0
    for check in examine(Path.cwd(), deep=deep):
        wrong = sum(not finding.harmless for finding in check.findings)
        print(f"{'!!' if wrong else 'ok'}  {check.name:<12} {check.seen}", flush=True)
        for same in check.causes():
            shown = same if everything else same[:_EXAMPLES]
            lines = [finding.problem for finding in shown]
            if more := len(same) - len(shown):
                lines.append(f"and {more:,} more with the same fix (twinrun doctor --all lists them)")
            print("\n".join(f"      {line}" for line in [*lines, f"fix: {same[0].fix}"]), flush=True)
        findings += wrong
    print(f"\n{findings} finding{'' if findings == 1 else 's'}." if findings else "\nNo problems found.")
    raise SystemExit(1 if findings else 0)


def main() -> None:
    """Entry point of the `twinrun` command."""
    run_main(_main)


def _main() -> None:
    if (notice := foreign_code()) is not None:
        print(notice, file=sys.stderr)
    _join_lines_of_help(app)
    given = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    if "" in sys.argv[1:] or any(re.fullmatch("--[a-z-]+=", each) for each in given):  # an empty path is this folder
        print(
            "An argument is empty; perhaps it is a variable that is not set. Write a value, or . for this folder.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        app()
    except SystemExit as ended:
        if (cause := ended.__context__) is not None and isinstance(cause.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None  # which Typer ends without a word
        raise
    except ModuleNotFoundError as error:
        if (error.name or "twinrun").partition(".")[0] == "twinrun":
            raise
        raise TwinrunError(
            f"This command needs the package {error.name}, which is not installed. Install all of Twinrun: "
            "pip install twinrun"
        ) from error


def _join_lines_of_help(commands: typer.Typer) -> None:
    """Let the terminal wrap paragraphs of help: Typer keeps the line ends of a docstring."""
    for command in commands.registered_commands:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command.callback) or "")
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _join_lines_of_help(group.typer_instance)


def foreign_code() -> str | None:
    """A warning where the working folder is a project with its own code, and other code is running."""
    from pathlib import Path

    own, running = Path("src", "twinrun").resolve(), Path(__file__).resolve().parents[1]
    if not (own / "cli/main.py").is_file() or own == running:
        return None
    return (
        f"Warning: the code that runs is {running}, and not that of this project, {own}. "
        "Set up and enter this project's environment: make setup && source .venv/bin/activate"
    )


def _registry(model: str | None) -> "Registry":
    from twinrun.tracking.registry import Registry
    from twinrun.tracking.store import find_tracker

    problem = _bring_up_to_date()
    registry = Registry(find_tracker(), model or _model_name())  # a store in trouble says it itself
    if problem is not None:
        print(problem, file=sys.stderr)
    return registry


def _sync_quickly() -> None:
    """Bring MLflow up to date before it is read, without waiting; what cannot be brought is said, and no more."""
    if (problem := _bring_up_to_date()) is not None:
        print(problem, file=sys.stderr)


def _bring_up_to_date() -> str | None:
    """Sync without waiting and print what was done; the problem, if there was one."""
    from twinrun.tracking.sync import sync as bring_up_to_date

    try:
        report = bring_up_to_date(wait_s=0)
    except OSError as error:
        return os_problem(error)
    except TwinrunError as error:
        return str(error)
    lines = report.lines()
    problem = lines.pop() if report.problem else None  # which comes last
    for line in lines:
        print(line, file=sys.stderr)
    return problem


def _model_name() -> str:
    from twinrun.core.params import load_params

    return load_params().register.model_name


def _show(facts: Any, all_params: bool) -> None:
    from rich.table import Table

    from twinrun.tracking.presentation import short

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    add_row(table, "run", f"{facts.title} ({facts.status})")
    add_row(table, "id", "none yet: the run is not in MLflow" if facts.is_unpublished else facts.run_id)
    for name, value in sorted(facts.metrics.items()):
        add_row(table, name, f"{value:.6g}")
    if twin_of := facts.tags.get("twinrun.twin_of"):
        add_row(table, "twin of", short(twin_of))
    if verdict := facts.tags.get("twinrun.twin_verdict"):
        add_row(table, "twin", f"{verdict} ({short(facts.tags.get('twinrun.twin') or facts.run_id)})")
    if facts.card is None:
        add_row(table, "card", "none: this training did not finish")
    else:
        for name, value in card_lines(facts.card, all_params):
            add_row(table, name, value)
    draw(table)


def card_lines(card: dict[str, Any], all_params: bool) -> list[tuple[str, str]]:
    """A card as pairs of a name and a text, in reading order: with all settings, or those that are not defaults."""
    from twinrun.core.params import flat_settings
    from twinrun.project.presets import defaults

    environment, hardware = card.get("environment", {}), card.get("hardware", {})
    state = "with uncommitted changes (--diff prints them)" if card.get("dirty") else "clean"
    lines = [
        ("weights hash", str(card.get("weights_hash"))),
        ("fingerprint", str(card.get("fingerprint"))),
        ("commit", f"{card.get('commit')}, {state}"),
        ("untracked, left out", ", ".join(card.get("untracked_left_out", [])) or "none"),
        *([("unknown entries", ", ".join(unknown))] if (unknown := card.get("set_aside")) else []),
        ("started", f"{card.get('started')}, took {_took(card)}"),
        ("energy", _energy(card)),
        ("numerics", f"{card.get('precision')}, {card.get('shards')} shards, {card.get('threads')} threads"),
        ("processor", f"{hardware.get('cpu')}, {hardware.get('cores_usable')} cores"),
        ("instructions", _some(hardware.get("cpu_flags", []))),
        ("memory", f"{hardware.get('memory_bytes', 0) / 2**30:.1f} GiB"),
        ("gpu", ", ".join(" ".join(map(str, gpu.values())) for gpu in hardware.get("gpus", [])) or "none"),
        ("python", f"{environment.get('python')} on {environment.get('platform')}"),
        ("lock", str(environment.get("lock_sha256"))),
        ("packages unlike requirements.lock", _differing(environment.get("differing", {}))),
    ]
    views = card.get("params", {}).get("train", {}).get("probe_views", 1)
    unused = (*_UNUSED_BY_A_PROBE, *(["train.augment."] if views == 1 else [])) if card.get("probe") else ()
    params, usual = dict(flat_settings(card.get("params", {}))), {} if all_params else defaults()
    shown = {name: value for name, value in params.items() if name not in usual or value != usual[name]}
    lines += [
        (f"params.{name}", f"{value} (not used by a probe)" if name.startswith(unused) else str(value))
        for name, value in shown.items()
    ]
    if others := len(params) - len(shown):
        lines.append(("other params", f"{others} at this version's defaults (--all prints them)"))
    for stage, facts in card.get("dvc_lock", {}).items():
        lines += [(f"data of {stage}", f"{md5}  {path}") for path, md5 in facts.get("outs", {}).items()]
    return lines


def _energy(card: dict[str, Any]) -> str:
    meters = {"energy_j": "processors", "gpu_energy_j": "GPUs"}
    readings = [f"{card[name]} J by the {whose}" for name, whose in meters.items() if card.get(name) is not None]
    return ", ".join(readings) or "not reported by this machine, or the training was resumed"


def _took(card: dict[str, Any]) -> str:
    """The time that training took, as stage `train` prints it."""
    seconds = card.get("wall_time_s")
    return "an unknown time" if seconds is None else duration(seconds)


def _some(names: list[str]) -> str:
    """Names as far as they fit a line; the card has all of them."""
    shown = names[:_NAMES_SHOWN]
    return " ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _differing(packages: dict[str, dict[str, str | None]]) -> str:
    return (
        ", ".join(
            f"{name} {versions['installed'] or 'missing'} (locked: {versions['locked'] or 'none'})"
            for name, versions in packages.items()
        )
        or "none"
    )


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
