"""Where a training stands after an epoch, on disk. Knows nothing of networks: tensors and JSON in, the same out.

A checkpoint is a folder with state.safetensors, state.json and a manifest, published whole. Two are kept, and the
newest that verifies is used: a torn or changed one is passed over with a warning.
"""

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from twinrun.publish import folder_faults, replacing_folder, write_json

_KEPT = 2
_TENSORS = "state.safetensors"
_FACTS = "state.json"
_OWNER = "owner.json"


@dataclass(frozen=True)
class Checkpoint:
    """State after `epoch` finished epochs: named tensors, and facts that JSON can hold."""

    epoch: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one fingerprint, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, epoch: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Publish the state after `epoch` epochs, then remove all but the two newest."""
        from safetensors.torch import save_file

        with replacing_folder(self.folder / f"epoch-{epoch:05d}") as temp:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temp / _TENSORS)
            write_json(dict(facts), temp / _FACTS)
        for outdated in self._folders()[_KEPT:]:
            shutil.rmtree(outdated)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, or None, and a warning for each that was passed over."""
        from safetensors.torch import load

        warnings: list[str] = []
        for folder in self._folders():
            faults = folder_faults(folder)
            if not faults:
                facts = json.loads((folder / _FACTS).read_bytes())
                tensors = load((folder / _TENSORS).read_bytes())
                return Checkpoint(int(folder.name.removeprefix("epoch-")), tensors, facts), warnings
            warnings.append(f"Checkpoint {folder} does not verify and is passed over: {faults[0]}")
        return None, warnings

    def owner(self) -> str:
        """The id of the training that the checkpoints belong to, made at the first call and kept until `clear`."""
        file = self.folder / _OWNER
        if not file.exists():
            write_json({"journal_id": uuid.uuid4().hex}, file)
        owner: str = json.loads(file.read_bytes())["journal_id"]
        return owner

    def clear(self) -> None:
        """Forget the training: its result is elsewhere now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*"), reverse=True)
