"""Whether several versions of Pillow give the same pixels: `python -m benchmarks.pillow_versions [FOLDER]`; a minute.

An environment of its own for each version decodes, resizes and hashes the same images: `CASES`, and the files below
FOLDER where one is named. It ends with 1 where two versions differ. For comparison it counts the images that Pillow's
own `Image.resize`, asked for both axes at once, makes differently. The environments come from the package index, so
this is no test; the hashes of `CASES` are in tests/data/test_pixels.py.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from twinrun.base.errors import DecodeError
from twinrun.core.arrays import Pixels, Size
from twinrun.decoding.decode import Fit, Resample, decode_image, fit_image
from twinrun.ingest.facts import Facts, measured

VERSIONS = ("12.3.0", "13.0.0")
_FRAME = (48, 64)
_REPOSITORY = Path(__file__).parents[1]


class Case(NamedTuple):
    """An image of `height` x `width` with `channels`, and what it is made into."""

    height: int
    width: int
    channels: int
    size: Size
    fit: Fit
    resample: Resample

    def __str__(self) -> str:
        kind = "gray" if self.channels == 1 else "rgb"
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{kind} {self.height}x{self.width} to {size}, {self.fit}, {self.resample}"


CASES = (
    Case(30, 200, 3, (32, 32), "pad", "bilinear"),
    Case(200, 30, 3, (32, 32), "pad", "bilinear"),
    Case(301, 97, 1, (32, 32), "crop", "bilinear"),
    Case(97, 301, 1, (32, 32), "crop", "bicubic"),
    Case(400, 300, 3, (224, 320), "pad", "bicubic"),
    Case(400, 300, 3, (224, 320), "crop", "bicubic"),
    Case(300, 400, 3, (320, 224), "crop", "bilinear"),
    Case(17, 13, 1, (64, 64), "pad", "bicubic"),
    Case(13, 17, 3, (40, 96), "crop", "bilinear"),
    Case(255, 254, 3, (31, 33), "pad", "bilinear"),
    Case(1, 500, 1, (16, 16), "pad", "bilinear"),
    Case(500, 1, 1, (16, 24), "crop", "bicubic"),
)


def image(height: int, width: int, channels: int) -> Pixels:
    """A picture with smooth and sharp parts, uint8 (height, width, channels), from integers alone."""
    y, x, c = np.ogrid[:height, :width, :channels]
    return np.asarray((x * 7 + y * 3 + c * 50 + (x * y // 5) % 97 + 90 * ((x // 9 + y // 7) % 2)) % 256, np.uint8)


def pixels_hash(case: Case) -> str:
    """Sha256 of the pixels that the image of a case is made into, in hexadecimal."""
    pixels = fit_image(image(case.height, case.width, case.channels), case.size, case.fit, case.resample)
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="more images to decode, of any format")
    parser.add_argument("--here", action="store_true", help="print the hashes under this environment's Pillow as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(_hashes(options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="twinrun-pillow-") as temp:
        found = [_hashes_under(version, Path(temp), options.folder) for version in VERSIONS]
    first, last = found
    for kind in ("ours", "pillow"):
        differing = [name for name, digest in first[kind].items() if last[kind][name] != digest]
        print(
            f"{'Two passes' if kind == 'ours' else 'One Image.resize'}: {len(differing)} of {len(first[kind])} differ"
        )
    differing = [name for name, digest in first["ours"].items() if last["ours"][name] != digest]
    print("\n".join(f"  {name}" for name in differing))
    sys.exit(1 if differing else 0)


def _hashes_under(version: str, temp: Path, folder: Path | None) -> dict[str, dict[str, str]]:
    """The hashes in a new environment with this version of Pillow and the numpy and scipy of this one."""
    import scipy

    environment = temp / version
    python = environment / "bin/python"
    packages = [f"pillow=={version}", f"numpy=={np.__version__}", f"scipy=={scipy.__version__}"]
    _run("uv", "venv", "--quiet", "--python", sys.executable, str(environment))
    _run("uv", "pip", "install", "--quiet", "--python", str(python), *packages)
    more = [str(folder.resolve())] if folder else []
    said = _run(str(python), "-m", "benchmarks.pillow_versions", "--here", *more)
    result: dict[str, dict[str, str]] = json.loads(said)
    print(f"Pillow {version}: {len(result['ours'])} hashes")
    return result


def _run(*command: str) -> str:
    paths = {"PYTHONPATH": f"{_REPOSITORY / 'src'}:{_REPOSITORY}"}
    done = subprocess.run(command, cwd=_REPOSITORY, env={**os.environ, **paths}, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr.decode()}")
    return done.stdout.decode()


def _hashes(folder: Path | None) -> dict[str, dict[str, str]]:
    ours = {str(case): pixels_hash(case) for case in CASES}
    pillow = {}
    for case in CASES:
        pixels = image(case.height, case.width, case.channels)
        ours[f"perceptual hash, {case}"] = measured(Facts(0, None), pixels).phash or ""
        whole = Image.fromarray(pixels[:, :, 0] if case.channels == 1 else pixels)
        pillow[str(case)] = _sha256(whole.resize(case.size[::-1], Image.Resampling.BILINEAR).tobytes())
    for file in _files(folder):
        try:
            decoded = decode_image(file.read_bytes(), channels="rgb", max_pixels=10**8)
            pixels = fit_image(decoded.pixels, _FRAME, "pad", "bilinear")
        except DecodeError as error:
            ours[str(file)] = str(error)
        else:
            ours[str(file)] = _sha256(pixels.tobytes())
    return {"ours": ours, "pillow": pillow}


def _files(folder: Path | None) -> Iterator[Path]:
    return iter(sorted(file for file in folder.rglob("*") if file.is_file())) if folder else iter(())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
