"""The default weights that torchvision and timm publish: which file they are, found on this machine, or downloaded.

A file is found below data/pretrained, where `twinrun weights fetch` keeps it, or in the library's own cache
($TORCH_HOME, $HF_HOME). Its sha256 is checked before anything reads it. Training only finds; it never downloads.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from twinrun.base.errors import ModelError
from twinrun.base.files import MANIFEST
from twinrun.base.paths import expanded
from twinrun.base.printing import one_line
from twinrun.core.networks import TIMM, no_published_weights

KEPT = Path("data/pretrained/imagenet")
WEIGHTS, ORIGIN = "weights.safetensors", "origin.json"
_SETTING = "params.yaml: train.pretrained"
_HUB_FILE = "model.safetensors"
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """One file of weights: of which network, where it is published and what is known of it in advance.

    `sha256` are its first digits, which the name of the file carries; empty for a file of the Hugging Face hub, where
    the server and the cache name the whole sha256. `repository` is that of the hub, None for a plain address.
    """

    model: str
    file: str
    url: str
    sha256: str
    size_mb: float | None
    repository: str | None = None

    @property
    def kept(self) -> Path:
        """The folder below data/pretrained where a project keeps the weights."""
        return KEPT / re.sub(r"[^\w.-]", "-", self.model)

    @property
    def cached(self) -> Path:
        """Where the library's own cache has the file: itself, or for the hub the folder of its repository."""
        if self.repository is not None:
            return _hub_cache() / f"models--{self.repository.replace('/', '--')}"
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints" / self.file

    def described(self) -> str:
        """File, size and sha256, as far as they are known."""
        size = "size unknown until it is fetched" if self.size_mb is None else f"{self.size_mb:.1f} MB"
        digest = f"sha256 {self.sha256}..." if self.sha256 else "sha256 named by the hub"
        return f"{self.file}, {size}, {digest}"


@dataclass(frozen=True)
class FoundWeights:
    """The bytes of a file whose hash was checked, its path, and the sha256 of the file as it was published."""

    data: bytes
    path: Path
    sha256: str


def published_weights(model: str) -> Published:
    """The file of default weights of a network of torchvision or timm. Raises ModelError where none is published."""
    if problem := no_published_weights(model):
        raise ModelError(f"{_SETTING}: {problem}.")
    return _of_timm(model) if model.startswith(TIMM) else _of_torchvision(model)


def find_weights(published: Published) -> FoundWeights:
    """Read the file on this machine. Raises ModelError where it is not there, or is not the one that was published."""
    weights = _read_kept(published) or _read_cached(published)
    if weights is None:
        raise ModelError(
            f"The ImageNet weights of {published.model} are not on this machine ({_SETTING}), and a training downloads "
            f"nothing.\n"
            f"  file: {published.described()}\n"
            f"  published at: {published.url}\n"
            f"  looked in: {published.kept} and {published.cached}\n"
            f"Fetch it once: twinrun weights fetch {published.model}\n"
            + (
                "Without a network connection, copy that folder from a machine that has it."
                if published.repository
                else f"Without a network connection, put the file at {published.cached}"
            )
        )
    return weights


def download(published: Published) -> None:
    """Put the file into the library's own cache, unless it is there. Raises ModelError where that fails."""
    import socket

    default_timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT_S)  # neither library sets one everywhere, and a server may stay silent
        if published.repository is not None:
            from huggingface_hub import hf_hub_download

            endpoint = os.environ.get("HF_ENDPOINT")  # the library reads it at its import alone
            hf_hub_download(published.repository, published.file, cache_dir=_hub_cache(), endpoint=endpoint)
        elif not published.cached.is_file():
            import torch

            published.cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(published.cached), published.sha256, progress=False)
    except Exception as error:  # the clients raise errors of several libraries
        reason = one_line(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise ModelError(
            f"The weights of {published.model} could not be fetched: {reason}\n"
            f"  file: {published.described()}\n"
            f"  published at: {published.url}\n"
            "Nothing was kept. Try again, or copy them from a machine that has them: "
            f"{published.cached} or {published.kept}"
        ) from None
    finally:
        socket.setdefaulttimeout(default_timeout)


def _of_torchvision(model: str) -> Published:
    from torchvision.models import get_model_weights

    weights = get_model_weights(model)
    best = getattr(weights, "DEFAULT", None)
    if best is None:
        raise ModelError(f"torchvision publishes no weights of {model} ({_SETTING}). Set it to null, or name a file.")
    return _at_address(model, best.url, best.meta.get("_file_size"))


def _of_timm(model: str) -> Published:
    import timm

    config = timm.get_pretrained_cfg(model.removeprefix(TIMM))
    if config is not None and config.hf_hub_id:
        file = config.hf_hub_filename or _HUB_FILE
        url = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
        return Published(model, file, url, "", None, config.hf_hub_id)
    if config is not None and config.url:
        return _at_address(model, config.url, None)
    raise ModelError(f"timm publishes no weights of {model} ({_SETTING}). Set it to null, or name a file.")


def _at_address(model: str, url: str, size_mb: float | None) -> Published:
    file = url.rpartition("/")[2]
    digits = re.search(r"-([0-9a-f]{8,64})\.\w+$", file)
    if digits is None:
        raise ModelError(
            f"The weights of {model} are published without a sha256 ({url}), so that a change "
            f"would not be noticed. Download them yourself and name the file ({_SETTING})."
        )
    return Published(model, file, url, digits[1], size_mb)


def _read_kept(published: Published) -> FoundWeights | None:
    folder = published.kept
    if not folder.is_dir():
        return None
    again = f"Remove {folder} and fetch it again: twinrun weights fetch {published.model}"
    try:
        wanted = json.loads((folder / MANIFEST).read_bytes())["sha256"]
        files = {name: (folder / name).read_bytes() for name in (ORIGIN, WEIGHTS)}
        for name, content in files.items():
            _require(hashlib.sha256(content).hexdigest(), str(wanted[name]), folder / name, again)
        origin = json.loads(files[ORIGIN])
        if origin["url"] != published.url:  # weights of another version of the library
            return None
        return FoundWeights(files[WEIGHTS], folder / WEIGHTS, str(origin["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"The weights in {folder} cannot be read ({_SETTING}): {one_line(str(error))}. {again}"
        ) from None


def _read_cached(published: Published) -> FoundWeights | None:
    path, wanted = published.cached, published.sha256
    if published.repository is not None:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(published.repository, published.file, cache_dir=_hub_cache())
        if not isinstance(cached, str):
            return None
        path, wanted = Path(cached), Path(cached).resolve().name  # a link to a file that is named by its sha256
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise ModelError(
                f"{path} is not a link to a file named by its sha256, as in the cache of huggingface_hub, so it "
                f"cannot be checked ({_SETTING}). Name it as a file instead: train.pretrained: {path}"
            )
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror} ({_SETTING}).") from None
    digest = hashlib.sha256(data).hexdigest()
    _require(digest, wanted, path, f"Remove it and fetch it again: twinrun weights fetch {published.model}")
    return FoundWeights(data, path, digest)


def _require(digest: str, wanted: str, path: Path, again: str) -> None:
    if not wanted or not digest.startswith(wanted):
        raise ModelError(
            f"The pretrained weights in {path} were changed: their sha256 is {digest}, and should be {wanted}"
            f"{'' if len(wanted) == 64 else '...'} ({_SETTING}). They were not read. {again}"
        )


def _hub_cache() -> Path:
    """The cache of huggingface_hub by its own variables, read now and not when it was imported."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return expanded(cache)
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("HF_HOME") or f"{general}/huggingface") / "hub"
