"""Loading the model that a person names, for `twinrun predict` and, in Python, `twinrun.load`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.base.errors import BundleError, MissingModelError
from twinrun.base.paths import expanded

if TYPE_CHECKING:
    from twinrun.models.bundle import Bundle

_TRAINED = Path("data/out/train/bundle")


@dataclass(frozen=True)
class Prediction:
    """The likeliest label, its probability and those of all classes (0 to 1); or, as `error`, why there is none."""

    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    error: str | None


@dataclass(frozen=True)
class Model:
    """A loaded model, a name to print for it, and a note that says why it was chosen if the person named none.

    `folder` is the folder of its bundle. For a model of the registry it is a copy, which `loaded` removes at its end.
    """

    bundle: "Bundle"
    name: str
    folder: Path
    note: str = ""

    def predict(self, images: Any) -> Any:
        """Classify one image, which gives a Prediction, or several, which give a list of Predictions in the same order.

        An image is a path, the bytes of a file, base64 text, a PIL image or an array (H, W) or (H, W, C), uint8 or
        floats from 0 to 1; several are a list, an array (N, H, W, C), a Series or a DataFrame with one column. The
        probabilities are those of `twinrun predict` and `evaluate`, bit for bit, whichever images are classified
        together. Raises DataError for arguments that cannot be images.
        """
        from twinrun.prediction.classifier import ImageClassifier
        from twinrun.prediction.inputs import images_in

        given, classifier, classes = images_in(images, paths=True), ImageClassifier(self.bundle), self.bundle.classes
        predictions = []
        for answer in classifier.answers(given, classifier.read):
            shares = (
                {} if answer.probabilities is None else dict(zip(classes, answer.probabilities.tolist(), strict=True))
            )
            label = max(shares, key=shares.__getitem__) if shares else None
            predictions.append(Prediction(label, shares.get(label) if label else None, shares, answer.error))
        return predictions[0] if _is_one(images) else predictions


def load(reference: str | Path | None = None, *, trust: bool = False) -> Model:
    """Load a model: "models:/NAME@champion", "NAME/3", a version's number, or the folder of a bundle.

    Without a reference, load the champion of the model in params.yaml, or else its candidate, or else the model that
    was trained here last. `trust` allows a model that contains the code of its network, and runs that code. Raises
    BundleError, RegistryError or TrackingError.
    """
    with loaded(None if reference is None else str(reference), trust) as model:
        return model


@contextmanager
def loaded(reference: str | None, trust: bool) -> Iterator[Model]:
    """Like `load`, as a context manager: at its end, the copy that was fetched from the registry is removed."""
    folder = expanded(reference) if reference else None
    if folder is not None and folder.is_dir():
        yield _of_folder(folder, "", trust)
        return
    from twinrun.serving.waste import FOLDER, NAME, waste_bundle
    from twinrun.tracking.in_use import model_in_use
    from twinrun.tracking.store import find_tracker

    if reference == NAME:
        yield Model(waste_bundle(), NAME, FOLDER)
        return

    with ExitStack() as stack:
        try:
            in_use = stack.enter_context(model_in_use(find_tracker(), reference, _default_name))
        except MissingModelError as error:
            if reference or not _TRAINED.is_dir():
                raise
            yield _of_folder(_TRAINED, f"{error}\nUntil then the model in {_TRAINED} is used.", trust)
            return
        from twinrun.models.bundle import load_bundle

        try:
            bundle = load_bundle(in_use.bundle, trust=trust)
        except BundleError as error:
            raise BundleError(f"Version {in_use.version.version} of {in_use.version.name}: {error}") from None
        aliases = f" ({', '.join(in_use.version.aliases)})" if in_use.version.aliases else ""
        name = f"version {in_use.version.version} of {in_use.version.name}{aliases}"
        yield Model(bundle, name, in_use.bundle, in_use.note)


def _of_folder(folder: Path, note: str, trust: bool) -> Model:
    from twinrun.models.bundle import load_bundle

    bundle = load_bundle(folder, trust=trust)
    return Model(bundle, f"{folder}, {bundle.architecture}, weights {bundle.weights_hash[:8]}", folder, note)


def _default_name() -> str:
    from twinrun.core.params import load_params

    return load_params().register.model_name


def _is_one(images: Any) -> bool:
    """Whether a person passed one image and not a list of images."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(images, "getbands"):
        return True
    return not hasattr(images, "columns") and getattr(images, "ndim", 0) in (2, 3)
