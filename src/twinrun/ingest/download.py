"""Fetching published data sets, through torchvision's mirrors and checksums."""

import shutil
import tarfile
from pathlib import Path

from twinrun.base.errors import SourceError
from twinrun.base.files import replacing

# Without torchvision, whose import takes 3 s, for the message that says what to fetch.
_COMMANDS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
}
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_TIMEOUT_S = 30.0


def command(name: str, folder: Path) -> str:
    """A command that fetches the files of the source `name` into `folder`, in a shell."""
    if name == "cifar10":
        return f"mkdir -p '{folder}' && curl -fL {_CIFAR10_URL} | tar -xz -C '{folder}'"
    return f"curl -fL --create-dirs --output-dir '{folder}' --remote-name-all '{_COMMANDS[name]}'"


def fetch(name: str, folder: Path, stems: list[str]) -> None:
    """Put the checked files of the source `name` that are called after `stems` into `folder`, each whole or not at all.

    An archive that a person fetched is unpacked and stays. Raises SourceError where no mirror gives a file with the
    right checksum.
    """
    if name == "cifar10":
        from torchvision.datasets.utils import check_integrity

        fetched = folder / _CIFAR10_URL.rpartition("/")[2]
        if check_integrity(str(fetched), _CIFAR10_MD5):
            unpack(fetched, folder, stems)
            return
        archive = fetched.with_name(f".{fetched.name}")
        _fetch_one([_CIFAR10_URL], _CIFAR10_MD5, archive)
        unpack(archive, folder, stems)
        archive.unlink()
        return
    from torchvision.datasets import MNIST, FashionMNIST

    kind = MNIST if name == "mnist" else FashionMNIST
    for file_name, md5 in kind.resources:
        if Path(file_name).stem in stems:
            _fetch_one([mirror + file_name for mirror in kind.mirrors], md5, folder / file_name)


def unpack(archive: Path, folder: Path, stems: list[str]) -> None:
    """Put the files of a tar archive that are called after `stems` below `folder`, each in its folder in the archive.

    Each appears whole or not at all.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.stem not in stems or (content := tar.extractfile(member)) is None:
                continue
            with content, replacing(folder / path.parent.name / path.name) as temp, temp.open("wb") as file:
                shutil.copyfileobj(content, file)


def _fetch_one(urls: list[str], md5: str, path: Path) -> None:
    import socket
    from http.client import HTTPException

    from torchvision.datasets.utils import download_url

    problems: list[str] = []
    default_timeout = socket.getdefaulttimeout()
    for url in urls:
        try:
            socket.setdefaulttimeout(_TIMEOUT_S)  # torchvision sets none, and a silent server would hold us for ever
            with replacing(path) as temp:
                download_url(url, str(temp.parent), temp.name, md5)
            return
        except (OSError, RuntimeError, ValueError, HTTPException) as error:
            problems.append(f"  {url}: {str(error).strip() or type(error).__name__}")
        finally:
            socket.setdefaulttimeout(default_timeout)
    raise SourceError("\n".join([f"{path.name} could not be downloaded:", *problems]))
