"""The sources by name: each turns params.yaml's `ingest` section into a listing. Decodes nothing.

A new source is a function here and its name in params.py: it lists items (path, label, published split) and says where
their content lies, in files or in memory.
"""

import re
from dataclasses import replace

from twinrun.base.errors import SourceError
from twinrun.core.params import IngestParams
from twinrun.core.searching import limited_search
from twinrun.ingest.folders import list_tree
from twinrun.ingest.known_sets import list_cifar10, list_digits, list_idx
from twinrun.ingest.listing import RAW, Listing, source_folder


def list_source(params: IngestParams) -> Listing:
    """List what the source of `params` offers, sorted by path; downloads it where it is published and not here.

    Raises SourceError that says what is missing and how to get it, and where ingest.group_pattern names no groups.
    """
    return _grouped(_listed(params), params.group_pattern)


def _listed(params: IngestParams) -> Listing:
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


def _grouped(listing: Listing, pattern: str | None) -> Listing:
    """The listing with the groups that `pattern` captures in paths; a group that the source names stands above them."""
    if pattern is None:
        return listing
    with limited_search(pattern, "params.yaml: ingest.group_pattern", SourceError) as search:
        items = [item if item.group else replace(item, group=_captured(search(item.path))) for item in listing.items]
    groups = {item.group for item in items} - {None}
    if not groups:
        shown = f", such as {listing.items[0].path}" if listing.items else ""
        raise SourceError(
            f"{pattern!r} matches no image's path{shown} (params.yaml: ingest.group_pattern). It is searched for in "
            "the path inside the source; its first capturing group, or the whole match, becomes the name of the group."
        )
    without = sum(item.group is None for item in items)
    alone = f"; {without:,} images are in none" if without else ""
    return replace(listing, items=items, notes=[*listing.notes, f"{len(groups):,} groups of images{alone}."])


def _captured(match: "re.Match[str] | None") -> str | None:
    if match is None:
        return None
    return (match.group(1) if match.re.groups else match.group()) or None
