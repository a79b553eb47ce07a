"""Limits on processor time that mean the same on a fast machine and on a slow or busy one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import psutil

_YARDSTICK_S = 0.06  # what the fixed work below takes a fast machine of 2025, which has nothing else to do


def cpu_seconds() -> float:
    """CPU time of this process and of all that it started: unlike a clock, much the same on a busy machine."""
    seconds = sum(os.times()[:4])  # user, system, and those of children that ended
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile
            seconds += sum(child.cpu_times()[:4])
    return seconds


@contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    """Fail if the block needs more CPU time than `seconds` on a fast machine.

    This machine's speed is that of a fixed piece of work, done before and after the block.
    """
    slowdown = _yardstick() / _YARDSTICK_S
    began = cpu_seconds()
    yield
    taken = cpu_seconds() - began
    allowed = seconds * max(1.0, slowdown, _yardstick() / _YARDSTICK_S)
    assert taken <= allowed, f"{taken:.2f} s of CPU time, where this machine is allowed {allowed:.2f}"


def _yardstick() -> float:
    began = time.process_time()
    dict.fromkeys(str(number) for number in range(150_000))
    np.sort(np.random.default_rng(0).random(1_000_000))
    return time.process_time() - began
