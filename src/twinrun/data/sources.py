"""The sources by name: each turns params.yaml's `ingest` section into a listing. Refuses to decode anything.

A new source is a function here and its name in params.py: it lists items (path, label, published split) and says where
their content lies, in files or in memory.
"""

from twinrun.data.arrays import list_cifar10, list_digits, list_idx
from twinrun.data.folders import list_tree
from twinrun.data.listing import RAW, Listing, source_folder
from twinrun.errors import SourceError
from twinrun.params import IngestParams


def list_source(params: IngestParams) -> Listing:
    """List what the source of `params` offers, sorted by path; downloads it where it is published and not here.

    Raises SourceError that says what is missing and how to get it.
    """
    folder, may_download = source_folder(params), source_folder(params) == RAW / params.source
    match params.source:
        case "digits":
            return list_digits()
        case "mnist" | "fashion-mnist":
            return list_idx(params.source, folder, may_download)
        case "cifar10":
            return list_cifar10(folder, may_download)
        case "trashnet" | "folder":
            return list_tree(params)
    raise SourceError(f"There is no source {params.source!r}.")
