"""A bundle meets the images of a split: its predictions, and one image followed through it."""

from threading import get_ident

import numpy as np
import numpy.typing as npt

from twinrun.base.errors import DataError
from twinrun.core.arrays import FloatArray, Pixels
from twinrun.dataset.manifest import Manifest, Split, SplitName
from twinrun.evaluation.features import feature_maps
from twinrun.evaluation.predictions import Predictions, require_same_classes
from twinrun.evaluation.report import Example
from twinrun.models.bundle import Bundle


def predict(bundle: Bundle, images: Pixels, manifest: Manifest, split: SplitName) -> Predictions:
    """Probabilities of every image of a split, in the order of the pack `images` (N, H, W, C).

    Raises DataError where the split is empty, or where the images have other classes, another size or other channels
    than those that the model was trained on.
    """
    import torch

    chosen = manifest.split(split)
    _require_images(chosen, split)
    require_same_classes(bundle.classes, manifest.classes)
    _require_shape(bundle, images)
    logits, features = outputs_of(bundle, images, chosen.rows)
    return Predictions(
        ids=chosen.ids,
        targets=chosen.targets,
        probabilities=torch.from_numpy(logits).softmax(dim=1).numpy(),
        classes=bundle.classes,
        logits=logits,
        features=features,
    )


def outputs_of(bundle: Bundle, images: Pixels, rows: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray | None]:
    """Logits (n, classes) of `images[rows]`, from the passes that `models.predict` makes as well, and their features.

    Features (n, D) are what the last linear layer gets; None where the network ends otherwise, and where the answer is
    a mean over views of an image, each of which has its own. Raises DataError where a logit is not a finite number.
    """
    import torch

    from twinrun.models.architectures import find_head
    from twinrun.models.predict import (
        channel_tensor,
        normalised,
        of_this_thread,
        pass_size,
        single_threads,
        with_same_tensors,
    )
    from twinrun.models.views import plain_network

    size = pass_size(images)
    has_views = plain_network(bundle.network) is not bundle.network
    observed = with_same_tensors(bundle.network)
    head = None if has_views else find_head(observed, len(bundle.classes))
    mean, std = channel_tensor(bundle.preprocessing.mean), channel_tensor(bundle.preprocessing.std)
    given: dict[int, torch.Tensor] = {}  # by thread

    def one_pass(start: int) -> tuple[FloatArray, FloatArray | None]:
        part = rows[start : start + size]
        filled = np.zeros((size, *images.shape[1:]), np.uint8)
        filled[: len(part)] = images[part]
        with torch.inference_mode():
            pixels = normalised(torch.from_numpy(filled), mean, std)
            logits = of_this_thread(observed)(pixels)[: len(part)].double().numpy()
            features = given.get(get_ident())
            if features is None or features.ndim != 2 or len(features) != size:
                return logits, None
            return logits, features[: len(part)].double().numpy()

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        given[get_ident()] = inputs[0]

    if head is not None:
        head[1].register_forward_pre_hook(keep)
    passes = list(single_threads().map(one_pass, range(0, len(rows), size)))
    if not passes:
        return np.empty((0, len(bundle.classes))), None
    parts = [features for _, features in passes if features is not None]
    all_features = np.concatenate(parts) if len(parts) == len(passes) else None
    all_logits = np.concatenate([logits for logits, _ in passes])
    _require_finite(all_logits, rows)
    return all_logits, all_features


def follow_one(bundle: Bundle, images: Pixels, rows: npt.NDArray[np.int64], predictions: Predictions) -> Example:
    """The first image that is classified correctly, or else the first, and what the network makes of it on the way.

    `rows` (n,) says where in `images` (N, H, W, C) the predicted images are.
    """
    import torch

    from twinrun.models.predict import channel_tensor, normalised

    at = int(np.argmax(predictions.predicted == predictions.targets))
    image = np.array(images[rows[at]])
    settings = bundle.preprocessing
    pixels = normalised(torch.from_numpy(image[None]), channel_tensor(settings.mean), channel_tensor(settings.std))
    return Example(image=image, seen=feature_maps(bundle.network, pixels), probabilities=predictions.probabilities[at])


def _require_images(split: Split, name: str) -> None:
    if len(split) == 0:
        raise DataError(
            f"The {name} split has no images, so there is nothing to evaluate on. Give it some: raise "
            f"validate.fractions.{name} in params.yaml, or name images for it where the source has splits of its own."
        )


def _require_shape(bundle: Bundle, images: Pixels) -> None:
    settings = bundle.preprocessing
    wanted = (*settings.size_px, len(settings.mean))
    if images.shape[1:] != wanted:
        raise DataError(
            f"The images are {_shape(images.shape[1:])} and the model was trained on {_shape(wanted)}. "
            "Train again on these images: dvc repro train."
        )


def _require_finite(logits: FloatArray, rows: npt.NDArray[np.int64]) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise DataError(
            f"The model's outputs for {len(bad):,} of {len(rows):,} images are infinite or not numbers (first: row "
            f"{rows[bad[0]]} of the pack, {logits[bad[0], :3].tolist()} ...). Train again with a smaller learning "
            "rate; if the network is your own, look for a division by zero in it."
        )


def _shape(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width} x {height} pixels with {channels} channel{'' if channels == 1 else 's'}"
