"""Try a bundle in a separate process: `python -m twinrun.evaluation.trial FOLDER RESULTS` reads what to try as JSON.

What works only in the process that trained it, or takes the process down, is found before it is registered. The same
process measures what a user of the model would see: its answers, how they change with the image, how long one takes;
and it writes the network as ONNX. So whoever asks needs no PyTorch.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinrun.base.errors import BundleError, ModelError, run_main
from twinrun.core.arrays import FloatArray, IntArray, Pixels
from twinrun.models.stored import StoredBundle

if TYPE_CHECKING:
    from twinrun.models.bundle import Bundle

_LIMIT_S = 600.0
_ENVIRONMENT = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "VIRTUAL_ENV", "OMP_NUM_THREADS"}
)
_ONNX, _ANSWER = "model.onnx", "answer.json"
_SHIFT_SIDES = 32  # an image is shifted by its side divided by this, at least one pixel
_LIGHT = 1.15
_WARM_UP, _REPEATS, _LATENCY_S = 3, 30, 3.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which images of a pack to classify: the file, the rows in it, and whether their mirror images as well."""

    pack: str
    rows: list[int]
    mirror: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a bundle did in a separate process.

    `latency_ms` is the median time of one image, from pixels to probabilities, on one thread, over `repeats`.
    `probabilities` (n, C) are those of the images of the question, and `changed` maps a change of the images to the
    classes (n,) that are predicted after it; both are empty without a question. `onnx` is the network as ONNX, None
    where it cannot be exported, and `no_onnx` then says why.
    """

    latency_ms: float
    repeats: int
    probabilities: FloatArray
    changed: Mapping[str, IntArray]
    onnx: bytes | None = None
    no_onnx: str = ""


def try_bundle(stored: StoredBundle, question: Question | None) -> Trial:
    """Load a bundle as whoever uses it will: in a new process, which has none of this one's state or secrets.

    Raises BundleError, with the reason, where it cannot be loaded or gives no probabilities.
    """
    environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    asked = json.dumps(None if question is None else asdict(question)).encode()
    with tempfile.TemporaryDirectory() as folder:
        place = stored.write(Path(folder, "bundle"))
        command = [sys.executable, "-m", "twinrun.evaluation.trial", str(place), folder]
        try:
            done = subprocess.run(
                command, env=environment, input=asked, capture_output=True, timeout=_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BundleError(
                f"The model did not answer within {_LIMIT_S / 60:.0f} minutes, so it was not registered."
            ) from None
        # In a file, since what a network or a library prints is among the output.
        onnx, said = (
            file.read_bytes() if (file := Path(folder, name)).is_file() else None for name in (_ONNX, _ANSWER)
        )
    if done.returncode or said is None:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {done.returncode}"
        reason = reason.replace(f"The model in {place} ", "it ")
        raise BundleError(f"The model was not registered, since it cannot be loaded in a separate process: {reason}")
    answer = json.loads(said)
    return Trial(
        latency_ms=float(answer["latency_ms"]),
        repeats=int(answer["repeats"]),
        probabilities=np.array(answer["probabilities"], np.float64),
        changed={name: np.array(classes, np.int64) for name, classes in answer["changed"].items()},
        onnx=onnx,
        no_onnx=answer["no_onnx"],
    )


def changed_images(images: Pixels, *, mirror: bool) -> dict[str, Pixels]:
    """Changes that leave a label as it is, by name, of uint8 images (n, H, W, C).

    A shift by a 32nd of each side, diagonally, to the four corners in turn, the border repeated; light 15% brighter
    and darker in turn; with `mirror`, left and right exchanged.
    """
    down, right = (max(1, round(side / _SHIFT_SIDES)) for side in images.shape[1:3])
    shifted, light = np.empty_like(images), np.empty_like(images)
    for at, image in enumerate(images):
        y, x = down * (1 if at % 4 < 2 else -1), right * (1 if at % 2 else -1)
        padded = np.pad(image, ((down, down), (right, right), (0, 0)), mode="edge")
        height, width = image.shape[:2]
        shifted[at] = padded[down - y : down - y + height, right - x : right - x + width]
        light[at] = np.rint(image * (_LIGHT if at % 2 else 1 / _LIGHT)).clip(0, 255)
    changes = {"shift": shifted, "brightness": light}
    return changes | {"mirror": images[:, :, ::-1]} if mirror else changes


def main() -> None:
    """Raise BundleError where the bundle cannot be loaded, or gives no probabilities for a black image."""
    from twinrun.evaluation.onnx_file import onnx_file
    from twinrun.models.bundle import load_bundle
    from twinrun.models.predict import probabilities, single_threads

    bundle = load_bundle(Path(sys.argv[1]))
    black = np.zeros((1, *bundle.preprocessing.size_px, len(bundle.preprocessing.mean)), np.uint8)
    shares = probabilities(bundle, black)
    if shares.shape != (1, len(bundle.classes)) or not np.isclose(shares.sum(), 1):
        raise BundleError(
            f"The model in {sys.argv[1]} does not give probabilities: for a black image {shares.tolist()}."
        )
    asked = json.loads(sys.stdin.read())
    said, changed = shares[:0], dict[str, list[int]]()
    if asked is not None:
        images = np.asarray(np.load(asked["pack"], mmap_mode="r", allow_pickle=False)[asked["rows"]])
        said = probabilities(bundle, images)
        for name, others in changed_images(images, mirror=asked["mirror"]).items():
            changed[name] = probabilities(bundle, others).argmax(axis=1).tolist()
    times = single_threads().submit(_times_ms, bundle, black).result()
    answer: dict[str, Any] = {"latency_ms": statistics.median(times), "repeats": len(times), "no_onnx": ""}
    try:
        Path(sys.argv[2], _ONNX).write_bytes(onnx_file(bundle))
    except ModelError as error:
        answer["no_onnx"] = str(error)
    text = json.dumps(answer | {"probabilities": said.tolist(), "changed": changed})
    Path(sys.argv[2], _ANSWER).write_text(text, encoding="utf-8")


def _times_ms(bundle: "Bundle", image: Pixels) -> list[float]:
    """How long one image (1, H, W, C) takes each time, as a server answers it, ms; to be called by one thread."""
    from twinrun.models.predict import pass_probabilities

    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _WARM_UP + _REPEATS and (len(times) <= _WARM_UP or time.perf_counter() < began + _LATENCY_S):
        started = time.perf_counter()
        pass_probabilities(bundle, image)
        times.append(1000 * (time.perf_counter() - started))
    return times[_WARM_UP:]


if __name__ == "__main__":
    run_main(main)
