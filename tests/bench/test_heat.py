"""Sensors and counters are read as the kernel documents them; what is not there is not invented."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgeadapt.bench.energy import Meter, find_counter
from edgeadapt.bench.heat import heat, throttling, watched


def write(root: Path, **files: object) -> None:
    """Sysfs files; `__` stands for a slash, `_c_` for a colon."""
    for name, value in files.items():
        path = root / name.replace("__", "/").replace("_c_", ":")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def board(root: Path, *, hot: int = 51_000, khz: int = 2_400_000, fan: int = 0, cap: int = 0):
    write(
        root,
        class__thermal__thermal_zone0__temp=hot,
        class__thermal__thermal_zone1__temp=-274_000,  # a sensor that is off
        class__thermal__cooling_device0__cur_state=fan,
        class__thermal__cooling_device0__type="pwm-fan",
        class__thermal__cooling_device1__cur_state=cap,
        class__thermal__cooling_device1__type="cpufreq-cpu0",
        devices__system__cpu__cpu0__cpufreq__scaling_cur_freq=khz,
        devices__system__cpu__cpu1__cpufreq__scaling_cur_freq=khz,
    )
    return heat(root)


def test_a_cool_board_is_not_throttled(tmp_path: Path) -> None:
    first, last = board(tmp_path), board(tmp_path, hot=60_000, fan=3, khz=2_300_000)
    assert (last.temperature_c, last.frequency_mhz) == (60.0, 2300.0)
    assert throttling([first, last]) == ()
    assert watched(first) == ("temperature", "frequency", "cooling devices")


def test_what_throttles_is_named(tmp_path: Path) -> None:
    counter = "devices__system__cpu__cpu0__thermal_throttle__core_throttle_count"
    flags = "devices__platform__soc__soc_c_firmware__get_throttled"
    write(tmp_path, **{counter: 7, flags: "50000"})  # bits 16 and 18 tell of the past
    first = board(tmp_path)
    write(tmp_path, **{counter: 9, flags: "50004"})
    last = board(tmp_path, hot=85_000, khz=1_500_000, cap=4)
    assert throttling([first, last]) == (
        "the CPU counted 2 thermal throttle events",
        "cooling device 1 (cpufreq-cpu0) went from state 0 to 4",
        "the firmware reports: throttled",
        "the clock fell from 2400 to 1500 MHz",
    )


def test_a_system_that_shows_nothing_says_nothing(tmp_path: Path) -> None:
    reading = heat(tmp_path)
    assert reading.temperature_c is None
    assert reading.frequency_mhz is None
    assert watched(reading) == throttling([reading, reading]) == ()
    assert find_counter(tmp_path) is None
    meter = Meter(None)
    meter.start()
    meter.stop()
    assert meter.seconds == 0


def rapl(root: Path, microjoules: int) -> None:
    write(
        root,
        **{
            "class__powercap__intel-rapl_c_0__name": "package-0",
            "class__powercap__intel-rapl_c_0__energy_uj": microjoules,
            "class__powercap__intel-rapl_c_0__max_energy_range_uj": 10_000_000,
            "class__powercap__intel-rapl_c_0_c_0__name": "core",
            "class__powercap__intel-rapl_c_0_c_0__energy_uj": 5,
        },
    )


def test_rapl_counts_packages_and_wraps(tmp_path: Path) -> None:
    rapl(tmp_path, 9_000_000)
    counter = find_counter(tmp_path)
    assert counter is not None
    assert (counter.source, counter.scope) == ("rapl", "package-0")
    counter.advance()
    for value in (9_500_000, 1_500_000):
        rapl(tmp_path, value)
        counter.advance()
    assert counter.joules() == pytest.approx(2.5)
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").unlink()
    counter.advance()
    assert counter.joules() is None  # half a measurement is none


def test_a_jetsons_input_is_summed_over_time(tmp_path: Path) -> None:
    sensor = "bus__i2c__drivers__ina3221__1-0040__hwmon__hwmon1"
    write(
        tmp_path,
        **{
            f"{sensor}__in2_label": "VDD_CPU_GPU_CV",
            f"{sensor}__in2_input": 1,
            f"{sensor}__curr2_input": 1,
            f"{sensor}__in1_label": "VDD_IN",
            f"{sensor}__in1_input": 5000,
            f"{sensor}__curr1_input": 2000,
        },
    )
    counter = find_counter(tmp_path)
    assert counter is not None
    assert (counter.source, counter.scope) == ("ina3221", "VDD_IN")
    outer = time.perf_counter()
    counter.advance()
    inner = time.perf_counter()
    time.sleep(0.05)
    elapsed = time.perf_counter() - inner
    counter.advance()
    joules = counter.joules()
    assert joules is not None
    assert 10 * elapsed <= joules <= 10 * (time.perf_counter() - outer)  # 5 V at 2 A


@pytest.mark.parametrize(("status", "seen"), [("Discharging", True), ("Charging", False)])
def test_a_battery_counts_only_when_it_feeds_the_machine(
    tmp_path: Path, status: str, seen: bool
) -> None:
    write(
        tmp_path,
        class__power_supply__BAT0__type="Battery",
        class__power_supply__BAT0__status=status,
        class__power_supply__BAT0__current_now=-1_500_000,
        class__power_supply__BAT0__voltage_now=12_000_000,
    )
    counter = find_counter(tmp_path)
    assert (counter is not None) is seen
    if counter is not None:
        counter.advance()
        counter.advance()
        joules = counter.joules()
        assert joules is not None
        assert joules >= 0
