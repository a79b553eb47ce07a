"""Which images make up each step of an epoch, as a function of settings and image ids. Reads no pixels.

    epoch e  ->  order from (seed, e)  ->  batches of batch_size  ->  shards of a batch

A batch of a single image cannot be normalised over its batch, so an epoch that would end with one gives it to the batch
before; and a shard has at least two images wherever its batch has.
"""

from itertools import pairwise

import numpy as np

from twinrun.core.arrays import IntArray
from twinrun.core.keyed import UInt64Array, keyed_order

_ORDER = 1  # the stream of draws that decides the order of an epoch


def epoch_batches(keys: UInt64Array, seed: int, epoch: int, batch_size: int) -> list[IntArray]:
    """Cut the images of `epoch` (from 0) into batches; each holds indices into `keys`.

    `keys` has shape (N,), N >= 1. All batches have `batch_size` images but the last, which has what remains.
    """
    order = keyed_order(keys, seed, _ORDER, epoch)
    edges = [0, *np.cumsum(batch_sizes(len(keys), batch_size)).tolist()]
    return [order[start:end] for start, end in pairwise(edges)]


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Number of images in each batch of an epoch; they add up to `images`."""
    full, rest = divmod(images, batch_size)
    if rest == 1 and full:
        return [*[batch_size] * (full - 1), batch_size + 1]
    return [batch_size] * full + ([rest] if rest else [])


def shard_slices(images: int, shards: int) -> list[slice]:
    """Cut a batch into at most `shards` parts, their sizes at most one apart; fewer where a part would be one image."""
    count = min(shards, max(1, images // 2))
    return [slice(images * k // count, images * (k + 1) // count) for k in range(count)]
