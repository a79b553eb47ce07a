"""The page of `twinrun explain` for a photo of the app. Another process makes it: the server imports no PyTorch."""

import subprocess
import sys
import tempfile
from pathlib import Path

from twinrun.base.errors import TwinrunError

_LONGEST_S = 300
_SHOWN = 500  # letters of a message


def explained(image: bytes, reference: str, *, similar: bool) -> bytes:
    """The page for one image by the model that `reference` names, as for `--model`.

    `similar` says whether it shows training images. Raises TwinrunError where the model cannot be loaded, or it takes
    too long.
    """
    with tempfile.TemporaryDirectory(prefix="twinrun-explain-") as folder:
        photo, page = Path(folder, "your photo"), Path(folder, "page.html")
        photo.write_bytes(image)
        command = [sys.executable, "-m", "twinrun", "explain", str(photo), "--model", reference, "--out", str(page)]
        command.append("--similar" if similar else "--no-similar")
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise TwinrunError(f"The page took more than {_LONGEST_S} s: the machine is too busy.") from None
        if ended.returncode:
            said = ended.stderr.strip()
            raise TwinrunError(f"The page cannot be made: {said[-_SHOWN:] or f'exit code {ended.returncode}'}")
        return page.read_bytes()
