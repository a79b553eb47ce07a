"""The energy that a training took, where the machine reports it."""

import re
import threading
from collections.abc import Sequence
from pathlib import Path

_POWERCAP = Path("/sys/class/powercap")
_EVERY_S = 60.0


class EnergyMeter:
    """Energy that the processors took since the meter was made, where the machine reports it (Linux powercap, RAPL).

    The counters wrap after minutes at full load, so a thread reads them often.
    """

    def __init__(self, powercap: Path = _POWERCAP, every_s: float = _EVERY_S) -> None:
        """Start measuring. `powercap` is the folder that holds the packages, intel-rapl:0 and so on."""
        self._powercap = powercap
        self._last = self._read()
        self._total_uj: int | None = 0 if self._last else None
        self._lock, self._over = threading.Lock(), threading.Event()
        if self._last:
            threading.Thread(target=self._follow, args=(every_s,), daemon=True, name="energy").start()

    def joules(self) -> float | None:
        """Joules over all packages, and the end of measuring; None where the counters could not be read throughout."""
        self._over.set()
        self._add()
        return None if self._total_uj is None else self._total_uj / 1e6

    def _follow(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            self._add()

    def _add(self) -> None:
        with self._lock:
            now = self._read()
            if self._total_uj is None or now.keys() != self._last.keys():
                self._total_uj = None
                return
            for package, (end, limit) in now.items():
                start, _ = self._last[package]
                self._total_uj += end - start if end >= start else end - start + limit
            self._last = now

    def _read(self) -> dict[str, tuple[int, int]]:
        counters = {}
        for package in sorted(self._powercap.glob("*-rapl:*")):
            # intel-rapl:0:1 is a part of intel-rapl:0, and intel-rapl-mmio:0 the same counter once more.
            if not re.fullmatch(r"(intel|amd)-rapl:\d+", package.name):
                continue
            try:
                counters[package.name] = (
                    int((package / "energy_uj").read_text()),
                    int((package / "max_energy_range_uj").read_text()),
                )
            except (OSError, ValueError):
                continue
        return counters


class GpuEnergyMeter:
    """Energy that GPUs took since the meter was made, by the counters of NVIDIA's driver (NVML, since Volta)."""

    def __init__(self, uuids: Sequence[str]) -> None:
        """Start measuring. `uuids` are as the driver writes them, GPU-... each."""
        self._uuids = tuple(uuids)
        self._first = _gpus_millijoules(self._uuids)

    def joules(self) -> float | None:
        """Joules over all of the GPUs; None without one, or where the driver does not report it."""
        last = _gpus_millijoules(self._uuids)
        # The counters begin at 0 when the driver is loaded again.
        return None if last is None or self._first is None or last < self._first else (last - self._first) / 1000


def _gpus_millijoules(uuids: Sequence[str]) -> int | None:
    if not uuids:
        return None
    try:
        from cuda.bindings import nvml  # comes with PyTorch for CUDA
    except ImportError:
        return None
    untold = (nvml.NvmlError, RuntimeError)  # the second where the driver, or a function of it, is missing
    try:
        nvml.init_v2()
    except untold:
        return None
    try:
        handles = [nvml.device_get_handle_by_uuid(uuid) for uuid in uuids]
        return sum(int(nvml.device_get_total_energy_consumption(handle)) for handle in handles)
    except untold:
        return None
    finally:
        nvml.shutdown()
