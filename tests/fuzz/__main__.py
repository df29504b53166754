"""`make fuzz`: atheris over every target, to a count, with limits on time and memory.

    python -m tests.fuzz --cases 1000000

Each target runs in a process of its own. A case that crashes, hangs for more than 5 seconds or
takes more than 1 GB is kept in tests/fuzz/seeds, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time

from tests.fuzz.targets import TARGETS


def main() -> None:
    """Share the cases among the targets, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000, help="in all")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    each = -(-options.cases // len(names))
    print(f"{'target':<14}{'cases':>10}{'seconds':>10}{'peak MiB':>10}  result", flush=True)
    total = faults = 0
    for name in names:
        done, seconds, peak, fault = run_child(name, each)
        total += done
        faults += fault is not None
        print(f"{name:<14}{done:>10,}{seconds:>10.0f}{peak:>10}  {fault or 'no fault'}", flush=True)
    print(f"{total:,} cases, {faults} of {len(names)} targets with a fault")
    sys.exit(1 if faults else 0)


def run_child(name: str, cases: int) -> tuple[int, float, int, str | None]:
    """Cases done, seconds, peak memory in MiB, and the fault that ended it, if one did."""
    start = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(cases)]
    child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = child.stdout + child.stderr
    counts = [int(number) for number in re.findall(r"^#(\d+)\s", said, re.MULTILINE)]
    final = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)
    peaks = re.findall(r"stat::peak_rss_mb:\s*(\d+)", said)
    fault = _fault(said) if child.returncode != 0 else None
    done = int(final[0]) if final else max(counts, default=0)
    return done, time.monotonic() - start, int(peaks[0]) if peaks else 0, fault


def _fault(said: str) -> str:
    """One line on what ended a child: a Python exception, or libFuzzer's own word."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for number, line in enumerate(lines[:-1]):
        if "Uncaught Python exception" in line:
            return lines[number + 1][:100]
    return next((line[:100] for line in lines if "ERROR: libFuzzer" in line), lines[-1][:100])


if __name__ == "__main__":
    main()
