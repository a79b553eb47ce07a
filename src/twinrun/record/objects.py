"""Files by their DVC hash: in the workspace, the cache or the remote. Each file is hashed again."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinrun.base.errors import RepositoryError
from twinrun.base.files import replacing


def has_remote(root: Path) -> bool:
    """Whether DVC has a default remote, from which it pulls, by the settings of the project and of the machine.

    True where they cannot be read, so that DVC, asked to pull, says why.
    """
    from dvc.config import Config, ConfigError

    try:
        config = Config(str(root / ".dvc"), validate=False) if (root / ".dvc").is_dir() else {}
        return bool(config.get("core", {}).get("remote"))
    except ConfigError:
        return True


@dataclass
class Found:
    """Where the content with a hash lies, or, if `path` is None, what is wrong in the places where it should be."""

    path: Path | None
    place: str = ""
    faults: list[str] = field(default_factory=list)


class Objects:
    """The content-addressed store of one project."""

    def __init__(self, root: Path) -> None:
        """`root` holds .dvc; DVC is imported (1 s) at first use. Raises RepositoryError then, if DVC cannot open it."""
        self.root = root
        self._opened: Any = None

    @property
    def cache(self) -> Path | None:
        """The folder of DVC's cache, or None where this is not a DVC project."""
        return Path(self._repo.cache.local.path) if self._repo is not None else None

    def find(self, md5: str, workspace_file: Path | None = None, *, ask_remote: bool = True) -> Found:
        """Look for the file with this MD5 in the cache, in the workspace and, if need be, in the remote.

        A remote's file is brought into the cache. Faults name files in the right places with other content.
        """
        original = Found(None)
        cached = self._cached(md5)
        if cached is not None and cached.is_file():
            if file_md5(cached) == md5:
                return Found(cached, "the DVC cache")
            original.faults.append(
                f"{self._shown(cached)} in the DVC cache was changed: its content is no longer {md5}"
            )
        if workspace_file is not None and workspace_file.is_file() and file_md5(workspace_file) == md5:
            original.path, original.place = workspace_file, "the workspace"
        elif ask_remote and cached is not None and self._pull(md5, cached, original):
            original.path, original.place = cached, "the DVC remote"
        return original

    @property
    def _repo(self) -> Any:
        if self._opened is None:
            from dvc.exceptions import DvcException, NotDvcRepoError
            from dvc.repo import Repo

            try:
                self._opened = (Repo(str(self.root)),)
            except NotDvcRepoError:
                self._opened = (None,)
            except (DvcException, UnicodeDecodeError) as error:
                raise RepositoryError(
                    f"DVC cannot open {self.root}, so its cache cannot be read: {error}.\n"
                    "Correct .dvc/config, or restore it: git checkout .dvc/config"
                ) from None
        return self._opened[0]

    def _cached(self, md5: str) -> Path | None:
        return None if self._repo is None else Path(self._repo.cache.local.oid_to_path(md5))

    def _pull(self, md5: str, cached: Path, original: Found) -> bool:
        """Bring one object from the default remote; a changed file in the cache is replaced only by the right one."""
        from dvc_data.hashfile.hash_info import HashInfo

        if not self._repo.config["core"].get("remote"):
            return False
        aside = cached.with_name(f"{cached.name}.changed")
        if cached.exists():
            cached.replace(aside)
        try:
            self._repo.cloud.pull([HashInfo("md5", md5)])
        except Exception as error:  # each kind of remote fails in its own way
            original.faults.append(f"the DVC remote could not be asked: {type(error).__name__}: {error}")
        right = cached.is_file() and file_md5(cached) == md5
        if cached.is_file() and not right:
            original.faults.append(f"the DVC remote's copy of {md5} was changed: its content is another")
            cached.unlink()
        if aside.exists():
            aside.unlink() if right else aside.replace(cached)
        return right

    def _shown(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def file_md5(path: Path) -> str:
    """MD5 of a file's bytes, in hexadecimal, as DVC writes it; for a name, not for safety."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def place_copy(source: Path, place: Path) -> None:
    """Put a copy of `source` at `place`: a copy, so that nothing that runs there can change the cache."""
    with replacing(place) as temp:
        shutil.copyfile(source, temp)
