"""Measure latency and memory of an artifact on a runtime, in a process of its own.

`run.bench_artifact` is what to call. Nothing is imported here: the measured process imports
`protocol` and should hold as little else as can be.
"""
