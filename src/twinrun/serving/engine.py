"""A verified model that answers for the bytes of images, with ONNX Runtime and ingest's own decoding."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinrun.base.errors import BundleError
from twinrun.core.arrays import FloatArray, Pixels
from twinrun.decoding.decode import fit_image
from twinrun.decoding.samples import sample_rules
from twinrun.evaluation.conformal import (
    CALIBRATION,
    Calibration,
    Kind,
    kind_of_answer,
    read_calibration,
    softmax,
)
from twinrun.evaluation.traffic import image_facts
from twinrun.models.stored import StoredModel, read_stored
from twinrun.prediction.inputs import Given, read_image

_SMALL_PIXELS, _SMALL_BYTES = 64 * 64, 1_000_000
_ENOUGH = 0.95  # without a calibration: the likeliest labels that together reach this probability are named


@dataclass(frozen=True)
class Answer:
    """What is answered for one image: probabilities (C,) of the classes, and the labels that are named.

    `label` is the likeliest, `confidence` its calibrated probability, in [0, 1]. `logits` (C,) are the network's own.
    `observed` are IMAGE_FACTS of the image; empty for pixels alone, and where the model has none to compare with.
    """

    probabilities: FloatArray
    label: str
    labels: tuple[str, ...]
    kind: Kind
    confidence: float
    logits: NDArray[np.float32]
    observed: tuple[float, ...] = ()

    @property
    def logits_sha256(self) -> str:
        """Sha256 of the bytes of the logits, little-endian float32; hexadecimal."""
        return hashlib.sha256(self.logits.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Engine:
    """One model in service. `version` is None for the folder of a bundle; `file` is the ONNX model itself."""

    name: str
    version: int | None
    model: StoredModel
    file: bytes
    sha256: str
    session: Any
    calibration: Calibration | None

    def read(self, image: Given) -> Pixels:
        """The pixels of one image as the network takes them, (H, W, C). Raises DecodeError with the reason."""
        return self._fitted(self._decoded(image))

    @property
    def reference(self) -> str:
        """What names the model for `--model`."""
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @property
    def is_small(self) -> bool:
        """Whether the network answers in less time than it takes to hand an image to another thread."""
        height, width = self.model.preprocessing.size_px
        return height * width <= _SMALL_PIXELS and len(self.file) <= _SMALL_BYTES

    def classify(self, image: Given, max_pixels: int | None = None) -> Answer:
        """Classify one image; the same bits whatever else is asked. Raises DecodeError with the reason.

        `max_pixels` may lower the model's limit.
        """
        pixels = self._decoded(image, max_pixels)
        fitted = self._fitted(pixels)
        if self.calibration is None or self.calibration.traffic is None:
            return self.answer(fitted)
        observed = image_facts(fitted[None], [(pixels.shape[0], pixels.shape[1])])[0]
        return replace(self.answer(fitted), observed=tuple(observed.tolist()))

    def answer(self, pixels: Pixels) -> Answer:
        """The answer for pixels (H, W, C) as the network takes them."""
        limit = None if self.calibration is None else self.calibration.similarity
        names = ["logits"] if limit is None else ["logits", "similarity"]
        found, *similarity = self.session.run(names, {"images": pixels[None]})
        logits = found.astype(np.float64)
        probabilities = softmax(logits)[0]
        order = (-probabilities).argsort(kind="stable")
        if self.calibration is None:
            enough = int(np.searchsorted(probabilities[order].cumsum(), _ENOUGH)) + 1
            named, unusual, confidence = order[:enough], False, float(probabilities[order[0]])
        else:
            chosen = self.calibration.named(logits)[0]
            named = [at for at in order if chosen[at]]
            unusual = bool(self.calibration.unusual(logits, similarity[0][:, 0] if similarity else None)[0])
            confidence = float(self.calibration.probabilities(logits)[0][order[0]])
        labels = tuple(self.model.classes[at] for at in named)
        return Answer(probabilities, labels[0], labels, kind_of_answer(len(labels), unusual), confidence, found[0])

    def _decoded(self, image: Given, max_pixels: int | None = None) -> Pixels:
        settings = self.model.preprocessing
        most = settings.max_pixels if max_pixels is None else min(max_pixels, settings.max_pixels)
        return read_image(image, settings.channels, most, sample_rules(settings))

    def _fitted(self, pixels: Pixels) -> Pixels:
        settings = self.model.preprocessing
        return fit_image(pixels, (settings.size_px[0], settings.size_px[1]), settings.fit, settings.resample)

    def facts(self) -> dict[str, Any]:
        """What identifies the model, as plain values."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_hash": self.model.weights_hash,
            "onnx_sha256": self.sha256,
        }

    def how_it_answers(self) -> dict[str, Any]:
        """What a page needs to answer by itself with the model's file, as plain values."""
        return {
            "classes": self.model.classes,
            "preprocessing": self.model.preprocessing.model_dump(),
            "calibration": None if self.calibration is None else self.calibration.model_dump(exclude={"traffic"}),
        }


def load_engine(bundle: Path, onnx: Path, *, name: str, version: int | None, sha256: str | None) -> Engine:
    """Verify a bundle and the ONNX file of the same weights, and try it on a black image.

    `sha256` is what the registry says of the file, where one does. Raises BundleError, which says what is wrong.
    """
    stored = read_stored(bundle, "served")
    try:
        file = onnx.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{onnx} cannot be read: {error.strerror}. Registering a model writes it: dvc repro -f -s register"
        ) from None
    digest = hashlib.sha256(file).hexdigest()
    if sha256 is not None and digest != sha256:
        raise BundleError(
            f"{onnx} has sha256 {digest[:12]}... and the registry says {sha256[:12]}.... It was not served."
        )
    return start_engine(name, version, stored.model, file, onnx)


def start_engine(name: str, version: int | None, model: StoredModel, file: bytes, path: Path) -> Engine:
    """An engine for the bytes of an ONNX file, which are those of `path`; BundleError where they do not answer."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # several requests at a time fill the cores
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        weights_hash = metadata.get("weights_hash", "")
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise BundleError(f"{path} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if weights_hash != model.weights_hash:
        raise BundleError(
            f"{path} was written for other weights ({weights_hash[:12] or 'not named'}) than those of its bundle "
            f"({model.weights_hash[:12]}). Write it again: dvc repro -f -s register"
        )
    calibration = read_calibration(metadata.get(CALIBRATION, "null"), weights_hash, len(model.classes))
    engine = Engine(name, version, model, file, hashlib.sha256(file).hexdigest(), session, calibration)
    try:
        probabilities = engine.answer(_black(model)).probabilities
    except Exception as error:  # as above
        raise BundleError(f"{path} gives no answer: {' '.join(str(error).split())[:300]}") from None
    if probabilities.shape != (len(model.classes),) or not np.isfinite(probabilities).all():
        raise BundleError(f"{path} gives no probabilities for the {len(model.classes)} classes of its bundle.")
    return engine


def _black(model: StoredModel) -> Pixels:
    return np.zeros((*model.preprocessing.size_px, len(model.preprocessing.mean)), np.uint8)
