"""The command `twinrun lr`: a learning-rate range test of the training that params.yaml describes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import PublishError, TrainingError
from twinrun.base.files import behind_links, ensure_writable, explained, replacing, require_replaceable, write_text
from twinrun.base.printing import print

if TYPE_CHECKING:
    from twinrun.core.params import IngestParams
    from twinrun.training.range_test import RangeTest

_OUT = Path(".twinrun/lr")
_HEADER = "learning_rate,loss,smoothed_loss\n"
_SOFTWARE = "twinrun lr"  # in the PNG
_PACK, _MANIFEST = Path("data/out/ingest/images.npy"), Path("data/out/validate/manifest.parquet")


def lr(
    lowest: Annotated[float, typer.Option(min=1e-12, max=1e3, help="The learning rate of the first step.")] = 1e-6,
    highest: Annotated[float, typer.Option(min=1e-12, max=1e3, help="The learning rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, max=10_000, help="Steps, each of one batch.")] = 100,
    out: Annotated[Path, typer.Option(help="Folder for lr.csv and lr.png.")] = _OUT,
) -> None:
    """Suggest a learning rate: train while it rises from step to step, and see where the loss falls.

    Takes the images, network and settings of the project as a training would, and changes nothing of them. Needs
    ingest and validate: dvc repro validate.

    Examples: twinrun lr, twinrun lr --steps 200 --highest 10
    """
    if lowest >= highest:
        raise typer.BadParameter(f"must be below --highest, {highest:g}", param_hint="--lowest")
    from twinrun.core.params import load_params
    from twinrun.training.interruption import StopRequest
    from twinrun.training.job import prepare_job
    from twinrun.training.range_test import range_test

    params = load_params()
    if params.train.freeze == "backbone":
        raise TrainingError(
            "The head of train.freeze: backbone is trained to convergence and has no learning rate. For a range test "
            "set train.freeze: none or batch_norm in params.yaml."
        )
    _require_apart(out, params.ingest)
    for name in () if out == _OUT else ("lr.csv", "lr.png"):
        require_replaceable(out / name, _is_own, "--out")
    job = prepare_job(params.ingest, params.train, _PACK, _MANIFEST, Path(".twinrun/resume"), Path(".twinrun/features"))
    with explained(out):
        ensure_writable(out, 0)
    stop = StopRequest()
    stop.install()
    found = range_test(job, lowest=lowest, highest=highest, steps=steps, stop=stop)
    if len(found.losses) < 2:
        raise TrainingError(
            f"The loss was not finite at a learning rate of {lowest:g} already. Set a smaller --lowest, or look at "
            "the settings of train in params.yaml."
        )
    rows = zip(found.rates.tolist(), found.losses.tolist(), found.smoothed.tolist(), strict=True)
    text = "".join(f"{rate!r},{loss!r},{smoothed!r}\n" for rate, loss, smoothed in rows)
    write_text(_HEADER + text, behind_links(out / "lr.csv"))
    _draw(found, behind_links(out / "lr.png"))
    print(
        f"Suggestion: {found.suggestion():.2g}, a tenth of where the loss is lowest ({found.suggestion() * 10:.2g}); "
        f"it falls fastest at {found.steepest:.2g}. params.yaml has {params.train.learning_rate:g}.\n"
        f"Try it: dvc exp run -S train.learning_rate={found.suggestion():.2g}\n"
        f"Plot: {out / 'lr.png'}, numbers: {out / 'lr.csv'}"
    )


def _require_apart(out: Path, ingest: "IngestParams") -> None:
    """Raise PublishError where `out` lies among the images of the project, of which lr.png would be one more."""
    from twinrun.ingest.listing import source_folder

    if ingest.source == "digits":
        return
    images, place = source_folder(ingest).resolve(), out.resolve()
    if place.is_relative_to(images) and not any(part.startswith(".") for part in place.relative_to(images).parts):
        raise PublishError(
            f"{out} lies in the images (ingest.path), and lr.png would be one of them. Name another --out."
        )


def _draw(found: "RangeTest", path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.8", label="loss of the step")
    axes.plot(found.rates, found.smoothed, color="#1f5f8b", label="smoothed")
    axes.axvline(found.suggestion(), color="#c8452d", linestyle="--", label=f"suggestion {found.suggestion():.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    with replacing(path) as temp:
        figure.savefig(temp, format="png", dpi=150, metadata={"Software": _SOFTWARE})


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(200)
    return start.startswith(_HEADER.encode()) or _SOFTWARE.encode() in start
