"""A verified model that answers for the bytes of images, with ONNX Runtime and ingest's own decoding."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinrun.core.arrays import FloatArray, Pixels
from twinrun.core.errors import BundleError
from twinrun.decoding.decode import decode
from twinrun.decoding.samples import sample_rules
from twinrun.models.stored import StoredModel, read_stored

_ENOUGH = 0.95  # the likeliest labels that together reach this probability are the answer's set


@dataclass(frozen=True)
class Answer:
    """Probabilities (C,) of the classes, the likeliest label, and the few labels that together are likely enough."""

    probabilities: FloatArray
    label: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """One model in service. `version` is None for the folder of a bundle; `file` is the ONNX model itself."""

    name: str
    version: int | None
    model: StoredModel
    file: bytes
    sha256: str
    session: Any

    def classify(self, image: bytes) -> Answer:
        """Classify one image file; the same bits whatever else is asked. Raises DecodeError with the reason."""
        settings = self.model.preprocessing
        pixels = decode(
            image,
            channels=settings.channels,
            fit=settings.fit,
            resample=settings.resample,
            size=(settings.size_px[0], settings.size_px[1]),
            max_pixels=settings.max_pixels,
            rules=sample_rules(settings),
        )
        probabilities = self._probabilities(pixels)
        order = (-probabilities).argsort(kind="stable")
        enough = int(np.searchsorted(probabilities[order].cumsum(), _ENOUGH)) + 1
        labels = tuple(self.model.classes[at] for at in order[:enough])
        return Answer(probabilities, labels[0], labels)

    def _probabilities(self, pixels: Pixels) -> FloatArray:
        (logits,) = self.session.run(["logits"], {"images": pixels[None]})
        shares = np.exp(logits[0].astype(np.float64) - logits[0].max())
        probabilities: FloatArray = shares / shares.sum()
        return probabilities

    def facts(self) -> dict[str, Any]:
        """What identifies the model, as plain values."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_hash": self.model.weights_hash,
            "onnx_sha256": self.sha256,
        }


def load_engine(bundle: Path, onnx: Path, *, name: str, version: int | None, sha256: str | None) -> Engine:
    """Verify a bundle and the ONNX file of the same weights, and try it on a black image.

    `sha256` is what the registry says of the file, where one does. Raises BundleError, which says what is wrong.
    """
    import onnxruntime

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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # several requests at a time fill the cores
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        weights_hash = session.get_modelmeta().custom_metadata_map.get("weights_hash", "")
    except Exception as error:  # ONNX Runtime raises many types of its own
        raise BundleError(f"{onnx} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if weights_hash != stored.model.weights_hash:
        raise BundleError(
            f"{onnx} was written for other weights ({weights_hash[:12] or 'not named'}) than those of {bundle} "
            f"({stored.model.weights_hash[:12]}). Write it again: dvc repro -f -s register"
        )
    engine = Engine(name, version, stored.model, file, digest, session)
    try:
        probabilities = engine._probabilities(_black(stored.model))
    except Exception as error:  # as above
        raise BundleError(f"{onnx} gives no answer: {' '.join(str(error).split())[:300]}") from None
    if probabilities.shape != (len(stored.model.classes),) or not np.isfinite(probabilities).all():
        raise BundleError(f"{onnx} gives no probabilities for the {len(stored.model.classes)} classes of {bundle}.")
    return engine


def kind_of_answer(labels: Sequence[str]) -> str:
    """What the page makes of a set of labels: `answer`, `choice` of two or three, or `unknown`."""
    return "answer" if len(labels) == 1 else "choice" if len(labels) <= 3 else "unknown"


def _black(model: StoredModel) -> Pixels:
    return np.zeros((*model.preprocessing.size_px, len(model.preprocessing.mean)), np.uint8)
