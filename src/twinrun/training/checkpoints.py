"""Where a training stands after an epoch, on disk.

A checkpoint is a folder with state.safetensors, state.json and a manifest, published whole. Two are kept, and the
newest that verifies is used: a torn or changed one is passed over with a warning.

They outlive the training until dvc.lock records its result: where dvc dies before that, it will run the stage again,
and nothing is to be computed twice.
"""

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinrun.base.errors import os_problem
from twinrun.base.files import folder_faults, replacing, replacing_folder, write_json
from twinrun.base.printing import one_line

_KEPT = 2
_TENSORS = "state.safetensors"
_FACTS = "state.json"
_OWNER = "owner-"
_JOURNAL = "journal.jsonl"


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

    def part(self, name: str) -> "Checkpoints":
        """Those of one of several trainings that belong together, in a folder inside this one."""
        return Checkpoints(self.folder / name)

    def save(self, epoch: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Publish the state after `epoch` epochs, then remove all but the two newest."""
        from safetensors.torch import save_file

        with replacing_folder(self.folder / f"epoch-{epoch:05d}") as temp:
            # Copies, since a network may use one tensor under two names, which safetensors refuses.
            copies = {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(copies, temp / _TENSORS)
            write_json(dict(facts), temp / _FACTS)
        for outdated in self._folders()[_KEPT:]:
            shutil.rmtree(outdated, ignore_errors=True)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that verifies, or None, and a warning for each that was passed over."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        warnings: list[str] = []
        for folder in self._folders():
            try:
                epoch = int(folder.name.removeprefix("epoch-"))
                faults = folder_faults(folder)
                if not faults:
                    facts = json.loads((folder / _FACTS).read_bytes())
                    tensors = load((folder / _TENSORS).read_bytes())
                    if not isinstance(facts, dict):
                        raise ValueError(f"{_FACTS} holds no object")
                    return Checkpoint(epoch, tensors, facts), warnings
            except OSError as error:
                faults = [os_problem(error)]
            except (ValueError, RecursionError, SafetensorError) as error:
                faults = [one_line(str(error))]
            warnings.append(f"Checkpoint {folder} does not verify and is passed over: {faults[0]}")
        return None, warnings

    def owner(self) -> str:
        """The id of the training that the checkpoints belong to, made at the first call and kept until `clear`."""
        # In the name of an empty file, where no bit of it can flip.
        for file in self.folder.glob(f"{_OWNER}*"):
            return file.name.removeprefix(_OWNER)
        owner = uuid.uuid4().hex
        with replacing(self.folder / f"{_OWNER}{owner}") as temp:
            temp.touch()
        return owner

    @property
    def journal(self) -> Path:
        """Where the journal of a finished training is kept until its result is recorded."""
        return self.folder / _JOURNAL

    def finish(self, journal: Path) -> None:
        """The training is finished and its result elsewhere; dvc, where there is one, is about to record it."""
        if "DVC_STAGE" not in os.environ:
            self.clear()
            return
        with replacing(self.journal) as temp:
            shutil.copyfile(journal, temp)

    def forget_recorded(self, dvc_lock: Path) -> None:
        """Clear what is left of finished trainings, but for this one if dvc died before `dvc_lock` had its result.

        A stage that is run although its result is recorded was forced, and is to compute everything again.
        """
        recorded = dvc_lock.read_bytes() if dvc_lock.exists() else b""
        for journal in self.folder.parent.glob(f"*/{_JOURNAL}"):
            known = hashlib.md5(journal.read_bytes(), usedforsecurity=False).hexdigest().encode() in recorded
            if known or journal != self.journal or "DVC_STAGE" not in os.environ:
                shutil.rmtree(journal.parent, ignore_errors=True)

    def clear(self) -> None:
        """Forget the training."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The newest first, by number: as text, epoch-100000 comes before epoch-99999. Other names come before all."""
        return sorted(self.folder.glob("epoch-*"), key=_number, reverse=True)


def _number(folder: Path) -> float:
    digits = folder.name.removeprefix("epoch-")
    return int(digits) if digits.isdecimal() else math.inf
