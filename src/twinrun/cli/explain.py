"""The command `twinrun explain`. Like the others it imports what it needs when it is called."""

import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinrun.base.errors import DataError
from twinrun.base.printing import escaped, print
from twinrun.base.progress import phase
from twinrun.base.regular_files import read_regular
from twinrun.cli.chosen_model import Model, loaded
from twinrun.cli.predict import is_desktop, require_writable

if TYPE_CHECKING:
    from twinrun.core.arrays import Pixels
    from twinrun.evaluation.anatomy_page import Neighbour
    from twinrun.models.bundle import Bundle

_IMAGES = Path("data/out/ingest/images.npy")
_TABLE = Path("data/out/ingest/table.parquet")
_MANIFEST = Path("data/out/validate/manifest.parquet")
_TRAINED = Path("data/out/train/bundle")


def explain(
    photo: Annotated[Path, typer.Argument(help="The image.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A model, as for `twinrun predict`; by default the champion.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The page, one file.")] = Path("explanation.html"),
    similar: Annotated[
        bool, typer.Option("--similar/--no-similar", help="Show the most similar training images in data/out.")
    ] = True,
    trust: Annotated[
        bool, typer.Option("--trust", help="Load a model that contains the code of its network, and run that code.")
    ] = False,
) -> None:
    """Write a page that shows what the network does with one image, with the network's own numbers.

    The page has each step from convolution to softmax, the places that support the answer, and the most similar
    training images.

    Example: twinrun explain photo.jpg --model data/out/train/bundle
    """
    if photo.is_dir():
        raise DataError(
            f"{escaped(str(photo))} is a folder. Name one image in it; to classify them all: "
            f"twinrun predict {shlex.quote(escaped(str(photo)))}"
        )
    try:
        read_regular(photo)  # before the model is loaded, which takes seconds
    except OSError as error:
        raise DataError(f"{escaped(str(photo))} cannot be read: {error.strerror}. Name an image.") from None
    require_writable(out, (".html", ".htm"), [str(photo)])
    with ExitStack() as stack:
        with phase("Loading the model"):
            used = stack.enter_context(loaded(model, trust))
        print(f"Model: {used.name}", file=sys.stderr)
        if used.note:
            print(used.note, file=sys.stderr)
        _explain(photo, used, out, similar=similar)
    print(f"Written: {out}", file=sys.stderr)
    if is_desktop():
        typer.launch(out.resolve().as_uri())


def _explain(photo: Path, model: Model, out: Path, *, similar: bool) -> None:
    import numpy as np

    from twinrun.base.files import behind_links, write_text
    from twinrun.base.printing import without_library_output
    from twinrun.evaluation.anatomy import agreement, anatomy, occlusion, unpacked
    from twinrun.evaluation.anatomy_page import anatomy_html
    from twinrun.models.views import plain_network
    from twinrun.prediction.classifier import ImageClassifier

    bundle, name = model.bundle, escaped(str(photo))
    try:
        with without_library_output():
            pixels = ImageClassifier(bundle).read(photo)
    except DataError as error:
        raise DataError(f"{name} {error}") from None
    found = anatomy(bundle, pixels)
    covered = occlusion(bundle, pixels)
    neighbours, notes = _neighbours(bundle, pixels) if similar else ([], [])
    if plain_network(bundle.network) is not bundle.network:
        notes.append(
            "`twinrun predict` answers with the mean over views of an image, mirrored or shifted "
            "(train.test_views.flip, train.test_views.shift_px). This page shows the image itself."
        )
    maps = found.data["maps"]
    agrees = None if maps is None else agreement(unpacked(maps["maps"])[0], covered, bundle.preprocessing.size_px)
    page = anatomy_html(
        found,
        name=escaped(photo.name),
        model=f"{bundle.architecture}, weights {bundle.weights_hash[:12]}: {model.name}",
        covered=covered,
        agreement=agrees,
        neighbours=neighbours,
        notes=notes,
    )
    write_text(page, behind_links(out))
    best = int(np.argmax(found.probabilities))
    print(f"{name}: {escaped(bundle.classes[best])}, {found.probabilities[best]:.4f}")


def _neighbours(bundle: "Bundle", pixels: "Pixels") -> tuple[list["Neighbour"], list[str]]:
    """The most similar training images of this project, and notes, such as why there are none."""
    from twinrun.dataset.manifest import read_manifest
    from twinrun.dataset.pack import open_pack
    from twinrun.dataset.table import read_table
    from twinrun.evaluation.anatomy import nearest, searched
    from twinrun.evaluation.anatomy_page import Neighbour
    from twinrun.evaluation.sheet import picture_of
    from twinrun.models.stored import read_stored

    try:
        images = open_pack(_IMAGES)
        manifest = read_manifest(_MANIFEST, len(images))
        facts = read_table(_TABLE, len(images))
    except DataError:
        return [], ["Similar training images are not shown: they are not in this folder (data/out)."]
    wanted = (*bundle.preprocessing.size_px, len(bundle.preprocessing.mean))
    if images.shape[1:] != wanted or manifest.classes != bundle.classes:
        return [], ["Similar training images are not shown: those in data/out have another size or other classes."]
    rows = manifest.split("train").rows
    some = searched(rows, bundle.preprocessing.size_px)
    print(f"Looking for similar images among {len(some):,} of {len(rows):,} training images ...", file=sys.stderr)
    targets = dict(zip(rows.tolist(), manifest.split("train").targets.tolist(), strict=True))
    neighbours = [
        Neighbour(
            name=facts["path"][row].as_py() + (" (this image)" if (images[row] == pixels).all() else ""),
            label=manifest.classes[targets[row]],
            picture=picture_of(images[row]),
            similarity=similarity,
        )
        for row, similarity in nearest(bundle, pixels, images, some)
    ]
    if not neighbours:
        return [], ["Similar training images are not shown: this network does not end in a linear layer."]
    notes = []
    if len(some) < len(rows):
        notes.append(f"Similar images were searched for among {len(some):,} of the {len(rows):,} training images.")
    try:
        same = read_stored(_TRAINED, "compared").model.weights_hash == bundle.weights_hash
    except DataError:
        same = False
    if not same:
        notes.append("The similar images are from the training split in data/out now. This model may have had others.")
    return neighbours, notes
