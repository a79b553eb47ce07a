"""Energy of processors and GPUs, by counters that stand in for those of the machine."""

import time
from pathlib import Path

import pytest

from twinrun.record.energy import EnergyMeter, GpuEnergyMeter


def test_energy_is_counted_over_packages_and_counters_that_wrap_more_than_once(tmp_path: Path) -> None:
    for name, energy in (("intel-rapl:0", 900), ("intel-rapl:1", 0), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(energy))
        (tmp_path / name / "max_energy_range_uj").write_text("1000")
    meter, often = EnergyMeter(tmp_path, every_s=60), EnergyMeter(tmp_path, every_s=0.01)

    for energy in (100, 700, 200):
        (tmp_path / "next").write_text(str(energy))
        (tmp_path / "next").replace(tmp_path / "intel-rapl:0/energy_uj")  # a counter is never empty
        time.sleep(0.5)
    (tmp_path / "intel-rapl:1/energy_uj").write_text("300")

    assert meter.joules() == pytest.approx((300 + 300) * 1e-6)
    assert often.joules() == pytest.approx((200 + 600 + 500 + 300) * 1e-6)
    assert EnergyMeter(tmp_path / "nowhere").joules() is None


class _Driver:
    """The part of NVML that is asked, with the names and errors of the real bindings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, counters: dict[str, int]) -> None:
        nvml = pytest.importorskip("cuda.bindings.nvml", reason="PyTorch without CUDA")
        self.counters, self.open, self.error = counters, 0, nvml.NotSupportedError
        self.fails = False
        for name, stands_in in (
            ("init_v2", lambda: self._count(1)),
            ("shutdown", lambda: self._count(-1)),
            ("device_get_handle_by_uuid", list(counters).index),
            ("device_get_total_energy_consumption", self._energy),
        ):
            monkeypatch.setattr(nvml, name, stands_in)  # fails where the bindings have no such function

    def _count(self, change: int) -> None:
        self.open += change

    def _energy(self, handle: int) -> int:
        assert self.open == 1
        if self.fails:
            raise self.error(3)
        return list(self.counters.values())[handle]


def test_energy_of_gpus_is_what_the_counters_of_those_that_train_grew_by(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _Driver(monkeypatch, {"GPU-a": 5_000, "GPU-b": 100, "GPU-idle": 7})
    meter = GpuEnergyMeter(["GPU-a", "GPU-b"])

    driver.counters.update({"GPU-a": 7_500, "GPU-b": 600, "GPU-idle": 9_999})

    assert meter.joules() == pytest.approx(2.5 + 0.5)
    assert driver.open == 0


def test_energy_of_gpus_is_unknown_where_the_driver_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _Driver(monkeypatch, {"GPU-a": 5_000})
    meter = GpuEnergyMeter(["GPU-a"])
    driver.fails = True
    assert meter.joules() is None

    driver.fails = False
    driver.counters["GPU-a"] = 10  # the driver was loaded anew
    assert meter.joules() is None
    assert GpuEnergyMeter([]).joules() is None
    assert driver.open == 0


def test_a_machine_without_the_driver_tells_no_energy_of_gpus() -> None:
    assert GpuEnergyMeter(["GPU-a"]).joules() is None
