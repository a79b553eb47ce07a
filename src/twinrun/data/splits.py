"""Which image goes to which split, decided by a hash alone. Pure: refuses to know files, tables or what is enough.

An image's place is a function of the seed and its pixels: adding, removing or renaming images moves no other, and
identical pixels stay together. Images that must stay together, as changed copies of one picture or as a group that the
source names, share one key: the group's name, or the smallest of their pixel hashes, so that only an image that joins
them may move them.

The price is that shares are met on average, in each label as in all, and not to the image. To meet them exactly an
image's place would have to depend on the others of its label, so that one more could move it, or on an earlier run's
places, so that the same images would no longer give the same splits. The drawn share of n images strays from a fraction
f by about sqrt(f (1 - f) / n); that each label has enough images in each split is for an expectation to say.
"""

import hashlib
from collections.abc import Iterable, Sequence

from twinrun.data.manifest import SPLITS, SplitName

_WHOLE = 1 << 64
_GROUP = "group:"


def assign_splits(
    published: Sequence[str | None], keys: Sequence[str | None], fractions: dict[SplitName, float], seed: int
) -> list[str | None]:
    """The split of each image: the published one, or one decided by its key; None for an image without either.

    What the source published stands, except that the splits that it did not publish are carved out of its `train`, in
    the proportions of `fractions`. Where it published some splits, an image without one follows those of its key that
    are in val or test, the last of them, and counts as `train` where there are none.
    """
    missing = [name for name in SPLITS if name not in set(published) or name == "train"]
    total = sum(fractions[name] for name in missing)
    held_out = _held_out(published, keys)

    def place(split: str | None, key: str | None) -> str | None:
        if key is None or split not in (None, "train"):
            return split
        if split is None and key in held_out:
            return held_out[key]
        return _drawn(key, missing, fractions, total, seed)

    return [place(split, key) for split, key in zip(published, keys, strict=True)]


def split_keys(
    pixels_sha256: Sequence[str | None], groups: Sequence[str | None], copies: Iterable[tuple[int, int]]
) -> list[str | None]:
    """What decides the split of each image: one key for all that `groups`, equal pixels or `copies` hold together.

    It is the first of the groups' names, or else the smallest hash of pixels; None for an image without pixels.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    links = list(copies)
    for keys_of_rows in (pixels_sha256, map(_group_key, groups)):
        links += [
            (earlier, row)
            for row, key in enumerate(keys_of_rows)
            if key is not None and (earlier := first.setdefault(key, row)) != row
        ]
    ends = np.array(links, np.int64).reshape(-1, 2)
    count = len(pixels_sha256)
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    members = connected_components(graph, directed=False)[1].tolist()
    keys: dict[int, str] = {}
    for member, pixels, group in zip(members, pixels_sha256, groups, strict=True):
        own = _group_key(group) or pixels
        if own is not None:
            keys[member] = min(own, keys.get(member, own), key=lambda key: (not key.startswith(_GROUP), key))
    return [keys[member] if pixels is not None else None for member, pixels in zip(members, pixels_sha256, strict=True)]


def _held_out(published: Sequence[str | None], keys: Sequence[str | None]) -> dict[str, SplitName]:
    """The last of the splits val and test that the source published for an image of each key."""
    found: dict[str, SplitName] = {}
    for name in SPLITS[1:]:
        found |= {key: name for split, key in zip(published, keys, strict=True) if split == name and key is not None}
    return found


def _group_key(group: str | None) -> str | None:
    return None if group is None else _GROUP + group


def _drawn(key: str, names: list[SplitName], fractions: dict[SplitName, float], total: float, seed: int) -> SplitName:
    if len(names) == 1:
        return names[0]
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / _WHOLE * total
    for name in names[:-1]:
        if place < fractions[name]:
            return name
        place -= fractions[name]
    return names[-1]
