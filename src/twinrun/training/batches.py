"""Which images make up each step of an epoch, as a function of settings and image ids. Reads no pixels.

    epoch e  ->  order from (seed, e)  ->  batches of batch_size  ->  shards of a batch

A batch of a single image cannot be normalised over its batch, so an epoch that would end with one gives it to the batch
before; and a shard has at least two images wherever its batch has.
"""

from itertools import pairwise

import numpy as np

from twinrun.core.arrays import IntArray
from twinrun.core.keyed import UInt64Array, keyed_bits, keyed_order

_ORDER, _CLASS_ORDER = 1, 3  # the streams of draws that decide the order of an epoch, and of a class in it


def epoch_batches(
    keys: UInt64Array, seed: int, epoch: int, batch_size: int, balanced: IntArray | None = None
) -> list[IntArray]:
    """Cut the images of `epoch` (from 0) into batches; each holds indices into `keys`.

    `keys` has shape (N,), N >= 1. All batches have `batch_size` images but the last, which has what remains. Where
    `balanced` are the images' classes, shape (N,), each class that there is gets the same number of places, so that
    images of large classes are left out and those of small ones come again: as index + N for the second time, index +
    2 N for the third.
    """
    if balanced is None:
        order = keyed_order(keys, seed, _ORDER, epoch)
    else:
        places = _balanced(keys, balanced, seed, epoch)
        order = places[keyed_order(place_keys(keys, places), seed, _ORDER, epoch)]
    edges = [0, *np.cumsum(batch_sizes(len(keys), batch_size)).tolist()]
    return [order[start:end] for start, end in pairwise(edges)]


def place_keys(keys: UInt64Array, places: IntArray) -> UInt64Array:
    """The key of each place of an epoch: that of its image, and another one for each time that it comes again."""
    image_keys, times = keys[places % len(keys)], (places // len(keys)).astype(np.uint64)
    return np.where(times == 0, image_keys, keyed_bits(image_keys, times))


def _balanced(keys: UInt64Array, classes: IntArray, seed: int, epoch: int) -> IntArray:
    places = []
    present = np.unique(classes)
    for number, present_class in enumerate(present):
        members = np.flatnonzero(classes == present_class)
        wanted = np.arange(len(keys) // len(present) + (number < len(keys) % len(present)))
        shuffled = members[keyed_order(keys[members], seed, _CLASS_ORDER, epoch)]
        places.append(shuffled[wanted % len(members)] + wanted // len(members) * len(keys))
    return np.concatenate(places)


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
