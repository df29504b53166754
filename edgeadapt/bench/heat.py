"""How hot and how fast the cores are, and whether the machine says that it held them back.

From Linux's sysfs: thermal zones and cooling devices (Documentation/driver-api/thermal), cpufreq,
Intel's throttle counters, and the Raspberry Pi's firmware flags (get_throttled).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")

_PI_FLAGS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
"""Bits that tell of now, in the Raspberry Pi documentation of vcgencmd get_throttled."""
_SLOWER = 0.9
"""A clock that falls below this share of its first value counts as held back."""


@dataclass(frozen=True)
class Heat:
    """Readings at one moment; None or empty for what the system does not show."""

    temperature_c: float | None
    """The hottest sensor."""
    frequency_mhz: float | None
    """Mean over the cores."""
    throttle_counts: dict[str, int]
    cooling: dict[str, int]
    """Cooling device -> its state; fans are left out."""
    firmware: tuple[str, ...]


def heat(root: Path = SYS) -> Heat:
    """Read the sensors.

    Args:
        root: where sysfs is.
    """
    zones = [_number(p) for p in root.glob("class/thermal/thermal_zone*/temp")]
    # Millidegrees; some boards list sensors that are off as 0 or as nonsense.
    degrees = [value / 1000 for value in zones if value is not None and 0 < value < 150_000]
    cores = "devices/system/cpu/cpu[0-9]*"
    clocks = [_number(p) for p in root.glob(f"{cores}/cpufreq/scaling_cur_freq")]
    kilohertz = [value for value in clocks if value]
    return Heat(
        temperature_c=max(degrees, default=None),
        frequency_mhz=sum(kilohertz) / len(kilohertz) / 1000 if kilohertz else None,
        throttle_counts=_counts(root, root.glob(f"{cores}/thermal_throttle/*_throttle_count")),
        cooling=_cooling(root),
        firmware=_firmware(root),
    )


def watched(reading: Heat) -> tuple[str, ...]:
    """What the system lets us see."""
    seen = {
        "temperature": reading.temperature_c is not None,
        "frequency": reading.frequency_mhz is not None,
        "throttle counters": bool(reading.throttle_counts) or bool(reading.firmware),
        "cooling devices": bool(reading.cooling),
    }
    return tuple(name for name, there in seen.items() if there)


def throttling(readings: Sequence[Heat]) -> tuple[str, ...]:
    """What held the cores back between the first reading and the last, in words."""
    if len(readings) < 2:
        return ()
    first, last = readings[0], readings[-1]
    found = []
    rose = sum(n - first.throttle_counts.get(k, n) for k, n in last.throttle_counts.items())
    if rose > 0:
        found.append(f"the CPU counted {rose} thermal throttle events")
    for name, state in first.cooling.items():
        most = max(reading.cooling.get(name, state) for reading in readings)
        if most > state:
            found.append(f"cooling device {name} went from state {state} to {most}")
    flags = dict.fromkeys(flag for reading in readings for flag in reading.firmware)
    found += [f"the firmware reports: {flag}" for flag in flags]
    clocks = [r.frequency_mhz for r in readings if r.frequency_mhz is not None]
    if clocks and min(clocks) < _SLOWER * clocks[0]:
        found.append(f"the clock fell from {clocks[0]:.0f} to {min(clocks):.0f} MHz")
    return tuple(found)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text().strip(), 0)
    except (OSError, ValueError):  # a sensor that is asleep answers with an error
        return None


def _counts(root: Path, paths: Iterable[Path]) -> dict[str, int]:
    values = ((str(path.relative_to(root)), _number(path)) for path in paths)
    return {name: value for name, value in values if value is not None}


def _cooling(root: Path) -> dict[str, int]:
    found = {}
    for folder in sorted(root.glob("class/thermal/cooling_device*")):
        state = _number(folder / "cur_state")
        try:
            kind = (folder / "type").read_text().strip()
        except OSError:
            continue
        if state is not None and "fan" not in kind.lower():
            found[f"{folder.name.removeprefix('cooling_device')} ({kind})"] = state
    return found


def _firmware(root: Path) -> tuple[str, ...]:
    path = root / "devices/platform/soc/soc:firmware/get_throttled"
    try:
        bits = int(path.read_text().strip(), 16)
    except (OSError, ValueError):
        return ()
    return tuple(name for bit, name in _PI_FLAGS.items() if bits >> bit & 1)
