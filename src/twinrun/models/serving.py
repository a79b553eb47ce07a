"""A bundle as an MLflow pyfunc: image files in, labels and probabilities out. Knows nothing of MLflow itself.

MLflow calls `_load_pyfunc` because the registered model names this module as its loader.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinrun.data.decode import decode_image, fit_image
from twinrun.errors import SourceError
from twinrun.models.bundle import Bundle, load_bundle
from twinrun.models.predict import probabilities

if TYPE_CHECKING:
    import pandas as pd


class ImageClassifier:
    """Predicts from image files, prepared exactly as `ingest` prepares them."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, images: "pd.DataFrame", params: dict[str, Any] | None = None) -> "pd.DataFrame":  # noqa: ARG002 - MLflow's signature
        """Classify the files in the column `image` (bytes of JPEG, PNG, WebP, BMP, GIF or TIFF).

        A row for each image: `label`, its `probability`, and `probabilities`, a mapping of each class to its own.
        Raises SourceError, naming the row, for a file that cannot be decoded.
        """
        import numpy as np
        import pandas as pd

        preparation = self.bundle.preprocessing
        pixels = []
        for row, data in enumerate(images["image"]):
            try:
                decoded = decode_image(bytes(data), channels=preparation.channels, max_pixels=preparation.max_pixels)
            except Exception as error:
                raise SourceError(f"Row {row} of the request is not an image that can be decoded: {error}") from error
            pixels.append(fit_image(decoded.pixels, preparation.size_px, preparation.fit, preparation.resample))
        shares = probabilities(self.bundle, np.stack(pixels))
        best = shares.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": [self.bundle.classes[i] for i in best],
                "probability": shares.max(axis=1),
                "probabilities": [dict(zip(self.bundle.classes, row.tolist(), strict=True)) for row in shares],
            }
        )


def _load_pyfunc(path: str) -> ImageClassifier:
    return ImageClassifier(load_bundle(Path(path)))
