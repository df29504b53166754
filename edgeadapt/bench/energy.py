"""Energy by the machine's own counters. Where there is none, none is stated: never an estimate.

Intel and AMD count joules (RAPL, Documentation/power/powercap); a Jetson's INA3221 and a battery
show power, which is read ten times a second and summed up.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from edgeadapt.bench.heat import SYS

_INTERVAL_S = 0.1


class Counter(Protocol):
    """Something that tells joules since an arbitrary beginning."""

    @property
    def source(self) -> Literal["rapl", "ina3221", "battery"]:
        """Which kind."""

    @property
    def scope(self) -> str:
        """What is behind it."""

    def advance(self) -> None:
        """Read the hardware now; called at the start, at the end and in between."""

    def joules(self) -> float | None:
        """Joules since the first `advance`; None if a reading failed."""


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text().strip())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@dataclass
class Rapl:
    """The sum over packages. The counters wrap, so they are read more often than that."""

    zones: list[Path]
    source: Literal["rapl"] = "rapl"
    scope: str = ""
    _last: list[float] | None = None
    _microjoules: float = 0.0
    _failed: bool = False

    def advance(self) -> None:
        """See `Counter`."""
        values = [_number(zone / "energy_uj") for zone in self.zones]
        now = [value for value in values if value is not None]
        if len(now) < len(self.zones):
            self._failed = True
            return
        for zone, before, after in zip(self.zones, self._last or now, now, strict=True):
            wrap = _number(zone / "max_energy_range_uj") or 0.0
            self._microjoules += after - before if after >= before else after - before + wrap
        self._last = now

    def joules(self) -> float | None:
        """See `Counter`."""
        return None if self._failed or self._last is None else self._microjoules / 1e6


@dataclass
class Power:
    """Watts of a sensor, summed over time by the trapezoidal rule."""

    source: Literal["ina3221", "battery"]
    scope: str
    factors: tuple[Path, ...]
    scale: float
    """The product of the readings in `factors`, times this, is watts."""
    _last: tuple[float, float] | None = None
    _joules: float = 0.0
    _failed: bool = False

    def advance(self) -> None:
        """See `Counter`."""
        watts = self.scale
        for path in self.factors:
            value = _number(path)
            if value is None:
                self._failed = True
                return
            watts *= abs(value)  # some drivers show what leaves a battery as negative
        now = time.perf_counter()
        if self._last is not None:
            self._joules += (now - self._last[0]) * (watts + self._last[1]) / 2
        self._last = now, watts

    def joules(self) -> float | None:
        """See `Counter`."""
        return None if self._failed or self._last is None else self._joules


def find_counter(root: Path = SYS) -> Counter | None:
    """The best counter that can be read: RAPL, a Jetson's board input, a battery in use.

    Args:
        root: where sysfs is.
    """
    return _rapl(root) or _ina3221(root) or _battery(root)


def _rapl(root: Path) -> Rapl | None:
    folders = sorted(root.glob("class/powercap/intel-rapl:*"))
    names = {folder: _text(folder / "name") for folder in folders if folder.name.count(":") == 1}
    zones = [folder for folder, name in names.items() if name.startswith("package")]
    if not zones or any(_number(zone / "energy_uj") is None for zone in zones):
        return None  # since 2020 only root may read it
    return Rapl(zones, scope=", ".join(names[zone] for zone in zones))


def _ina3221(root: Path) -> Power | None:
    """The channel that feeds the whole board, by the labels that NVIDIA gives it."""
    for label in sorted(root.glob("bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        name, number = _text(label), label.name[2:].partition("_")[0]
        factors = label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input")
        if name in ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0") and None not in map(_number, factors):
            return Power("ina3221", name, factors, 1e-6)  # millivolts and milliamperes
    return None


def _battery(root: Path) -> Power | None:
    for folder in sorted(root.glob("class/power_supply/*")):
        kind, status = _text(folder / "type"), _text(folder / "status")
        if kind != "Battery" or status != "Discharging":
            continue
        power = (folder / "power_now",)
        if _number(power[0]) is not None:
            return Power("battery", folder.name, power, 1e-6)
        factors = folder / "current_now", folder / "voltage_now"
        if None not in map(_number, factors):
            return Power("battery", folder.name, factors, 1e-12)
    return None


@dataclass
class Meter:
    """Watches a counter, in a thread, from `start` to `stop`."""

    counter: Counter | None
    seconds: float = 0.0
    _begun: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to count."""
        if self.counter is None:
            return
        self.counter.advance()
        self._begun = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Count no further; does nothing the second time."""
        if self.counter is None or self._thread is None or self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self.counter.advance()
        self.seconds = time.perf_counter() - self._begun

    def _watch(self) -> None:
        assert self.counter is not None
        while not self._ended.wait(_INTERVAL_S):
            self.counter.advance()
