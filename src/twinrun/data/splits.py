"""Which image goes to which split, decided by a hash alone. Pure: refuses to know files, tables or what is enough.

An image's place is a function of the seed and its pixels: adding, removing or renaming images moves no other, and
identical pixels stay together. The price is that shares are met on average, in each label as in all, and not to the
image. To meet them exactly an image's place would have to depend on the others of its label, so that one more could
move it, or on an earlier run's places, so that the same images would no longer give the same splits. The drawn share
of n images strays from a fraction f by about sqrt(f (1 - f) / n); that each label has enough images in each split is
for an expectation to say.
"""

import hashlib
from collections.abc import Sequence

from twinrun.data.manifest import SPLITS, SplitName

_WHOLE = 1 << 64


def assign_splits(
    published: Sequence[str | None], pixels_sha256: Sequence[str | None], fractions: dict[SplitName, float], seed: int
) -> list[str | None]:
    """The split of each image: the published one, or one decided by hash; None for an image without either.

    What the source published stands, except that the splits that it did not publish are carved out of its `train`, in
    the proportions of `fractions`. Where it published some splits, an image without one counts as `train`.
    """
    missing = [name for name in SPLITS if name not in set(published) or name == "train"]
    total = sum(fractions[name] for name in missing)
    return [
        split
        if split not in (None, "train")
        else _drawn(pixels, missing, fractions, total, seed)
        if pixels is not None
        else split
        for split, pixels in zip(published, pixels_sha256, strict=True)
    ]


def _drawn(
    pixels: str, names: list[SplitName], fractions: dict[SplitName, float], total: float, seed: int
) -> SplitName:
    if len(names) == 1:
        return names[0]
    digest = hashlib.sha256(f"{seed}:{pixels}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / _WHOLE * total
    for name in names[:-1]:
        if place < fractions[name]:
            return name
        place -= fractions[name]
    return names[-1]
