"""The sources by name: each turns params.yaml's `ingest` section into a listing. Refuses to decode anything.

A new source is a function here and its name in params.py: it lists items (path, label, published split) and says where
their content lies, in files or in memory.
"""

from pathlib import Path

from twinrun.data.arrays import list_cifar10, list_digits, list_idx
from twinrun.data.folders import list_folder, list_trashnet
from twinrun.data.listing import Listing
from twinrun.errors import SourceError
from twinrun.params import IngestParams

RAW = Path("data/raw")


def list_source(params: IngestParams) -> Listing:
    """List what the source of `params` offers, sorted by path; downloads it where it is published and not here.

    Raises SourceError that says what is missing and how to get it.
    """
    folder = Path(params.path).expanduser() if params.path is not None else RAW / params.source
    may_download = params.path is None
    splits_file = Path(params.splits_file).expanduser() if params.splits_file is not None else None
    match params.source:
        case "digits":
            return list_digits()
        case "mnist" | "fashion-mnist":
            return list_idx(params.source, folder, may_download)
        case "cifar10":
            return list_cifar10(folder, may_download)
        case "trashnet":
            return list_trashnet(folder, splits_file)
        case "folder":
            return list_folder(folder, splits_file)
    raise SourceError(f"There is no source {params.source!r}.")
