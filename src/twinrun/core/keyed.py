"""Randomness as a function: the same key always gives the same draw.

A draw is a hash of its key, so nothing random needs saving, and neither workers, resumes nor processes can change it.
The mixing function is SplitMix64's (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
applied once for each part of the key.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def keyed_bits(*key: int | UInt64Array) -> UInt64Array:
    """64 random bits for each key, as uint64; integers and arrays in the key broadcast."""
    state: UInt64Array = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            state = _mix(state ^ _mix(_as_uint64(part) + _GOLDEN))
    return state


def keyed_uniform(*key: int | UInt64Array) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) with 53 random bits, one for each key."""
    bits: NDArray[np.float64] = (keyed_bits(*key) >> np.uint64(11)).astype(np.float64)
    return bits * 2.0**-53


def keyed_seed(*key: int) -> int:
    """One seed in [0, 2**63) for a generator that wants an integer."""
    return int(keyed_bits(*key)[0] >> np.uint64(1))


def keyed_order(ids: UInt64Array, *key: int) -> NDArray[np.int64]:
    """A permutation of range(len(ids)): the images sorted by their draw, ties by their id.

    Each image's draw depends on its own id alone, so that adding an image leaves the relative order of the others.
    """
    return np.lexsort((ids, keyed_bits(*key, ids))).astype(np.int64)


def id_keys(ids: list[str]) -> UInt64Array:
    """The 16 hexadecimal digits of each image id as an integer key; shape (N,)."""
    return np.array([int(image_id, 16) for image_id in ids], dtype=np.uint64)


def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def _as_uint64(part: int | UInt64Array) -> UInt64Array:
    return np.asarray(part % 2**64 if isinstance(part, int) else part, dtype=np.uint64).reshape(-1)
