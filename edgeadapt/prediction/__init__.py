"""Speed and memory of a model on a device, predicted with an interval, before anything is run.

Physics first: bytes read per token over the bandwidth that the cores reach, plus what each token
costs whatever its size. What physics leaves open was fitted to published measurements by
`benchmarks/fit_prediction.py`; `fitted.json` holds the values and their spread.
"""

from edgeadapt.prediction.hardware import Hardware, hardware_of, profile_hardware
from edgeadapt.prediction.memory import MemoryNeed, memory_needed
from edgeadapt.prediction.predict import Interval, decode_speed, prefill_speed
from edgeadapt.prediction.workload import Workload, named_workload

__all__ = [
    "Hardware",
    "Interval",
    "MemoryNeed",
    "Workload",
    "decode_speed",
    "hardware_of",
    "memory_needed",
    "named_workload",
    "prefill_speed",
    "profile_hardware",
]
