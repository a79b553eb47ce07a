"""Load a bundle in a process of its own and classify one image: `python -m twinrun.models.trial FOLDER`.

What works only in the process that trained it, or takes the process down, is found before it is registered.
"""

import sys
from pathlib import Path

import numpy as np

from twinrun.core.errors import BundleError, run_main
from twinrun.models.bundle import load_bundle
from twinrun.models.predict import probabilities


def main() -> None:
    """Raise BundleError where the bundle cannot be loaded, or gives no probabilities for a black image."""
    bundle = load_bundle(Path(sys.argv[1]))
    shape = (1, *bundle.preprocessing.size_px, len(bundle.preprocessing.mean))
    shares = probabilities(bundle, np.zeros(shape, np.uint8))
    if shares.shape != (1, len(bundle.classes)) or not np.isclose(shares.sum(), 1):
        raise BundleError(
            f"The model in {sys.argv[1]} does not give probabilities: for a black image {shares.tolist()}."
        )


if __name__ == "__main__":
    run_main(main)
